import { once } from "node:events";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { PodyardError } from "../../contract/errors.ts";
import { startTestServer } from "../../../test/support/kubelet/server.ts";
import type { TestServer } from "../../../test/support/kubelet/server.ts";
import { SpdyRefusal, SpdyTestClient } from "../../../test/support/kubelet/spdy-client.ts";
import { controlFrame, frameType } from "./frames.ts";

let host: TestServer;
beforeAll(async () => {
  host = await startTestServer();
});
afterAll(() => host[Symbol.asyncDispose]());

const v4 = ["v4.channel.k8s.io"];

function connect(path: string, protocols: readonly string[] = v4): Promise<SpdyTestClient> {
  return SpdyTestClient.connect({ port: host.port, path, protocols, ...host.admin });
}

function execPath(flags: string, ...argv: readonly string[]): string {
  return `/exec/default/shell/main?${flags}&${argv.map((argument) => `command=${encodeURIComponent(argument)}`).join("&")}`;
}

interface Session {
  readonly client: SpdyTestClient;
  readonly ids: Readonly<Record<string, number>>;
  /** The status once everything ended. */
  status(): Promise<unknown>;
}

async function start(path: string, types: readonly string[], protocols?: readonly string[]): Promise<Session> {
  const client = await connect(path, protocols);
  const ids: Record<string, number> = {};
  for (const streamtype of ["error", ...types]) ids[streamtype] = await client.open({ streamtype });
  return {
    client,
    ids,
    async status() {
      const errorId = ids["error"] ?? 0;
      await client.until(() => Object.values(ids).every((id) => client.stream(id).ended) && client.goneAway);
      const text = client.text(errorId);
      return text.startsWith("{") ? JSON.parse(text) : text;
    },
  };
}

const failure = (code: number): object => ({
  metadata: {},
  status: "Failure",
  message: `command terminated with non-zero exit code: exit status ${code}`,
  reason: "NonZeroExitCode",
  details: { causes: [{ reason: "ExitCode", message: String(code) }] },
});

