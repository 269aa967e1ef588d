import { once } from "node:events";
import { describe, expect, it, vi } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import { startApiServer } from "./api-server.fixture.ts";
import type { Exchange } from "./api-server.fixture.ts";
import { ApiPodObjects } from "./pod-objects.ts";

const secret = (resourceVersion: string, change: object = {}): object => ({ metadata: { namespace: "a", name: "s", uid: "s", resourceVersion }, data: {}, ...change });
const reference = { kind: "Secret", namespace: "a", name: "s" } as const;
const isWatch = ({ query }: Exchange): boolean => query.get("watch") === "true";
const isList = (exchange: Exchange): boolean => exchange.path.endsWith("/secrets") && !isWatch(exchange);
const soon = { timeout: 5000, interval: 10 };

describe("objects of Pods", () => {
  it("are asked for by name alone, watched while a Pod uses them, and no longer", async () => {
    const closed: Promise<unknown>[] = [];
    await using server = await startApiServer((exchange) => {
      if (!isWatch(exchange)) return exchange.answer(200, { metadata: { resourceVersion: "1" }, items: [secret("1")] });
      closed.push(once(exchange.response, "close"));
      exchange.response.writeHead(200).flushHeaders();
    });
    using client = server.client();
    const objects = new ApiPodObjects({ client, logger: silentLogger });
    objects.use("pod-1", [reference]);
    objects.use("pod-2", [reference]);
    const found = await Promise.all([objects.secret("a", "s"), objects.secret("a", "s")]);
    expect(found.map((object) => object?.metadata?.uid)).toEqual(["s", "s"]);
    await vi.waitFor(() => expect(closed).toHaveLength(1), soon);
    expect(server.requests.map(({ path, query }) => [path, query.get("fieldSelector")])).toEqual(Array.from({ length: 2 }, () => ["/api/v1/namespaces/a/secrets", "metadata.name=s"]));
    objects.use("pod-1", []);
    expect(await objects.secret("a", "s")).toBeDefined();
    expect(server.requests).toHaveLength(2);
    objects.use("pod-2", []);
    await closed[0];
  });

  it("tell which Pods a change concerns, also a creation after a Pod waited for it", async () => {
    await using server = await startApiServer((exchange) => {
      if (isWatch(exchange)) exchange.response.writeHead(200).flushHeaders();
      else exchange.answer(200, { metadata: { resourceVersion: "1" }, items: [] });
    });
    using client = server.client();
    const objects = new ApiPodObjects({ client, logger: silentLogger });
    const told: (readonly string[])[] = [];
    objects.subscribe((uids) => told.push(uids));
    objects.use("pod-1", [reference]);
    expect(await objects.secret("a", "s")).toBeUndefined();
    await vi.waitFor(() => expect(server.requests.some(isWatch)).toBe(true), soon);
    server.requests.find(isWatch)?.response.write(`${JSON.stringify({ type: "ADDED", object: secret("2") })}\n`);
    await vi.waitFor(() => expect(told).toEqual([["pod-1"]]), soon);
    expect((await objects.secret("a", "s"))?.metadata?.resourceVersion).toBe("2");
    objects.use("pod-1", []);
  });

  it("are read once and not watched when immutable", async () => {
    await using server = await startApiServer((exchange) => exchange.answer(200, { metadata: { resourceVersion: "1" }, items: [secret("1", { immutable: true })] }));
    using client = server.client();
    const objects = new ApiPodObjects({ client, logger: silentLogger });
    objects.use("pod-1", [reference]);
    for (let times = 0; times < 3; times += 1) expect((await objects.secret("a", "s"))?.metadata?.uid).toBe("s");
    expect(server.requests.map(isWatch)).toEqual([false]);
    objects.use("pod-1", []);
  });

  it("that the cluster does not yet allow are refused now and known later", async () => {
    let isAllowed = false;
    await using server = await startApiServer((exchange) => {
      if (!isAllowed) return exchange.answer(403, { kind: "Status", code: 403, reason: "Forbidden", message: "no relationship found" });
      if (isWatch(exchange)) return exchange.response.writeHead(200).flushHeaders();
      exchange.answer(200, { metadata: { resourceVersion: "1" }, items: [secret("1")] });
    });
    using client = server.client();
    const objects = new ApiPodObjects({ client, logger: silentLogger });
    objects.use("pod-1", [reference]);
    await expect(objects.secret("a", "s")).rejects.toMatchObject({ code: "Forbidden" });
    isAllowed = true;
    await vi.waitFor(() => expect(server.requests.some(isWatch)).toBe(true), soon);
    const before = server.requests.filter(isList).length;
    expect((await objects.secret("a", "s"))?.metadata?.uid).toBe("s");
    expect(server.requests.filter(isList)).toHaveLength(before);
    objects.use("pod-1", []);
  });
});
