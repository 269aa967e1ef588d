/**
 * Synchronous writes that leave runs of zeros out, so that a disk image stays sparse. For the store's threads only; a
 * target file starts as one hole of its full size.
 */
import { readSync, writeSync } from "node:fs";

/** Granularity of holes: finer ones cost more system calls than they save space. */
const blockSize = 64 * 1024;
const zeros = Buffer.alloc(blockSize);

/** Writes the bytes at the position, without the aligned 64 KiB blocks that are all zeros. */
export function writeSparse(descriptor: number, bytes: Uint8Array, position: number): void {
  let runStart: number | undefined;
  let start = 0;
  while (start < bytes.length) {
    const end = Math.min(start + blockSize - ((position + start) % blockSize), bytes.length);
    if (isZero(bytes.subarray(start, end))) {
      if (runStart !== undefined) writeAll(descriptor, bytes.subarray(runStart, start), position + runStart);
      runStart = undefined;
    } else {
      runStart ??= start;
    }
    start = end;
  }
  if (runStart !== undefined) writeAll(descriptor, bytes.subarray(runStart), position + runStart);
}

export function isZero(bytes: Uint8Array): boolean {
  for (let start = 0; start < bytes.length; start += blockSize) {
    const length = Math.min(blockSize, bytes.length - start);
    if (zeros.compare(bytes, start, start + length, 0, length) !== 0) return false;
  }
  return true;
}

/** Fills the buffer from the position; returns how many bytes there were. */
export function readFully(descriptor: number, buffer: Uint8Array, position: number): number {
  let done = 0;
  while (done < buffer.length) {
    const count = readSync(descriptor, buffer, done, buffer.length - done, position + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}

export function writeAll(descriptor: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done, bytes.length - done, position + done);
}
