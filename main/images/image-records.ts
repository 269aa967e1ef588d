/**
 * What the cache directory holds and how it says so:
 *
 *   images/<hex>/disk.img, auxiliary.img   the image of manifest sha256:<hex>, read-only; renamed in as a whole
 *                manifest.json, image.json what it is (never rewritten)
 *                used, pinned, owners/<id> marker files: last use = mtime of `used`; who needs the image. A marker has
 *                                          no content that could be corrupted, so a running VM's disk is never lost to a bad record;
 *                                          hosts that share the cache put their name before the id
 *   references/<hash>.json                 one reference → digest
 *   staging/<hex>.<pid>.<random>/          a pull under way or interrupted; belongs to one open store, so that two hosts
 *                                          on one cache never write the same files. What a dead one left is taken over
 *   trash/                                 removed, being deleted; <pid>.<random>/ has temporary files of an open store
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdir, open, readdir, readFile, rename, rm, stat, unlink, utimes, writeFile, chmod } from "node:fs/promises";
import { uptime } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import type { Digest } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { isMissing, readRecord, syncDirectory, writeAtomically } from "../records/atomic-file.ts";
import { guestSchema } from "./formats/podyard.ts";
import { isDigest } from "./reference.ts";

const digestSchema = z.string().refine(isDigest);
const imageSchema = z.object({
  version: z.literal(1),
  digest: digestSchema,
  format: z.enum(["podyard", "agoda"]),
  operatingSystem: z.enum(["darwin", "linux"]),
  architecture: z.enum(["arm64", "amd64"]).optional(),
  hardwareModel: z.string().optional(),
  machineIdentifier: z.string().optional(),
  guest: guestSchema,
  diskSize: z.number().int().positive(),
  auxiliarySize: z.number().int().nonnegative(),
  pulledAt: z.iso.datetime(),
  /** Ranges of the disk and the digests of their bytes, so that a later version can take them from here. */
  chunks: z.array(z.object({ offset: z.number(), length: z.number(), digest: digestSchema })),
});
const referenceSchema = z.object({
  reference: z.string().min(1),
  digest: digestSchema,
  /** Anonymous callers were refused when it was pulled. */
  isPrivate: z.boolean(),
  /** Fingerprints of credentials that were accepted for it. */
  accepted: z.array(z.string()).max(64).default([]),
});

export type ImageRecord = z.infer<typeof imageSchema>;
export type ReferenceRecord = z.infer<typeof referenceSchema>;

export interface ImageState {
  readonly record: ImageRecord;
  readonly sizeOnDisk: number;
  readonly lastUsedAt: Date;
  readonly isPinned: boolean;
  readonly owners: readonly string[];
}

/** A staging directory and whether an open store, of this or another process, works on it. */
export interface Staging {
  readonly digest: Digest;
  readonly path: string;
  readonly modifiedAt: Date;
  readonly owner: "this-store" | "another" | "nobody";
}

/** Tokens of the stores that are open in this process. */
const openTokens = new Set<string>();

const ownerPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

export class ImageRecords {
  readonly directory: string;
  readonly #logger: Logger;
  readonly #known = new Map<Digest, ImageRecord>();
  readonly #token = `${process.pid}.${randomBytes(4).toString("hex")}`;

  constructor(directory: string, logger: Logger) {
    this.directory = directory;
    this.#logger = logger;
  }

