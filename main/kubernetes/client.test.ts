import { describe, expect, it } from "vitest";
import { hasCode } from "../contract/errors.ts";
import { silentLogger } from "../contract/logger.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import { ApiError } from "./api-error.ts";
import { startApiServer } from "./api-server.fixture.ts";
import type { Exchange } from "./api-server.fixture.ts";
import { pods } from "./resources.ts";
import { startWatchLoop } from "./watch-loop.ts";

const status = (code: number, reason: string, message: string, details: object = {}): object => ({ kind: "Status", status: "Failure", code, reason, message, details });
const pod = (name: string, resourceVersion: string): Pod => ({ metadata: { name, namespace: "a", uid: name, resourceVersion, managedFields: [{ manager: "x" }] } });
const failure = (promise: Promise<unknown>): Promise<unknown> => promise.then(() => undefined).catch((error: unknown) => error);

describe("the client", () => {
  it.each([
    [404, "NotFound", "NotFound"],
    [403, "Forbidden", "Forbidden"],
    [401, "Unauthorized", "Unauthorized"],
    [409, "AlreadyExists", "AlreadyExists"],
    [409, "Conflict", "Conflict"],
    [422, "Invalid", "InvalidArgument"],
    [500, "InternalError", "Unavailable"],
  ])("turns %i %s into %s with the server's sentence", async (code, reason, expected) => {
    await using server = await startApiServer(({ answer }) => answer(code, status(code, reason, "the sentence")));
    using client = server.client();
    const error = await failure(client.get(pods, { namespace: "a", name: "b" }));
    expect(error).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({ code: expected, message: "get pods a/b: the sentence" });
  });

  it("waits as long as a throttling server asks, but not for a disruption budget", async () => {
    await using server = await startApiServer(({ answer, method, path }) => {
      if (path.endsWith("/eviction")) answer(429, status(429, "TooManyRequests", "budget", { causes: [{ reason: "DisruptionBudget" }], retryAfterSeconds: 1 }));
      else if (server.requests.length < 3) answer(429, status(429, "TooManyRequests", "later"), { "retry-after": "0" });
      else answer(200, { metadata: { name: method } });
    });
    using client = server.client();
    expect((await client.get(pods, { namespace: "a", name: "b" })).metadata?.name).toBe("GET");
    expect(server.requests).toHaveLength(3);
    await failure(client.create(pods, { namespace: "a", name: "b", subresource: "eviction" }, {}));
    expect(server.requests).toHaveLength(4);
  });

  it("gives up a request that is not answered, and one that is aborted, at once", async () => {
    await using server = await startApiServer(() => undefined);
    using client = server.client(100);
    expect(hasCode(await failure(client.list(pods, {})), "Unavailable")).toBe(true);
    using patient = server.client();
    const reason = new Error("enough");
    const controller = new AbortController();
    const pending = failure(patient.list(pods, {}, { signal: controller.signal }));
    controller.abort(reason);
    expect(await pending).toBe(reason);
  });

  it("refuses a server of another authority", async () => {
    await using server = await startApiServer(({ answer }) => answer(200, {}));
    await using other = await startApiServer(() => undefined);
    using client = server.client();
    client.use({ server: server.server, certificateAuthority: other.certificateAuthority });
    expect(hasCode(await failure(client.get(pods, { name: "x" })), "Unavailable")).toBe(true);
    expect(server.requests).toHaveLength(0);
  });

  it("exchanges its certificate while a watch goes on", async () => {
    await using server = await startApiServer(({ answer, query, response }) => {
      if (query.get("watch") !== "true") return answer(200, {});
      response.writeHead(200).write(`${JSON.stringify({ type: "ADDED", object: pod("a", "1") })}\n`);
    });
    using client = server.client();
    const connection = { server: server.server, certificateAuthority: server.certificateAuthority };
    client.use({ ...connection, ...server.issue("first") });
    const controller = new AbortController();
    const events = client.watch(pods, {}, { resourceVersion: "0", timeoutSeconds: 60, signal: controller.signal });
    expect((await events.next()).value).toMatchObject({ type: "ADDED" });
    await client.get(pods, { name: "x" });
    client.use({ ...connection, ...server.issue("second") });
    await client.get(pods, { name: "x" });
    expect(server.requests.map(({ user }) => user)).toEqual(["first", "first", "second"]);
    server.requests[0]?.response.write(`${JSON.stringify({ type: "DELETED", object: pod("a", "2") })}\n`);
    expect((await events.next()).value).toMatchObject({ type: "DELETED" });
    controller.abort();
    await events.return();
  });
});

