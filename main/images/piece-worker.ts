/**
 * One of the store's threads: hashing, (de)compression and file writes, away from the thread that answers the cluster.
 * It does one task at a time with synchronous calls, which here is both simplest and fastest; only a followed download
 * waits for messages, and inflates in libuv's pool while this thread hashes and writes.
 */
import { createHash } from "node:crypto";
import { closeSync, fsyncSync, openSync } from "node:fs";
import { parentPort } from "node:worker_threads";
import { constants, createGunzip, createGzip, createZstdDecompress, zstdCompressSync, zstdDecompressSync, gunzipSync } from "node:zlib";
import { PassThrough, type Transform } from "node:stream";
import { once } from "node:events";
import type { Digest } from "../contract/image.ts";
import type { FromWorker, PieceOutcome, PieceTask, ToWorker } from "./piece-task.ts";
import { maximumChunkBytes } from "./formats/virtual-machine-image.ts";
import { isZero, readFully, writeAll, writeSparse } from "./sparse-file.ts";

type Task<Kind extends PieceTask["kind"]> = Extract<PieceTask, { kind: Kind }>;

const stepBytes = 1024 * 1024;
const growth = { id: 0, available: 0, ended: false, wake: (): void => undefined };

const port = parentPort;
port?.on("message", (message: ToWorker) => {
  if (message.kind === "grown") {
    if (message.id !== growth.id) return;
    growth.available = message.available;
    growth.ended = message.ended;
    growth.wake();
    return;
  }
  growth.id = message.id;
  growth.available = 0;
  growth.ended = false;
  void perform(message.task)
    .catch((error: unknown): PieceOutcome => {
      const code = error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
      return { kind: "failed", code, message: error instanceof Error ? error.message : String(error) };
    })
    .then((outcome) => {
      const transfer = outcome.kind === "encoded" ? [outcome.piece.compressed.buffer] : [];
      port.postMessage({ id: message.id, outcome } satisfies FromWorker, transfer);
    });
});

async function perform(task: PieceTask): Promise<PieceOutcome> {
  switch (task.kind) {
    case "decode": return decode(task);
    case "follow": return follow(task);
    case "copy": return copy(task);
    case "verify": return verify(task);
    case "encode": return encode(task);
    default: return gzip(task);
  }
}

function decode(task: Task<"decode">): PieceOutcome {
  const blobDigest = sha256(task.compressed);
  if (blobDigest !== task.blobDigest) return { kind: "blob-mismatch", detail: `its digest is ${blobDigest}` };
  let bytes: Uint8Array;
  try {
    // One byte more than is due, so that a blob that holds too much is noticed; one output buffer, so that nothing is concatenated.
    const options = { chunkSize: Math.max(task.length + 1, 64), maxOutputLength: task.length + 1 };
    bytes = task.compression === "zstd" ? zstdDecompressSync(task.compressed, options) : task.compression === "gzip" ? gunzipSync(task.compressed, options) : task.compressed;
  } catch (error) {
    return { kind: "raw-mismatch", detail: `it cannot be decompressed (${error instanceof Error ? error.message : String(error)})` };
  }
  if (bytes.length !== task.length) return { kind: "raw-mismatch", detail: `it holds ${bytes.length === task.length + 1 ? "more" : "fewer"} bytes than the ${task.length} it should` };
  const digest = sha256(bytes);
  if (digest !== task.digest) return { kind: "raw-mismatch", detail: `its uncompressed digest is ${digest}, not ${task.digest}` };
  withFile(task.path, "r+", (descriptor) => writeSparse(descriptor, bytes, task.offset));
  return { kind: "done" };
}

async function follow(task: Task<"follow">): Promise<PieceOutcome> {
  const input = openSync(task.partialPath, "r");
  const output = openSync(task.path, "r+");
  const blobHash = createHash("sha256");
  const rawHash = createHash("sha256");
  const decoder: Transform =
    task.compression === "gzip" ? createGunzip({ chunkSize: stepBytes }) : task.compression === "zstd" ? createZstdDecompress({ chunkSize: stepBytes }) : new PassThrough({ highWaterMark: stepBytes });
  let written = 0;
  let failure: Error | undefined;
  let writeFailure: { readonly error: unknown } | undefined;
  decoder.on("data", (bytes: Buffer) => {
    if (failure !== undefined || writeFailure !== undefined) return;
    if (written + bytes.length > task.length) {
      failure = new Error(`it holds more than the ${task.length} bytes it should`);
      return;
    }
    rawHash.update(bytes);
    try {
      writeSparse(output, bytes, task.offset + written);
    } catch (error) {
      writeFailure = { error };
    }
    written += bytes.length;
  });
  decoder.on("error", (error: Error) => (failure ??= error));
  const ended = once(decoder, "close");
  ended.catch(() => undefined);
  try {
    let position = 0;
    while (position < task.blob.size) {
      if (position >= growth.available) {
        if (growth.ended) return { kind: "failed", code: "ABORTED", message: "the download was given up" };
        const { promise, resolve } = Promise.withResolvers<undefined>();
        growth.wake = () => resolve(undefined);
        await promise;
        continue;
      }
      const bytes = Buffer.allocUnsafeSlow(Math.min(stepBytes, growth.available - position));
      const count = readFully(input, bytes, position);
      if (count < bytes.length) return { kind: "failed", code: undefined, message: "the downloaded file shrank" };
      if (writeFailure !== undefined) throw writeFailure.error;
      blobHash.update(bytes);
      position += count;
      // A broken stream is judged by the blob's digest first, so the rest is still read; only the decoder is left alone.
      if (failure === undefined && !decoder.write(bytes)) await Promise.race([once(decoder, "drain"), ended]).catch(() => undefined);
      else await new Promise((resolve) => setImmediate(resolve));
    }
    decoder.end();
    await ended.catch(() => undefined);
    const blobDigest: Digest = `sha256:${blobHash.digest("hex")}`;
    if (writeFailure !== undefined) throw writeFailure.error;
    if (blobDigest !== task.blob.digest) return { kind: "blob-mismatch", detail: `its digest is ${blobDigest}` };
    if (failure !== undefined) return { kind: "raw-mismatch", detail: failure.message };
    const digest: Digest = `sha256:${rawHash.digest("hex")}`;
    if (written !== task.length) return { kind: "raw-mismatch", detail: `it holds ${written} bytes, not ${task.length}` };
    return digest === task.digest ? { kind: "done" } : { kind: "raw-mismatch", detail: `its uncompressed digest is ${digest}, not ${task.digest}` };
  } finally {
    decoder.destroy();
    closeSync(input);
    closeSync(output);
  }
}

