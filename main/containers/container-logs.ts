/**
 * A container's log through the Docker API (json-file driver), with the semantics of the kubelet's PodLogOptions.
 * Docker keeps a line above 16 KiB in pieces: each piece is one message (one frame, where there is no terminal), has its
 * own time, and counts for `tail`. Here a line is a line: one time in front, and `tailLines` counts lines.
 */
import { Readable } from "node:stream";
import type { LogRequest } from "../contract/streams.ts";
import { pathName, type EngineClient } from "./engine-client.ts";
import { request } from "./engine-connection.ts";
import { readFrames } from "./multiplexed-stream.ts";

/** Docker's logger cuts a line here. */
const pieceBytes = 16 * 1024;
/** `2006-01-02T15:04:05.000000000Z ` */
const timeBytes = 31;

/** A part of a log message; times are told apart from content so that they can be dropped for continued lines. */
interface MessagePart {
  readonly stream: "stdout" | "stderr";
  readonly data: Buffer;
  readonly last: boolean;
}

export async function containerLogs(docker: EngineClient, id: string, terminal: boolean, log: LogRequest): Promise<Readable> {
  const tail = log.tailLines === undefined ? undefined : await messagesOfLines(docker, id, terminal, log, log.tailLines);
  const source = await openLog(docker, id, log, { follow: log.follow, timestamps: log.timestamps, tail });
  const parts = terminal ? readTerminalLog(source, log.timestamps) : readFrames(source);
  const lines = withLimit(joinPieces(parts, log.timestamps), log.limitBytes);
  return readableOf(lines, source, log.signal);
}

interface OpenOptions {
  readonly follow: boolean;
  readonly timestamps: boolean;
  readonly tail: number | undefined;
}

async function openLog(docker: EngineClient, id: string, log: LogRequest, options: OpenOptions): Promise<Readable> {
  const query = {
    follow: options.follow,
    stdout: log.stream !== "Stderr",
    stderr: log.stream !== "Stdout",
    timestamps: options.timestamps,
    since: log.sinceTime === undefined ? undefined : unixTime(log.sinceTime),
    tail: options.tail,
  };
  const signal = log.signal === undefined ? {} : { signal: log.signal };
  return request(`read the log of container ${id.slice(0, 12)}`, () => docker.open({ method: "GET", path: `/containers/${pathName(id)}/logs`, query, ...signal }));
}

function unixTime(date: Date): string {
  const milliseconds = date.getTime();
  return `${Math.floor(milliseconds / 1000)}.${String(milliseconds % 1000).padStart(3, "0")}000000`;
}

/** How many messages make the last `count` lines: as many, unless there are long lines among them. */
async function messagesOfLines(docker: EngineClient, id: string, terminal: boolean, log: LogRequest, count: number): Promise<number> {
  if (count <= 0) return 0;
  for (let tail = count + 1; ; tail *= 4) {
    const source = await openLog(docker, id, log, { follow: false, timestamps: true, tail });
    // Lengths of the last lines in messages, oldest first; the first line may have begun before what was read.
    const lengths: number[] = [];
    let messages = 0;
    let open = false;
    for await (const { last, data } of terminal ? readTerminalLog(source, true) : readFrames(source)) {
      if (!last) continue;
      messages += 1;
      if (open) lengths.push((lengths.pop() ?? 0) + 1);
      else lengths.push(1);
      open = data.at(-1) !== 0x0a;
      if (lengths.length > count + 1) lengths.shift();
    }
    const isWhole = messages < tail;
    if (lengths.length > count) return sum(lengths.slice(-count));
    if (isWhole) return messages;
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/**
 * The log of a terminal has no frames. With times asked for, a message is the time, then content up to a newline or to the
 * size at which Docker cuts.
 */
async function* readTerminalLog(source: Readable, timestamps: boolean): AsyncGenerator<MessagePart, void> {
  let inMessage = 0;
  for await (const value of source) {
    let chunk: Buffer = value;
    if (!timestamps) {
      yield { stream: "stdout", data: chunk, last: chunk.at(-1) === 0x0a };
      continue;
    }
    while (chunk.length > 0) {
      const left = timeBytes + pieceBytes - inMessage;
      const newline = chunk.subarray(0, left).indexOf(0x0a);
      const length = newline === -1 ? Math.min(left, chunk.length) : newline + 1;
      inMessage += length;
      const last = newline !== -1 || inMessage === timeBytes + pieceBytes;
      yield { stream: "stdout", data: chunk.subarray(0, length), last };
      if (last) inMessage = 0;
      chunk = chunk.subarray(length);
    }
  }
}

/** Drops the time in front of a message that continues a line. */
async function* joinPieces(parts: AsyncIterable<MessagePart>, timestamps: boolean): AsyncGenerator<Buffer, void> {
  const isOpen = { stdout: false, stderr: false };
  let position = 0;
  for await (const { stream, data, last } of parts) {
    const skip = timestamps && isOpen[stream] ? Math.max(0, Math.min(timeBytes - position, data.length)) : 0;
    position += data.length;
    if (skip < data.length) yield data.subarray(skip);
    if (last) {
      isOpen[stream] = data.at(-1) !== 0x0a;
      position = 0;
    }
  }
}

async function* withLimit(chunks: AsyncIterable<Buffer>, limit: number | undefined): AsyncGenerator<Buffer, void> {
  let left = limit ?? Number.POSITIVE_INFINITY;
  for await (const chunk of chunks) {
    yield chunk.subarray(0, Math.min(left, chunk.length));
    left -= chunk.length;
    if (left <= 0) return;
  }
}

/** A stream of the generator; closing it closes the connection, even while the generator waits for the next line. */
function readableOf(chunks: AsyncIterable<Buffer>, source: Readable, signal: AbortSignal | undefined): Readable {
  const readable = Readable.from(chunks, { objectMode: false, highWaterMark: 64 * 1024 });
  const abort = (): void => void readable.destroy();
  signal?.addEventListener("abort", abort, { once: true });
  readable.once("close", () => {
    signal?.removeEventListener("abort", abort);
    source.destroy();
  });
  source.on("error", (error) => {
    if (!readable.destroyed) readable.destroy(error);
  });
  return readable;
}
