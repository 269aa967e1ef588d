/**
 * Docker's multiplexed stream: frames of [stream, 0, 0, 0, length (4 bytes, big endian)] and data, used where there is
 * no terminal.
 * https://docs.docker.com/reference/api/engine/version/v1.41/#operation/ContainerAttach
 */
import { once } from "node:events";
import type { Readable, Writable } from "node:stream";
import { PodyardError } from "../contract/errors.ts";

export interface Frame {
  readonly stream: "stdout" | "stderr";
  /** A piece of a frame's data; `last` tells the frame's end (one log message is one frame). */
  readonly data: Buffer;
  readonly last: boolean;
}

/** Pieces of frames as they arrive; nothing larger than a chunk of the source is held. */
export async function* readFrames(source: Readable): AsyncGenerator<Frame, void> {
  let header = Buffer.alloc(0);
  let stream: Frame["stream"] = "stdout";
  let left = 0;
  for await (const value of source) {
    let chunk: Buffer = value;
    while (chunk.length > 0) {
      if (left === 0) {
        const missing = 8 - header.length;
        header = Buffer.concat([header, chunk.subarray(0, missing)]);
        chunk = chunk.subarray(missing);
        if (header.length < 8) break;
        const type = header.readUInt8(0);
        if (type > 3) throw new PodyardError("Corrupt", `The Docker engine sent a frame of unknown stream ${type}`);
        // 3 is an error of the engine itself, for people.
        stream = type === 1 || type === 0 ? "stdout" : "stderr";
        left = header.readUInt32BE(4);
        header = Buffer.alloc(0);
        continue;
      }
      const data = chunk.subarray(0, left);
      left -= data.length;
      chunk = chunk.subarray(data.length);
      yield { stream, data, last: left === 0 };
    }
  }
}

/** Writes and waits until there is room. A reader that went away loses the data silently: the others go on. */
export async function writeWithBackPressure(target: Writable, data: Buffer): Promise<void> {
  if (target.destroyed || target.writableEnded) return;
  if (target.write(data)) return;
  const abort = new AbortController();
  try {
    await Promise.race([once(target, "drain", { signal: abort.signal }), once(target, "close", { signal: abort.signal })]);
  } finally {
    abort.abort();
  }
}
