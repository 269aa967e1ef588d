/**
 * Pods whose containers are processes of this machine, so that the server is driven with real pipes, a real
 * terminal (`script`) and real sockets. A container's main process is what `attach` reaches; its output is the log.
 */
import { spawn } from "node:child_process";
import type { ChildProcess, ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import type { Duplex, Writable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import type { Pod } from "../../../main/contract/kubernetes-api.generated.ts";
import { messageOf, PodyardError } from "../../../main/contract/errors.ts";
import type { AttachRequest, ExecRequest, LogRequest, ProcessExit, ProcessSession, TerminalSize } from "../../../main/contract/streams.ts";
import type { PodKey, PodRuntime, PodUsage } from "../../../main/pods/pod-runtime.ts";

export class ProcessPodRuntime implements PodRuntime {
  readonly pods: Pod[];
  /** Every process started by exec, for tests that look whether it ended. */
  readonly started: ChildProcess[] = [];
  readonly lastLogRequests: LogRequest[] = [];
  /** Argument vectors as they came. */
  readonly argv: (readonly Buffer[])[] = [];
  logText: () => Readable = () => Readable.from([Buffer.from("first\nsecond\n")]);
  attached: (() => { readonly argv: readonly string[]; readonly terminal: boolean }) | undefined;
  usages: readonly PodUsage[] = [];

  constructor(pods: readonly Pod[]) {
    this.pods = [...pods];
  }

  list(): readonly Pod[] {
    return this.pods;
  }

  async running(): Promise<readonly Pod[]> {
    return this.pods;
  }

  async logs(_pod: PodKey, _container: string, request: LogRequest): Promise<Readable> {
    this.lastLogRequests.push(request);
    const log = this.logText();
    request.signal?.addEventListener("abort", () => log.destroy(), { once: true });
    return log;
  }

  async exec(_pod: PodKey, _container: string, request: ExecRequest): Promise<ProcessSession> {
    this.argv.push(request.argv);
    const session = request.terminal === undefined ? startPiped(request) : startInTerminal(request, request.terminal);
    this.started.push(session.child);
    await once(session.child, "spawn").catch((cause: unknown) => {
      throw new PodyardError("NotFound", `exec failed: ${messageOf(cause)}`);
    });
    while (!session.isReady() && session.child.exitCode === null) await delay(5);
    return session;
  }

  async attach(pod: PodKey, container: string, request: AttachRequest): Promise<ProcessSession & { readonly terminal: boolean }> {
    const main = this.attached?.() ?? { argv: ["cat"], terminal: false };
    const argv = main.argv.map((argument) => Buffer.from(argument));
    const session = await this.exec(pod, container, {
      argv,
      stdin: request.stdin,
      ...(main.terminal ? { terminal: { columns: 80, rows: 24 } } : {}),
    });
    return Object.assign(session, { terminal: main.terminal });
  }

  async dial(_pod: PodKey, port: number, signal?: AbortSignal): Promise<Duplex> {
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    const abort = (): void => void socket.destroy();
    signal?.addEventListener("abort", abort, { once: true });
    await once(socket, "connect");
    signal?.removeEventListener("abort", abort);
    return socket;
  }

  async usage(): Promise<readonly PodUsage[]> {
    return this.usages;
  }

  async console(): Promise<Duplex> {
    throw new PodyardError("Unsupported", "these Pods have no console");
  }

  async screen(): Promise<Duplex> {
    throw new PodyardError("Unsupported", "these Pods have no screen");
  }
}

interface LocalSession extends ProcessSession {
  readonly child: ChildProcess;
  /** Whether its terminal, if any, can be resized. */
  isReady(): boolean;
}

/** Node has no argv of bytes; a shell makes them from octal escapes. */
function startPiped(request: ExecRequest): LocalSession {
  const script = `eval "set -- $PODYARD_TEST_ARGV"; unset PODYARD_TEST_ARGV; exec "$@"`;
  const child = spawn("bash", ["-c", script], {
    stdio: [request.stdin ? "pipe" : "ignore", "pipe", "pipe"],
    detached: true,
    env: { ...process.env, PODYARD_TEST_ARGV: request.argv.map(quote).join(" ") },
  }) as ChildProcessByStdio<Writable | null, Readable, Readable>;
  return { ...sessionOf(child, () => undefined), isReady: () => true };
}

function startInTerminal(request: ExecRequest, size: TerminalSize): LocalSession {
  const directory = mkdtempSync(join(tmpdir(), "podyard-terminal-"));
  const deviceFile = join(directory, "tty");
  const command = `stty cols ${size.columns} rows ${size.rows}; tty > ${deviceFile}; exec ${request.argv.map(quote).join(" ")}`;
  const child = spawn("script", ["-qfec", `bash -c '${command.replaceAll("'", `'\\''`)}'`, "/dev/null"], {
    stdio: [request.stdin ? "pipe" : "ignore", "pipe", "pipe"],
    detached: true,
  }) as ChildProcessByStdio<Writable | null, Readable, Readable>;
  child.once("close", () => rmSync(directory, { recursive: true, force: true }));
  const device = (): string => (existsSync(deviceFile) ? readFileSync(deviceFile, "utf8").trim() : "");
  const session = sessionOf(child, ({ columns, rows }) => {
    if (device() !== "") spawn("stty", ["-F", device(), "cols", String(columns), "rows", String(rows)], { stdio: "ignore" });
  });
  return { ...session, isReady: () => device() !== "" };
}

function sessionOf(child: ChildProcessByStdio<Writable | null, Readable, Readable>, resize: (size: TerminalSize) => void): Omit<LocalSession, "isReady"> {
  const exit = new Promise<ProcessExit>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve({ exitCode: code ?? (signal === "SIGKILL" ? 137 : 143) }));
  });
  exit.catch(() => undefined);
  child.stdin?.on("error", () => undefined);
  return {
    child,
    stdin: child.stdin ?? undefined,
    stdout: child.stdout ?? new PassThrough(),
    stderr: child.stderr,
    resize,
    exit,
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
      try {
        process.kill(-child.pid, "SIGKILL");
      } catch {
        return; // it ended meanwhile
      }
      child.stdout.resume();
      child.stderr.resume();
      await exit.catch(() => undefined);
    },
  };
}

function quote(argument: Buffer): string {
  return `$'${[...argument].map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("")}'`;
}
