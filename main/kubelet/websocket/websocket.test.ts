import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { WebSocket } from "ws";
import { startTestServer } from "../../../test/support/kubelet/server.ts";
import type { TestServer } from "../../../test/support/kubelet/server.ts";

let host: TestServer;
beforeAll(async () => {
  host = await startTestServer();
});
afterAll(() => host[Symbol.asyncDispose]());

interface Client {
  readonly socket: WebSocket;
  readonly messages: (readonly [channel: number, payload: Buffer])[];
  readonly closed: Promise<unknown>;
  payload(channel: number): Buffer;
  send(channel: number, payload: Buffer | string): void;
}

async function connect(path: string, protocol: string): Promise<Client> {
  const socket = new WebSocket(`wss://127.0.0.1:${host.port}${path}`, protocol === "" ? [] : [protocol], { ...host.admin, rejectUnauthorized: false });
  const isBase64 = protocol.includes("base64");
  const messages: (readonly [number, Buffer])[] = [];
  socket.on("message", (data: Buffer, isBinary) => {
    expect(isBinary).toBe(!isBase64);
    messages.push(isBase64 ? [Number(data.toString("latin1", 0, 1)), Buffer.from(data.toString("latin1", 1), "base64")] : [data[0] ?? -1, data.subarray(1)]);
  });
  const closed = once(socket, "close");
  await once(socket, "open");
  expect(socket.protocol).toBe(protocol);
  return {
    socket,
    messages,
    closed,
    payload: (channel) => Buffer.concat(messages.filter(([from]) => from === channel).map(([, payload]) => payload)),
    send: (channel, payload) => socket.send(isBase64 ? `${channel}${Buffer.from(payload).toString("base64")}` : Buffer.concat([Buffer.from([channel]), Buffer.from(payload)])),
  };
}

const execPath = (flags: string, ...argv: readonly string[]): string => `/exec/default/shell/main?${flags}&${argv.map((argument) => `command=${encodeURIComponent(argument)}`).join("&")}`;

describe("exec over a WebSocket", () => {
  test.each(["", "channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "v5.channel.k8s.io"])("speaks %j", async (protocol) => {
    const client = await connect(execPath("output=1&error=1", "sh", "-c", "printf '\\0\\377out'; printf err >&2; exit 5"), protocol);
    await client.closed;
    expect(client.messages[0]).toEqual([1, Buffer.alloc(0)]);
    expect(client.payload(1)).toEqual(Buffer.from([0, 0xff, ...Buffer.from("out")]));
    expect(client.payload(2).toString()).toBe("err");
    const status = client.payload(3).toString();
    if (/^v[45]/.test(protocol)) expect(JSON.parse(status)).toMatchObject({ status: "Failure", reason: "NonZeroExitCode", details: { causes: [{ reason: "ExitCode", message: "5" }] } });
    else expect(status).toBe("command terminated with non-zero exit code: exit status 5");
  });

  test("passes stdin on; version 5 can end it", async () => {
    const client = await connect(execPath("input=1&output=1", "wc", "-c"), "v5.channel.k8s.io");
    client.send(0, Buffer.alloc(70_000));
    client.send(0, "abc");
    client.socket.send(Buffer.from([255, 0]));
    await client.closed;
    expect(client.payload(1).toString().trim()).toBe("70003");
    expect(JSON.parse(client.payload(3).toString())).toEqual({ metadata: {}, status: "Success" });
  });

  test("passes terminal sizes on", async () => {
    const client = await connect(execPath("input=1&output=1&tty=1", "sh", "-c", 'stty size; until [ "$(stty size)" = "40 132" ]; do sleep 0.02; done; echo resized'), "v4.channel.k8s.io");
    client.send(4, '{"Width":111,"Height":33}');
    await vi.waitFor(() => expect(client.payload(1).toString()).toContain("33 111"), 10_000);
    client.send(4, '{"Width":132,"Height":40}');
    await client.closed;
    expect(client.payload(1).toString()).toContain("resized");
  });

  test("delivers much output whole", async () => {
    const client = await connect(execPath("output=1", "head", "-c", "20000000", "/dev/zero"), "v4.channel.k8s.io");
    await client.closed;
    expect(client.payload(1).length).toBe(20_000_000);
    expect(JSON.parse(client.payload(3).toString())).toEqual({ metadata: {}, status: "Success" });
  });

  test("holds back a client whose process does not read, and kills the process when it goes", async () => {
    const client = await connect(execPath("input=1&output=1", "sleep", "600"), "v4.channel.k8s.io");
    await vi.waitFor(() => expect(client.messages.length).toBe(1));
    await vi.waitFor(() => expect(host.pods.started.at(-1)?.spawnargs.join(" ")).toContain("bash"));
    const child = host.pods.started.at(-1);
    const before = process.memoryUsage().rss;
    for (let sent = 0; sent < 40_000_000; sent += 65_536) client.send(0, Buffer.alloc(65_536));
    await expect(vi.waitFor(() => expect(client.socket.bufferedAmount).toBeLessThan(10_000_000), 2000)).rejects.toThrow();
    expect(process.memoryUsage().rss - before).toBeLessThan(150_000_000); // 40 MB of it are the client's own
    client.socket.terminate();
    if (child?.exitCode === null && child.signalCode === null) await once(child, "exit");
    expect(child?.signalCode).toBe("SIGKILL");
  });

  test("kills the process when the client goes", async () => {
    const client = await connect(execPath("output=1", "sleep", "600"), "v4.channel.k8s.io");
    const count = host.pods.started.length;
    await vi.waitFor(() => expect(host.pods.argv.at(-1)?.join(" ")).toBe("sleep 600"));
    await vi.waitFor(() => expect(host.pods.started.length).toBeGreaterThanOrEqual(count));
    const child = host.pods.started.at(-1);
    client.socket.close();
    if (child?.exitCode === null && child.signalCode === null) await once(child, "exit");
    expect(child?.signalCode).toBe("SIGKILL");
  });

  test("refuses a protocol nobody speaks", async () => {
    const socket = new WebSocket(`wss://127.0.0.1:${host.port}${execPath("output=1", "true")}`, ["v9.channel.k8s.io"], { ...host.admin, rejectUnauthorized: false });
    const [, response] = await once(socket, "unexpected-response");
    expect(response.statusCode).toBe(403);
    socket.on("error", () => undefined);
    socket.terminate();
  });

  test("drops a message beyond all measure, and nothing else", async () => {
    const client = await connect(execPath("input=1&output=1", "cat"), "v4.channel.k8s.io");
    client.send(0, Buffer.alloc(8 * 1024 * 1024));
    await client.closed;
    expect((await host.fetch("/healthz")).status).toBe(200);
  });
});

