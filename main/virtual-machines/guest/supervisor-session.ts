/**
 * A ProcessSession over a supervisor's channel, for exec and attach alike. stdin goes by credits: the supervisor always
 * has room for what is under way, so resize and signal frames never wait behind data that the process does not read.
 */
import { PassThrough, Writable } from "node:stream";
import { finished } from "node:stream/promises";
import { PodyardError } from "../../contract/errors.ts";
import type { ProcessExit, ProcessSession, TerminalSize } from "../../contract/streams.ts";
import { connectionLost } from "./supervisor-channel.ts";
import type { SupervisorChannel } from "./supervisor-channel.ts";
import { createPreambleFilter, exitSchema, failureOf, fromSupervisor, inputWindow, parsePayload, toSupervisor } from "./supervisor-protocol.ts";

const inputFrame = 64 * 1024;

export function createSession(supervisor: SupervisorChannel, options: { readonly stdin: boolean; readonly terminal: boolean; readonly signal?: AbortSignal }): ProcessSession {
  const raw = supervisor.stdout;
  const stdout = raw === undefined ? new PassThrough() : raw.pipe(createPreambleFilter());
  // A reader that turned away must not stall the frames: SSH has one window for both outputs.
  stdout.once("close", () => raw?.resume());
  const stderr = options.terminal ? undefined : new PassThrough();
  const input = createInput(supervisor);
  let disposed = false;

  const dispose = (): void => {
    if (disposed) return;
    disposed = true;
    supervisor.close();
    input.stop();
    stdout.destroy();
    stderr?.destroy();
  };
  if (options.signal?.aborted === true) dispose();
  options.signal?.addEventListener("abort", dispose, { once: true });

  const exit = followFrames(supervisor, raw === undefined ? stdout : undefined, stderr, input.credit)
    .then(async (result) => {
      input.stop();
      stderr?.end();
      if (raw === undefined) stdout.end();
      await Promise.all([stdout, stderr].flatMap((stream) => (stream === undefined ? [] : finished(stream, { writable: false }).catch(() => {}))));
      return result;
    })
    .catch((error: unknown) => {
      if (disposed) throw new PodyardError("Cancelled", "the client went away", { cause: error });
      throw error;
    })
    .finally(() => {
      options.signal?.removeEventListener("abort", dispose);
      dispose();
    });
  // Whoever awaits the exit sees the error; one that nobody awaits is no crash of the host.
  exit.catch(() => {});

  return {
    stdin: options.stdin ? input.stream : undefined,
    stdout,
    stderr,
    exit,
    resize: ({ columns, rows }: TerminalSize) => {
      const size = Buffer.alloc(4);
      size.writeUInt16BE(clampSize(columns), 0);
      size.writeUInt16BE(clampSize(rows), 2);
      void supervisor.send(toSupervisor.resize, size);
    },
    async [Symbol.asyncDispose]() {
      dispose();
      await exit.catch(() => {});
    },
  };
}

/** Terminal sizes travel as 16 bits; zero and nonsense become the smallest or largest sensible one. */
export function clampSize(value: number): number {
  return Math.max(1, Math.min(65535, Math.trunc(value) || 1));
}

async function followFrames(
  supervisor: SupervisorChannel,
  stdout: Writable | undefined,
  stderr: Writable | undefined,
  credit: (size: number) => void,
): Promise<ProcessExit> {
  let exit: ProcessExit | undefined;
  for await (const { kind, payload } of supervisor.frames) {
    if (kind === fromSupervisor.output || kind === fromSupervisor.error) {
      const target = kind === fromSupervisor.output ? stdout : stderr;
      if (target !== undefined && !target.destroyed && !target.write(payload)) await drained(target);
    } else if (kind === fromSupervisor.credit && payload.length === 4) {
      credit(payload.readUInt32BE(0));
    } else if (kind === fromSupervisor.exit) {
      const { exitCode, signal } = parsePayload(exitSchema, payload);
      exit = signal === undefined ? { exitCode } : { exitCode, signal };
    } else if (kind === fromSupervisor.failure) {
      throw failureOf(payload);
    }
  }
  if (exit === undefined) throw connectionLost();
  return exit;
}

function drained(stream: Writable): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      stream.off("drain", done);
      stream.off("close", done);
      resolve();
    };
    stream.on("drain", done);
    stream.on("close", done);
  });
}

interface Input {
  readonly stream: Writable;
  readonly credit: (size: number) => void;
  /** The process is gone: what is still written goes nowhere, as into a closed pipe whose error nobody wants. */
  readonly stop: () => void;
}

function createInput(supervisor: SupervisorChannel): Input {
  const state: { available: number; isStopped: boolean; wake: (() => void) | undefined } = { available: inputWindow, isStopped: false, wake: undefined };
  const sendAll = async (data: Buffer): Promise<void> => {
    for (let position = 0; position < data.length && !state.isStopped; ) {
      if (state.available === 0) {
        await new Promise<void>((resolve) => (state.wake = resolve));
        continue;
      }
      const size = Math.min(state.available, inputFrame, data.length - position);
      state.available -= size;
      await supervisor.send(toSupervisor.input, data.subarray(position, position + size));
      position += size;
    }
  };
  const sendEnd = async (): Promise<void> => {
    if (!state.isStopped) await supervisor.send(toSupervisor.end, Buffer.alloc(0));
  };
  const awaken = (): void => {
    state.wake?.();
    state.wake = undefined;
  };
  return {
    stream: new Writable({ write: (chunk: Buffer, _encoding, done) => void report(sendAll(chunk), done), final: (done) => void report(sendEnd(), done) }),
    credit: (size) => {
      state.available = Math.min(inputWindow, state.available + size);
      awaken();
    },
    stop: () => {
      state.isStopped = true;
      awaken();
    },
  };
}

async function report(work: Promise<void>, done: (error?: Error | null) => void): Promise<void> {
  try {
    await work;
  } catch (error) {
    done(error instanceof Error ? error : new Error(String(error)));
    return;
  }
  done();
}
