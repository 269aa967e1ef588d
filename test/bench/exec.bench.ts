/**
 * Exec in a guest, against OpenSSH to the same guest in the same run, turn by turn.
 *   round trip: `true`, over our host's gateway (a client that stays, and the `podyard` command) and over OpenSSH with a
 *     shared connection (ControlMaster). Budget: 1.5 times OpenSSH's.
 *   throughput: zeros from and into the guest, against plain ssh. Budget: 0.7 of it.
 * The cluster's kubectl adds its own start and the API server's hop to both alike; they are left out.
 *
 *   npm run bench -- exec [rounds] [MiB]
 */
import { execFile, spawn } from "node:child_process";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { runPods, startSampleHost } from "./support/sample-host.ts";
import { percentile, printTable } from "./support/table.ts";

const rounds = Number(process.argv[2] ?? 40);
const mebibytes = Number(process.argv[3] ?? 32);
const bytes = mebibytes * 1024 * 1024;

await using resources = new AsyncDisposableStack();
const host = resources.use(await startSampleHost());
await runPods(host, ["exec"], { lone: true });
const { items } = await host.client.call("vm.list", {});
const address = items[0]?.podIP ?? "";
const directory = await mkdtemp(join(tmpdir(), "podyard-bench-ssh-"));
resources.defer(() => rm(directory, { recursive: true, force: true }));
const askPass = join(directory, "password");
await writeFile(askPass, "#!/bin/sh\necho podyard\n");
await chmod(askPass, 0o700);
const environment = { ...process.env, SSH_ASKPASS: askPass, SSH_ASKPASS_REQUIRE: "force", DISPLAY: "none" };
const plain = ["-q", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "PubkeyAuthentication=no"];
const shared = [...plain, "-o", "ControlMaster=auto", "-o", "ControlPersist=600", "-o", `ControlPath=${join(directory, "control")}`];
const target = `root@${address}`;
await ssh(shared, "true");
resources.defer(async () => {
  await promisify(execFile)("ssh", [...shared, "-O", "exit", target]).catch(() => undefined);
});

const times = { ours: [] as number[], ourCommand: [] as number[], openSsh: [] as number[] };
for (let round = -2; round < rounds; round += 1) {
  const warm = round >= 0;
  const ours = await timed(() => exec(["true"]));
  const openSsh = await timed(() => ssh(shared, "true"));
  const ourCommand = await timed(() => command(["main/cli/podyard.mjs", "vm", "exec", "--data-dir", host.dataDirectory, "exec", "--", "true"]));
  if (!warm) continue;
  times.ours.push(ours);
  times.openSsh.push(openSsh);
  times.ourCommand.push(ourCommand);
}
const peer = percentile(times.openSsh, 0.5);
printTable(`Exec round trip, ${rounds} rounds (ms)`, ["", "median", "p95", "ratio of medians", "budget"], [
  ["OpenSSH, shared connection", peer, percentile(times.openSsh, 0.95), 1, ""],
  ["podyard, client that stays", percentile(times.ours, 0.5), percentile(times.ours, 0.95), percentile(times.ours, 0.5) / peer, "1.5"],
  ["podyard vm exec, a process each", percentile(times.ourCommand, 0.5), percentile(times.ourCommand, 0.95), percentile(times.ourCommand, 0.5) / peer, ""],
]);

const rate = { out: [] as number[], sshOut: [] as number[], in: [] as number[], sshIn: [] as number[] };
for (let round = 0; round < 3; round += 1) {
  rate.out.push(mebibytes / (await timed(() => exec(["head", "-c", String(bytes), "/dev/zero"]))));
  rate.sshOut.push(mebibytes / (await timed(() => ssh(plain, `head -c ${bytes} /dev/zero`))));
  rate.in.push(mebibytes / (await timed(() => exec(["sh", "-c", "cat >/dev/null"], zeros()))));
  rate.sshIn.push(mebibytes / (await timed(() => ssh(plain, "cat >/dev/null", zeros()))));
}
const perSecond = (values: readonly number[]): number => percentile(values, 0.5) * 1000;
printTable(`Exec throughput, ${mebibytes} MiB, median of three (MiB/s)`, ["", "podyard", "plain ssh", "ratio", "budget"], [
  ["from the guest", perSecond(rate.out), perSecond(rate.sshOut), perSecond(rate.out) / perSecond(rate.sshOut), "0.7"],
  ["into the guest", perSecond(rate.in), perSecond(rate.sshIn), perSecond(rate.in) / perSecond(rate.sshIn), "0.7"],
]);

async function exec(argv: readonly string[], input?: Readable): Promise<void> {
  await using session = await host.client.stream("vm.exec", { name: "default/exec", argv: argv.map((word) => Buffer.from(word).toString("base64")), stdin: input !== undefined });
  const sending = input !== undefined && session.stdin !== undefined ? pipeline(input, session.stdin) : undefined;
  session.stderr?.resume();
  session.stdout.resume();
  const { exitCode } = await session.exit;
  await sending;
  if (exitCode !== 0) throw new Error(`${argv.join(" ")} ended with ${exitCode}`);
}

async function ssh(options: readonly string[], line: string, input?: Readable): Promise<void> {
  await run("ssh", [...options, target, line], input);
}

async function command(args: readonly string[]): Promise<void> {
  await run(process.execPath, args);
}

async function run(program: string, args: readonly string[], input?: Readable): Promise<void> {
  const child = spawn(program, args, { cwd: join(import.meta.dirname, "../.."), env: environment, stdio: ["pipe", "pipe", "ignore"] });
  child.stdout.resume();
  const sending = input === undefined ? child.stdin.end() : pipeline(input, child.stdin);
  const code = await new Promise((resolve) => void child.once("exit", resolve));
  await sending;
  if (code !== 0) throw new Error(`${program} ${args.join(" ")} ended with ${String(code)}`);
}

function zeros(): Readable {
  const piece = Buffer.alloc(64 * 1024);
  return Readable.from(
    (function* () {
      for (let sent = 0; sent < bytes; sent += piece.length) yield piece;
    })(),
  );
}

/** Milliseconds. */
async function timed(action: () => Promise<void>): Promise<number> {
  const start = performance.now();
  await action();
  return performance.now() - start;
}
