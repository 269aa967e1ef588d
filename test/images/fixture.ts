/** Disks, stores and hand-made manifests for the tests of the image store. */
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, open, readdir, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import type { Logger } from "../../main/contract/logger.ts";
import type { Digest } from "../../main/contract/image.ts";
import { silentLogger } from "../../main/contract/logger.ts";
import type { PushSource } from "../../main/images/image-store.ts";
import { createImageStore, type ImageStoreOptions, type LocalImageStore } from "../../main/images/store.ts";

export const mebibyte = 1024 * 1024;
export const allPlatforms = [{ operatingSystem: "linux" }, { operatingSystem: "darwin" }] as const;

export interface TemporaryDirectory extends AsyncDisposable {
  readonly path: string;
}

export async function temporaryDirectory(): Promise<TemporaryDirectory> {
  const path = await mkdtemp(join(tmpdir(), "podyard-images-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

/** A sparse file with random data at the given positions. */
export async function makeDisk(path: string, size: number, regions: readonly { readonly offset: number; readonly length: number }[]): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(size);
  for (const { offset, length } of regions) await file.write(randomBytes(length), 0, length, offset);
}

export async function overwrite(path: string, offset: number, bytes: Buffer): Promise<void> {
  await using file = await open(path, "r+");
  await file.write(bytes, 0, bytes.length, offset);
}

export function openStore(cacheDirectory: string, options: Partial<ImageStoreOptions> = {}): Promise<LocalImageStore> {
  return createImageStore({ cacheDirectory, logger: silentLogger, platforms: allPlatforms, reserveBytes: 0, threads: 2, ...options, registry: { backOffMilliseconds: 20, ...options.registry } });
}

export function macSource(diskPath: string, auxiliaryPath: string): PushSource {
  return { diskPath, auxiliaryPath, operatingSystem: "darwin", architecture: "arm64", hardwareModel: Buffer.from("model").toString("base64"), machineIdentifier: Buffer.from("machine").toString("base64") };
}

export async function sha256OfFile(path: string): Promise<Digest> {
  return digestOfBytes(await readFile(path));
}

export function digestOfBytes(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

export async function allocated(path: string): Promise<number> {
  return (await stat(path)).blocks * 512;
}

/** Every file below a directory, relative. */
export async function filesBelow(path: string): Promise<readonly string[]> {
  return (await readdir(path, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name).slice(path.length + 1));
}

/** Collects warnings. */
export function recordingLogger(): Logger & { readonly warnings: string[] } {
  const warnings: string[] = [];
  const logger = { ...silentLogger, warnings, warn: (message: string) => void warnings.push(message), child: (): Logger => logger };
  return logger;
}

/** Puts blobs and a manifest into a registry with nothing but fetch, so that the reader is not tested against our writer. */
export async function putImage(host: string, repository: string, tag: string, blobs: readonly Uint8Array<ArrayBuffer>[], manifest: unknown, mediaType = "application/vnd.oci.image.manifest.v1+json"): Promise<Digest> {
  for (const blob of blobs) {
    const started = await fetch(`http://${host}/v2/${repository}/blobs/uploads/`, { method: "POST" });
    const location = new URL(started.headers.get("location") ?? "", `http://${host}`);
    location.searchParams.set("digest", digestOfBytes(blob));
    const finished = await fetch(location, { method: "PUT", body: blob });
    if (finished.status !== 201) throw new Error(`the registry answered ${finished.status} to a blob`);
  }
  const text = JSON.stringify(manifest);
  const response = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, { method: "PUT", headers: { "Content-Type": mediaType }, body: text });
  if (response.status !== 201) throw new Error(`the registry answered ${response.status} to the manifest: ${await response.text()}`);
  return digestOfBytes(Buffer.from(text));
}

interface AgodaParts {
  readonly blobs: readonly Uint8Array<ArrayBuffer>[];
  readonly disk: object;
  readonly auxiliary: object;
  readonly config: object;
}

/** The layers of an image of macOS-vz-kubelet, as its ORAS fork writes them. */
export function agodaParts(disk: Buffer, auxiliary: Buffer, title = "disk.img"): AgodaParts {
  const compressed = [gzipSync(disk), gzipSync(auxiliary)].map((bytes) => new Uint8Array(bytes));
  const config = new Uint8Array(Buffer.from(JSON.stringify({ mediatype: "application/vnd.agoda.macosvz.config.v1+json", os: "darwin", hardwareModelData: "bW9kZWw=", machineIdData: "bWFjaGluZQ==", storage: [] })));
  const [diskBlob = new Uint8Array(), auxiliaryBlob = new Uint8Array()] = compressed;
  const layer = (mediaType: string, blob: Uint8Array, raw: Buffer | undefined, name: string): object => ({
    mediaType,
    digest: digestOfBytes(blob),
    size: blob.length,
    annotations: {
      "org.opencontainers.image.title": name,
      ...(raw === undefined ? {} : { "com.agoda.macosvz.content.uncompressed-digest": digestOfBytes(raw), "com.agoda.macosvz.content.uncompressed-size": String(raw.length) }),
    },
  });
  return {
    blobs: [diskBlob, auxiliaryBlob, config],
    disk: layer("application/vnd.agoda.macosvz.disk.image.v1", diskBlob, disk, title),
    auxiliary: layer("application/vnd.agoda.macosvz.aux.image.v1", auxiliaryBlob, auxiliary, "aux.img"),
    config: layer("application/vnd.agoda.macosvz.config.v1+json", config, undefined, "config.json"),
  };
}

export const emptyConfig = { mediaType: "application/vnd.oci.empty.v1+json", digest: "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", size: 2, data: "e30=" };
export const emptyBlob = new Uint8Array(Buffer.from("{}"));
