/** The gateway over real sockets, with an API of the test's own: it knows nothing of the host's. */
import { randomBytes, createHash } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import { silentLogger } from "../contract/logger.ts";
import type { ProcessExit, ProcessSession, TerminalSize } from "../contract/streams.ts";
import { connectGateway, type GatewayClient } from "./client.ts";
import { findGateway, processStartTime, writeDiscovery } from "./discovery.ts";
import { createEventLog, type EventLog } from "./event-log.ts";
import { defineApi } from "./protocol.ts";
import { startGateway, type Gateway } from "./server.ts";

const api = defineApi({
  calls: {
    "thing.echo": {
      request: z.object({ text: z.string(), list: z.array(z.object({ count: z.number() })).optional() }),
      response: z.object({ text: z.string() }),
    },
    "thing.fail": { request: z.object({ code: z.enum(["NotFound", "Unauthorized"]) }), response: z.object({}) },
    "thing.crash": { request: z.object({}), response: z.object({}) },
    "thing.wait": { request: z.object({}), response: z.object({}) },
  },
  streams: { echo: { request: z.object({ prefix: z.string() }) } },
  events: z.object({ kind: z.literal("tick"), value: z.number() }),
});
type Event = { readonly kind: "tick"; readonly value: number };

/** Echoes stdin with a prefix on stdout, sizes on stderr; ends with 7 when stdin ends. */
class EchoSession implements ProcessSession {
  readonly stdin = new PassThrough();
  readonly stdout: PassThrough;
  readonly stderr = new PassThrough();
  readonly exit: Promise<ProcessExit>;
  isDisposed = false;
  constructor(prefix: string) {
    this.stdout = new PassThrough();
    this.stdout.write(prefix);
    this.exit = pipeline(this.stdin, this.stdout).then(() => ({ exitCode: 7 }));
    this.exit.catch(() => undefined);
    this.stdin.once("end", () => this.stderr.end());
  }
  resize(size: TerminalSize): void {
    this.stderr.write(`${size.columns}x${size.rows} `);
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.isDisposed = true;
    this.stdin.destroy();
    this.stdout.destroy();
    this.stderr.destroy();
  }
}

let directory: string;
let gateway: Gateway;
let client: GatewayClient<typeof api>;
let events: EventLog<Event>;
let sessions: EchoSession[];
let waits: { readonly signal: AbortSignal }[];

function start(): Promise<Gateway> {
  return startGateway({
    api,
    calls: {
      "thing.echo": async ({ text }) => ({ text, secret: "not in the contract" }),
      "thing.fail": async ({ code }) => {
        throw new PodyardError(code, "no such thing", { fix: "make one" });
      },
      "thing.crash": async () => {
        throw new TypeError("oops");
      },
      "thing.wait": (_, { signal }) => {
        waits.push({ signal });
        return new Promise((resolve) => signal.addEventListener("abort", () => resolve({})));
      },
    },
    streams: {
      echo: async ({ prefix }) => {
        if (prefix === "refuse") throw new PodyardError("NotFound", "no such stream");
        const session = new EchoSession(prefix);
        sessions.push(session);
        return session;
      },
    },
    events,
    dataDirectory: join(directory, "data"),
    runtimeDirectory: join(directory, "run"),
    port: 0,
    pageDirectory: join(directory, "page"),
    logger: silentLogger,
  });
}

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "gateway-"));
  await mkdir(join(directory, "page/assets"), { recursive: true });
  await writeFile(join(directory, "page/index.html"), "<title>page</title>");
  await writeFile(join(directory, "page/assets/app.js"), "1;");
  await writeFile(join(directory, "secret.txt"), "secret");
  await symlink(join(directory, "secret.txt"), join(directory, "page/link.txt"));
  events = createEventLog<Event>({ capacity: 5 });
  sessions = [];
  waits = [];
  gateway = await start();
  client = await connectGateway(api, { dataDirectory: join(directory, "data") });
});