describe("port-forward over a WebSocket", () => {
  test.each(["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"])("speaks %j", async (protocol) => {
    const echo = createServer((socket) => socket.pipe(socket));
    const greeter = createServer((socket) => socket.end("hello and good-bye"));
    for (const server of [echo, greeter]) await once(server.listen(0, "127.0.0.1"), "listening");
    const ports = [echo, greeter].map((server) => (server.address() as AddressInfo).port);
    const client = await connect(`/portForward/default/shell?port=${ports.join(",")}&port=1`, protocol);
    const payload = randomBytes(300_000);
    client.send(0, payload);
    await vi.waitFor(() => expect(client.payload(0).length).toBe(payload.length + 2), 10_000);
    for (const [index, port] of [...ports, 1].entries()) {
      expect(client.payload(2 * index).readUInt16LE(0)).toBe(port);
      expect(client.payload(2 * index + 1).readUInt16LE(0)).toBe(port);
    }
    expect(client.payload(0).subarray(2).equals(payload)).toBe(true);
    await vi.waitFor(() => expect(client.payload(2).subarray(2).toString()).toBe("hello and good-bye"));
    await vi.waitFor(() => expect(client.payload(5).subarray(2).toString()).toMatch(/^error forwarding port 1 to pod shell, uid .*ECONNREFUSED/));
    client.socket.close();
    await client.closed;
    for (const server of [echo, greeter]) await new Promise((resolve) => server.close(resolve)); // only once their connections ended
  });

  test.each([
    ["", 400, 'query parameter "port" is required'],
    ["port=", 400, 'query parameter "port" cannot be empty'],
    ["port=80,http", 400, 'unable to parse "80,http" as a port: expected 1 to 65535'],
    [`port=${Array.from({ length: 128 }, (_, index) => index + 1).join(",")}`, 400, "128 ports were asked for, at most 127 fit one WebSocket"],
  ])("with %j is refused", async (query, status, body) => {
    const headers = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13" };
    expect(await host.fetch(`/portForward/default/shell?${query}`, { client: host.admin, headers })).toMatchObject({ status, body });
  });
});
