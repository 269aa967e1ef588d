/** The main process under the guest's supervisor, against a real OpenSSH server. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { silentLogger } from "../../contract/logger.ts";
import type { ProcessSession } from "../../contract/streams.ts";
import type { Guest, MainProcessSpecification } from "../guest.ts";
import { createGuests } from "./guests.ts";
import { startLocalSshd, supervisorDirectory } from "./local-sshd.ts";
import type { LocalSshd } from "./local-sshd.ts";

const guests = createGuests({ supervisorDirectory, logger: silentLogger });

let sshd: LocalSshd;
let directory: string;
const opened: Guest[] = [];

// A fresh guest for each: it has one main process.
beforeEach(async () => {
  sshd = await startLocalSshd();
  directory = await mkdtemp(join(tmpdir(), "podyard-main-"));
}, 180_000);

afterEach(async () => {
  for (const guest of opened.splice(0)) await guest[Symbol.asyncDispose]();
  await sshd[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
});

function openGuest(user = "root"): Guest {
  const guest = guests.open(sshd.machine, { user, port: 22, privateKey: sshd.privateKey }, { stateDirectory: join(directory, "state") });
  opened.push(guest);
  return guest;
}

function specification(argv: readonly (string | Buffer)[], more: Partial<MainProcessSpecification> = {}): MainProcessSpecification {
  return {
    attempt: "0",
    argv: argv.map((argument) => Buffer.from(argument as string)),
    environment: {},
    stdin: false,
    stdinOnce: false,
    terminal: false,
    terminationMessagePath: "/run/termination-log",
    ...more,
  };
}

async function until(condition: () => Promise<boolean> | boolean, what: string): Promise<void> {
  for (const deadline = Date.now() + 25_000; Date.now() < deadline; await delay(20)) if (await condition()) return;
  throw new Error(`not in time: ${what}`);
}

function record(session: ProcessSession): { text: string } {
  const seen = { text: "" };
  session.stdout.on("data", (chunk: Buffer) => (seen.text += chunk.toString()));
  return seen;
}

/** The text of a CRI log, one stream of it. */
function messages(log: string, stream = "stdout"): string {
  let result = "";
  for (const line of log.split("\n").slice(0, -1)) {
    const match = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z (stdout|stderr) ([FP]) (.*)$/s.exec(line);
    expect(match, `log line ${JSON.stringify(line.slice(0, 200))}`).not.toBeNull();
    if (match?.[1] === stream) result += match[3] + (match[2] === "F" ? "\n" : "");
  }
  return result;
}

const signal = (): AbortSignal => AbortSignal.timeout(50_000);

describe.each(["root", "fishy"])("the main process as %s", (user) => {
  it("gets its arguments byte for byte, is logged, and leaves exit and termination message", async () => {
    const guest = openGuest(user);
    expect(await guest.mainProcess()).toEqual({ state: "absent" });
    const path = `/tmp/${Math.random().toString(36).slice(2)}`;
    const script = `printf '%s|' "$@"; echo; echo problem >&2; printf '%20000s' x; echo "$GREETING" > ${path}; exit 42`;
    await guest.startMainProcess(
      specification(["sh", "-c", script, "sh", "a  b", 'c"d', "e'f", "$HOME", "\\n", "", Buffer.from([0xff]), "two\nlines"], { environment: { GREETING: "good bye" }, terminationMessagePath: path }),
    );
    const state = await guest.waitMainProcess(signal());
    await sshd.inside("rm", "-f", path);
    expect(state).toMatchObject({ state: "exited", exit: { exitCode: 42 }, terminationMessage: "good bye\n" });
    expect(state.finishedAt.getTime()).toBeGreaterThanOrEqual(state.startedAt.getTime());
    expect(await guest.mainProcess()).toEqual(state);

    const logFile = join(directory, "log");
    await guest.copyOutput(logFile, signal());
    const log = await readFile(logFile, "latin1");
    expect(messages(log)).toBe(`a  b|c"d|e'f|$HOME|\\n||\xff|two\nlines|\n${"x".padStart(20_000)}`);
    expect(messages(log, "stderr")).toBe("problem\n");
    expect(Math.max(...log.split("\n").map((line) => line.length))).toBeLessThan(16 * 1024 + 60);
  });
});