afterEach(async () => {
  await client[Symbol.asyncDispose]();
  await gateway[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});

interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

/** fetch() would not let a Host header through. */
function ask(
  path: string,
  headers: Record<string, string> = {},
  body?: string,
  where: http.RequestOptions = { host: "127.0.0.1", port: gateway.port },
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = http.request({ ...where, path, method: body === undefined ? "GET" : "POST", headers, agent: false }, (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => (text += chunk.toString()));
      response.once("end", () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text }));
    });
    request.once("error", reject);
    request.end(body);
  });
}

async function token(): Promise<string> {
  return (await findGateway(join(directory, "data")))?.token ?? "";
}

function handshake(path: string, headers: Record<string, string>): Promise<number> {
  return new Promise((resolve) => {
    const socket = new WebSocket(`ws://127.0.0.1:${gateway.port}${path}`, { headers });
    socket.once("open", () => {
      socket.terminate();
      resolve(101);
    });
    socket.once("unexpected-response", (_, response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
    socket.once("error", () => undefined);
  });
}

async function signIn(): Promise<string> {
  const url = new URL(gateway.createPageUrl() ?? "");
  const answer = await ask(url.pathname + url.search);
  return answer.headers["set-cookie"]?.[0]?.split(";")[0] ?? "";
}

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 5000; !condition(); await new Promise((resolve) => setTimeout(resolve, 10))) {
    if (performance.now() > deadline) throw new Error("the condition never held");
  }
}

describe("calls", () => {
  it("answers with what the contract has, and nothing else", async () => {
    expect(await client.call("thing.echo", { text: "hello \u00e9" })).toEqual({ text: "hello \u00e9" });
    const answer = await ask("/api/thing.echo", { authorization: `Bearer ${await token()}`, "content-type": "application/json" }, '{"text":"x"}');
    expect(JSON.parse(answer.body)).toEqual({ result: { text: "x" } });
    expect(answer.headers).toMatchObject({ "cache-control": "no-store", "x-content-type-options": "nosniff" });
    expect(answer.headers).not.toHaveProperty("access-control-allow-origin");
  });

  it("carries the code, the sentence and the fix of an error", async () => {
    await expect(client.call("thing.fail", { code: "NotFound" })).rejects.toMatchObject({
      name: "PodyardError",
      code: "NotFound",
      message: "no such thing",
      fix: "make one",
    });
    await expect(client.call("thing.fail", { code: "Unauthorized" })).rejects.toMatchObject({ code: "Unauthorized" });
    await expect(client.call("thing.crash", {})).rejects.toMatchObject({ code: "Internal", message: "oops" });
  });

  it.each([
    ['{"text":1}', /thing\.echo: text: /],
    ['{"text":"x","list":[{"count":1},{"count":"2"}]}', /thing\.echo: list\[1\]\.count: /],
    ["[]", /thing\.echo: request: /],
    ["{", /thing\.echo: not JSON/],
    [`{"text":"${"x".repeat(9 * 1024 * 1024)}"}`, /larger than/],
  ])("refuses a body that does not fit, naming the path (%#)", async (body, message) => {
    const answer = await ask("/api/thing.echo", { authorization: `Bearer ${await token()}`, "content-type": "application/json" }, body);
    expect(answer.status).toBe(400);
    expect(JSON.parse(answer.body).error).toMatchObject({ code: "InvalidArgument", message: expect.stringMatching(message) });
  });

  it("knows no other names, methods or types", async () => {
    const headers = { authorization: `Bearer ${await token()}` };
    const json = { ...headers, "content-type": "application/json" };
    for (const name of ["none", "toString", "__proto__", "constructor", "thing.echo/x"]) expect((await ask(`/api/${name}`, json, "{}")).status).toBe(404);
    expect((await ask("/api/thing.echo", headers)).status).toBe(405);
    expect((await ask("/api/thing.echo", { ...headers, "content-type": "text/plain" }, '{"text":"x"}')).status).toBe(400);
  });

  it("tells the handler when the client gave up", async () => {
    const abort = new AbortController();
    const waiting = client.call("thing.wait", {}, { signal: abort.signal });
    await until(() => waits.length === 1);
    abort.abort();
    await expect(waiting).rejects.toMatchObject({ code: "Cancelled" });
    await until(() => waits[0]?.signal.aborted === true);
  });
});

