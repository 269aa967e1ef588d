/**
 * Records on disk: written under a temporary name and renamed, so that a crash leaves the old or the new one, never half.
 * A record that cannot be read is set aside with the time in its name and the rest goes on.
 */
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { ZodType } from "zod";
import type { Logger } from "../contract/logger.ts";
import { messageOf } from "../contract/errors.ts";

export async function writeRecord(path: string, value: unknown): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.tmp-${process.pid}-${(sequence += 1)}`;
  await writeFile(temporary, `${JSON.stringify(value, undefined, 2)}\n`, { mode: 0o600, flush: true });
  await rename(temporary, path);
}

let sequence = 0;

/** Undefined if there is none or it was unreadable (then it was set aside and a warning logged). */
export async function readRecord<T>(path: string, schema: ZodType<T>, logger: Logger): Promise<T | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch {
    return undefined;
  }
  try {
    return schema.parse(JSON.parse(text));
  } catch (error) {
    const aside = `${path}.unreadable-${new Date().toISOString().replaceAll(":", "")}`;
    logger.warn(`The record ${path} cannot be read and was set aside as ${aside}.`, { error: messageOf(error) });
    await rename(path, aside).catch(() => undefined);
    return undefined;
  }
}
