/**
 * What every format of a virtual machine image is read into: two files, each made of pieces that lie in blobs of their
 * own. A format with one gzip stream is the case of one piece. What no piece covers is a hole and reads as zeros.
 */
import type { Architecture, Digest, GuestDefaults, OperatingSystem } from "../../contract/image.ts";
import { PodyardError } from "../../contract/errors.ts";
import type { Descriptor } from "./oci.ts";

export type Compression = "zstd" | "gzip" | "none";
export type PieceTarget = "disk" | "auxiliary";

/** A range of a file of the image, in bytes, and the blob it is made from. */
export interface Piece {
  readonly target: PieceTarget;
  readonly offset: number;
  readonly length: number;
  /** Of the uncompressed bytes. */
  readonly digest: Digest;
  readonly compression: Compression;
  readonly blob: { readonly digest: Digest; readonly size: number };
}

export type FormatName = "podyard" | "agoda";

export interface VirtualMachineImage {
  readonly format: FormatName;
  readonly operatingSystem: OperatingSystem;
  readonly architecture: Architecture | undefined;
  readonly hardwareModel: string | undefined;
  readonly machineIdentifier: string | undefined;
  readonly guest: GuestDefaults;
  readonly diskSize: number;
  /** Zero if there is none. */
  readonly auxiliarySize: number;
  readonly pieces: readonly Piece[];
}

/** Gives the bytes of a small blob, verified. */
export type ReadBlob = (descriptor: Descriptor) => Promise<Buffer>;

/** The largest disk we create, so that a hostile manifest cannot ask for more than a file system can say. */
export const maximumDiskBytes = 16 * 1024 ** 4;
export const maximumConfigBytes = 1024 * 1024;

/** A piece this long or shorter is decoded in memory, several at a time; a longer one is streamed through a file. */
export const maximumChunkBytes = 64 * 1024 * 1024;

/** True if the piece is fetched and decoded as a whole in memory. */
export function isChunk(piece: Piece): boolean {
  return piece.compression === "zstd" && piece.length <= maximumChunkBytes;
}

/** Errors: Corrupt if pieces overlap, leave their file, or claim an absurd compressed size. */
export function checkPieces(image: VirtualMachineImage, name: string): VirtualMachineImage {
  const corrupt = (why: string): PodyardError => new PodyardError("Corrupt", `The image ${name} is malformed: ${why}.`);
  if (image.diskSize <= 0 || image.diskSize > maximumDiskBytes) throw corrupt(`its disk of ${image.diskSize} bytes is not between 1 and ${maximumDiskBytes}`);
  for (const target of ["disk", "auxiliary"] as const) {
    const size = target === "disk" ? image.diskSize : image.auxiliarySize;
    let end = 0;
    for (const piece of image.pieces.filter((candidate) => candidate.target === target).toSorted((a, b) => a.offset - b.offset)) {
      if (piece.length <= 0 || piece.offset < end) throw corrupt(`two layers of its ${target} overlap at byte ${piece.offset}`);
      end = piece.offset + piece.length;
      if (end > size) throw corrupt(`a layer ends at byte ${end} of a ${target} of ${size} bytes`);
      if (isChunk(piece) && piece.blob.size > piece.length + piece.length / 64 + 65_536) throw corrupt(`a layer of ${piece.length} bytes is compressed to ${piece.blob.size}`);
    }
  }
  return image;
}

/** Decimal digits of an annotation. Errors: Corrupt. */
export function annotationInteger(descriptor: Descriptor, key: string, name: string): number {
  const text = descriptor.annotations?.[key];
  const value = text !== undefined && /^[0-9]{1,15}$/.test(text) ? Number(text) : undefined;
  if (value === undefined) throw new PodyardError("Corrupt", `A layer of ${name} lacks the annotation "${key}" with a number of bytes (it is ${JSON.stringify(text)}).`);
  return value;
}