describe("access", () => {
  const paths = ["/", "/api/thing.echo", "/assets/app.js", "/none"];

  it("needs the token everywhere, on TCP and on the socket", async () => {
    for (const path of paths) {
      expect((await ask(path)).status).toBe(401);
      expect((await ask(path, { authorization: "Bearer wrong" })).status).toBe(401);
      expect((await ask(path, {}, undefined, { socketPath: gateway.socketPath })).status).toBe(401);
    }
    expect(await handshake("/api/events", {})).toBe(401);
    expect(await handshake("/api/streams/echo", { authorization: "Bearer wrong" })).toBe(401);
  });

  it("refuses another Host or Origin, even with the token", async () => {
    const authorization = `Bearer ${await token()}`;
    for (const path of paths) {
      expect((await ask(path, { authorization, host: "attacker.example" })).status).toBe(403);
      expect((await ask(path, { authorization, host: "127.0.0.1:1" })).status).toBe(403);
      expect((await ask(path, { authorization, origin: "http://attacker.example" })).status).toBe(403);
      expect((await ask(path, { authorization, origin: "null" })).status).toBe(403);
      expect((await ask(path, { authorization, "sec-fetch-site": "cross-site" })).status).toBe(403);
    }
    expect((await ask("/api/thing.echo", { authorization, origin: "http://localhost" }, "{}", { socketPath: gateway.socketPath })).status).toBe(403);
    expect(await handshake("/api/events", { authorization, origin: "http://attacker.example" })).toBe(403);
    expect(await handshake("/api/events", { authorization })).toBe(101);
  });

  it("keeps socket, directory, discovery and token to the user", async () => {
    expect((await stat(gateway.socketPath)).mode & 0o777).toBe(0o600);
    expect((await stat(join(directory, "run"))).mode & 0o777).toBe(0o700);
    for (const file of ["gateway.json", "gateway-token"]) expect((await stat(join(directory, "data", file))).mode & 0o777).toBe(0o600);
  });

  it("exchanges a one-time token for a cookie, once", async () => {
    const url = new URL(gateway.createPageUrl() ?? "");
    const first = await ask(url.pathname + url.search);
    expect(first.status).toBe(200);
    expect(first.headers["set-cookie"]?.[0]).toMatch(/^podyard-\d+=\S+; HttpOnly; SameSite=Strict; Path=\/$/);
    expect(first.headers["set-cookie"]?.[0]).not.toContain(await token());
    expect((await ask(url.pathname + url.search)).status).toBe(401);
    expect((await ask(`/?token=${await token()}`)).status).toBe(401);
  });

  it("lets a page with the cookie in, and no other site with it", async () => {
    const cookie = await signIn();
    const host = `127.0.0.1:${gateway.port}`;
    const json = { cookie, "content-type": "application/json" };
    expect((await ask("/", { cookie })).body).toBe("<title>page</title>");
    expect((await ask("/api/thing.echo", { ...json, origin: `http://${host}`, "sec-fetch-site": "same-origin" }, '{"text":"x"}')).status).toBe(200);
    expect((await ask("/api/thing.echo", { ...json, origin: "http://attacker.example" }, '{"text":"x"}')).status).toBe(403);
    expect((await ask("/", { cookie: `${cookie}x` })).status).toBe(401);
    expect(await handshake("/api/events", { cookie, origin: `http://${host}` })).toBe(101);
    expect(await handshake("/api/events", { cookie })).toBe(403);
    expect(await handshake("/api/events", { cookie, origin: "http://attacker.example" })).toBe(403);
  });

  it("keeps cookie and token over a restart of the host", async () => {
    const before = await token();
    const { port } = gateway;
    const cookie = await signIn();
    await gateway[Symbol.asyncDispose]();
    expect(await findGateway(join(directory, "data"))).toBeUndefined();
    gateway = await start();
    expect(await token()).toBe(before);
    // Another free port here; the name of the cookie is that of its port.
    expect((await ask("/", { cookie: cookie.replace(`podyard-${port}`, `podyard-${gateway.port}`) })).status).toBe(200);
  });
});

