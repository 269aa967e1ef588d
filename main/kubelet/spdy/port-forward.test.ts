import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo, Server, Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTestServer, testPod } from "../../../test/support/kubelet/server.ts";
import type { TestServer } from "../../../test/support/kubelet/server.ts";
import { SpdyTestClient } from "../../../test/support/kubelet/spdy-client.ts";

let host: TestServer;
let echo: Server;
let port: string;
const accepted: Socket[] = [];

beforeAll(async () => {
  host = await startTestServer();
  echo = createServer({ allowHalfOpen: true }, (socket) => {
    accepted.push(socket);
    socket.on("error", () => undefined);
    socket.pipe(socket);
  });
  echo.listen(0, "127.0.0.1");
  await once(echo, "listening");
  port = String((echo.address() as AddressInfo).port);
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  echo.close();
});

const connect = (path = "/portForward/default/shell", server = host): Promise<SpdyTestClient> =>
  SpdyTestClient.connect({ port: server.port, path, protocols: ["portforward.k8s.io"], ...server.admin });

async function openPair(client: SpdyTestClient, requestid: string, target = port): Promise<{ readonly error: number; readonly data: number }> {
  const error = await client.open({ streamtype: "error", port: target, requestid }, true);
  return { error, data: await client.open({ streamtype: "data", port: target, requestid }) };
}

describe("port-forward over SPDY", () => {
  test("carries several connections at a time, each to its end", async () => {
    const client = await connect(`/portForward/default/shell/${testPod.metadata?.uid}`);
    const payloads = Array.from({ length: 5 }, () => randomBytes(500_000));
    const pairs = await Promise.all(payloads.map((_, index) => openPair(client, String(index))));
    for (const [index, { data }] of pairs.entries()) {
      client.data(data, payloads[index] ?? "");
      client.end(data);
    }
    await client.until(() => pairs.every(({ data, error }) => client.stream(data).ended && client.stream(error).ended));
    for (const [index, { data, error }] of pairs.entries()) {
      expect(Buffer.concat(client.stream(data).chunks).equals(payloads[index] ?? Buffer.alloc(0))).toBe(true);
      expect(client.text(error)).toBe("");
    }
    client.close();
  });

  test("says which port could not be reached, and goes on", async () => {
    const client = await connect();
    const closed = await openPair(client, "0", "1");
    await client.until(() => client.stream(closed.error).ended);
    expect(client.text(closed.error)).toMatch(new RegExp(`^error forwarding port 1 to pod shell, uid ${testPod.metadata?.uid}: .*ECONNREFUSED`));
    const open = await openPair(client, "1");
    client.data(open.data, "still here");
    await client.until(() => client.text(open.data) === "still here");
    client.close();
  });

  test("closes the Pod's connection when the client resets its stream or goes", async () => {
    const client = await connect();
    const first = await openPair(client, "0");
    client.data(first.data, "x");
    await client.until(() => client.text(first.data) === "x");
    const firstSocket = accepted.at(-1);
    client.reset(first.data);
    if (firstSocket?.destroyed === false) await once(firstSocket, "close");
    const second = await openPair(client, "1");
    client.data(second.data, "y");
    await client.until(() => client.text(second.data) === "y");
    const secondSocket = accepted.at(-1);
    client.close();
    if (secondSocket?.destroyed === false) await once(secondSocket, "close");
    expect([firstSocket?.destroyed, secondSocket?.destroyed]).toEqual([true, true]);
  });

  test("pairs the streams of clients that send no request id", async () => {
    const client = await connect();
    await client.open({ streamtype: "error", port });
    const data = await client.open({ streamtype: "data", port });
    client.data(data, "old");
    await client.until(() => client.text(data) === "old");
    client.close();
  });

  test.each([
    { streamtype: "data" },
    { streamtype: "data", port: "0" },
    { streamtype: "data", port: "65536" },
    { streamtype: "data", port: "-1" },
    { streamtype: "data", port: "http" },
    { port: "80" },
    { streamtype: "stdin", port: "80" },
  ])("resets a stream with %o", async (headers) => {
    const client = await connect();
    const id = await client.open({ ...headers, requestid: "0" } as Record<string, string>);
    expect(client.stream(id)).toMatchObject({ replied: false, resetStatus: 3 });
    client.close();
  });

  test("resets a second stream of the same kind", async () => {
    const client = await connect();
    await client.open({ streamtype: "error", port, requestid: "0" });
    const second = await client.open({ streamtype: "error", port, requestid: "0" });
    expect(client.stream(second).resetStatus).toBe(3);
    client.close();
  });

  test("resets a stream whose partner does not come", async () => {
    await using hasty = await startTestServer({ streamCreationTimeout: 50 });
    const client = await connect("/portForward/default/shell", hasty);
    const first = await client.open({ streamtype: "error", port, requestid: "0" });
    await client.until(() => client.stream(first).resetStatus !== undefined);
    client.close();
  });

  test("keeps a slow connection's bytes out of memory", async () => {
    const deaf = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.pause();
    });
    deaf.listen(0, "127.0.0.1");
    await once(deaf, "listening");
    const client = await connect();
    const { data } = await openPair(client, "0", String((deaf.address() as AddressInfo).port));
    const before = process.memoryUsage().rss;
    let isTaken = true;
    for (let sent = 0; sent < 60_000_000 && isTaken; sent += 65_536) {
      isTaken =
        client.data(data, Buffer.alloc(65_536)) ||
        (await once(client.socket, "drain", { signal: AbortSignal.timeout(500) }).then(
          () => true,
          () => false,
        ));
    }
    expect(isTaken).toBe(false);
    expect(process.memoryUsage().rss - before).toBeLessThan(60_000_000);
    client.close();
    deaf.close();
  });
});
