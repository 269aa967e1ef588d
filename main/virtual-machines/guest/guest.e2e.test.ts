/** Exec, connection and login against a real OpenSSH server; the main process has a file of its own. */
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer, text } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { silentLogger } from "../../contract/logger.ts";
import type { ExecRequest, ProcessExit } from "../../contract/streams.ts";
import type { Guest, GuestLogin } from "../guest.ts";
import { createGuests } from "./guests.ts";
import { password, startLocalSshd, supervisorDirectory } from "./local-sshd.ts";
import type { LocalSshd } from "./local-sshd.ts";

const guests = createGuests({ supervisorDirectory, logger: silentLogger });

let sshd: LocalSshd;
/** Forbids forwarding, so that every exec takes a session. */
let strictSshd: LocalSshd;
let states: string;
const opened: Guest[] = [];

beforeAll(async () => {
  sshd = await startLocalSshd();
  strictSshd = await startLocalSshd({ streams: false });
  states = await mkdtemp(join(tmpdir(), "podyard-guest-"));
}, 180_000);

afterEach(async () => {
  for (const guest of opened.splice(0)) await guest[Symbol.asyncDispose]();
});

afterAll(async () => {
  await sshd[Symbol.asyncDispose]();
  await strictSshd[Symbol.asyncDispose]();
  await rm(states, { recursive: true, force: true });
});

function openGuest(user: string, login: Partial<GuestLogin> = { privateKey: sshd.privateKey }, server = sshd): Guest {
  const guest = guests.open(server.machine, { user, port: 22, ...login }, { stateDirectory: join(states, `${user}-${server.port}`) });
  opened.push(guest);
  return guest;
}

const sockets = async (user: string): Promise<string> => await sshd.inside("sh", "-c", `ls /home/${user}/.podyard/serve-* 2>/dev/null || true`);

/** A guest whose execs go the way that the test is about. */
async function openReadyGuest(way: string, user = "plain"): Promise<Guest> {
  const server = way === "sessions" ? strictSshd : sshd;
  const guest = openGuest(user, { privateKey: server.privateKey }, server);
  await guest.waitReady(AbortSignal.timeout(30_000));
  if (way === "streams") await until(async () => (await sockets(user)) !== "", "the server for execs");
  return guest;
}

interface Result {
  readonly exit: ProcessExit;
  readonly stdout: Buffer;
  readonly stderr: string;
}

async function execute(guest: Guest, argv: readonly (string | Buffer)[], options: Partial<ExecRequest> = {}, input?: Readable): Promise<Result> {
  const session = await guest.exec({ argv: argv.map((argument) => Buffer.from(argument as string)), stdin: input !== undefined, ...options });
  const outputs = Promise.all([buffer(session.stdout), session.stderr === undefined ? "" : text(session.stderr)]);
  if (input !== undefined && session.stdin !== undefined) await pipeline(input, session.stdin);
  const [stdout, stderr] = await outputs;
  return { exit: await session.exit, stdout, stderr };
}

async function until(condition: () => Promise<boolean> | boolean, what: string): Promise<void> {
  for (const deadline = Date.now() + 10_000; Date.now() < deadline; await delay(20)) if (await condition()) return;
  throw new Error(`not within ten seconds: ${what}`);
}

const awkward = ["a  b", 'c"d', "e'f", "$HOME", "\\n", "", "*", "~", "; echo no", "!!", "a\nb", "ü", "--", "`id`"];

describe.each(["root", "plain", "bash", "fishy"])("exec as %s", (user) => {
  it("hands every argument over byte for byte", async () => {
    const guest = openGuest(user);
    await guest.waitReady(AbortSignal.timeout(20_000));
    const { stdout, stderr, exit } = await execute(guest, ["printf", "%s|", ...awkward]);
    expect(stderr).toBe("");
    expect(stdout.toString()).toBe(awkward.map((argument) => `${argument}|`).join(""));
    expect(exit).toEqual({ exitCode: 0 });
    const bytes = Buffer.from([0xff, 0x0a, 0x80, 0x27, 0x5c, 0x22]);
    expect((await execute(guest, ["printf", "%s", bytes])).stdout).toEqual(bytes);
    const long = "x".repeat(100 * 1024);
    expect((await execute(guest, ["printf", "%s", long])).stdout.toString()).toBe(long);
  });
});