describe("the watch loop", () => {
  /** Follows a scripted server; resolves when `changes` has so many entries. */
  async function follow(handle: (exchange: Exchange, nth: number) => void, count: number): Promise<{ changes: string[]; requests: readonly Exchange[] }> {
    await using server = await startApiServer((exchange) => handle(exchange, server.requests.length));
    using client = server.client();
    const changes: string[] = [];
    const { promise, resolve } = Promise.withResolvers<void>();
    const note = (text: string): void => {
      changes.push(text);
      if (changes.length === count) resolve();
    };
    const loop = startWatchLoop({
      client,
      resource: pods,
      scope: {},
      fieldSelector: "spec.nodeName=n",
      logger: silentLogger,
      replaced: (found) => {
        expect(found.every((object) => object.metadata?.managedFields === undefined)).toBe(true);
        note(`= ${found.map((object) => object.metadata?.name).join(",")}`);
      },
      changed: (type, object) => note(`${type} ${object.metadata?.name}`),
    });
    await promise;
    await loop[Symbol.asyncDispose]();
    return { changes, requests: server.requests };
  }
  const list = (items: readonly Pod[], resourceVersion: string): object => ({ metadata: { resourceVersion }, items });
  const event = (type: string, object: object): string => `${JSON.stringify({ type, object })}\n`;

  it("continues from the last version, bookmarks included, when the connection breaks within an event", async () => {
    const { changes, requests } = await follow(({ answer, query, response }, nth) => {
      if (query.get("watch") !== "true") return answer(200, list([pod("a", "3")], "5"));
      response.writeHead(200);
      if (nth === 2) {
        response.write(event("ADDED", pod("b", "6")) + event("BOOKMARK", { metadata: { resourceVersion: "9" } }) + '{"type":"ADD', () => response.destroy());
      } else response.write(event("DELETED", pod("b", "10")));
    }, 3);
    expect(changes).toEqual(["= a", "ADDED b", "DELETED b"]);
    expect(requests.map(({ query }) => [query.get("resourceVersion"), query.get("fieldSelector")])).toEqual([[null, "spec.nodeName=n"], ["5", "spec.nodeName=n"], ["9", "spec.nodeName=n"]]);
  });

  it.each([
    ["as answer", (exchange: Exchange) => exchange.answer(410, status(410, "Expired", "too old"))],
    ["as event", ({ response }: Exchange) => void response.writeHead(200).end(event("ERROR", status(410, "Expired", "too old")))],
  ])("lists again when the version has expired (%s)", async (_, expire) => {
    const { changes } = await follow((exchange, nth) => {
      if (exchange.query.get("watch") !== "true") exchange.answer(200, list(nth === 1 ? [pod("a", "1")] : [pod("b", "7")], String(nth)));
      else if (nth === 2) expire(exchange);
    }, 2);
    expect(changes).toEqual(["= a", "= b"]);
  });

  it("keeps what it knows while the server fails", async () => {
    const { changes, requests } = await follow((exchange, nth) => {
      if (exchange.query.get("watch") !== "true") exchange.answer(200, list([pod("a", "1")], "1"));
      else if (nth === 2) exchange.answer(500, status(500, "InternalError", "etcd"));
      else if (nth === 3) exchange.response.destroy();
      else exchange.response.writeHead(200).write(event("MODIFIED", pod("a", "2")));
    }, 2);
    expect(changes).toEqual(["= a", "MODIFIED a"]);
    expect(requests.filter(({ query }) => query.get("watch") !== "true")).toHaveLength(1);
  });
});
