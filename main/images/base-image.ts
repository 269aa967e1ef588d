/**
 * Starts a pull from a clone of the cached image that has most in common with it, where the file system can share blocks
 * (APFS, XFS, Btrfs): then an update costs the changed chunks only, in time and in space. The clone is finished under
 * another name, with everything that differs set to zeros, since later writes leave zeros out.
 */
import { chmod, constants, copyFile, open, rename, rm, stat, truncate } from "node:fs/promises";
import { ignoreMissing, type ImageRecord } from "./image-records.ts";
import type { Piece, VirtualMachineImage } from "./formats/virtual-machine-image.ts";

export interface BaseImage {
  readonly diskPath: string;
  readonly chunks: ImageRecord["chunks"];
}

/** Makes `target` share the blocks of `source`; false if the file system cannot. */
export type CloneFile = (source: string, target: string) => Promise<boolean>;

const minimumShare = 0.25;

/** clonefile(2) or FICLONE; never a copy. */
export async function cloneFile(source: string, target: string): Promise<boolean> {
  try {
    await copyFile(source, target, constants.COPYFILE_FICLONE_FORCE);
    await chmod(target, 0o600);
    return true;
  } catch {
    await rm(target, { force: true });
    return false;
  }
}

/**
 * Creates the disk as a clone of the best base and returns the pieces it then has. Nothing is done if the disk is there
 * already (a resumed pull), no base shares a quarter of the data, or blocks cannot be shared.
 */
export async function startFromBase(diskPath: string, image: VirtualMachineImage, bases: readonly BaseImage[], clone: CloneFile): Promise<readonly Piece[]> {
  if ((await stat(diskPath).catch(ignoreMissing)) !== undefined) return [];
  const pieces = image.pieces.filter((piece) => piece.target === "disk");
  const wanted = new Map(pieces.map((piece) => [keyOf(piece), piece]));
  const ranked = bases.map((base) => ({ base, shared: base.chunks.flatMap((chunk) => wanted.get(keyOf(chunk)) ?? []) })).toSorted((a, b) => lengthOf(b.shared) - lengthOf(a.shared));
  const [best] = ranked;
  if (best === undefined || lengthOf(best.shared) < lengthOf(pieces) * minimumShare) return [];
  const temporary = `${diskPath}.clone`;
  await rm(temporary, { force: true });
  if (!(await clone(best.base.diskPath, temporary))) return [];
  await truncate(temporary, image.diskSize);
  for (const { offset, length } of best.base.chunks.filter((chunk) => !wanted.has(keyOf(chunk)))) {
    if (offset < image.diskSize) await clearRange(temporary, offset, Math.min(length, image.diskSize - offset));
  }
  await rename(temporary, diskPath);
  return best.shared;
}

/** Zeros a range of a file; if it is all of the file, by making it a hole. */
export async function clearRange(path: string, offset: number, length: number): Promise<void> {
  if (offset === 0 && (await stat(path)).size === length) return emptyFile(path);
  await using file = await open(path, "r+");
  const zeros = Buffer.alloc(Math.min(length, 1024 * 1024));
  for (let done = 0; done < length; done += zeros.length) await file.write(zeros, 0, Math.min(zeros.length, length - done), offset + done);
}

/** Makes a file one hole again. */
export async function emptyFile(path: string): Promise<void> {
  const { size } = await stat(path);
  await truncate(path, 0);
  await truncate(path, size);
}

function keyOf({ offset, length, digest }: { readonly offset: number; readonly length: number; readonly digest: string }): string {
  return `${offset} ${length} ${digest}`;
}

function lengthOf(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}