describe.each(["sessions", "streams"])("exec over %s", (way) => {
  const server = (): LocalSshd => (way === "sessions" ? strictSshd : sshd);

  it.each([
    [["true"], { exitCode: 0 }],
    [["false"], { exitCode: 1 }],
    [["sh", "-c", "exit 42"], { exitCode: 42 }],
    [["sh", "-c", "exit 137"], { exitCode: 137 }],
    [["sh", "-c", "kill -9 $$"], { exitCode: 137, signal: 9 }],
    [["sh", "-c", "kill -15 $$"], { exitCode: 143, signal: 15 }],
    [["/etc/passwd"], { exitCode: 126 }],
    [["/no/such/file"], { exitCode: 127 }],
    [["no-such-program"], { exitCode: 127 }],
  ])("%j ends with %j", async (argv, exit) => {
    expect((await execute(await openReadyGuest(way), argv)).exit).toEqual(exit);
  });

  it("says on stderr why a program cannot run", async () => {
    expect((await execute(await openReadyGuest(way), ["no-such-program"])).stderr).toContain('"no-such-program": executable file not found in $PATH');
  });

  it("keeps stdout and stderr apart, and sets environment and directory", async () => {
    const result = await execute(await openReadyGuest(way, "fishy"), ["sh", "-c", "pwd; echo \"$GREETING\"; echo no >&2"], { environment: { GREETING: "a b\nc" }, workingDirectory: "/usr" });
    expect(result.stdout.toString()).toBe("/usr\na b\nc\n");
    expect(result.stderr).toBe("no\n");
  });

  it("passes the end of stdin on", async () => {
    const guest = await openReadyGuest(way);
    expect((await execute(guest, ["cat"], {}, Readable.from([Buffer.from("one\n"), Buffer.from("two")]))).stdout.toString()).toBe("one\ntwo");
    expect((await execute(guest, ["cat"])).stdout.toString()).toBe("");
  });

  it("carries 20 MB both ways unchanged", async () => {
    const guest = await openReadyGuest(way);
    const data = randomBytes(20_000_000);
    expect((await execute(guest, ["wc", "-c"], {}, Readable.from([data]))).stdout.toString().trim()).toBe("20000000");
    const echoed = await execute(guest, ["cat"], {}, Readable.from([data]));
    expect(createHash("sha256").update(echoed.stdout).digest("hex")).toBe(createHash("sha256").update(data).digest("hex"));
  });

  it("carries 100 MB without holding it in memory", async () => {
    const session = await (await openReadyGuest(way)).exec({ argv: ["head", "-c", "100000000", "/dev/zero"].map((argument) => Buffer.from(argument)), stdin: false });
    const before = process.memoryUsage().rss;
    let size = 0;
    let peak = 0;
    for await (const chunk of session.stdout as AsyncIterable<Buffer>) {
      size += chunk.length;
      // A slow reader, so that a missing back-pressure would show.
      if (size % 5 === 0) await delay(1);
      peak = Math.max(peak, process.memoryUsage().rss);
    }
    session.stderr?.resume();
    expect(await session.exit).toEqual({ exitCode: 0 });
    expect(size).toBe(100_000_000);
    expect(peak - before).toBeLessThan(60_000_000);
  });

  it("gives a terminal of the asked size and follows every resize", async () => {
    const session = await (await openReadyGuest(way, "fishy")).exec({ argv: ["bash", "--norc", "-i"].map((argument) => Buffer.from(argument)), stdin: true, terminal: { columns: 100, rows: 30 } });
    let seen = "";
    session.stdout.on("data", (chunk: Buffer) => (seen += chunk.toString()));
    expect(session.stderr).toBeUndefined();
    session.stdin?.write("tty; stty size\n");
    await until(() => seen.includes("30 100"), "the first size");
    expect(seen).toMatch(/\/dev\/pts\/\d+/);
    for (const [columns, rows] of [[81, 25], [200, 50], [5, 5], [132, 43]] as const) {
      session.resize({ columns, rows });
      session.stdin?.write("stty size\n");
      await until(() => seen.includes(`${rows} ${columns}\r\n`), `${columns}×${rows}`);
    }
    session.stdin?.write("exit 3\n");
    expect(await session.exit).toEqual({ exitCode: 3 });
  });

  it("resizes a process that does not read its stdin", async () => {
    const session = await (await openReadyGuest(way)).exec({
      argv: ["bash", "-c", "stty -echo -icanon; trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.05; done"].map((argument) => Buffer.from(argument)),
      stdin: true,
      terminal: { columns: 80, rows: 24 },
    });
    let seen = "";
    session.stdout.on("data", (chunk: Buffer) => (seen += chunk.toString()));
    await until(() => seen.includes("ready"), "the trap");
    session.stdin?.on("error", () => {});
    session.stdin?.write(Buffer.alloc(4_000_000, "x"));
    session.resize({ columns: 120, rows: 40 });
    expect(await session.exit).toEqual({ exitCode: 9 });
    expect(seen).toContain("40 120");
  });

  it("kills the process and its children when the client goes", async () => {
    const guest = await openReadyGuest(way);
    const marker = `31536${Math.floor(Math.random() * 1000)}`;
    const alive = async (): Promise<boolean> => (await server().inside("sh", "-c", `cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '`)).includes(`sleep ${marker}`);
    const argv = ["sh", "-c", `trap '' HUP TERM; sleep ${marker} & sleep ${marker}`].map((argument) => Buffer.from(argument));
    const disposed = await guest.exec({ argv, stdin: false });
    await until(alive, "the process runs");
    await disposed[Symbol.asyncDispose]();
    await until(async () => !(await alive()), "the process is gone");

    const dropped = await guest.exec({ argv, stdin: true });
    dropped.stdout.resume();
    dropped.stderr?.resume();
    await until(alive, "the process runs again");
    server().dropConnections();
    await expect(dropped.exit).rejects.toMatchObject({ code: "Unavailable" });
    await until(async () => !(await alive()), "the process is gone with the connection");
  });

  it("ends although a background process keeps the output open", async () => {
    const { stdout, exit } = await execute(await openReadyGuest(way), ["sh", "-c", "sleep 3 & echo started"]);
    expect(stdout.toString()).toBe("started\n");
    expect(exit).toEqual({ exitCode: 0 });
  });

  it("opens further connections when one is full", async () => {
    const guest = await openReadyGuest(way);
    const results = await Promise.all(Array.from({ length: 25 }, (_, index) => execute(guest, ["sh", "-c", `sleep 0.3; echo ${index}`])));
    expect(results.map(({ stdout }) => stdout.toString().trim())).toEqual(Array.from({ length: 25 }, (_, index) => String(index)));
    if (way === "sessions") expect(server().connectionCount()).toBeGreaterThan(1);
    else expect(server().connectionCount()).toBe(1);
  });

  it("refuses arguments and variables that no process can receive", async () => {
    const guest = await openReadyGuest(way);
    await expect(guest.exec({ argv: [Buffer.from("a\0b")], stdin: false })).rejects.toMatchObject({ code: "InvalidArgument" });
    await expect(guest.exec({ argv: [Buffer.from("true")], stdin: false, environment: { "A=B": "" } })).rejects.toMatchObject({ code: "InvalidArgument" });
    await expect(guest.exec({ argv: [], stdin: false })).rejects.toMatchObject({ code: "InvalidArgument" });
  });
});

