/**
 * Reads a container's log file as `kubectl logs` asks for it: the last lines found from the end of the file, records
 * formatted one by one, and when following, woken by the file system and ended by the container's end. Memory does not
 * grow with the file; a record above 1 MiB (a hostile guest's) is passed on in pieces.
 */
import { watch } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { Readable } from "node:stream";
import { PodyardError } from "../contract/errors.ts";
import type { LogRequest } from "../contract/streams.ts";
import { LogFormatter, parseRecord } from "./log-lines.ts";
import { pause } from "./pod-target.ts";

const BLOCK = 64 * 1024;
const LONGEST_RECORD = 1024 * 1024;
const NEWLINE = 0x0a;
/** In case the file system tells nothing (network file systems do not). */
const FALLBACK_INTERVAL = 1000;

/**
 * The log as a byte stream. `ended` aborts when the container has ended and its log is complete; only a follower needs it.
 * A file that does not exist (yet) is an empty log.
 */
export function readLog(path: string, request: LogRequest, ended: AbortSignal): Readable {
  return Readable.from(generate(path, request, ended), { objectMode: false });
}

async function* generate(path: string, request: LogRequest, ended: AbortSignal): AsyncGenerator<Buffer> {
  const formatter = new LogFormatter(request);
  const stop = request.signal ?? new AbortController().signal;
  await using watcher = request.follow ? watchFile(path) : undefined;
  let file = await openIfPresent(path);
  try {
    while (file === undefined) {
      if (watcher === undefined || ended.aborted || stop.aborted) return;
      await watcher.changed(AbortSignal.any([ended, stop]));
      file = await openIfPresent(path);
    }
    let position = request.tailLines === undefined ? 0 : await tailPosition(file, request.tailLines);
    const buffer = Buffer.allocUnsafe(BLOCK);
    let rest: Buffer = Buffer.alloc(0);
    for (;;) {
      // Asked before the read: what was written before the end is then certainly read.
      const last = ended.aborted;
      const { bytesRead } = await file.read(buffer, 0, BLOCK, position);
      position += bytesRead;
      if (bytesRead > 0) {
        rest = Buffer.concat([rest, buffer.subarray(0, bytesRead)]);
        const output: Buffer[] = [];
        let start = 0;
        for (let end = rest.indexOf(NEWLINE); end >= 0 && !formatter.exhausted; end = rest.indexOf(NEWLINE, start)) {
          const record = parseRecord(rest.subarray(start, end));
          const text = record === undefined ? undefined : formatter.format(record);
          if (text !== undefined) output.push(text);
          start = end + 1;
        }
        rest = Buffer.from(rest.subarray(start));
        if (rest.length > LONGEST_RECORD) {
          const record = parseRecord(rest);
          const text = record === undefined ? undefined : formatter.format({ ...record, partial: true });
          if (text !== undefined) output.push(text);
          // What follows continues the record, so it gets the same head.
          rest = record === undefined ? Buffer.alloc(0) : Buffer.from(`${record.time} ${record.stream} ${record.partial ? "P" : "F"} `);
        }
        if (output.length > 0) yield Buffer.concat(output);
        if (formatter.exhausted || stop.aborted) return;
        continue;
      }
      if (watcher === undefined || last || stop.aborted) return;
      await watcher.changed(AbortSignal.any([ended, stop]));
    }
  } finally {
    await file?.close();
  }
}

/** Offset at which the last `lines` lines begin. Lines are ended records; the parts of a cut line count as one. */
export async function tailPosition(file: FileHandle, lines: number): Promise<number> {
  const { size } = await file.stat();
  if (lines <= 0) return size;
  let end = size;
  let after: Buffer = Buffer.alloc(0);
  let found = 0;
  let lineStart = size;
  // Goes backwards record by record; a full record that is not preceded by a partial one of a line begins a line.
  while (end > 0) {
    const start = Math.max(0, end - BLOCK);
    const block = Buffer.allocUnsafe(end - start);
    await file.read(block, 0, block.length, start);
    let text: Buffer = Buffer.concat([block, after]);
    // Records wholly inside `text`: their start is known once a newline (or the file's start) precedes them.
    for (;;) {
      const newline = text.length < 2 ? -1 : text.lastIndexOf(NEWLINE, text.length - 2);
      if (newline < 0 && start > 0) break;
      const record = parseRecord(text.subarray(newline + 1, text.at(-1) === NEWLINE ? -1 : undefined));
      if (record !== undefined && !record.partial) {
        if (found === lines) return lineStart;
        found++;
      }
      if (text.length > 0) lineStart = start + newline + 1;
      if (newline < 0) {
        text = Buffer.alloc(0);
        break;
      }
      text = text.subarray(0, newline + 1);
    }
    after = text.length > LONGEST_RECORD ? Buffer.alloc(0) : text;
    end = start;
  }
  return 0;
}

/** The last bytes of a log as plain text, whole lines: what terminationMessagePolicy FallbackToLogsOnError reports. */
export async function logTail(path: string, lines: number, bytes: number): Promise<string> {
  const stream = readLog(path, { follow: false, previous: false, timestamps: false, tailLines: lines }, AbortSignal.abort());
  let text: Buffer = Buffer.alloc(0);
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    text = Buffer.concat([text, chunk]);
    if (text.length > bytes) text = text.subarray(text.length - bytes);
  }
  return text.toString("utf8");
}

async function openIfPresent(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, "r");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw new PodyardError("Internal", `The log ${path} cannot be read`, { cause: error });
  }
}

export interface FileWatcher extends AsyncDisposable {
  /** Resolves when the file may have changed since the last call, or the signal aborts. */
  changed(signal: AbortSignal): Promise<void>;
}

/** Watches a file that may not exist yet; falls back on looking every second. */
export function watchFile(path: string): FileWatcher {
  let dirty = false;
  let wake: (() => void) | undefined;
  const notify = () => {
    dirty = true;
    wake?.();
  };
  let watcher: ReturnType<typeof watch> | undefined;
  const arm = () => {
    if (watcher !== undefined) return;
    try {
      watcher = watch(path, notify);
      watcher.on("error", () => {
        watcher?.close();
        watcher = undefined;
      });
    } catch {
      // It does not exist yet; the next look tries again.
    }
  };
  arm();
  return {
    async changed(signal) {
      arm();
      if (!dirty) {
        const woken = new AbortController();
        wake = () => woken.abort();
        await pause(FALLBACK_INTERVAL, AbortSignal.any([signal, woken.signal]));
        wake = undefined;
      }
      dirty = false;
    },
    [Symbol.asyncDispose]() {
      watcher?.close();
      return Promise.resolve();
    },
  };
}
