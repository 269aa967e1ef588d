import { describe, expect, it } from "vitest";
import { startApiServer } from "./api-server.fixture.ts";
import { NodeAccessReviewer, TokenReviewer } from "./review.ts";

const minute = 60_000;

describe("reviews", () => {
  it("of a token are remembered two minutes, asked once at a time, and never by the token itself", async () => {
    let now = 0;
    await using server = await startApiServer(({ answer }) => answer(201, { status: { authenticated: true, user: { username: "u", groups: ["g"], extra: { k: ["v"] } } } }));
    using client = server.client();
    const reviewer = new TokenReviewer({ client, now: () => now });
    const identity = { user: "u", groups: ["g"], extra: { k: ["v"] } };
    expect(await Promise.all([reviewer.reviewToken("t"), reviewer.reviewToken("t")])).toEqual([identity, identity]);
    now = 2 * minute - 1;
    await reviewer.reviewToken("t");
    expect(server.requests).toHaveLength(1);
    now = 2 * minute;
    await reviewer.reviewToken("t");
    await reviewer.reviewToken("other");
    expect(server.requests).toHaveLength(3);
  });

  it("of access are remembered five minutes when allowed, half a minute when denied", async () => {
    let now = 0;
    await using server = await startApiServer(({ answer, body }) => {
      const { user } = (body as { spec: { user: string } }).spec;
      answer(201, { status: { allowed: user !== "nobody", denied: user === "denied" } });
    });
    using client = server.client();
    const reviewer = new NodeAccessReviewer({ client, nodeName: "n", now: () => now });
    const ask = (user: string): Promise<boolean> => reviewer.authorize({ user, groups: [] }, "get", "metrics");
    expect([await ask("somebody"), await ask("nobody"), await ask("denied")]).toEqual([true, false, false]);
    expect(server.requests[0]?.body).toMatchObject({ spec: { user: "somebody", resourceAttributes: { verb: "get", resource: "nodes", subresource: "metrics", name: "n", version: "v1" } } });
    now = minute / 2;
    await Promise.all([ask("somebody"), ask("nobody")]);
    expect(server.requests).toHaveLength(4);
    now = 5 * minute;
    await ask("somebody");
    expect(server.requests).toHaveLength(5);
  });

  it("tell identities apart that differ in one group, and forget failures", async () => {
    let isAway = true;
    await using server = await startApiServer(({ answer }) => (isAway ? answer(500, {}) : answer(201, { status: { allowed: true } })));
    using client = server.client();
    const reviewer = new NodeAccessReviewer({ client, nodeName: "n" });
    await expect(reviewer.authorize({ user: "u", groups: ["a"] }, "get", "proxy")).rejects.toMatchObject({ code: "Unavailable" });
    isAway = false;
    expect(await reviewer.authorize({ user: "u", groups: ["a"] }, "get", "proxy")).toBe(true);
    expect(await reviewer.authorize({ user: "u", groups: ["b"] }, "get", "proxy")).toBe(true);
    expect(await reviewer.authorize({ user: "u", groups: ["a"] }, "create", "proxy")).toBe(true);
    expect(server.requests).toHaveLength(4);
  });
});