describe("the connection", () => {
  it("logs in with a password, and fails fast with a wrong one", async () => {
    const guest = openGuest("fishy", { password });
    await guest.waitReady(AbortSignal.timeout(20_000));
    expect((await execute(guest, ["id", "-un"])).stdout.toString()).toBe("fishy\n");
    const start = Date.now();
    await expect(openGuest("fishy", { password: "wrong" }).waitReady(AbortSignal.timeout(20_000))).rejects.toMatchObject({ code: "Unauthorized" });
    expect(Date.now() - start).toBeLessThan(8_000);
  });

  it("heals after a break", async () => {
    const guest = openGuest("plain");
    await guest.waitReady(AbortSignal.timeout(20_000));
    for (let round = 0; round < 3; round += 1) {
      sshd.dropConnections();
      expect((await execute(guest, ["echo", "again"])).stdout.toString()).toBe("again\n");
    }
  });

  it("uploads the supervisor again when the guest lost it", async () => {
    const guest = openGuest("plain");
    await guest.waitReady(AbortSignal.timeout(20_000));
    await sshd.inside("rm", "-rf", "/home/plain/.podyard");
    expect((await execute(guest, ["echo", "back"])).stdout.toString()).toBe("back\n");
    expect((await sshd.inside("sh", "-c", "stat -c '%a %U' /home/plain/.podyard /home/plain/.podyard/*")).trim()).toBe("700 plain\n700 plain");
  });

  it("leaves no server and no socket behind", async () => {
    const guest = await openReadyGuest("streams");
    await guest[Symbol.asyncDispose]();
    await until(async () => (await sockets("plain")) === "", "the socket is removed");
  });

  it("takes over what start-up files of the shell print", async () => {
    await sshd.inside("sh", "-c", "mkdir -p /home/fishy/.config/fish; echo 'echo noise; echo noise >&2' > /home/fishy/.config/fish/config.fish; chown -R fishy /home/fishy");
    const result = await execute(openGuest("fishy"), ["echo", "clean"]);
    expect(result).toMatchObject({ stderr: "", exit: { exitCode: 0 } });
    expect(result.stdout.toString()).toBe("clean\n");
  });

  it("waits for a guest that is not up yet, until told to stop", async () => {
    const machine = { ...sshd.machine, dial: () => Promise.reject(new Error("connection refused")) };
    const guest = guests.open(machine, { user: "plain", port: 22, password }, { stateDirectory: states });
    await expect(guest.waitReady(AbortSignal.timeout(600))).rejects.toThrow(/timeout|aborted/i);
    await guest[Symbol.asyncDispose]();
  });

  it("says so when there is no supervisor for the guest", async () => {
    const empty = createGuests({ supervisorDirectory: states, logger: silentLogger });
    const guest = empty.open(sshd.machine, { user: "plain", port: 22, privateKey: sshd.privateKey }, { stateDirectory: join(states, "empty") });
    await expect(guest.waitReady(AbortSignal.timeout(10_000))).rejects.toMatchObject({ code: "Unsupported" });
    await guest[Symbol.asyncDispose]();
  });

  it("reports memory", async () => {
    const statistics = await openGuest("plain").statistics();
    expect(statistics?.memoryTotalBytes).toBeGreaterThan(statistics?.memoryUsedBytes ?? Infinity);
  });

  it.each(["root", "fishy"])("names the guest and writes its hosts as %s, twice the same", async (user) => {
    const guest = openGuest(user);
    const configuration = { hostname: "web-0", hosts: [{ ip: "10.0.0.9", names: ["vm.pod.internal", "web-0"] }] };
    await guest.configure(configuration);
    await guest.configure(configuration);
    expect((await sshd.inside("hostname")).trim()).toBe("web-0");
    expect((await sshd.inside("cat", "/etc/hostname")).trim()).toBe("web-0");
    const hosts = await sshd.inside("cat", "/etc/hosts");
    expect(hosts).toMatch(/^127\.0\.0\.1\tlocalhost\n/);
    expect(hosts.match(/10\.0\.0\.9\tvm\.pod\.internal web-0/g)).toHaveLength(1);
    await expect(guest.configure({ hostname: "a\nb", hosts: [] })).rejects.toMatchObject({ code: "InvalidArgument" });
  });

  it("says what root is needed for where the user may not become root", async () => {
    await expect(openGuest("plain").configure({ hostname: "x", hosts: [] })).rejects.toMatchObject({ code: "MissingPrerequisite" });
  });

  it("refuses a guest whose host key changed", async () => {
    const first = openGuest("root");
    await first.waitReady(AbortSignal.timeout(20_000));
    expect((await readFile(join(states, `root-${sshd.port}/host-key`), "utf8")).trim()).toMatch(/^[A-Za-z0-9+/=]{50,}$/);
    await sshd.replaceHostKey();
    await expect(openGuest("root").waitReady(AbortSignal.timeout(20_000))).rejects.toMatchObject({ code: "Forbidden" });
  });
});
