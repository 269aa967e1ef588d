/**
 * How every layer keeps state: a file is written under a temporary name and renamed, mode 0600, so that a crash leaves the
 * old content or the new, never half; a record that cannot be read is set aside with the time in its name, never fatal.
 */
import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import type { z } from "zod";
import { messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";

export interface WriteOptions {
  /** The bytes, and the name, are on the disk before this resolves. Default true; false survives a kill of ours, not a power failure. */
  readonly flush?: boolean;
}

/** Replaces a file as a whole; makes its directory (0700) if that is missing. */
export async function writeAtomically(path: string, content: string | Uint8Array, { flush = true }: WriteOptions = {}): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString("hex")}.tmp`;
  try {
    const file = await openNew(temporary);
    try {
      await file.writeFile(content);
      if (flush) await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  if (flush) await syncDirectory(dirname(path));
}

/** A record as people can read it too. */
export function writeRecord(path: string, value: unknown): Promise<void> {
  return writeAtomically(path, `${JSON.stringify(value, undefined, 2)}\n`);
}

/** The record, or undefined if there is none or it had to be set aside. Errors: those of the file system but "missing". */
export async function readRecord<T>(path: string, schema: z.ZodType<T>, logger: Logger): Promise<T | undefined> {
  const text = await readOptionalFile(path);
  if (text === undefined) return undefined;
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    const aside = await setAside(path);
    logger.warn(`The record ${path} cannot be read and was set aside as ${aside}.`, { error: messageOf(error) });
    return undefined;
  }
}

/** Renames a file that cannot be read out of the way, with the time. Returns its new path. */
export async function setAside(path: string): Promise<string> {
  const aside = `${path}.unreadable-${new Date().toISOString().replaceAll(":", "")}`;
  await rename(path, aside).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
  });
  return aside;
}

/** Undefined if there is no such file. */
export async function readOptionalFile(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** Makes renames within a directory survive a power failure. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

export function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ENOTDIR");
}

async function openNew(path: string) {
  try {
    return await open(path, "wx", 0o600);
  } catch (error) {
    if (!isMissing(error)) throw error;
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    return open(path, "wx", 0o600);
  }
}