describe("exec over SPDY", () => {
  test("answers with the best protocol both know", async () => {
    const client = await connect(execPath("output=1", "true"), ["v5.channel.k8s.io", "v4.channel.k8s.io", "v2.channel.k8s.io"]);
    expect(client.protocol).toBe("v4.channel.k8s.io");
    client.close();
  });

  test.each([
    [0, { metadata: {}, status: "Success" }],
    [1, failure(1)],
    [255, failure(255)],
  ])("ends with exit code %i in the status", async (code, status) => {
    const session = await start(execPath("output=1&error=1", "sh", "-c", `printf out; printf err >&2; exit ${code}`), ["stdout", "stderr"]);
    expect(await session.status()).toEqual(status);
    expect(session.client.text(session.ids["stdout"] ?? 0)).toBe("out");
    expect(session.client.text(session.ids["stderr"] ?? 0)).toBe("err");
    session.client.close();
  });

  test("before version 4 says nothing on success and a sentence on failure", async () => {
    for (const protocol of ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]) {
      const good = await start(execPath("output=1", "true"), ["stdout"], [protocol]);
      expect(await good.status()).toBe("");
      const bad = await start(execPath("output=1", "false"), ["stdout"], [protocol]);
      expect(await bad.status()).toBe("command terminated with non-zero exit code: exit status 1");
      good.client.close();
      bad.client.close();
    }
  });

  test("gives the process its arguments byte by byte", async () => {
    const session = await start(`/exec/default/shell/main?output=1&command=printf&command=%25s&command=%FF%00x+y`.replace("%00", "%01"), ["stdout"]);
    await session.status();
    expect(Buffer.concat(session.client.stream(session.ids["stdout"] ?? 0).chunks)).toEqual(Buffer.from([0xff, 0x01, ...Buffer.from("x y")]));
    session.client.close();
  });

  test("passes stdin on, and its end", async () => {
    const session = await start(execPath("input=1&output=1", "wc", "-c"), ["stdin", "stdout"]);
    session.client.data(session.ids["stdin"] ?? 0, "x".repeat(100_000));
    session.client.end(session.ids["stdin"] ?? 0);
    await session.status();
    expect(session.client.text(session.ids["stdout"] ?? 0).trim()).toBe("100000");
    session.client.close();
  });

  test("survives a process that closes its input", async () => {
    const session = await start(execPath("input=1&output=1", "sh", "-c", "exec 0<&-; sleep 0.3; echo done; exit 3"), ["stdin", "stdout"]);
    for (let index = 0; index < 64; index += 1) session.client.data(session.ids["stdin"] ?? 0, Buffer.alloc(64 * 1024));
    expect(await session.status()).toEqual(failure(3));
    expect(session.client.text(session.ids["stdout"] ?? 0)).toBe("done\n");
    session.client.close();
  });

  test("streams 200 MB without keeping them, at the client's pace", async () => {
    const session = await start(execPath("output=1", "head", "-c", "200000000", "/dev/zero"), ["stdout"]);
    const { client } = session;
    const stdout = client.stream(session.ids["stdout"] ?? 0);
    client.discarded.add(session.ids["stdout"] ?? 0);
    client.socket.pause();
    const child = host.pods.started.at(-1);
    const before = process.memoryUsage().rss;
    // The process is held while the client does not read, and the rest flows once it does.
    await vi.waitFor(() => expect(child?.stdout?.isPaused()).toBe(true), 10_000);
    expect(child?.exitCode).toBeNull();
    let peak = 0;
    const timer = setInterval(() => (peak = Math.max(peak, process.memoryUsage().rss)), 10);
    client.socket.resume();
    expect(await session.status()).toEqual({ metadata: {}, status: "Success" });
    clearInterval(timer);
    expect(stdout.bytes).toBe(200_000_000);
    expect(peak - before).toBeLessThan(120_000_000);
    client.close();
  });

  test("holds back a client whose process does not read, and still hears the client go", async () => {
    const session = await start(execPath("input=1&output=1", "sleep", "600"), ["stdin", "stdout"]);
    const child = host.pods.started.at(-1);
    const before = process.memoryUsage().rss;
    let isTaken = true;
    for (let sent = 0; sent < 60_000_000 && isTaken; sent += 65_536) isTaken = session.client.data(session.ids["stdin"] ?? 0, Buffer.alloc(65_536)) || (await drained(session.client));
    expect(isTaken).toBe(false);
    expect(process.memoryUsage().rss - before).toBeLessThan(60_000_000);
    session.client.close();
    if (child?.exitCode === null && child.signalCode === null) await once(child, "exit");
    expect(child?.signalCode).toBe("SIGKILL");
  });

  test("answers pings while a process runs", async () => {
    const session = await start(execPath("output=1&input=1", "cat"), ["stdin", "stdout"]);
    session.client.ping(1);
    session.client.ping(2); // an even id would be an answer to a ping of ours
    session.client.ping(3);
    await session.client.until(() => session.client.pings.length >= 2);
    expect(session.client.pings).toEqual([1, 3]);
    session.client.end(session.ids["stdin"] ?? 0);
    await session.status();
    session.client.close();
  });

  test("kills the process when the client goes away", async () => {
    const session = await start(execPath("output=1", "sleep", "600"), ["stdout"]);
    const child = host.pods.started.at(-1);
    session.client.close();
    if (child?.exitCode === null && child.signalCode === null) await once(child, "exit");
    expect(child?.signalCode).toBe("SIGKILL");
  });

  test("starts a terminal with the size that was sent first, and follows", async () => {
    const session = await start(execPath("input=1&output=1&error=1&tty=1", "sh", "-c", 'stty size; until [ "$(stty size)" = "40 132" ]; do sleep 0.02; done; echo resized'), ["stdin", "stdout", "resize"]);
    const resize = session.ids["resize"] ?? 0;
    session.client.data(resize, '{"Width":111,"Height":33}\n');
    await session.client.until(() => session.client.text(session.ids["stdout"] ?? 0).includes("33 111"));
    session.client.data(resize, '{"Width":0,"Height":0}{"broken"}{"Width":1');
    session.client.data(resize, '32,"Height":40}');
    expect(await session.status()).toEqual({ metadata: {}, status: "Success" });
    expect(session.client.text(session.ids["stdout"] ?? 0)).toContain("resized");
    session.client.close();
  });

  test("gives a terminal 80 by 24 if the client sends no size", async () => {
    const session = await start(execPath("output=1&tty=1", "stty", "size"), ["stdout", "resize"]);
    await session.status();
    expect(session.client.text(session.ids["stdout"] ?? 0)).toContain("24 80");
    session.client.close();
  });

  test("reports what could not be run", async () => {
    const exec = host.pods.exec.bind(host.pods);
    host.pods.exec = () => Promise.reject(new PodyardError("Unavailable", "the guest does not answer"));
    try {
      const session = await start(execPath("output=1", "true"), ["stdout"]);
      expect(await session.status()).toEqual({
        metadata: {},
        status: "Failure",
        message: "Internal error occurred: error executing command in container: the guest does not answer",
        reason: "InternalError",
        details: { causes: [{ message: "error executing command in container: the guest does not answer" }] },
        code: 500,
      });
      session.client.close();
    } finally {
      host.pods.exec = exec;
    }
  });

  test("gives up a client that does not open its streams", async () => {
    await using hasty = await startTestServer({ streamCreationTimeout: 50 });
    const client = await SpdyTestClient.connect({ port: hasty.port, path: execPath("output=1", "true"), protocols: v4, ...hasty.admin });
    await once(client.socket, "close");
  });

  test("resets streams it was not promised", async () => {
    const client = await connect(execPath("output=1&input=1", "cat"));
    const wrong = await client.open({ streamtype: "video" });
    const resize = await client.open({ streamtype: "resize" });
    const none = await client.open({});
    for (const id of [wrong, resize, none]) expect(client.stream(id).resetStatus).toBeDefined();
    client.close();
  });

  test.each([
    ["garbage", Buffer.from("GET / HTTP/1.1\r\n\r\n".repeat(10))],
    ["a header block that is none", controlFrame(frameType.synStream, 0, Buffer.concat([Buffer.from([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]), Buffer.from("not compressed at all")]))],
    ["a frame cut short", controlFrame(frameType.rstStream, 0, Buffer.alloc(3))],
    ["another version", Buffer.from([0x80, 2, 0, 1, 0, 0, 0, 0])],
  ])("drops a client that sends %s", async (_name, bytes) => {
    const client = await connect(execPath("output=1&input=1", "cat"));
    client.send(bytes);
    await once(client.socket, "close");
    expect((await host.fetch("/healthz")).status).toBe(200);
  });
});

