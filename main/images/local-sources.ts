/**
 * What of an image is on this host already: in other cached images, under an unreadable record of its own, in the cache
 * of macOS-vz-kubelet. Only where it may be found is said here; whoever takes bytes hashes them.
 */
import type { Digest } from "../contract/image.ts";
import type { BaseImage } from "./base-image.ts";
import type { VirtualMachineImage } from "./formats/virtual-machine-image.ts";
import type { ImageRecords } from "./image-records.ts";
import { findLegacyFiles } from "./legacy-cache.ts";
import type { LocalSource } from "./pull.ts";
import { parseReference, type ImageReference } from "./reference.ts";

const sourcesPerPiece = 3;

/** Places by the digest of a piece. */
export async function findLocalSources(records: ImageRecords, image: VirtualMachineImage, digest: Digest, importDirectories: readonly string[]): Promise<ReadonlyMap<Digest, readonly LocalSource[]>> {
  const wanted = new Set(image.pieces.map((piece) => piece.digest));
  const sources = new Map<Digest, LocalSource[]>();
  const add = (piece: Digest, source: LocalSource): void => {
    const known = sources.get(piece);
    if (known === undefined) sources.set(piece, [source]);
    else if (known.length < sourcesPerPiece) known.push(source);
  };
  const digests = await records.digests();
  if (digests.includes(digest)) {
    for (const piece of image.pieces) add(piece.digest, { path: piece.target === "disk" ? records.diskPath(digest) : records.auxiliaryPath(digest), offset: piece.offset });
  }
  for (const { path, chunks } of await otherDisks(records, digest)) {
    for (const chunk of chunks) if (wanted.has(chunk.digest)) add(chunk.digest, { path, offset: chunk.offset });
  }
  for (const { digest: found, source } of await findLegacyFiles(importDirectories, wanted)) add(found, source);
  return sources;
}

/** Cached images that a pull could start from a clone of. */
export async function findBases(records: ImageRecords, digest: Digest): Promise<readonly BaseImage[]> {
  return (await otherDisks(records, digest)).map(({ path, chunks }) => ({ diskPath: path, chunks }));
}

/** Raw chunk digests that another repository of the same registry should have, by that repository. */
export async function findMountableChunks(records: ImageRecords, target: ImageReference): Promise<ReadonlyMap<Digest, string>> {
  const chunks = new Map<Digest, string>();
  for (const record of await records.references()) {
    const { registry, repository } = parseReference(record.reference);
    if (registry !== target.registry || repository === target.repository) continue;
    for (const chunk of (await records.readImage(record.digest))?.chunks ?? []) chunks.set(chunk.digest, repository);
  }
  return chunks;
}

async function otherDisks(records: ImageRecords, digest: Digest): Promise<readonly { readonly path: string; readonly chunks: BaseImage["chunks"] }[]> {
  const found = [];
  for (const other of await records.digests()) {
    const record = other === digest ? undefined : await records.readImage(other);
    if (record !== undefined) found.push({ path: records.diskPath(other), chunks: record.chunks });
  }
  return found;
}
