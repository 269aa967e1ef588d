/**
 * The bytes of one blob, whatever happens to the connection: a dropped one is continued with a Range request from the
 * byte reached, and only attempts without any progress count against the limit.
 */
import { open, stat } from "node:fs/promises";
import type { Digest } from "../contract/image.ts";
import { hasCode, PodyardError } from "../contract/errors.ts";
import { backOff, cancelled } from "./cancellation.ts";
import { ignoreMissing } from "./image-records.ts";
import type { RegistrySession } from "./registry-client.ts";

export interface BlobDownload {
  readonly session: RegistrySession;
  readonly blob: { readonly digest: Digest; readonly size: number };
  readonly signal: AbortSignal;
  /** Bytes that arrived. */
  readonly onBytes: (count: number) => void;
  readonly backOffMilliseconds: number;
}

const attemptsWithoutProgress = 5;
const writeBatchBytes = 1024 * 1024;

/** The whole blob in memory, its length checked and its digest not. Errors: NotFound, Unauthorized, Unavailable, Corrupt (truncated), Cancelled. */
export async function downloadToMemory(download: BlobDownload): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(download.blob.size);
  await readOn(download, 0, (part, position) => bytes.set(part, position));
  return bytes;
}

/**
 * Appends what is missing to a file that may hold the blob's beginning from an earlier run, and says after each write
 * how many bytes it holds. Errors: as {@link downloadToMemory}.
 */
export async function downloadToFile(download: BlobDownload, path: string, onGrown: (available: number) => void): Promise<void> {
  const present = (await stat(path).catch(ignoreMissing))?.size ?? 0;
  const file = await open(path, present > 0 && present <= download.blob.size ? "r+" : "w", 0o600);
  try {
    const start = present <= download.blob.size ? present : 0;
    let written = start;
    let pending: Uint8Array[] = [];
    let pendingBytes = 0;
    const flush = async (): Promise<void> => {
      if (pendingBytes === 0) return;
      const batch = pending;
      const batchBytes = pendingBytes;
      pending = [];
      pendingBytes = 0;
      const { bytesWritten } = await file.writev(batch, written);
      if (bytesWritten !== batchBytes) throw Object.assign(new Error(`only ${bytesWritten} of ${batchBytes} bytes could be written`), { code: "ENOSPC" });
      written += batchBytes;
      onGrown(written);
    };
    onGrown(start);
    try {
      await readOn(download, start, (part) => {
        pending.push(part);
        pendingBytes += part.length;
        return pendingBytes >= writeBatchBytes ? flush() : undefined;
      });
    } finally {
      await flush();
    }
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT")) {
      throw new PodyardError("NoSpace", `No space is left on the device of ${path}.`, { cause: error, fix: "Free space, or remove images that are not used." });
    }
    throw error;
  } finally {
    await file.close();
  }
}

async function readOn({ session, blob, signal, onBytes, backOffMilliseconds }: BlobDownload, start: number, use: (part: Uint8Array, position: number) => Promise<void> | void): Promise<void> {
  let done = start;
  let failures = 0;
  while (done < blob.size) {
    const before = done;
    let failure: PodyardError;
    try {
      const { stream, offset } = await session.openBlob(blob.digest, done, signal);
      let position = offset;
      for await (const part of stream as AsyncIterable<Buffer>) {
        const fresh = part.subarray(Math.min(Math.max(done - position, 0), part.length));
        position += part.length;
        if (fresh.length === 0) continue;
        if (done + fresh.length > blob.size) throw new PodyardError("Corrupt", `The blob ${blob.digest} is longer than the ${blob.size} bytes its manifest says.`);
        await use(fresh, done);
        done += fresh.length;
        onBytes(fresh.length);
      }
      failure = new PodyardError("Corrupt", `The blob ${blob.digest} is truncated: the registry has ${done} of ${blob.size} bytes.`);
    } catch (error) {
      if (signal.aborted) throw cancelled(signal);
      if (error instanceof PodyardError && !hasCode(error, "Unavailable")) throw error;
      if (isFileError(error)) throw error;
      failure = error instanceof PodyardError ? error : new PodyardError("Unavailable", `The connection to the registry was lost after ${done} of ${blob.size} bytes of ${blob.digest}`, { cause: error });
    }
    if (done === blob.size) return;
    failures = done > before ? 1 : failures + 1;
    // A registry that closes properly with too few bytes will do so again; one more try tells.
    if (failures >= (hasCode(failure, "Corrupt") ? 2 : attemptsWithoutProgress)) throw failure;
    await backOff(failures, backOffMilliseconds, signal);
  }
}

function isFileError(error: unknown): boolean {
  return error instanceof Error && "code" in error && (error.code === "ENOSPC" || error.code === "EDQUOT" || error.code === "EIO" || error.code === "EFBIG");
}