test("a stream without a byte for the idle timeout is closed, one with pings is not", async () => {
  await using brief = await startTestServer({ streamingIdleTimeout: 1000 });
  const open = async (): Promise<SpdyTestClient> => {
    const client = await SpdyTestClient.connect({ port: brief.port, path: execPath("output=1", "sleep", "600"), protocols: v4, ...brief.admin });
    for (const streamtype of ["error", "stdout"]) await client.open({ streamtype });
    return client;
  };
  const [idle, lively] = [await open(), await open()];
  const pings = setInterval(() => lively.ping(1), 100);
  const closed = new Promise((resolve) => idle.socket.once("close", resolve));
  await closed;
  expect(lively.socket.destroyed).toBe(false);
  clearInterval(pings);
  lively.close();
});

test("attach ends with Success however the container ended, and leaves it running when the client goes", async () => {
  host.pods.attached = () => ({ argv: ["sh", "-c", "read line; echo got $line; exit 7"], terminal: false });
  const session = await start("/attach/default/shell/main?input=1&output=1&error=1", ["stdin", "stdout", "stderr"]);
  session.client.data(session.ids["stdin"] ?? 0, "it\n");
  expect(await session.status()).toEqual({ metadata: {}, status: "Success" });
  expect(session.client.text(session.ids["stdout"] ?? 0)).toBe("got it\n");
  session.client.close();
});

describe("an upgrade is refused", () => {
  const refusal = async (path: string, protocols: readonly string[] = v4, headers: Readonly<Record<string, string>> = {}): Promise<readonly unknown[]> => {
    try {
      (await SpdyTestClient.connect({ port: host.port, path, protocols, headers, ...host.admin })).close();
      return [101];
    } catch (error) {
      return error instanceof SpdyRefusal ? [error.status, error.message] : [error];
    }
  };

  test("before it, where HTTP can still say why", async () => {
    expect(await refusal("/exec/default/shell/main?command=true")).toEqual([400, "you must specify at least 1 of stdin, stdout, stderr"]);
    expect(await refusal("/exec/default/shell/main?command=true&error=1&tty=1")).toEqual([400, "you must specify at least 1 of stdin, stdout, stderr"]);
    expect(await refusal("/exec/default/shell/main?output=1")).toEqual([400, "you must specify at least one command for the container"]);
    expect(await refusal("/exec/default/ghost/main?output=1&command=true")).toEqual([404, "pod does not exist"]);
    expect(await refusal("/exec/default/shell/other-uid/main?output=1&command=true")).toEqual([404, "pod does not exist"]);
    expect(await refusal("/exec/default/shell/ghost?output=1&command=true")).toEqual([500, 'container not found ("ghost")']);
    expect(await refusal(execPath("output=1", "true"), v4, { Upgrade: "h2c" })).toEqual([400, "unable to upgrade: missing upgrade headers in request"]);
    expect(await refusal(execPath("output=1", "true"), [])).toEqual([400, "unable to upgrade: the header X-Stream-Protocol-Version is required"]);
    expect(await refusal(execPath("output=1", "true"), ["v5.channel.k8s.io"])).toEqual([403, expect.stringContaining("unable to negotiate protocol")]);
    expect((await host.fetch(execPath("output=1", "true"), { method: "POST" })).status).toBe(400);
  });
});

/** Waits for the socket to take more; false if it does not within a while, because nobody reads on the other side. */
async function drained(client: SpdyTestClient): Promise<boolean> {
  return once(client.socket, "drain", { signal: AbortSignal.timeout(500) }).then(
    () => true,
    () => false,
  );
}
