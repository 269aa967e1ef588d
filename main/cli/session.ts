/** Joins the process's terminal with a session on the host: raw mode, resizes, half-close, exit code. */
import { pipeline } from "node:stream/promises";
import { PassThrough } from "node:stream";
import { PodyardError } from "../contract/errors.ts";
import type { ProcessSession, TerminalSize } from "../contract/streams.ts";

export function terminalOf(stream: NodeJS.WriteStream): TerminalSize {
  return { columns: stream.columns || 80, rows: stream.rows || 24 };
}

export interface SessionOptions {
  readonly terminal: boolean;
  readonly stdin: boolean;
  /** A byte that, typed, leaves the session. */
  readonly escape?: number;
}

/** Runs until the process ended or the escape was typed. Returns its exit code. */
export async function runSession(session: ProcessSession, options: SessionOptions): Promise<number> {
  const raw = options.terminal && options.stdin && process.stdin.isTTY;
  const resize = (): void => session.resize(terminalOf(process.stdout));
  let leave = (): void => {};
  const left = new Promise<number>((resolve) => {
    leave = () => resolve(0);
  });
  if (raw) process.stdin.setRawMode(true);
  if (options.terminal && process.stdout.isTTY) process.stdout.on("resize", resize);
  const input = session.stdin;
  if (options.stdin && input !== undefined) {
    const filter = new PassThrough();
    filter.on("error", () => {});
    process.stdin.on("data", (chunk: Buffer) => {
      if (options.escape !== undefined && chunk.includes(options.escape)) leave();
      else if (!filter.write(chunk)) {
        process.stdin.pause();
        filter.once("drain", () => process.stdin.resume());
      }
    });
    process.stdin.on("end", () => filter.end());
    // The remote side may end first and stop reading: that is not an error of this command.
    pipeline(filter, input).catch(() => {});
  }
  try {
    const output = Promise.all([copy(session.stdout, process.stdout), session.stderr === undefined ? undefined : copy(session.stderr, process.stderr)]);
    return await Promise.race([left, Promise.all([session.exit, output]).then(([exit]) => exit.exitCode)]);
  } finally {
    if (raw) process.stdin.setRawMode(false);
    process.stdout.off("resize", resize);
    process.stdin.removeAllListeners("data").pause();
    process.stdin.unref?.();
    await session[Symbol.asyncDispose]();
  }
}

/** Copies a session's output until it ends; for logs. Errors of the session are thrown. */
export async function pipeOutput(session: ProcessSession): Promise<void> {
  try {
    await Promise.all([copy(session.stdout, process.stdout), session.exit]);
  } finally {
    await session[Symbol.asyncDispose]();
  }
}

async function copy(from: NodeJS.ReadableStream, to: NodeJS.WriteStream): Promise<void> {
  for await (const chunk of from) {
    if (to.destroyed) throw new PodyardError("Cancelled", "the output was closed");
    if (!to.write(chunk)) await new Promise((resolve) => to.once("drain", resolve));
  }
}
