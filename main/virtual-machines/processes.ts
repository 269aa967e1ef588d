/**
 * Programs this layer runs and processes it leaves behind. A detached process is named by its id AND its start time
 * (field 22 of /proc/PID/stat, proc_pid_stat(5)): ids are reused, so an id alone may name a stranger after a crash.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { readFile, readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { PodyardError } from "../contract/errors.ts";

export interface ProcessIdentity {
  readonly processId: number;
  /** Clock ticks since boot. */
  readonly startTime: number;
}

export interface ProcessStatus {
  readonly state: string;
  readonly startTime: number;
  readonly cpuTicks: number;
}

/** Debian package of each program, for the fix. */
const packageOf: Readonly<Record<string, string>> = {
  ip: "iproute2",
  nsenter: "util-linux",
  dnsmasq: "dnsmasq-base",
  iptables: "iptables",
  "iptables-save": "iptables",
  "iptables-restore": "iptables",
  "qemu-img": "qemu-utils",
  "qemu-system-x86_64": "qemu-system-x86",
  "qemu-system-aarch64": "qemu-system-arm",
};

export interface RunOptions {
  readonly input?: string;
  readonly signal?: AbortSignal;
  /** Exit codes that are an answer, not an error. */
  readonly allowed?: readonly number[];
}

export interface RunResult {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end. Errors: MissingPrerequisite (not installed, or no privilege), Internal with what it printed. */
export async function runProgram(program: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const result = await new Promise<RunResult>((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ["pipe", "pipe", "pipe"],
      ...(options.signal && { signal: options.signal }),
      env: environmentWithSystemPath(),
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    child.stdin.on("error", () => undefined); // it may exit without reading
    child.on("error", (error: NodeJS.ErrnoException) => reject(error.code === "ENOENT" ? missingProgram(program) : error));
    child.on("close", (code) => resolve({ exitCode: code ?? 128, stdout, stderr }));
    child.stdin.end(options.input ?? "");
  });
  if (result.exitCode === 0 || options.allowed?.includes(result.exitCode) === true) return result;
  const reason = result.stderr.trim() || result.stdout.trim() || `exit code ${result.exitCode}`;
  if (/Operation not permitted|Permission denied|must be root|you must be root/i.test(reason)) {
    throw new PodyardError("MissingPrerequisite", `${program} was refused: ${reason}.`, {
      fix: "Run podyard as root, or give it the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN.",
    });
  }
  throw new PodyardError("Internal", `${program} ${args.slice(0, 4).join(" ")} failed: ${reason}`);
}

export function missingProgram(program: string): PodyardError {
  return new PodyardError("MissingPrerequisite", `${program} is not installed.`, { fix: `apt-get install ${packageOf[program] ?? program}` });
}

/** Non-root users and daemons often lack the sbin directories in PATH, where Debian has ip, iptables and dnsmasq. */
export function environmentWithSystemPath(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin:/usr/bin:/bin`, LC_ALL: "C" };
}

/** Undefined if there is no such process, or only its zombie. */
export function processStatus(processId: number): ProcessStatus | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${processId}/stat`, "latin1");
  } catch {
    return undefined;
  }
  // The second field is the name in parentheses and may itself contain spaces and parentheses.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const state = fields[0] ?? "X";
  if (state === "Z" || state === "X") return undefined;
  return { state, cpuTicks: Number(fields[11]) + Number(fields[12]), startTime: Number(fields[19]) };
}

export function identify(processId: number): ProcessIdentity | undefined {
  const status = processStatus(processId);
  return status && { processId, startTime: status.startTime };
}

export function isRunning(identity: ProcessIdentity): boolean {
  return processStatus(identity.processId)?.startTime === identity.startTime;
}

/** The arguments of a process; empty if it is gone or not ours to read. */
export async function commandLineOf(processId: number): Promise<readonly string[]> {
  const text = await readFile(`/proc/${processId}/cmdline`, "utf8").catch(() => "");
  return text.split("\0").slice(0, -1);
}

/** Sends SIGKILL and resolves when the process is gone. Never signals a process that took over the id. */
export async function killProcess(identity: ProcessIdentity): Promise<void> {
  for (let attempt = 0; isRunning(identity); attempt++) {
    if (attempt % 50 === 0) {
      try {
        process.kill(identity.processId, "SIGKILL");
      } catch {
        return;
      }
    }
    if (attempt > 500) throw new PodyardError("Internal", `Process ${identity.processId} does not end after SIGKILL.`);
    await delay(20);
  }
}

/** Resolves when the process is gone; a process that is not our child has no event, so this looks twice a second. Keeps no host alive that stops. */
export async function waitForExit(identity: ProcessIdentity, signal: AbortSignal): Promise<void> {
  while (isRunning(identity)) await delay(500, undefined, { signal, ref: false });
}

/** A process (or the shell that is about to become it) with such an argument. */
export async function findProcess(matches: (argument: string) => boolean): Promise<ProcessIdentity | undefined> {
  for (const entry of await readdir("/proc")) {
    if (/^\d+$/.test(entry) && (await commandLineOf(Number(entry))).some(matches)) return identify(Number(entry));
  }
  return undefined;
}

/** Memory it holds now; 0 if it is gone. */
export async function residentBytes(processId: number): Promise<number> {
  const status = await readFile(`/proc/${processId}/status`, "utf8").catch(() => "");
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024;
}