describe("page", () => {
  it("has a policy that allows its own files only", async () => {
    const answer = await ask("/assets/app.js", { cookie: await signIn() });
    expect(answer).toMatchObject({
      status: 200,
      body: "1;",
      headers: { "content-type": "text/javascript; charset=utf-8", "x-frame-options": "DENY", "referrer-policy": "no-referrer" },
    });
    expect(answer.headers["content-security-policy"]).toContain("default-src 'none'; script-src 'self'");
    expect(answer.headers["content-security-policy"]).not.toContain("unsafe");
  });

  it.each(["/../secret.txt", "/%2e%2e/secret.txt", "/assets/..%2f..%2fsecret.txt", "/link.txt", "/assets", "/none.js", "/%00"])(
    "does not serve %s",
    async (path) => {
      expect((await ask(path, { cookie: await signIn() })).status).toBe(404);
    },
  );
});

describe("streams", () => {
  it("echoes 50 MB with flat memory, and tells the exit", async () => {
    const session = await client.stream("echo", { prefix: "" });
    const total = 50 * 1024 * 1024;
    const block = randomBytes(64 * 1024);
    const sent = createHash("sha256");
    const received = createHash("sha256");
    let ahead = 0;
    let highest = 0;
    async function* source(): AsyncGenerator<Buffer> {
      for (let done = 0; done < total; done += block.length) {
        sent.update(block);
        ahead += block.length;
        highest = Math.max(highest, ahead);
        yield block;
      }
    }
    if (session.stdin === undefined) throw new Error("no stdin");
    const writing = pipeline(Readable.from(source()), session.stdin);
    let bytes = 0;
    for await (const chunk of session.stdout) {
      received.update(chunk);
      bytes += chunk.length;
      ahead -= chunk.length;
    }
    await writing;
    expect(await session.exit).toEqual({ exitCode: 7 });
    expect(bytes).toBe(total);
    expect(received.digest("hex")).toBe(sent.digest("hex"));
    // What is between the two ends: buffers, not the data.
    expect(highest).toBeLessThan(5 * 1024 * 1024);
  }, 30_000);

  it("holds the writer back while nobody reads", async () => {
    const session = await client.stream("echo", { prefix: "" });
    let written = 0;
    const stop = new AbortController();
    const writing = (async () => {
      for (; !stop.signal.aborted && written < 200; written += 1) {
        await new Promise((resolve) => session.stdin?.write(Buffer.alloc(256 * 1024), resolve));
      }
    })();
    let last = -1;
    await until(() => {
      const isStill = written > 0 && written === last && sessions[0]?.stdout.readableLength !== 0;
      last = written;
      return isStill;
    });
    expect(written).toBeLessThan(100);
    stop.abort();
    await session[Symbol.asyncDispose]();
    await writing;
  }, 20_000);

  it("keeps stdout, stderr and sizes apart", async () => {
    const session = await client.stream("echo", { prefix: "prefix " });
    session.resize({ columns: 80, rows: 24 });
    session.resize({ columns: 100, rows: 30 });
    session.stdin?.end("typed");
    const read = async (stream: Readable | undefined): Promise<string> => {
      let text = "";
      if (stream !== undefined) for await (const chunk of stream) text += String(chunk);
      return text;
    };
    expect(await Promise.all([read(session.stdout), read(session.stderr)])).toEqual(["prefix typed", "80x24 100x30 "]);
    expect(await session.exit).toEqual({ exitCode: 7 });
  });

  it("disposes the host's session when the client leaves, by dispose, signal or death", async () => {
    const abort = new AbortController();
    const one = await client.stream("echo", { prefix: "" });
    const two = await client.stream("echo", { prefix: "" }, { signal: abort.signal });
    const other = await connectGateway(api, { dataDirectory: join(directory, "data") });
    await other.stream("echo", { prefix: "" });
    await one[Symbol.asyncDispose]();
    abort.abort();
    await other[Symbol.asyncDispose]();
    await until(() => sessions.length === 3 && sessions.every(({ isDisposed }) => isDisposed));
    await expect(one.exit).rejects.toMatchObject({ code: "Cancelled" });
    await expect(two.exit).rejects.toMatchObject({ code: "Cancelled" });
  });

  it("fails with the host's error, and when the host goes", async () => {
    await expect(client.stream("echo", { prefix: "refuse" })).rejects.toMatchObject({ code: "NotFound", message: "no such stream" });
    await expect(client.stream("echo", JSON.parse('{"prefix":1}'))).rejects.toMatchObject({
      code: "InvalidArgument",
      message: expect.stringContaining("prefix"),
    });
    await expect(client.stream(JSON.parse('"none"'), { prefix: "" })).rejects.toMatchObject({ code: "NotFound" });
    const session = await client.stream("echo", { prefix: "" });
    await gateway[Symbol.asyncDispose]();
    await expect(session.exit).rejects.toMatchObject({ code: "Unavailable" });
    await expect(client.call("thing.echo", { text: "x" })).rejects.toMatchObject({ code: "Unavailable" });
  });
});

