/**
 * Takes a disk image of this machine into the cache, as if it had been pulled: for images that are built here. Its digest
 * is that of a manifest that names the content, so that the same disk is the same image.
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Digest } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import type { ImageRecords } from "./image-records.ts";
import type { PushSource } from "./image-store.ts";
import { formatReference, parseReference } from "./reference.ts";

const execute = promisify(execFile);

/** Errors: InvalidArgument (reference), NotFound (disk), NoSpace. Does nothing if the same disk is there under the reference. */
export async function importDisk(records: ImageRecords, reference: string, source: PushSource): Promise<Digest> {
  const name = formatReference(parseReference(reference));
  const disk = await stat(source.diskPath).catch((error: unknown) => {
    throw new PodyardError("NotFound", `the disk image ${source.diskPath} cannot be read`, { cause: error });
  });
  const { diskPath, auxiliaryPath, ...description } = source;
  const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, podyard: description, disk: await digestOf(diskPath), auxiliary: auxiliaryPath === undefined ? null : await digestOf(auxiliaryPath) }));
  const digest: Digest = `sha256:${createHash("sha256").update(manifest).digest("hex")}`;
  if ((await records.readImage(digest)) === undefined) {
    const staging = await records.openStaging(digest);
    // cp knows holes and, on file systems that can, shares the blocks.
    await execute("cp", [...sparseCopy, diskPath, join(staging, "disk.img")]);
    if (auxiliaryPath !== undefined) await execute("cp", [...sparseCopy, auxiliaryPath, join(staging, "auxiliary.img")]);
    await records.commit(
      {
        version: 1,
        digest,
        format: "podyard",
        operatingSystem: source.operatingSystem,
        architecture: source.architecture,
        hardwareModel: source.hardwareModel,
        machineIdentifier: source.machineIdentifier,
        guest: source.guest ?? {},
        diskSize: disk.size,
        auxiliarySize: auxiliaryPath === undefined ? 0 : (await stat(auxiliaryPath)).size,
        pulledAt: new Date().toISOString(),
        chunks: [],
      },
      manifest,
    );
  }
  await records.writeReference({ reference: name, digest, isPrivate: false, accepted: [] });
  return digest;
}

const sparseCopy = process.platform === "darwin" ? ["-c"] : ["--sparse=always", "--reflink=auto"];

async function digestOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return hash.digest("hex");
}
