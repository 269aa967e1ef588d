/**
 * Podyard's own format: the disk cut at multiples of a power of two, every chunk that is not all zeros a zstd frame and a
 * layer of its own. So a pull runs on all cores, resumes at the chunk, and an update fetches only the chunks that changed.
 *
 *   artifactType  application/vnd.podyard.virtual-machine.v1
 *   config        application/vnd.podyard.config.v1+json      (a real blob, `configSchema` below)
 *   layers        application/vnd.podyard.disk.chunk.v1+zstd  annotations dev.podyard.raw.{offset,length,digest}
 *                 application/vnd.podyard.auxiliary.v1+zstd   the same, offset 0; macOS only
 */
import { z } from "zod";
import type { Digest } from "../../contract/image.ts";
import { PodyardError } from "../../contract/errors.ts";
import { isDigest } from "../reference.ts";
import { createdAnnotation, mediaTypes, parseJson, parseWith, type Descriptor, type Manifest } from "./oci.ts";
import { annotationInteger, checkPieces, maximumChunkBytes, maximumConfigBytes, maximumDiskBytes, type Piece, type ReadBlob, type VirtualMachineImage } from "./virtual-machine-image.ts";

export const podyardTypes = {
  artifact: "application/vnd.podyard.virtual-machine.v1",
  config: "application/vnd.podyard.config.v1+json",
  diskChunk: "application/vnd.podyard.disk.chunk.v1+zstd",
  auxiliary: "application/vnd.podyard.auxiliary.v1+zstd",
} as const;

const annotations = { offset: "dev.podyard.raw.offset", length: "dev.podyard.raw.length", digest: "dev.podyard.raw.digest" } as const;

export const guestSchema = z.object({
  user: z.string().min(1).max(64).optional(),
  password: z.string().max(256).optional(),
  port: z.number().int().min(1).max(65_535).optional(),
});

const base64Schema = z.string().max(65_536).regex(/^[A-Za-z0-9+/]*={0,2}$/, "must be base64");
const configSchema = z.object({
  version: z.literal(1),
  os: z.enum(["darwin", "linux"]),
  architecture: z.enum(["arm64", "amd64"]).optional(),
  hardwareModel: base64Schema.optional(),
  machineIdentifier: base64Schema.optional(),
  diskSize: z.number().int().positive().max(maximumDiskBytes),
  auxiliarySize: z.number().int().nonnegative().max(maximumChunkBytes).default(0),
  chunkSize: z.number().int().positive(),
  guest: guestSchema.default({}),
});

/** Chunks of 16 MiB, larger ones for a disk whose manifest would outgrow what registries take (ECR: 500 layers). */
export function chunkSizeFor(dataBytes: number): number {
  let size = 16 * 1024 * 1024;
  while (size < maximumChunkBytes && dataBytes / size > 400) size *= 2;
  return size;
}

export function isPodyardManifest(manifest: Manifest): boolean {
  return manifest.artifactType === podyardTypes.artifact || manifest.config.mediaType === podyardTypes.config;
}

/** Errors: Corrupt, and those of `readBlob`. */
export async function readPodyardImage(manifest: Manifest, name: string, readBlob: ReadBlob): Promise<VirtualMachineImage> {
  if (manifest.config.size > maximumConfigBytes) throw new PodyardError("Corrupt", `The configuration of ${name} has ${manifest.config.size} bytes, more than ${maximumConfigBytes}.`);
  const config = parseWith(configSchema, parseJson(await readBlob(manifest.config), `The configuration of ${name}`), `The configuration of ${name}`);
  const pieces: Piece[] = [];
  for (const layer of manifest.layers) {
    if (layer.mediaType === podyardTypes.diskChunk) pieces.push(pieceOf(layer, "disk", name));
    else if (layer.mediaType === podyardTypes.auxiliary) pieces.push(pieceOf(layer, "auxiliary", name));
    else throw new PodyardError("InvalidArgument", `The image ${name} has a layer of type "${layer.mediaType}", which this version does not know.`, { fix: "Update Podyard." });
  }
  const { os, architecture, hardwareModel, machineIdentifier, diskSize, auxiliarySize, guest } = config;
  return checkPieces({ format: "podyard", operatingSystem: os, architecture, hardwareModel, machineIdentifier, guest, diskSize, auxiliarySize, pieces }, name);
}

/** The configuration blob and the manifest for pieces that are already uploaded. */
export function writePodyardConfig(image: Omit<VirtualMachineImage, "pieces" | "format">, chunkSize: number): Buffer {
  const { operatingSystem: os, architecture, hardwareModel, machineIdentifier, diskSize, auxiliarySize, guest } = image;
  return Buffer.from(JSON.stringify({ version: 1, os, architecture, hardwareModel, machineIdentifier, diskSize, auxiliarySize, chunkSize, guest }));
}

export function writePodyardManifest(config: { readonly digest: Digest; readonly size: number }, pieces: readonly Piece[], created: Date): Buffer {
  const layers = pieces.map((piece) => ({
    mediaType: piece.target === "disk" ? podyardTypes.diskChunk : podyardTypes.auxiliary,
    digest: piece.blob.digest,
    size: piece.blob.size,
    annotations: { [annotations.offset]: String(piece.offset), [annotations.length]: String(piece.length), [annotations.digest]: piece.digest },
  }));
  return Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      artifactType: podyardTypes.artifact,
      config: { mediaType: podyardTypes.config, digest: config.digest, size: config.size },
      layers,
      annotations: { [createdAnnotation]: created.toISOString() },
    }),
  );
}

function pieceOf(layer: Descriptor, target: Piece["target"], name: string): Piece {
  const digest = layer.annotations?.[annotations.digest];
  if (digest === undefined || !isDigest(digest)) throw new PodyardError("Corrupt", `A layer of ${name} lacks the annotation "${annotations.digest}" with a digest.`);
  const length = annotationInteger(layer, annotations.length, name);
  if (length > maximumChunkBytes) throw new PodyardError("Corrupt", `A layer of ${name} is a chunk of ${length} bytes; at most ${maximumChunkBytes} are allowed.`);
  return { target, offset: annotationInteger(layer, annotations.offset, name), length, digest, compression: "zstd", blob: { digest: layer.digest, size: layer.size } };
}