describe("events", () => {
  it("come in order, go on after a restart where they were, and tell a gap", async () => {
    const seen: number[] = [];
    let missed = 0;
    const connections: boolean[] = [];
    await using _subscription = await client.subscribe((event) => seen.push(event.value), {
      onMissed: () => (missed += 1),
      onConnection: (isConnected) => connections.push(isConnected),
    });
    for (const value of [1, 2, 3]) events.publish({ kind: "tick", value });
    await until(() => seen.length === 3);
    await gateway[Symbol.asyncDispose]();
    await until(() => connections.at(-1) === false);
    for (const value of [4, 5]) events.publish({ kind: "tick", value });
    gateway = await start();
    await until(() => seen.length === 5);
    expect(seen).toEqual([1, 2, 3, 4, 5]);
    expect(missed).toBe(0);
    await gateway[Symbol.asyncDispose]();
    await until(() => connections.at(-1) === false);
    for (let value = 6; value < 16; value += 1) events.publish({ kind: "tick", value });
    gateway = await start();
    await until(() => seen.at(-1) === 15);
    expect(seen).toEqual([1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
    expect(missed).toBe(1);
  }, 20_000);

  it("of the past come only if asked for", async () => {
    const before = events.sequence;
    events.publish({ kind: "tick", value: 1 });
    const fresh: number[] = [];
    const resumed: number[] = [];
    await using _one = await client.subscribe((event) => fresh.push(event.value));
    await using _two = await client.subscribe((event) => resumed.push(event.value), { since: before });
    events.publish({ kind: "tick", value: 2 });
    await until(() => fresh.length === 1 && resumed.length === 2);
    expect([fresh, resumed]).toEqual([[2], [1, 2]]);
  });
});

describe("discovery", () => {
  it("takes a file of a process that is gone, or that is another today, for none", async () => {
    const data = join(directory, "other");
    await mkdir(data);
    expect(await findGateway(data)).toBeUndefined();
    const file = { socket: "/x", pid: process.pid, startTime: (await processStartTime(process.pid)) ?? "", token: "t" };
    await writeDiscovery(data, file);
    expect(await findGateway(data)).toEqual(file);
    await writeDiscovery(data, { ...file, startTime: "long ago" });
    expect(await findGateway(data)).toBeUndefined();
    await writeDiscovery(data, { ...file, pid: 2 ** 22 + 1 });
    expect(await findGateway(data)).toBeUndefined();
    await writeFile(join(data, "gateway.json"), "{");
    expect(await findGateway(data)).toBeUndefined();
    await expect(connectGateway(api, { dataDirectory: data })).rejects.toMatchObject({
      code: "Unavailable",
      message: expect.stringContaining(data),
      fix: expect.stringContaining("podyard run"),
    });
  });

  it("is removed with the gateway, and the socket too", async () => {
    await gateway[Symbol.asyncDispose]();
    await expect(readFile(join(directory, "data/gateway.json"))).rejects.toMatchObject({ code: "ENOENT" });
    await expect(stat(gateway.socketPath)).rejects.toMatchObject({ code: "ENOENT" });
  });
});
