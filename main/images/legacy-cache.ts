/**
 * The cache of macOS-vz-kubelet as a source of bytes: `blobs/<reference, every ":" a "/">/{disk.img,aux.img}`, each with
 * `<file>.digest` holding the digest of its content. The digest file is a hint only; whoever uses the bytes hashes them.
 */
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Digest } from "../contract/image.ts";
import { ignoreMissing } from "./image-records.ts";
import { isDigest } from "./reference.ts";
import type { LocalSource } from "./pull.ts";

const maximumDepth = 12;
const fileNames: readonly string[] = ["disk.img", "aux.img"];

/** Files that say of themselves to have one of the digests. Symbolic links are not followed. */
export async function findLegacyFiles(directories: readonly string[], wanted: ReadonlySet<Digest>): Promise<readonly { readonly digest: Digest; readonly source: LocalSource }[]> {
  const found: { digest: Digest; source: LocalSource }[] = [];
  const visit = async (directory: string, depth: number): Promise<void> => {
    const entries = (await readdir(directory, { withFileTypes: true }).catch(ignoreMissing)) ?? [];
    for (const entry of entries) {
      const path = join(directory, entry.name);
      if (entry.isDirectory() && depth < maximumDepth) await visit(path, depth + 1);
      if (!entry.isFile() || !fileNames.includes(entry.name)) continue;
      const hint = await stat(`${path}.digest`).catch(ignoreMissing);
      const digest = hint !== undefined && hint.size < 200 ? (await readFile(`${path}.digest`, "utf8")).trim() : "";
      if (isDigest(digest) && wanted.has(digest)) found.push({ digest, source: { path, offset: 0 } });
    }
  };
  for (const directory of directories) await visit(directory, 0);
  return found;
}
