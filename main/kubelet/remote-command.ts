/**
 * exec and attach, whatever carries them: joins the client's channels to a process session, and tells the end as the
 * kubelet does, so that kubectl takes the exit code from it. SPDY and WebSocket each provide the channels.
 * Model: k8s.io/kubelet pkg/cri/streaming/remotecommand (1.35).
 */
import { once } from "node:events";
import type { Readable, Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import type { Status } from "../contract/kubernetes-api.generated.ts";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { ProcessSession, TerminalSize } from "../contract/streams.ts";

/** What the client asked for in the query. */
export interface RemoteCommandFlags {
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly terminal: boolean;
}

/** One client's channels. Those it did not ask for are undefined. */
export interface RemoteCommandChannels {
  readonly stdin: Readable | undefined;
  readonly stdout: Writable | undefined;
  readonly stderr: Writable | undefined;
  /** Concatenated JSON objects `{"Width":80,"Height":24}`. */
  readonly resizes: Readable | undefined;
  /** Aborted once the client is gone. */
  readonly closed: AbortSignal;
  /** Sends the final status, ends every channel and closes the connection. */
  finish(status: Status): Promise<void>;
}

export interface RemoteCommand {
  readonly kind: "exec" | "attach";
  /** `size` is undefined without a terminal. `signal` aborts when the client goes away. */
  start(size: TerminalSize | undefined, signal: AbortSignal): Promise<ProcessSession>;
}

export const defaultTerminalSize: TerminalSize = { columns: 80, rows: 24 };
/** How long the client's first size is waited for before a terminal is started, in milliseconds; it is sent at once. */
const firstSizeMilliseconds = 100;
/** The longest JSON object accepted on the resize channel, in characters. */
const maximumResizeMessage = 1024;

/** Runs the command until it ends or the client goes away. Never rejects: failures are the client's to read. */
export async function runRemoteCommand(command: RemoteCommand, flags: RemoteCommandFlags, channels: RemoteCommandChannels): Promise<void> {
  const resizer = flags.terminal ? new Resizer(channels.resizes) : undefined;
  let status: Status;
  try {
    const size = resizer === undefined ? undefined : await resizer.firstSize(channels.closed);
    channels.closed.throwIfAborted();
    const session = await command.start(size, channels.closed);
    try {
      // Attach joins a terminal that already has a size, and a size may have changed while the process was started.
      resizer?.connect(session, command.kind === "exec" ? size : undefined);
      status = statusOfExit(command.kind, await transfer(session, channels));
    } finally {
      await session[Symbol.asyncDispose]();
    }
  } catch (error) {
    if (channels.closed.aborted) return;
    status = statusOfError(command.kind, error);
  }
  await channels.finish(status).catch(() => undefined);
}

/** Moves bytes until the process ended and all its output is with the connection. Rejects if the client goes away. */
async function transfer(session: ProcessSession, channels: RemoteCommandChannels): Promise<number> {
  if (session.stdin !== undefined && channels.stdin !== undefined) feedInput(channels.stdin, session.stdin);
  else channels.stdin?.resume();
  const outputs = Promise.all([copyOutput(session.stdout, channels.stdout), copyOutput(session.stderr, channels.stderr)]);
  outputs.catch(() => undefined);
  const { exitCode } = await untilAborted(session.exit, channels.closed);
  await untilAborted(outputs, channels.closed);
  return exitCode;
}

/**
 * A process may close its input early (EPIPE): what else the client sends is read and dropped. Not a pipeline, which would
 * tear down the client's channel for that, and end the input of an attached process when the client merely goes away.
 */
function feedInput(source: Readable, target: Writable): void {
  const discard = (): void => void source.resume();
  target.on("error", discard);
  target.once("close", discard);
  source.on("data", (bytes: Buffer) => {
    if (!target.writable || target.write(bytes)) return;
    source.pause();
    target.once("drain", () => source.resume());
  });
  source.once("end", () => target.end());
}

/** Settles when the source ended and the target took everything. Without a target the output is discarded. */
async function copyOutput(source: Readable | undefined, target: Writable | undefined): Promise<void> {
  if (source === undefined) return;
  if (target === undefined) {
    source.on("error", () => undefined);
    source.resume();
    return;
  }
  // A client may reset one channel and keep the others: the process then sees a closed pipe, no more.
  await pipeline(source, target, { end: false }).catch(() => source.destroy());
  if (target.writable) await new Promise<void>((resolve) => target.write(Buffer.alloc(0), () => resolve()));
}

async function untilAborted<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  promise.catch(() => undefined);
  signal.throwIfAborted();
  const settled = new AbortController();
  const aborted = once(signal, "abort", { signal: settled.signal }).then(
    () => Promise.reject(new PodyardError("Cancelled", "the client closed the connection")),
    () => new Promise<never>(() => undefined),
  );
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    settled.abort();
  }
}

