/**
 * The format of macOS-vz-kubelet and its ORAS fork. Two shapes exist: the configuration is a layer beside an empty OCI
 * config, or it is the manifest's config itself. Layers come in any order and are told by media type. Disk and auxiliary
 * storage are each one gzip stream if both `uncompressed-*` annotations are there, and raw bytes if not. The key
 * `mediatype` in the configuration is all lower-case.
 */
import { z } from "zod";
import type { Digest } from "../../contract/image.ts";
import { PodyardError } from "../../contract/errors.ts";
import { isDigest } from "../reference.ts";
import { createdAnnotation, mediaTypes, parseJson, parseWith, titleAnnotation, type Descriptor, type Manifest } from "./oci.ts";
import { annotationInteger, checkPieces, maximumConfigBytes, type Piece, type PieceTarget, type ReadBlob, type VirtualMachineImage } from "./virtual-machine-image.ts";

export const agodaTypes = {
  artifact: "application/vnd.agoda.macosvz.artifact",
  config: "application/vnd.agoda.macosvz.config.v1+json",
  disk: "application/vnd.agoda.macosvz.disk.image.v1",
  auxiliary: "application/vnd.agoda.macosvz.aux.image.v1",
} as const;

const uncompressedDigest = "com.agoda.macosvz.content.uncompressed-digest";
const uncompressedSize = "com.agoda.macosvz.content.uncompressed-size";

const configSchema = z.object({
  os: z.string().optional(),
  hardwareModelData: z.base64().max(65_536),
  machineIdData: z.base64().max(65_536),
});

export function isAgodaManifest(manifest: Manifest): boolean {
  return manifest.artifactType === agodaTypes.artifact || manifest.config.mediaType === agodaTypes.config || manifest.layers.some((layer) => layer.mediaType === agodaTypes.disk);
}

/** Errors: Corrupt, and those of `readBlob`. */
export async function readAgodaImage(manifest: Manifest, name: string, readBlob: ReadBlob): Promise<VirtualMachineImage> {
  const descriptors = [manifest.config, ...manifest.layers];
  const configLayer = only(descriptors, agodaTypes.config, name);
  if (configLayer.size > maximumConfigBytes) throw new PodyardError("Corrupt", `The configuration of ${name} has ${configLayer.size} bytes, more than ${maximumConfigBytes}.`);
  const config = parseWith(configSchema, parseJson(await readBlob(configLayer), `The configuration of ${name}`), `The configuration of ${name}`);
  const disk = pieceOf(only(descriptors, agodaTypes.disk, name), "disk", name);
  const auxiliary = pieceOf(only(descriptors, agodaTypes.auxiliary, name), "auxiliary", name);
  const image: VirtualMachineImage = {
    format: "agoda",
    operatingSystem: "darwin",
    architecture: "arm64",
    hardwareModel: config.hardwareModelData,
    machineIdentifier: config.machineIdData,
    guest: {},
    diskSize: disk.length,
    auxiliarySize: auxiliary.length,
    pieces: [auxiliary, disk],
  };
  return checkPieces(image, name);
}

/** The configuration layer. Both identifiers are base64 of a dataRepresentation. */
export function writeAgodaConfig(hardwareModel: string, machineIdentifier: string): Buffer {
  const storage = [
    { mediatype: agodaTypes.auxiliary, file: "aux.img" },
    { mediatype: agodaTypes.disk, file: "disk.img" },
  ];
  return Buffer.from(JSON.stringify({ mediatype: agodaTypes.config, os: "darwin", hardwareModelData: hardwareModel, machineIdData: machineIdentifier, storage }));
}

/** The shape the ORAS fork writes: empty config, configuration as a layer. */
export function writeAgodaManifest(config: { readonly digest: Digest; readonly size: number }, pieces: readonly Piece[], emptyDigest: Digest, created: Date): Buffer {
  const layers = pieces.map((piece) => ({
    mediaType: piece.target === "disk" ? agodaTypes.disk : agodaTypes.auxiliary,
    digest: piece.blob.digest,
    size: piece.blob.size,
    annotations: { [titleAnnotation]: piece.target === "disk" ? "disk.img" : "aux.img", [uncompressedDigest]: piece.digest, [uncompressedSize]: String(piece.length) },
  }));
  return Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      artifactType: agodaTypes.artifact,
      config: { mediaType: mediaTypes.empty, digest: emptyDigest, size: 2, data: "e30=", platform: { architecture: "arm64", os: "darwin" } },
      layers: [...layers, { mediaType: agodaTypes.config, digest: config.digest, size: config.size, annotations: { [titleAnnotation]: "config.json" } }],
      annotations: { [createdAnnotation]: created.toISOString() },
    }),
  );
}

function only(descriptors: readonly Descriptor[], mediaType: string, name: string): Descriptor {
  const found = descriptors.filter((descriptor) => descriptor.mediaType === mediaType);
  const [first] = found;
  if (first === undefined || found.length > 1) throw new PodyardError("Corrupt", `The image ${name} has ${found.length} layers of type "${mediaType}"; exactly one is expected.`);
  return first;
}

function pieceOf(layer: Descriptor, target: PieceTarget, name: string): Piece {
  const digest = layer.annotations?.[uncompressedDigest];
  const blob = { digest: layer.digest, size: layer.size };
  if (digest === undefined || layer.annotations?.[uncompressedSize] === undefined) {
    return { target, offset: 0, length: layer.size, digest: layer.digest, compression: "none", blob };
  }
  if (!isDigest(digest)) throw new PodyardError("Corrupt", `The annotation "${uncompressedDigest}" of ${name} is "${digest.slice(0, 100)}", not a digest.`);
  return { target, offset: 0, length: annotationInteger(layer, uncompressedSize, name), digest, compression: "gzip", blob };
}
