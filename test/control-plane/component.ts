/** One process of the control plane: started so that it cannot outlive this one, its output kept for a failure's report. */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { readFile } from "node:fs/promises";

export class Component implements AsyncDisposable {
  readonly name: string;
  readonly #logFile: string;
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;

  /** Appends output to `logFile`. */
  constructor(name: string, program: string, args: readonly string[], logFile: string) {
    this.name = name;
    this.#logFile = logFile;
    this.#child = spawn(program, args, {
      // Not the environment of the tests: a proxy or KUBECONFIG there must not reach the cluster.
      env: { PATH: process.env["PATH"] ?? "", PODYARD_PARENT_PID: String(process.pid) },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const log = createWriteStream(logFile, { flags: "a", mode: 0o600 });
    this.#child.stdout?.pipe(log, { end: false });
    this.#child.stderr?.pipe(log, { end: false });
    this.#closed = once(this.#child, "close").finally(() => log.end());
    this.#closed.catch(() => undefined);
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** The last lines of output. */
  async tail(lines = 40): Promise<string> {
    const text = await readFile(this.#logFile, "utf8").catch(() => "");
    return `--- ${this.name}\n${text.trimEnd().split("\n").slice(-lines).join("\n")}\n`;
  }

  async stop(signal: "SIGTERM" | "SIGKILL" = "SIGTERM"): Promise<void> {
    if (!this.isRunning) return;
    this.#child.kill(signal);
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), 10_000);
    await this.#closed.catch(() => undefined);
    clearTimeout(timer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop("SIGKILL");
  }
}
