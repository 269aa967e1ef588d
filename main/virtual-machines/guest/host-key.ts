/**
 * The pinned host key of one machine: written at the first completed key exchange, compared ever after. It is the key's
 * whole public part in base64, one line.
 */
import { createHash, randomUUID, timingSafeEqual } from "node:crypto";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PodyardError } from "../../contract/errors.ts";

export interface HostKeyPin {
  /** The pinned key, undefined before the first contact. Errors: Internal (the file cannot be read). */
  read(): Promise<Buffer | undefined>;
  write(key: Buffer): Promise<void>;
}

export function createHostKeyPin(stateDirectory: string): HostKeyPin {
  const path = join(stateDirectory, "host-key");
  let known: Buffer | undefined;
  return {
    async read() {
      if (known !== undefined) return known;
      try {
        const key = Buffer.from((await readFile(path, "utf8")).trim(), "base64");
        if (key.length > 0) known = key;
      } catch (error) {
        if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) {
          throw new PodyardError("Internal", `the pinned host key ${path} cannot be read`, { cause: error });
        }
      }
      return known;
    },
    async write(key) {
      await mkdir(stateDirectory, { recursive: true, mode: 0o700 });
      const temporary = `${path}.${randomUUID()}`;
      await writeFile(temporary, `${key.toString("base64")}\n`, { mode: 0o600 });
      await rename(temporary, path);
      known = key;
    },
  };
}

export function isSameKey(first: Buffer, second: Buffer): boolean {
  return first.length === second.length && timingSafeEqual(first, second);
}

/** As ssh-keygen prints it. */
export function fingerprint(key: Buffer): string {
  return `SHA256:${createHash("sha256").update(key).digest("base64").replace(/=+$/, "")}`;
}
