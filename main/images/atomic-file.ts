/** Records on disk: written under a temporary name, flushed, renamed; one that cannot be read is set aside, never fatal. */
import { randomBytes } from "node:crypto";
import { open, readFile, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import type { z } from "zod";
import type { Logger } from "../contract/logger.ts";

/** Replaces a file as a whole, mode 0600. After a crash there is the old content or the new. */
export async function writeAtomically(path: string, content: string | Uint8Array): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString("hex")}.tmp`;
  try {
    const file = await open(temporary, "wx", 0o600);
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncDirectory(dirname(path));
}

/** The record, or undefined if there is none or it had to be set aside. */
export async function readRecord<T>(path: string, schema: z.ZodType<T>, logger: Logger): Promise<T | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    const aside = `${path}.corrupt-${new Date().toISOString().replaceAll(/[:.]/g, "-")}`;
    logger.warn("a record of the image cache cannot be read and was set aside", { path, aside, error: error instanceof Error ? error.message : String(error) });
    await rename(path, aside).catch((failure: unknown) => {
      if (!isMissing(failure)) throw failure;
    });
    return undefined;
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
