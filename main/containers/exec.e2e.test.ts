/** Exec and attach against a real engine. */
import { createHash, randomBytes } from "node:crypto";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import type { ProcessSession } from "../contract/streams.ts";
import type { ContainerEngine, ContainerSpecification } from "./container-engine.ts";
import { createDockerEngine } from "./docker-engine.ts";
import { container, eventually, helperDirectory, newPod, startTestEngine, textOf, type TestEngine } from "./test-engine.ts";

let test: TestEngine;
let engine: ContainerEngine;
let main: string;

async function run(script: string, more: Partial<ContainerSpecification> = {}): Promise<string> {
  const pod = newPod();
  await engine.ensureSandbox({ ...pod, hostname: pod.podName, sysctls: {} });
  const { id } = await engine.create(container(pod, script, more));
  await engine.start(id);
  return id;
}

async function result(session: ProcessSession): Promise<{ readonly out: string; readonly error: string; readonly exitCode: number }> {
  const [out, error, { exitCode }] = await Promise.all([textOf(session.stdout), textOf(session.stderr), session.exit]);
  return { out, error, exitCode };
}

const words = (...argv: readonly string[]): Buffer[] => argv.map((word) => Buffer.from(word));

const forever = "trap 'exit 0' TERM; while true; do sleep 1 & wait; done";

beforeAll(async () => {
  test = await startTestEngine();
  engine = createDockerEngine({ ...test.engine.address, hostId: "exec", helperDirectory, logger: silentLogger });
  main = await run(forever);
});

afterAll(() => test.close());

