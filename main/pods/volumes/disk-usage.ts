/** What a directory occupies, as du(1) counts it: allocated blocks, hard links once, no other file system. */
import { lstat, readdir, statfs } from "node:fs/promises";
import { join } from "node:path";

export async function diskUsage(directory: string): Promise<{ readonly usedBytes: number; readonly capacityBytes: number; readonly availableBytes: number }> {
  const system = await statfs(directory);
  const root = await lstat(directory);
  const seen = new Set<number>();
  return { usedBytes: await count(directory, root.dev, seen), capacityBytes: system.blocks * system.bsize, availableBytes: system.bavail * system.bsize };
}

/** Files come and go while a container runs: what vanished counts for nothing. */
async function count(path: string, device: number, seen: Set<number>): Promise<number> {
  const entry = await lstat(path).catch(() => undefined);
  if (entry === undefined || entry.dev !== device) return 0;
  if (!entry.isDirectory() && entry.nlink > 1) {
    if (seen.has(entry.ino)) return 0;
    seen.add(entry.ino);
  }
  let total = entry.blocks * 512;
  if (entry.isDirectory()) for (const name of await readdir(path).catch(() => [])) total += await count(join(path, name), device, seen);
  return total;
}