  /** Creates the directories, finishes interrupted removals. */
  async open(): Promise<void> {
    for (const name of ["", "images", "references", "staging", "trash"]) await mkdir(join(this.directory, name), { recursive: true, mode: 0o700 });
    for (const name of ["images", "references", "staging", "trash"]) await chmod(join(this.directory, name), 0o700);
    await this.#emptyTrash();
    openTokens.add(this.#token);
  }

  /** A directory for files of this store that are not worth keeping; whoever opens the cache after a crash empties it. */
  async temporaryDirectory(): Promise<string> {
    const path = join(this.directory, "trash", this.#token);
    await mkdir(path, { recursive: true, mode: 0o700 });
    return path;
  }

  /** Gives up what this store has staged; it can be taken over. */
  close(): void {
    openTokens.delete(this.#token);
  }

  imageDirectory(digest: Digest): string {
    return join(this.directory, "images", hexOf(digest));
  }

  /** Where this store stages an image: what it or a dead host left there before, or a new directory. */
  async openStaging(digest: Digest): Promise<string> {
    const own = this.#stagingPath(digest);
    const [latest] = (await this.stagings()).filter((staging) => staging.digest === digest && staging.owner === "nobody").toSorted((a, b) => b.modifiedAt.getTime() - a.modifiedAt.getTime());
    if (latest !== undefined && (await stat(own).catch(ignoreMissing)) === undefined) await rename(latest.path, own).catch(ignoreMissing);
    await mkdir(own, { recursive: true, mode: 0o700 });
    return own;
  }

  diskPath(digest: Digest): string {
    return join(this.imageDirectory(digest), "disk.img");
  }

  auxiliaryPath(digest: Digest): string {
    return join(this.imageDirectory(digest), "auxiliary.img");
  }

  /** The record of a whole image. A disk of the wrong size counts as missing. */
  async readImage(digest: Digest): Promise<ImageRecord | undefined> {
    const directory = this.imageDirectory(digest);
    const disk = await stat(this.diskPath(digest)).catch(ignoreMissing);
    if (disk === undefined) {
      this.#known.delete(digest);
      return undefined;
    }
    const record = this.#known.get(digest) ?? (await readRecord(join(directory, "image.json"), imageSchema, this.#logger));
    if (record === undefined) return undefined;
    if (record.digest !== digest || disk.size !== record.diskSize) {
      this.#logger.warn("a cached image does not match its record and is not used", { digest, diskSize: disk.size, expected: record.diskSize });
      return undefined;
    }
    this.#known.set(digest, record);
    return record;
  }

  async readState(digest: Digest): Promise<ImageState | undefined> {
    const record = await this.readImage(digest);
    if (record === undefined) return undefined;
    const directory = this.imageDirectory(digest);
    const [size, used, pinned, owners] = await Promise.all([allocatedBytes(directory), stat(join(directory, "used")).catch(ignoreMissing), stat(join(directory, "pinned")).catch(ignoreMissing), this.owners(digest)]);
    return { record, sizeOnDisk: size, lastUsedAt: used?.mtime ?? new Date(record.pulledAt), isPinned: pinned !== undefined, owners };
  }

  /** Digests of all image directories, readable or not. */
  async digests(): Promise<readonly Digest[]> {
    const names = await readdir(join(this.directory, "images"));
    return names.map((name): string => `sha256:${name}`).filter(isDigest);
  }

  async owners(digest: Digest): Promise<readonly string[]> {
    return (await readdir(join(this.imageDirectory(digest), "owners")).catch(ignoreMissing)) ?? [];
  }

  async addOwner(digest: Digest, owner: string): Promise<void> {
    if (!ownerPattern.test(owner)) throw new PodyardError("InvalidArgument", `The owner "${owner}" of an image must be 1 to 128 letters, digits, ".", "_" or "-".`);
    const directory = join(this.imageDirectory(digest), "owners");
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await writeFile(join(directory, owner), "", { mode: 0o600 });
    await syncDirectory(directory);
    await syncDirectory(this.imageDirectory(digest));
  }

  async removeOwner(owner: string): Promise<void> {
    if (!ownerPattern.test(owner)) return;
    for (const digest of await this.digests()) await unlink(join(this.imageDirectory(digest), "owners", owner)).catch(ignoreMissing);
  }

  async setPinned(digest: Digest, isPinned: boolean): Promise<void> {
    const path = join(this.imageDirectory(digest), "pinned");
    if (isPinned) await writeFile(path, "", { mode: 0o600 });
    else await unlink(path).catch(ignoreMissing);
    await syncDirectory(this.imageDirectory(digest));
  }

  async touch(digest: Digest): Promise<void> {
    const path = join(this.imageDirectory(digest), "used");
    const now = new Date();
    await utimes(path, now, now).catch(async (error: unknown) => {
      ignoreMissing(error);
      await writeFile(path, "", { mode: 0o600 });
    });
  }

  async references(): Promise<readonly ReferenceRecord[]> {
    const names = await readdir(join(this.directory, "references"));
    const records = await Promise.all(names.filter((name) => /^[0-9a-f]{64}\.json$/.test(name)).map((name) => readRecord(join(this.directory, "references", name), referenceSchema, this.#logger)));
    return records.filter((record) => record !== undefined);
  }

  /** The record of a normalised reference. */
  async readReference(reference: string): Promise<ReferenceRecord | undefined> {
    const record = await readRecord(this.#referencePath(reference), referenceSchema, this.#logger);
    return record?.reference === reference ? record : undefined;
  }

  async writeReference(record: ReferenceRecord): Promise<void> {
    await writeAtomically(this.#referencePath(record.reference), JSON.stringify(record));
  }

  async removeReference(reference: string): Promise<void> {
    await rm(this.#referencePath(reference), { force: true });
  }

  /** Makes a finished staging directory the image. Where a directory without readable record is in the way, its files are replaced one by one. */
  async commit(record: ImageRecord, manifest: Uint8Array): Promise<void> {
    const staging = this.#stagingPath(record.digest);
    const target = this.imageDirectory(record.digest);
    await writeFile(join(staging, "manifest.json"), manifest, { mode: 0o600 });
    await writeAtomically(join(staging, "image.json"), JSON.stringify(imageSchema.parse(record)));
    for (const name of ["disk.img", "auxiliary.img"]) await chmod(join(staging, name), 0o400).catch(ignoreMissing);
    try {
      await rename(staging, target);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && (error.code === "ENOTEMPTY" || error.code === "EEXIST"))) throw error;
      for (const name of ["disk.img", "auxiliary.img", "manifest.json", "image.json"]) await rename(join(staging, name), join(target, name)).catch(ignoreMissing);
      await rm(staging, { recursive: true, force: true });
    }
    await syncDirectory(join(this.directory, "images"));
    this.#known.set(record.digest, record);
    await this.touch(record.digest);
  }

  /** Removes an image or a staging directory at once: it is gone by a rename, its bytes follow. */
  async discard(path: string): Promise<void> {
    const grave = join(this.directory, "trash", randomBytes(12).toString("hex"));
    const moved = await rename(path, grave).then(() => true, (error: unknown) => ignoreMissing(error) === undefined && false);
    if (moved) await rm(grave, { recursive: true, force: true });
  }

  forget(digest: Digest): void {
    this.#known.delete(digest);
  }

  async stagings(): Promise<readonly Staging[]> {
    const names = await readdir(join(this.directory, "staging"));
    const found = await Promise.all(
      names.map(async (name): Promise<Staging | undefined> => {
        const [hex = "", pid = "", random = ""] = name.split(".");
        const digest = `sha256:${hex}`;
        const path = join(this.directory, "staging", name);
        const status = await stat(path).catch(ignoreMissing);
        if (status === undefined || !isDigest(digest)) return undefined;
        const token = `${pid}.${random}`;
        const owner = token === this.#token ? "this-store" : isOpenElsewhere(token, status.ctimeMs) ? "another" : "nobody";
        return { digest, path, modifiedAt: status.mtime, owner };
      }),
    );
    return found.filter((staging) => staging !== undefined);
  }

  /** Key with which fingerprints of credentials are salted; made on first use. */
  async fingerprintKey(): Promise<Buffer> {
    const path = join(this.directory, "fingerprint.key");
    const known = await readFile(path).catch(ignoreMissing);
    if (known !== undefined && known.length === 32) return known;
    await writeAtomically(path, randomBytes(32));
    return readFile(path);
  }

  #stagingPath(digest: Digest): string {
    return join(this.directory, "staging", `${hexOf(digest)}.${this.#token}`);
  }

  #referencePath(reference: string): string {
    return join(this.directory, "references", `${createHash("sha256").update(reference).digest("hex")}.json`);
  }

  async #emptyTrash(): Promise<void> {
    const trash = join(this.directory, "trash");
    for (const name of await readdir(trash)) {
      const status = await stat(join(trash, name)).catch(ignoreMissing);
      if (status !== undefined && !isOpenElsewhere(name, status.ctimeMs)) await rm(join(trash, name), { recursive: true, force: true });
    }
  }
}

/** Bytes allocated by the files of a directory, two levels deep. */
export async function allocatedBytes(path: string): Promise<number> {
  const entries = (await readdir(path, { withFileTypes: true }).catch(ignoreMissing)) ?? [];
  let total = 0;
  for (const entry of entries) {
    if (entry.isDirectory()) total += await allocatedBytes(join(path, entry.name));
    else if (entry.isFile()) total += ((await stat(join(path, entry.name)).catch(ignoreMissing))?.blocks ?? 0) * 512;
  }
  return total;
}

/** Flushes a file's content to the device. */
export async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** For `.catch`: a missing file is undefined, anything else stays an error. */
export function ignoreMissing(error: unknown): undefined {
  if (!isMissing(error)) throw error;
  return undefined;
}

/** True if the process is there and no older than the directory's last change allows: after a reboot a number means another process. */
function isOpenElsewhere(token: string, changedAt: number): boolean {
  const pid = Number(token.split(".")[0]);
  if (pid === process.pid) return openTokens.has(token);
  if (!Number.isInteger(pid) || pid <= 0 || changedAt < Date.now() - uptime() * 1000) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

function hexOf(digest: Digest): string {
  return digest.slice("sha256:".length);
}