describe("the main process", () => {
  it("starts once per attempt, however often and at the same time it is asked", async () => {
    const guests = [openGuest(), openGuest()];
    const wanted = specification(["sh", "-c", "echo started; exec sleep 600"]);
    await Promise.all([...guests, ...guests, ...guests].map((guest) => guest.startMainProcess(wanted)));
    await guests[0]?.startMainProcess(wanted);
    await expect(openGuest().startMainProcess({ ...wanted, attempt: "1" })).rejects.toMatchObject({ code: "Conflict" });
    await openGuest().signalMainProcess(15);
    expect((await openGuest().waitMainProcess(signal())).exit).toEqual({ exitCode: 143, signal: 15 });
    await openGuest().startMainProcess(wanted);
    expect((await openGuest().mainProcess()).state).toBe("exited");
    await openGuest().copyOutput(join(directory, "log"), signal());
    expect(messages(await readFile(join(directory, "log"), "utf8"))).toBe("started\n");
    await openGuest().signalMainProcess(9);

    await openGuest().startMainProcess(specification(["echo", "second"], { attempt: "1" }));
    await openGuest().waitMainProcess(signal());
    await openGuest().copyOutput(join(directory, "second"), signal());
    expect(messages(await readFile(join(directory, "second"), "utf8"))).toBe("second\n");
  });

  it("says what cannot run, again the same when asked again", async () => {
    const guest = openGuest();
    for (let round = 0; round < 2; round += 1) {
      await expect(guest.startMainProcess(specification(["no-such-program"]))).rejects.toMatchObject({ code: "InvalidArgument", message: expect.stringContaining("exit code 127") as string });
    }
    await expect(guest.startMainProcess(specification(["/etc/passwd"], { attempt: "1" }))).rejects.toThrow("exit code 126");
    expect(await guest.mainProcess()).toMatchObject({ state: "exited", exit: { exitCode: 126 } });
    await expect(guest.attach({ stdin: false, stdout: true, stderr: true })).rejects.toMatchObject({ code: "Conflict" });
  });

  it("survives its connection and the host's process", async () => {
    const script = join(directory, "host.ts");
    await writeFile(
      script,
      `import { connect } from "node:net";
import { once } from "node:events";
import { createGuests } from ${JSON.stringify(join(import.meta.dirname, "guests.ts"))};
import { silentLogger } from ${JSON.stringify(join(import.meta.dirname, "../../contract/logger.ts"))};
const [port, privateKey, supervisorDirectory, stateDirectory, specification] = JSON.parse(process.argv[2]);
const dial = async () => { const socket = connect(port, "127.0.0.1"); await once(socket, "connect"); return socket; };
const guest = createGuests({ supervisorDirectory, logger: silentLogger }).open({ dial, state: "running", specification: { name: "x" } }, { user: "root", port: 22, privateKey }, { stateDirectory });
await guest.startMainProcess({ ...specification, argv: specification.argv.map((argument) => Buffer.from(argument)) });
process.send("started");
await guest.copyOutput(stateDirectory + "/copy", new AbortController().signal);
`,
    );
    const argv = ["sh", "-c", "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; sleep 0.005; done; exit 7"];
    const host = fork(script, [JSON.stringify([sshd.port, sshd.privateKey, supervisorDirectory, join(directory, "state"), { ...specification([]), argv }])], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
    await once(host, "message");
    const copy = join(directory, "state/copy");
    await until(async () => (await readFile(copy, "utf8").catch(() => "")).includes("line 30\n"), "some output on the host");
    host.kill("SIGKILL");
    await once(host, "exit");

    const guest = openGuest();
    expect((await guest.mainProcess()).state).toBe("running");
    await guest.copyOutput(copy, signal());
    expect(messages(await readFile(copy, "utf8"))).toBe(Array.from({ length: 400 }, (_, index) => `line ${index + 1}\n`).join(""));
    expect((await guest.waitMainProcess(signal())).exit).toEqual({ exitCode: 7 });
  });

  it("loses and doubles no output over forced disconnects", async () => {
    const guest = openGuest();
    await guest.startMainProcess(specification(["sh", "-c", "i=0; while [ $i -lt 8000 ]; do i=$((i+1)); echo number $i; [ $((i % 100)) -gt 0 ] || sleep 0.01; done"]));
    const logFile = join(directory, "log");
    const copied = guest.copyOutput(logFile, signal());
    const waited = guest.waitMainProcess(signal());
    for (const mark of [800, 2_400, 4_000, 5_600]) {
      await until(async () => (await readFile(logFile, "utf8").catch(() => "")).includes(`number ${mark}\n`), `line ${mark}`);
      sshd.dropConnections();
    }
    await copied;
    expect((await waited).exit).toEqual({ exitCode: 0 });
    const numbers = messages(await readFile(logFile, "utf8")).trimEnd().split("\n");
    expect(numbers).toEqual(Array.from({ length: 8_000 }, (_, index) => `number ${index + 1}`));
  }, 60_000);

  it("keeps a shell across attachments, with its variables and its prompt", async () => {
    const guest = openGuest();
    await guest.startMainProcess(specification(["bash", "--norc", "--noediting"], { stdin: true, terminal: true, environment: { PS1: "ready> " } }));
    const first = await guest.attach({ stdin: true, stdout: true, stderr: true });
    const firstSeen = record(first);
    expect(first.stderr).toBeUndefined();
    await until(() => firstSeen.text.includes("ready> "), "the prompt");
    first.stdin?.write("kept=treasure; echo set\n");
    await until(() => firstSeen.text.includes("\r\nset\r\nready> "), "the first answer");
    await first[Symbol.asyncDispose]();

    sshd.dropConnections();
    const second = await openGuest().attach({ stdin: true, stdout: true, stderr: true });
    const secondSeen = record(second);
    await until(() => secondSeen.text === "ready> ", "the prompt again");
    const third = await openGuest().attach({ stdin: false, stdout: true, stderr: true });
    const thirdSeen = record(third);
    await guest.resizeMainTerminal(91, 37);
    second.stdin?.write("echo $kept; stty size\n");
    await until(() => secondSeen.text.includes("treasure\r\n37 91\r\n"), "the variable and the size");
    await until(() => thirdSeen.text.includes("treasure\r\n37 91\r\n"), "the same at the other client");
    second.resize({ columns: 70, rows: 20 });
    second.stdin?.write("stty size; exit 5\n");
    expect(await second.exit).toEqual({ exitCode: 5 });
    expect(await third.exit).toEqual({ exitCode: 5 });
    expect(secondSeen.text).toContain("20 70");
    expect((await guest.waitMainProcess(signal())).exit).toEqual({ exitCode: 5 });
  });

  it("ends its stdin with the first client when stdin is for once, else never", async () => {
    const guest = openGuest();
    await guest.startMainProcess(specification(["sh", "-c", "cat; echo end; cat >&2"], { stdin: true, stdinOnce: true }));
    const session = await guest.attach({ stdin: true, stdout: true, stderr: true });
    const output = text(session.stdout);
    session.stderr?.resume();
    session.stdin?.end("some text\n");
    expect(await output).toBe("some text\nend\n");
    expect(await session.exit).toEqual({ exitCode: 0 });

    await guest.waitMainProcess(signal());
    await guest.startMainProcess(specification(["sh", "-c", "read one; read two; echo $one $two"], { attempt: "1", stdin: true }));
    const first = await guest.attach({ stdin: true, stdout: true, stderr: true });
    first.stdin?.end("left\n");
    await delay(100);
    await first[Symbol.asyncDispose]();
    const second = await guest.attach({ stdin: true, stdout: true, stderr: true });
    second.stderr?.resume();
    second.stdin?.write("right\n");
    expect(await text(second.stdout)).toBe("left right\n");
  });

  it("shows a prompt without line end in the log at once", async () => {
    const guest = openGuest();
    await guest.startMainProcess(specification(["sh", "-c", "printf 'Name: '; exec sleep 600"]));
    const stop = new AbortController();
    const copied = guest.copyOutput(join(directory, "log"), stop.signal);
    await until(async () => messages(await readFile(join(directory, "log"), "utf8").catch(() => "")) === "Name: ", "the prompt in the log");
    stop.abort();
    await expect(copied).rejects.toThrow();
  });

  it.each(["root", "fishy"])("runs as another user when asked by %s", async (user) => {
    const guest = openGuest(user);
    await guest.startMainProcess(specification(["sh", "-c", "id -u; id -g; echo $HOME; pwd; echo done > /run/termination-log"], { userId: 2001, groupId: 2002, workingDirectory: "/var/lib/made/here" }));
    // The login user need not be root to follow what root started for it.
    expect((await guest.waitMainProcess(signal())).terminationMessage).toBe("done\n");
    await guest.copyOutput(join(directory, "log"), signal());
    expect(messages(await readFile(join(directory, "log"), "utf8"))).toBe("2001\n2002\n/home/plain\n/var/lib/made/here\n");
    await expect(openGuest("plain").startMainProcess(specification(["id"], { userId: 0 }))).rejects.toMatchObject({ code: "MissingPrerequisite" });
  });

  it("is reported as killed when its supervisor was killed", async () => {
    const guest = openGuest();
    await guest.startMainProcess(specification(["sleep", "4242"]));
    const waited = guest.waitMainProcess(signal());
    const copied = guest.copyOutput(join(directory, "log"), signal());
    const alive = (): Promise<string> => sshd.inside("sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null; echo; done");
    await sshd.inside("sh", "-c", "for p in /proc/[0-9]*; do grep -aqz '^daemon$' $p/cmdline 2>/dev/null && kill -9 ${p#/proc/}; done; true");
    expect((await waited).exit).toEqual({ exitCode: 137, signal: 9 });
    await copied;
    await until(async () => !(await alive()).includes("sleep 4242"), "the process dies with its supervisor");
    await guest.startMainProcess(specification(["sleep", "4242"]));
    expect((await guest.mainProcess()).state).toBe("exited");
  });
});
