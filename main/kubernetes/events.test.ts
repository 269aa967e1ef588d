import { describe, expect, it } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import { startApiServer } from "./api-server.fixture.ts";
import { EventRecorder } from "./events.ts";

const object = (name: string): { kind: string; namespace: string; name: string; uid: string } => ({ kind: "Pod", namespace: "a", name, uid: name });

describe("events", () => {
  it("count repetitions, and are made anew when the cluster forgot them", async () => {
    let isForgotten = false;
    await using server = await startApiServer(({ answer, method }) => (method === "PATCH" && isForgotten ? answer(404, { kind: "Status", code: 404, reason: "NotFound" }) : answer(200, {})));
    using client = server.client();
    await using recorder = new EventRecorder({ client, nodeName: "n", logger: silentLogger });
    for (let times = 0; times < 3; times += 1) recorder.record(object("p"), "Warning", "BackOff", "again");
    await recorder.flush();
    expect(server.requests.map(({ method, body }) => [method, body])).toMatchObject([["POST", { count: 1, reason: "BackOff", involvedObject: { uid: "p" } }], ["PATCH", { count: 2 }], ["PATCH", { count: 3 }]]);
    isForgotten = true;
    recorder.record(object("p"), "Warning", "BackOff", "again");
    await recorder.flush();
    expect(server.requests.slice(3).map(({ method }) => method)).toEqual(["PATCH", "POST"]);
  });

  it("that differ only in their message are combined after ten", async () => {
    await using server = await startApiServer(({ answer }) => answer(200, {}));
    using client = server.client();
    await using recorder = new EventRecorder({ client, nodeName: "n", logger: silentLogger });
    for (let number = 1; number <= 12; number += 1) recorder.record(object("p"), "Warning", "Failed", `attempt ${number}`);
    await recorder.flush();
    const messages = server.requests.map(({ body }) => (body as { message?: string }).message);
    expect(messages[9]).toBe("attempt 10");
    expect(messages[10]).toBe("(combined from similar events): attempt 11");
  });

  it("of one object cannot flood the cluster, and do not silence others", async () => {
    await using server = await startApiServer(({ answer }) => answer(200, {}));
    using client = server.client();
    let now = new Date("2026-01-01T00:00:00Z");
    await using recorder = new EventRecorder({ client, nodeName: "n", logger: silentLogger, now: () => now });
    for (let number = 0; number < 100; number += 1) recorder.record(object("noisy"), "Normal", `Reason${number}`, "x");
    recorder.record(object("quiet"), "Normal", "Reason", "x");
    await recorder.flush();
    expect(server.requests).toHaveLength(26);
    now = new Date(now.getTime() + 300_000);
    recorder.record(object("noisy"), "Normal", "Later", "x");
    recorder.record(object("noisy"), "Normal", "TooEarly", "x");
    await recorder.flush();
    expect(server.requests).toHaveLength(27);
  });

  it("that the cluster refuses are dropped, without disturbing those after", async () => {
    await using server = await startApiServer(({ answer, path }) => (path.includes("/gone/") ? answer(404, { kind: "Status", code: 404, reason: "NotFound" }) : answer(200, {})));
    using client = server.client();
    await using recorder = new EventRecorder({ client, nodeName: "n", logger: silentLogger });
    recorder.record({ ...object("p"), namespace: "gone" }, "Normal", "A", "x");
    recorder.record(object("q"), "Normal", "B", "x");
    await recorder.flush();
    expect(server.requests.map(({ path }) => path)).toEqual(["/api/v1/namespaces/gone/events", "/api/v1/namespaces/a/events"]);
  });
});
