/**
 * From a reference to the one manifest this host wants: an index is searched for a platform the host can run. What the
 * store keeps is the chosen manifest; the reference is remembered beside it.
 */
import type { Architecture, Digest, OperatingSystem } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import { parseManifestDocument, type Index, type Manifest } from "./formats/oci.ts";
import { kindOf } from "./formats/recognise.ts";
import type { RemoteKind } from "./image-store.ts";
import { formatReference, targetOf, type ImageReference } from "./reference.ts";
import type { RegistrySession } from "./registry-client.ts";

/** A platform the host runs; without architecture, any. */
export interface AcceptedPlatform {
  readonly operatingSystem: OperatingSystem;
  readonly architecture?: Architecture;
}

export interface ResolvedManifest {
  readonly digest: Digest;
  readonly bytes: Buffer;
  readonly manifest: Manifest;
}

/** Errors: NotFound, Unauthorized, Unavailable, Corrupt, InvalidArgument (no manifest for the host's platforms), Cancelled. */
export async function resolveManifest(session: RegistrySession, reference: ImageReference, platforms: readonly AcceptedPlatform[], signal?: AbortSignal, attempts?: number): Promise<ResolvedManifest> {
  const name = formatReference(reference);
  const root = await session.fetchManifest(targetOf(reference), signal, attempts);
  const document = parseManifestDocument(root.bytes, name);
  if (document.kind === "manifest") return { digest: root.digest, bytes: root.bytes, manifest: document.manifest };
  const chosen = document.index.manifests.find(({ platform }) => platform !== undefined && platforms.some((accepted) => isAccepted(accepted, platform.os, platform.architecture)));
  if (chosen === undefined) throw wrongPlatform(name, offeredBy(document.index), platforms);
  return fetchChild(session, chosen.digest, name, signal);
}

/** What a reference names, whatever its platform. Errors: as {@link resolveManifest}. */
export async function classifyManifest(session: RegistrySession, reference: ImageReference, platforms: readonly AcceptedPlatform[], signal?: AbortSignal, attempts?: number): Promise<RemoteKind> {
  const name = formatReference(reference);
  const root = await session.fetchManifest(targetOf(reference), signal, attempts);
  const document = parseManifestDocument(root.bytes, name);
  if (document.kind === "manifest") return { kind: kindOf(document.manifest), digest: root.digest };
  const isReal = (platform: { readonly os: string; readonly architecture: string } | undefined): boolean => platform?.os !== "unknown";
  const { manifests } = document.index;
  const child = manifests.find(({ platform }) => platform !== undefined && platforms.some((accepted) => isAccepted(accepted, platform.os, platform.architecture))) ?? manifests.find(({ platform }) => isReal(platform));
  if (child === undefined) return { kind: "unknown", digest: root.digest };
  const resolved = await fetchChild(session, child.digest, name, signal);
  return { kind: kindOf(resolved.manifest), digest: resolved.digest };
}

/** Errors: InvalidArgument if the host cannot run the platform. An image that names no architecture is given the benefit of the doubt. */
export function requirePlatform(name: string, operatingSystem: OperatingSystem, architecture: Architecture | undefined, platforms: readonly AcceptedPlatform[]): void {
  if (platforms.some((accepted) => isAccepted(accepted, operatingSystem, architecture))) return;
  throw wrongPlatform(name, [`${operatingSystem}/${architecture ?? "any"}`], platforms);
}

async function fetchChild(session: RegistrySession, digest: Digest, name: string, signal: AbortSignal | undefined): Promise<ResolvedManifest> {
  const child = await session.fetchManifest(digest, signal);
  const document = parseManifestDocument(child.bytes, name);
  if (document.kind !== "manifest") throw new PodyardError("Corrupt", `The image index of ${name} refers to another index (${digest}).`);
  return { digest: child.digest, bytes: child.bytes, manifest: document.manifest };
}

function isAccepted(accepted: AcceptedPlatform, operatingSystem: string, architecture: string | undefined): boolean {
  return accepted.operatingSystem === operatingSystem && (accepted.architecture === undefined || architecture === undefined || accepted.architecture === architecture);
}

function offeredBy(index: Index): readonly string[] {
  return index.manifests.map(({ platform }) => (platform === undefined ? "unknown" : `${platform.os}/${platform.architecture}`));
}

function wrongPlatform(name: string, offered: readonly string[], platforms: readonly AcceptedPlatform[]): PodyardError {
  const wanted = platforms.map(({ operatingSystem, architecture }) => `${operatingSystem}/${architecture ?? "any"}`).join(", ");
  return new PodyardError("InvalidArgument", `${name} is for ${offered.slice(0, 8).join(", ")}; this host runs ${wanted}.`);
}