/** The status that the kubelet sends; kubectl exits with the number in the ExitCode cause. */
export function statusOfExit(kind: RemoteCommand["kind"], exitCode: number): Status {
  // Attach ends well with the container, however that ended: its code is in the Pod's status.
  if (kind === "attach" || exitCode === 0) return { metadata: {}, status: "Success" };
  return {
    metadata: {},
    status: "Failure",
    message: `command terminated with non-zero exit code: exit status ${exitCode & 0xff}`,
    reason: "NonZeroExitCode",
    details: { causes: [{ reason: "ExitCode", message: String(exitCode & 0xff) }] },
  };
}

/** The status of a command that could not be run to its end. */
export function statusOfError(kind: RemoteCommand["kind"], error: unknown): Status {
  const message = kind === "exec" ? `error executing command in container: ${messageOf(error)}` : `error attaching to container: ${messageOf(error)}`;
  return {
    metadata: {},
    status: "Failure",
    message: `Internal error occurred: ${message}`,
    reason: "InternalError",
    details: { causes: [{ message }] },
    code: 500,
  };
}

/** What goes over the error channel. Before version 4 it was plain text, and nothing on success. */
export function encodeStatus(status: Status, isJson: boolean): Buffer {
  if (isJson) return Buffer.from(JSON.stringify(status));
  return Buffer.from(status.status === "Success" ? "" : (status.message ?? ""));
}

const sizeSchema = z.object({ Width: z.int().min(0).max(65_535), Height: z.int().min(0).max(65_535) });

/** Reads terminal sizes from the resize channel; the newest one wins until a session is there to take it. */
class Resizer {
  #pending = "";
  #size: TerminalSize | undefined;
  #onSize: (size: TerminalSize) => void = () => undefined;
  readonly #hasChannel: boolean;

  constructor(channel: Readable | undefined) {
    this.#hasChannel = channel !== undefined;
    channel?.on("error", () => undefined);
    channel?.on("data", (bytes: Buffer) => this.#receive(bytes.toString("latin1")));
  }

  async firstSize(signal: AbortSignal): Promise<TerminalSize> {
    if (this.#hasChannel && this.#size === undefined && !signal.aborted) {
      await new Promise<void>((resolve) => {
        const finish = (): void => {
          clearTimeout(timer);
          signal.removeEventListener("abort", finish);
          resolve();
        };
        const timer = setTimeout(finish, firstSizeMilliseconds);
        signal.addEventListener("abort", finish);
        this.#onSize = finish;
      });
      this.#onSize = () => undefined;
    }
    return this.#size ?? defaultTerminalSize;
  }

  /** `known` is the size that the session already has. */
  connect(session: ProcessSession, known: TerminalSize | undefined): void {
    const isKnown = known !== undefined && this.#size?.columns === known.columns && this.#size.rows === known.rows;
    this.#onSize = (size) => {
      try {
        session.resize(size);
      } catch {
        // a process that just ended has no size; nothing else may fail for it
      }
    };
    if (this.#size !== undefined && !isKnown) this.#onSize(this.#size);
  }

  #receive(text: string): void {
    this.#pending += text;
    for (let end = this.#pending.indexOf("}"); end !== -1; end = this.#pending.indexOf("}")) {
      const size = parseSize(this.#pending.slice(0, end + 1));
      this.#pending = this.#pending.slice(end + 1);
      if (size === undefined) continue;
      this.#size = size;
      this.#onSize(size);
    }
    if (this.#pending.length > maximumResizeMessage) this.#pending = "";
  }
}

function parseSize(json: string): TerminalSize | undefined {
  try {
    const { Width: columns, Height: rows } = sizeSchema.parse(JSON.parse(json));
    return columns === 0 || rows === 0 ? undefined : { columns, rows };
  } catch {
    return undefined; // a size that cannot be read is no reason to end a session
  }
}
