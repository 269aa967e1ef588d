/**
 * Makes an image of files and sends it to a registry, in our format or in macOS-vz-kubelet's. Our chunks are read,
 * compressed and sent one by one and in parallel, so that a push needs no space; chunks the registry has are not sent.
 */
import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { randomBytes } from "node:crypto";
import type { Digest } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import { forEachLimited } from "./cancellation.ts";
import { writeAgodaConfig, writeAgodaManifest } from "./formats/agoda.ts";
import { chunkSizeFor, writePodyardConfig, writePodyardManifest } from "./formats/podyard.ts";
import { maximumChunkBytes, type Piece, type PieceTarget } from "./formats/virtual-machine-image.ts";
import type { PushSource } from "./image-store.ts";
import { ignoreMissing } from "./image-records.ts";
import type { PieceWorkers } from "./piece-workers.ts";
import { digestOf } from "./registry-client.ts";
import { uploadBytes, uploadFile, uploadManifest, type UploadOptions } from "./registry-upload.ts";

export interface PushWork {
  readonly upload: UploadOptions;
  readonly tag: string;
  readonly source: PushSource;
  readonly workers: PieceWorkers;
  /** For the temporary files of the gzip format. */
  readonly temporaryDirectory: string;
  /** A repository of the same registry that should have the chunk with that digest of its raw bytes. */
  readonly mountFrom: (digest: Digest) => string | undefined;
  readonly signal: AbortSignal | undefined;
  /** Bytes of the source that are done, of all. */
  readonly onProgress: (bytesDone: number, bytesTotal: number) => void;
}

/** Errors: InvalidArgument, NotFound, Unauthorized, Unavailable, Cancelled. */
export async function pushPodyardImage(work: PushWork): Promise<Digest> {
  const { source, signal } = work;
  const disk = await sizeOf(source.diskPath);
  const auxiliarySize = source.auxiliaryPath === undefined ? 0 : (await sizeOf(source.auxiliaryPath)).size;
  if (auxiliarySize > maximumChunkBytes) throw new PodyardError("InvalidArgument", `The auxiliary storage "${source.auxiliaryPath ?? ""}" has ${auxiliarySize} bytes; at most ${maximumChunkBytes} are allowed.`);
  const chunkSize = chunkSizeFor(disk.allocated);
  const ranges: { readonly target: PieceTarget; readonly path: string; readonly offset: number; readonly length: number }[] = [];
  if (source.auxiliaryPath !== undefined) ranges.push({ target: "auxiliary", path: source.auxiliaryPath, offset: 0, length: auxiliarySize });
  for (let offset = 0; offset < disk.size; offset += chunkSize) ranges.push({ target: "disk", path: source.diskPath, offset, length: Math.min(chunkSize, disk.size - offset) });

  const pieces: Piece[] = [];
  let bytesDone = 0;
  await forEachLimited(ranges, work.workers.size + 2, signal, async ({ target, path, offset, length }, inner) => {
    const outcome = await work.workers.run({ kind: "encode", path, offset, length }, inner);
    if (outcome.kind === "encoded") {
      const { compressed, blobDigest, digest } = outcome.piece;
      await uploadBytes({ ...work.upload, signal: inner }, blobDigest, Buffer.from(compressed.buffer, compressed.byteOffset, compressed.byteLength), work.mountFrom(digest));
      pieces.push({ target, offset, length, digest, compression: "zstd", blob: { digest: blobDigest, size: compressed.length } });
    }
    bytesDone += length;
    work.onProgress(bytesDone, disk.size + auxiliarySize);
  });
  pieces.sort((a, b) => a.target.localeCompare(b.target) || a.offset - b.offset);
  const { operatingSystem, architecture, hardwareModel, machineIdentifier, guest = {} } = source;
  const config = writePodyardConfig({ operatingSystem, architecture, hardwareModel, machineIdentifier, guest, diskSize: disk.size, auxiliarySize }, chunkSize);
  const configDigest = digestOf(config);
  await uploadBytes(work.upload, configDigest, config);
  return uploadManifest(work.upload, work.tag, writePodyardManifest({ digest: configDigest, size: config.length }, pieces, new Date()));
}

/** Errors: as {@link pushPodyardImage}; InvalidArgument if the source is not a macOS machine. */
export async function pushAgodaImage(work: PushWork): Promise<Digest> {
  const { diskPath, auxiliaryPath, operatingSystem, hardwareModel, machineIdentifier } = work.source;
  if (operatingSystem !== "darwin" || auxiliaryPath === undefined || hardwareModel === undefined || machineIdentifier === undefined) {
    throw new PodyardError("InvalidArgument", "The format of macOS-vz-kubelet holds macOS machines only: operating system darwin, auxiliary storage, hardware model and machine identifier are needed.");
  }
  const files = [
    { target: "auxiliary", path: auxiliaryPath, size: (await sizeOf(auxiliaryPath)).size },
    { target: "disk", path: diskPath, size: (await sizeOf(diskPath)).size },
  ] as const;
  const bytesTotal = files.reduce((sum, file) => sum + file.size, 0);
  let bytesDone = 0;
  const pieces: Piece[] = [];
  for (const { target, path, size } of files) {
    const outputPath = join(work.temporaryDirectory, `${randomBytes(8).toString("hex")}.gz`);
    try {
      const outcome = await work.workers.run({ kind: "gzip", path, offset: 0, length: size, outputPath }, work.signal);
      if (outcome.kind !== "gzipped") throw new PodyardError("Internal", `The file ${path} could not be compressed.`);
      const { blob, digest } = outcome.file;
      await uploadFile(work.upload, blob, outputPath, () => undefined);
      pieces.push({ target, offset: 0, length: size, digest, compression: "gzip", blob });
      bytesDone += size;
      work.onProgress(bytesDone, bytesTotal);
    } finally {
      await rm(outputPath, { force: true });
    }
  }
  const config = writeAgodaConfig(hardwareModel, machineIdentifier);
  const empty = Buffer.from("{}");
  for (const bytes of [config, empty]) await uploadBytes(work.upload, digestOf(bytes), bytes);
  return uploadManifest(work.upload, work.tag, writeAgodaManifest({ digest: digestOf(config), size: config.length }, pieces, digestOf(empty), new Date()));
}

async function sizeOf(path: string): Promise<{ readonly size: number; readonly allocated: number }> {
  const status = await stat(path).catch(ignoreMissing);
  if (status === undefined) throw new PodyardError("NotFound", `There is no file "${path}".`);
  if (!status.isFile() || status.size === 0) throw new PodyardError("InvalidArgument", `"${path}" is not a file with content.`);
  return { size: status.size, allocated: Math.min(status.size, status.blocks * 512) };
}