describe("exec", () => {
  it("tells stdout, stderr and the exit code apart", async () => {
    const session = await engine.exec(main, { argv: words("sh", "-c", "echo out; echo error >&2; exit 7"), stdin: false });
    expect(await result(session)).toEqual({ out: "out\n", error: "error\n", exitCode: 7 });
  });

  it("passes arguments as exact bytes: not UTF-8, newline, quote, empty, 100 KiB", async () => {
    const odd = [
      Buffer.from([0xff, 0xfe, 0x80]),
      Buffer.from("a\nb"),
      Buffer.from(`'"$HOME\`\\`),
      Buffer.alloc(0),
      randomBytes(100 * 1024).map((byte) => byte || 1),
    ];
    const session = await engine.exec(main, { argv: [...words("printf", "%s|"), ...odd.map((argument) => Buffer.from(argument))], stdin: false });
    const chunks: Buffer[] = [];
    for await (const chunk of session.stdout) chunks.push(chunk);
    expect((await session.exit).exitCode).toBe(0);
    const expected = Buffer.concat(odd.flatMap((argument) => [argument, Buffer.from("|")]));
    expect(Buffer.concat(chunks).equals(expected)).toBe(true);
  });

  it("gives environment, working directory and no stdin", async () => {
    const session = await engine.exec(main, {
      argv: words("sh", "-c", "echo $GREETING; pwd; cat"),
      stdin: false,
      environment: { GREETING: "hello" },
      workingDirectory: "/tmp",
    });
    expect(await result(session)).toEqual({ out: "hello\n/tmp\n", error: "", exitCode: 0 });
  });

  it.each([
    ["a missing program", ["no-such-program"], 127, /exec: "no-such-program": executable file not found in \$PATH/],
    ["a missing path", ["/no/such"], 127, /exec: "\/no\/such": no such file or directory/],
    ["a file that may not be executed", ["/etc/passwd"], 126, /exec: "\/etc\/passwd": permission denied/],
  ])("reports %s as a shell does", async (_, argv, exitCode, message) => {
    const ended = await result(await engine.exec(main, { argv: words(...argv), stdin: false }));
    expect(ended.exitCode).toBe(exitCode);
    expect(ended.error).toMatch(message);
  });

  it("reports a signal as 128 + n", async () => {
    expect((await result(await engine.exec(main, { argv: words("sh", "-c", "kill -TERM $$"), stdin: false }))).exitCode).toBe(143);
  });

  it("moves 256 MB through stdin and stdout with flat memory, and ends stdin", async () => {
    const session = await engine.exec(main, { argv: words("cat"), stdin: true });
    const total = 256 * 1024 * 1024;
    const block = randomBytes(64 * 1024);
    const sent = createHash("sha256");
    const received = createHash("sha256");
    const before = process.memoryUsage().rss;
    let highest = before;
    async function* source(): AsyncGenerator<Buffer> {
      for (let done = 0; done < total; done += block.length) {
        sent.update(block);
        yield block;
      }
    }
    if (session.stdin === undefined) throw new Error("no stdin");
    const writing = pipeline(Readable.from(source()), session.stdin);
    let bytes = 0;
    for await (const chunk of session.stdout) {
      received.update(chunk);
      bytes += chunk.length;
      highest = Math.max(highest, process.memoryUsage().rss);
    }
    await writing;
    expect((await session.exit).exitCode).toBe(0);
    expect(bytes).toBe(total);
    expect(received.digest("hex")).toBe(sent.digest("hex"));
    expect(highest - before).toBeLessThan(128 * 1024 * 1024);
  });

  it("holds back a process whose output nobody reads", async () => {
    const session = await engine.exec(main, { argv: words("sh", "-c", "dd if=/dev/zero bs=1M count=64 2>/dev/null; touch /tmp/all-written"), stdin: false });
    const first: Buffer = await new Promise((resolve) =>
      session.stdout.once("data", (chunk: Buffer) => {
        session.stdout.pause();
        resolve(chunk);
      }),
    );
    const written = async (): Promise<number> =>
      (await result(await engine.exec(main, { argv: words("test", "-e", "/tmp/all-written"), stdin: false }))).exitCode;
    expect(await written()).toBe(1);
    let bytes = first.length;
    for await (const chunk of session.stdout) bytes += chunk.length;
    expect(bytes).toBe(64 * 1024 * 1024);
    expect(await written()).toBe(0);
  });

  it("gives a terminal its first size and every later one", async () => {
    const session = await engine.exec(main, {
      argv: words("sh", "-c", "stty size; while read line; do stty size; done; exit 5"),
      stdin: true,
      terminal: { columns: 101, rows: 31 },
    });
    expect(session.stderr).toBeUndefined();
    let text = "";
    session.stdout.on("data", (chunk: Buffer) => (text += chunk.toString()));
    await eventually(() => expect(text).toContain("31 101"));
    for (const columns of [120, 121, 132]) session.resize({ columns, rows: 43 });
    await eventually(() => {
      session.stdin?.write("\n");
      expect(text).toContain("43 132");
    });
    session.stdin?.write("\u0004");
    expect((await session.exit).exitCode).toBe(5);
  });

  it("kills the process and its children when the client goes away", async () => {
    for (const terminal of [undefined, { columns: 80, rows: 24 }]) {
      const session = await engine.exec(main, {
        argv: words("sh", "-c", "sleep 4321 & trap '' HUP TERM; echo ready; wait; sleep 4321"),
        stdin: true,
        ...(terminal === undefined ? {} : { terminal }),
      });
      await new Promise((resolve) => session.stdout.once("data", resolve));
      await session[Symbol.asyncDispose]();
      const left = await result(await engine.exec(main, { argv: words("sh", "-c", "ps | grep '[s]leep 4321' | wc -l"), stdin: false }));
      expect(left.out.trim()).toBe("0");
    }
  });

  it("kills it when the signal aborts, also in a container without capabilities and as another user", async () => {
    const id = await run(forever, { capabilitiesDrop: ["ALL"], user: "1000", noNewPrivileges: true, readOnlyRootFileSystem: true });
    const abort = new AbortController();
    const session = await engine.exec(id, { argv: words("sh", "-c", "id -u; sleep 4321"), stdin: false, signal: abort.signal });
    const first: Buffer = await new Promise((resolve) => session.stdout.once("data", resolve));
    expect(first.toString()).toBe("1000\n");
    abort.abort();
    expect((await session.exit).exitCode).toBe(137);
    const left = await result(await engine.exec(id, { argv: words("sh", "-c", "ps | grep '[s]leep 4321' | wc -l"), stdin: false }));
    expect(left.out.trim()).toBe("0");
  });

  it("refuses a container that does not run, an empty command and a NUL", async () => {
    const id = await run("exit 0");
    await eventually(async () => expect((await engine.inspect(id))?.state).toBe("exited"));
    await expect(engine.exec(id, { argv: words("true"), stdin: false })).rejects.toMatchObject({ code: "Conflict" });
    await expect(engine.exec(main, { argv: [], stdin: false })).rejects.toMatchObject({ code: "InvalidArgument" });
    await expect(engine.exec(main, { argv: [Buffer.from("a\0b")], stdin: false })).rejects.toMatchObject({ code: "InvalidArgument" });
    await expect(engine.exec("f".repeat(64), { argv: words("true"), stdin: false })).rejects.toMatchObject({ code: "NotFound" });
  });
});

describe("attach", () => {
  it("carries stdin and output, and settles with the container's exit code", async () => {
    const id = await run("while read line; do echo got $line; echo error >&2; done; exit 9", { stdin: true, stdinOnce: true });
    const session = await engine.attach(id, { stdin: true, stdout: true, stderr: true });
    session.stdin?.write("one\n");
    session.stdin?.end("two\n");
    expect(await result(session)).toEqual({ out: "got one\ngot two\n", error: "error\nerror\n", exitCode: 9 });
  });

  it("only detaches when the client leaves", async () => {
    const id = await run("while true; do echo tick; sleep 1; done");
    const session = await engine.attach(id, { stdin: false, stdout: true, stderr: true });
    await new Promise((resolve) => session.stdout.once("data", resolve));
    await session[Symbol.asyncDispose]();
    expect((await session.exit).exitCode).toBe(0);
    expect((await engine.inspect(id))?.state).toBe("running");
    await engine.stop(id, 0);
  });

  it("reaches a terminal, with resize", async () => {
    const id = await run("while read line; do stty size; done", { stdin: true, terminal: true });
    const session = await engine.attach(id, { stdin: true, stdout: true, stderr: true });
    let text = "";
    session.stdout.on("data", (chunk: Buffer) => (text += chunk.toString()));
    session.resize({ columns: 77, rows: 22 });
    await eventually(() => {
      session.stdin?.write("\n");
      expect(text).toContain("22 77");
    });
    await session[Symbol.asyncDispose]();
    await engine.stop(id, 0);
  });
});