function copy(task: Task<"copy">): PieceOutcome {
  return withFile(task.source.path, "r", (input) =>
    withFile(task.path, "r+", (output) => {
      if (task.length > maximumChunkBytes) return readRange(input, task.source.offset, task, (bytes, position) => writeSparse(output, bytes, task.offset + position));
      const bytes = Buffer.allocUnsafeSlow(task.length);
      if (readFully(input, bytes, task.source.offset) < bytes.length) return { kind: "raw-mismatch", detail: "the file is too short" };
      const digest = sha256(bytes);
      if (digest !== task.digest) return { kind: "raw-mismatch", detail: `its digest is ${digest}, not ${task.digest}` };
      writeSparse(output, bytes, task.offset);
      return { kind: "done" };
    }),
  );
}

function verify(task: Task<"verify">): PieceOutcome {
  return withFile(task.path, "r", (input) => readRange(input, task.offset, task, () => undefined));
}

function encode(task: Task<"encode">): PieceOutcome {
  const bytes = Buffer.allocUnsafeSlow(task.length);
  const count = withFile(task.path, "r", (input) => readFully(input, bytes, task.offset));
  if (count < task.length) return { kind: "failed", code: undefined, message: `${task.path} ends at byte ${task.offset + count}` };
  if (isZero(bytes)) return { kind: "zeros" };
  const compressed = new Uint8Array(zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: 3, [constants.ZSTD_c_contentSizeFlag]: 1 }, chunkSize: stepBytes }));
  return { kind: "encoded", piece: { compressed, blobDigest: sha256(compressed), digest: sha256(bytes) } };
}

async function gzip(task: Task<"gzip">): Promise<PieceOutcome> {
  const input = openSync(task.path, "r");
  const output = openSync(task.outputPath, "w", 0o600);
  const blobHash = createHash("sha256");
  const rawHash = createHash("sha256");
  let size = 0;
  const encoder = createGzip({ chunkSize: stepBytes });
  encoder.on("data", (bytes: Buffer) => {
    blobHash.update(bytes);
    writeAll(output, bytes, size);
    size += bytes.length;
  });
  try {
    const ended = once(encoder, "end");
    for (let position = 0; position < task.length; ) {
      const bytes = Buffer.allocUnsafeSlow(Math.min(stepBytes, task.length - position));
      if (readFully(input, bytes, task.offset + position) < bytes.length) return { kind: "failed", code: undefined, message: `${task.path} shrank` };
      rawHash.update(bytes);
      position += bytes.length;
      if (!encoder.write(bytes)) await once(encoder, "drain");
    }
    encoder.end();
    await ended;
    fsyncSync(output);
    return { kind: "gzipped", file: { blob: { digest: `sha256:${blobHash.digest("hex")}`, size }, digest: `sha256:${rawHash.digest("hex")}` } };
  } finally {
    encoder.destroy();
    closeSync(input);
    closeSync(output);
  }
}

/** Reads a range step by step, hashes it, and hands it on. */
function readRange(input: number, offset: number, expected: { readonly length: number; readonly digest: Digest }, use: (bytes: Buffer, position: number) => void): PieceOutcome {
  const hash = createHash("sha256");
  const buffer = Buffer.allocUnsafeSlow(Math.min(4 * stepBytes, expected.length));
  for (let position = 0; position < expected.length; ) {
    const bytes = buffer.subarray(0, Math.min(buffer.length, expected.length - position));
    if (readFully(input, bytes, offset + position) < bytes.length) return { kind: "raw-mismatch", detail: "the file is too short" };
    hash.update(bytes);
    use(bytes, position);
    position += bytes.length;
  }
  const digest = `sha256:${hash.digest("hex")}`;
  return digest === expected.digest ? { kind: "done" } : { kind: "raw-mismatch", detail: `its digest is ${digest}, not ${expected.digest}` };
}

function withFile<T>(path: string, flags: "r" | "r+", use: (descriptor: number) => T): T {
  const descriptor = openSync(path, flags);
  try {
    return use(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function sha256(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
