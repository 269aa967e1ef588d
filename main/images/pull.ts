/**
 * Makes one image whole in the cache. The staging directory holds sparse files of the final size and a journal of the
 * finished pieces, so that a pull continues after a dropped connection and after a kill of the host alike; journaled
 * pieces are hashed again before they are believed. The image appears by one rename at the end.
 */
import { open, readFile, rename, rm, stat, statfs, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { Digest } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { clearRange, emptyFile, startFromBase, type BaseImage, type CloneFile } from "./base-image.ts";
import { downloadToFile, downloadToMemory, type BlobDownload } from "./blob-download.ts";
import { forEachLimited, throwIfCancelled } from "./cancellation.ts";
import { isChunk, type Piece, type VirtualMachineImage } from "./formats/virtual-machine-image.ts";
import { ignoreMissing, syncFile, type ImageRecords } from "./image-records.ts";
import { settled, type PieceWorkers } from "./piece-workers.ts";
import type { RegistrySession } from "./registry-client.ts";

/** Where bytes with a digest may lie on this host; they are verified while they are copied. */
export interface LocalSource {
  readonly path: string;
  readonly offset: number;
}

export interface PullEnvironment {
  readonly records: ImageRecords;
  readonly workers: PieceWorkers;
  readonly logger: Logger;
  /** Local bytes by the digest of a piece. */
  readonly localSources: ReadonlyMap<Digest, readonly LocalSource[]>;
  /** Cached images a clone of which could be the beginning of this one. */
  readonly bases: readonly BaseImage[];
  readonly cloneFile: CloneFile;
  /** Throws NoSpace if that many bytes cannot be had, after collecting garbage. */
  readonly ensureSpace: (bytesNeeded: number) => Promise<void>;
  readonly parallelDownloads: number;
  readonly backOffMilliseconds: number;
}

export interface PullWork {
  /** For messages. */
  readonly name: string;
  readonly digest: Digest;
  readonly manifest: Uint8Array;
  readonly image: VirtualMachineImage;
  readonly session: RegistrySession;
  readonly signal: AbortSignal;
  /** Compressed bytes, cumulative; `bytesTotal` is what comes over the wire. */
  readonly onProgress: (progress: { readonly phase: "downloading" | "verifying"; readonly bytesDone: number; readonly bytesTotal: number }) => void;
}

/** Errors: NotFound, Unauthorized, Unavailable, Corrupt, NoSpace, Cancelled. */
export async function pullImage(work: PullWork, environment: PullEnvironment): Promise<void> {
  const startedAt = performance.now();
  const staging = await environment.records.openStaging(work.digest);
  const files = { disk: join(staging, "disk.img"), auxiliary: join(staging, "auxiliary.img") };
  const journalPath = join(staging, "journal");
  const shared = await startFromBase(files.disk, work.image, environment.bases, environment.cloneFile);
  const isDiskThere = shared.length > 0 || (await prepareFile(files.disk, work.image.diskSize));
  const isAuxiliaryThere = work.image.auxiliarySize === 0 || (await prepareFile(files.auxiliary, work.image.auxiliarySize));
  if (shared.length > 0 || !isDiskThere || !isAuxiliaryThere) await rm(journalPath, { force: true });

  work.onProgress({ phase: "verifying", bytesDone: 0, bytesTotal: 0 });
  // The base was verified when it was pulled and is read-only since.
  const finished = shared.length > 0 ? new Set(shared) : await verifiedPieces(journalPath, files, work, environment);
  const missing = work.image.pieces.filter((piece) => !finished.has(piece));
  await environment.ensureSpace(await spaceFor(missing, staging));

  await using journal = await open(journalPath, "a", 0o600);
  const confirm = async (piece: Piece): Promise<void> => {
    await journal.write(`${journalLine(piece)}\n`);
  };
  if (shared.length > 0) await journal.write(shared.map((piece) => `${journalLine(piece)}\n`).join(""));
  const toDownload: Piece[] = [];
  await forEachLimited(missing, environment.workers.size, work.signal, async (piece, signal) => {
    if (await copyLocally(piece, files[piece.target], environment, signal)) await confirm(piece);
    else toDownload.push(piece);
  });
  await downloadPieces(toDownload.toSorted((a, b) => a.offset - b.offset), files, staging, work, environment, confirm);

  throwIfCancelled(work.signal);
  const downloadedAt = performance.now();
  await syncFile(files.disk);
  if (work.image.auxiliarySize > 0) await syncFile(files.auxiliary);
  await rm(journalPath, { force: true });
  await commit(work, environment);
  const milliseconds = { download: Math.round(downloadedAt - startedAt), flush: Math.round(performance.now() - downloadedAt) };
  environment.logger.info("an image was pulled", { image: work.name, digest: work.digest, pieces: work.image.pieces.length, resumed: finished.size, downloaded: toDownload.length, milliseconds });
}

async function downloadPieces(pieces: readonly Piece[], files: Readonly<Record<Piece["target"], string>>, staging: string, work: PullWork, environment: PullEnvironment, confirm: (piece: Piece) => Promise<void>): Promise<void> {
  const bytesTotal = pieces.reduce((sum, piece) => sum + piece.blob.size, 0);
  let bytesDone = 0;
  const report = (count: number): void => {
    bytesDone += count;
    work.onProgress({ phase: "downloading", bytesDone, bytesTotal });
  };
  if (pieces.length > 0) report(0);
  await forEachLimited(pieces, environment.parallelDownloads, work.signal, async (piece, signal) => {
    for (let isSecondTry = false; ; isSecondTry = true) {
      let counted = 0;
      const onBytes = (count: number): void => {
        counted += count;
        report(count);
      };
      const download: BlobDownload = { session: work.session, blob: piece.blob, signal, onBytes, backOffMilliseconds: environment.backOffMilliseconds };
      const partialPath = join(staging, `${piece.blob.digest.slice("sha256:".length)}.partial`);
      const problem = isChunk(piece) ? await decodeChunk(piece, files[piece.target], download, environment) : await decodeStream(piece, files[piece.target], partialPath, download, environment);
      if (problem === undefined) {
        await rm(partialPath, { force: true });
        break;
      }
      await rm(partialPath, { force: true });
      report(-counted);
      if (problem.kind === "raw-mismatch" || isSecondTry) {
        throw new PodyardError("Corrupt", `The blob ${piece.blob.digest} of ${work.name} is corrupt: ${problem.detail}.`, { fix: "Push the image again; the registry's copy is damaged." });
      }
      environment.logger.warn("a blob arrived with the wrong digest and is fetched once more", { image: work.name, blob: piece.blob.digest });
      work.session.dropMirrors();
    }
    await confirm(piece);
  });
}

type Problem = { readonly kind: "blob-mismatch" | "raw-mismatch"; readonly detail: string };

async function decodeChunk(piece: Piece, path: string, download: BlobDownload, { workers }: PullEnvironment): Promise<Problem | undefined> {
  const compressed = await downloadToMemory(download);
  const { offset, length, digest, compression, blob } = piece;
  return problemOf(await workers.run({ kind: "decode", path, offset, length, digest, compression, compressed, blobDigest: blob.digest }, download.signal));
}

/** The download goes to a file at the speed of the network while a thread decodes what is there; the file is what a later run continues from. */
async function decodeStream(piece: Piece, path: string, partialPath: string, download: BlobDownload, { workers }: PullEnvironment): Promise<Problem | undefined> {
  const { offset, length, digest, compression, blob } = piece;
  // The thread starts over from the blob's first byte and leaves zeros out, so nothing may be left of an earlier run.
  await emptyFile(path);
  const present = Math.min((await stat(partialPath).catch(ignoreMissing))?.size ?? 0, blob.size);
  if (present === 0) await (await open(partialPath, "w", 0o600)).close();
  const stop = new AbortController();
  const signal = AbortSignal.any([download.signal, stop.signal]);
  const task = { kind: "follow", path, offset, length, digest, compression, blob, partialPath } as const;
  const running = workers.start(task);
  let available = present;
  // The thread ends early only if it failed; then there is no use in downloading on.
  const outcome = running.outcome.finally(() => stop.abort());
  outcome.catch(() => undefined);
  download.onBytes(present);
  try {
    await downloadToFile({ ...download, signal }, partialPath, (grown) => {
      available = grown;
      running.grown(grown, grown === blob.size);
    });
  } catch (error) {
    running.grown(available, true);
    const result = await outcome;
    if (download.signal.aborted || (result.kind === "failed" && result.code === "ABORTED")) throw error;
  }
  return problemOf(settled(await outcome, task, download.signal));
}

function problemOf(outcome: ReturnType<typeof settled>): Problem | undefined {
  return outcome.kind === "blob-mismatch" || outcome.kind === "raw-mismatch" ? outcome : undefined;
}

async function copyLocally(piece: Piece, path: string, { workers, localSources, logger, cloneFile }: PullEnvironment, signal: AbortSignal): Promise<boolean> {
  const { offset, length, digest } = piece;
  for (const source of localSources.get(digest) ?? []) {
    // A whole file can share its blocks with the source; it is hashed all the same.
    if (!isChunk(piece) && source.offset === 0 && (await stat(source.path).catch(ignoreMissing))?.size === length && (await stat(path)).size === length) {
      const clone = `${path}.clone`;
      await rm(clone, { force: true });
      const isGood = (await cloneFile(source.path, clone)) && (await workers.run({ kind: "verify", path: clone, offset, length, digest }, signal)).kind === "done";
      if (isGood) {
        await rename(clone, path);
        return true;
      }
      await rm(clone, { force: true });
    }
    // A long range is written while it is hashed, a chunk only after.
    if (!isChunk(piece)) await emptyFile(path);
    const outcome = await workers.run({ kind: "copy", path, offset, length, digest, source }, signal).catch((error: unknown) => {
      if (signal.aborted || (error instanceof PodyardError && error.code === "NoSpace")) throw error;
      return { kind: "raw-mismatch", detail: String(error) } as const;
    });
    if (outcome.kind === "done") return true;
    logger.warn("local bytes of an image do not have their digest and are not used", { path: source.path, digest, detail: "detail" in outcome ? outcome.detail : "" });
  }
  return false;
}

/** Pieces whose journal line is there and whose bytes on disk have their digest. */
async function verifiedPieces(journalPath: string, files: Readonly<Record<Piece["target"], string>>, work: PullWork, { workers }: PullEnvironment): Promise<ReadonlySet<Piece>> {
  const text = (await readFile(journalPath, "utf8").catch(ignoreMissing)) ?? "";
  // A line without its end was torn by the kill.
  const lines = new Set(text.slice(0, text.lastIndexOf("\n") + 1).split("\n"));
  const verified = new Set<Piece>();
  await forEachLimited(work.image.pieces, workers.size, work.signal, async (piece, signal) => {
    const { offset, length, digest } = piece;
    const path = files[piece.target];
    const isJournaled = lines.has(journalLine(piece));
    if (isJournaled && (await workers.run({ kind: "verify", path, offset, length, digest }, signal)).kind === "done") verified.add(piece);
    // An interrupted write may have left some of the bytes, which are the right ones; anything else would be ours alone.
    else if (isJournaled) await clearRange(path, offset, length);
  });
  return verified;
}

/** True if the file was there with its size, so that the journal speaks of it. */
async function prepareFile(path: string, size: number): Promise<boolean> {
  const present = await stat(path).catch(ignoreMissing);
  if (present?.size === size) return true;
  await (await open(path, "w", 0o600)).close();
  await truncate(path, size);
  return false;
}

/**
 * Bytes the missing pieces will take. A chunk is counted in full; of a stream we know only its compressed size before it
 * is read (its logical size is mostly holes): the download itself and at least as much again.
 */
async function spaceFor(pieces: readonly Piece[], staging: string): Promise<number> {
  let bytes = 0;
  for (const piece of pieces) {
    if (isChunk(piece)) bytes += piece.length;
    else {
      const present = await stat(join(staging, `${piece.blob.digest.slice("sha256:".length)}.partial`)).catch(ignoreMissing);
      bytes += Math.max(piece.blob.size - (present?.size ?? 0), 0) + Math.min(piece.blob.size, piece.length);
    }
  }
  return bytes;
}

async function commit({ image, digest, manifest }: PullWork, { records }: PullEnvironment): Promise<void> {
  const { format, operatingSystem, architecture, hardwareModel, machineIdentifier, guest, diskSize, auxiliarySize } = image;
  const chunks = image.pieces.filter((piece) => piece.target === "disk").map(({ offset, length, digest: chunk }) => ({ offset, length, digest: chunk }));
  await records.commit({ version: 1, digest, format, operatingSystem, architecture, hardwareModel, machineIdentifier, guest, diskSize, auxiliarySize, pulledAt: new Date().toISOString(), chunks }, manifest);
}

function journalLine(piece: Piece): string {
  return `${piece.target} ${piece.offset} ${piece.length} ${piece.digest}`;
}

/** Free and total bytes of the file system of a path, for callers without root's reserve. */
export async function fileSystemSpace(path: string): Promise<{ readonly availableBytes: number; readonly capacityBytes: number }> {
  const { bavail, blocks, bsize } = await statfs(path);
  return { availableBytes: bavail * bsize, capacityBytes: blocks * bsize };
}
