/**
 * The documents of the OCI image specification as far as we read them. They come from a registry, so that everything in
 * them is hostile: sizes are bounded, digests are SHA-256, and a title is never more than text.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md
 */
import { z } from "zod";
import { PodyardError } from "../../contract/errors.ts";
import { isDigest } from "../reference.ts";

export const mediaTypes = {
  manifest: "application/vnd.oci.image.manifest.v1+json",
  index: "application/vnd.oci.image.index.v1+json",
  dockerManifest: "application/vnd.docker.distribution.manifest.v2+json",
  dockerList: "application/vnd.docker.distribution.manifest.list.v2+json",
  empty: "application/vnd.oci.empty.v1+json",
  imageConfig: "application/vnd.oci.image.config.v1+json",
  dockerConfig: "application/vnd.docker.container.image.v1+json",
} as const;

export const titleAnnotation = "org.opencontainers.image.title";
export const createdAnnotation = "org.opencontainers.image.created";

/** Registries refuse manifests above 4 MiB; a little more is read so that the error is ours. */
export const maximumManifestBytes = 8 * 1024 * 1024;
const maximumBlobBytes = 16 * 1024 ** 4;

const digestSchema = z.string().refine(isDigest, "must be sha256: and 64 hexadecimal digits");
const annotationsSchema = z.record(z.string(), z.string()).optional();
const platformSchema = z.object({ architecture: z.string(), os: z.string() });

const descriptorSchema = z.object({
  mediaType: z.string().min(1).max(255),
  digest: digestSchema,
  size: z.number().int().nonnegative().max(maximumBlobBytes),
  annotations: annotationsSchema,
  platform: platformSchema.optional(),
  artifactType: z.string().optional(),
  data: z.string().max(16_384).optional(),
});
const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  artifactType: z.string().optional(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(20_000),
  annotations: annotationsSchema,
});
const indexSchema = z.object({ schemaVersion: z.literal(2), mediaType: z.string().optional(), manifests: z.array(descriptorSchema).max(1000) });

export type Descriptor = z.infer<typeof descriptorSchema>;
export type Manifest = z.infer<typeof manifestSchema>;
export type Index = z.infer<typeof indexSchema>;
export type ManifestDocument = { readonly kind: "manifest"; readonly manifest: Manifest } | { readonly kind: "index"; readonly index: Index };

/** Reads a manifest or an index. Errors: Corrupt (not JSON, or not of the specification). */
export function parseManifestDocument(bytes: Buffer, name: string): ManifestDocument {
  const value = parseJson(bytes, `The manifest of ${name}`);
  const isIndex = typeof value === "object" && value !== null && "manifests" in value;
  if (isIndex) return { kind: "index", index: parseWith(indexSchema, value, `The image index of ${name}`) };
  return { kind: "manifest", manifest: parseWith(manifestSchema, value, `The manifest of ${name}`) };
}

/** Errors: Corrupt. */
export function parseJson(bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new PodyardError("Corrupt", `${what} is not JSON.`, { cause });
  }
}

/** Errors: Corrupt, naming the path of the first wrong field. */
export function parseWith<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new PodyardError("Corrupt", `${what} is malformed at "${issue?.path.join(".") ?? ""}": ${issue?.message ?? "unknown"}.`);
}

/** Titles are shown, never used as paths; one that tries to be a path is a sign of an attack. Errors: Corrupt. */
export function refuseHostileTitles(manifest: Manifest, name: string): void {
  for (const descriptor of [manifest.config, ...manifest.layers]) {
    const title = descriptor.annotations?.[titleAnnotation];
    if (title === undefined) continue;
    if (/[/\\\0]/.test(title) || title === ".." || title === "." || title === "") {
      throw new PodyardError("Corrupt", `A layer of ${name} has the title ${JSON.stringify(title.slice(0, 120))}; a title must be a plain file name.`);
    }
  }
}
