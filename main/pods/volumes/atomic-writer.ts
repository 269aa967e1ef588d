/**
 * Writes the files of a ConfigMap-like volume so that a reader sees the old set or the new one, never a mixture: files live
 * in a directory of their own, `..data` points to it, and each visible name is a link through `..data`. Programs that watch
 * for changes know this layout, so it is the kubelet's to the letter. A crash at any step is repaired by the next write.
 */
import { randomBytes } from "node:crypto";
import { chmod, chown, lstat, mkdir, readdir, readFile, readlink, rename, rm, symlink, unlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { PodyardError } from "../../contract/errors.ts";

export interface ProjectedFile {
  readonly content: Buffer;
  readonly mode: number;
  /** Numeric owner, if not the host's own user. */
  readonly userId?: number;
}

export type Payload = ReadonlyMap<string, ProjectedFile>;

/** Makes the directory show exactly these files. `finish` is called on the new data before it becomes visible. Returns whether anything changed. */
export async function writeAtomically(directory: string, payload: Payload, finish: (dataDirectory: string) => Promise<void>): Promise<boolean> {
  for (const path of payload.keys()) assertPath(path);
  const link = join(directory, "..data");
  const current = await readlink(link).catch(() => undefined);
  const changed = current === undefined || !(await holds(join(directory, current), payload));
  let data = current;
  if (changed) {
    data = `..${new Date().toISOString().slice(0, 19).replaceAll(/[-T:]/g, "_")}.${randomBytes(5).readUIntBE(0, 5)}`;
    const target = join(directory, data);
    await mkdir(target, { mode: 0o755 });
    await chmod(target, 0o755);
    await writeFiles(target, payload);
    await finish(target);
    await rm(join(directory, "..data_tmp"), { force: true });
    await symlink(data, join(directory, "..data_tmp"));
    await rename(join(directory, "..data_tmp"), link);
  }
  const visible = new Set([...payload.keys()].map((path) => path.split("/")[0] ?? path));
  for (const name of visible) {
    const wanted = `..data/${name}`;
    const path = join(directory, name);
    const found = await readlink(path).catch(() => undefined);
    if (found === wanted) continue;
    if (found !== undefined) await unlink(path);
    await symlink(wanted, path);
  }
  for (const name of await readdir(directory)) {
    const path = join(directory, name);
    const isOldData = /^\.\.\d/.test(name) && name !== data;
    const isOldName = !name.startsWith("..") && !visible.has(name) && (await lstat(path)).isSymbolicLink();
    if (isOldData || isOldName) await rm(path, { recursive: true, force: true });
  }
  return changed;
}

/** Errors: InvalidArgument, with the kubelet's sentences. */
function assertPath(path: string): void {
  const problem =
    path === ""
      ? "must not be empty"
      : path.startsWith("/")
        ? "must be relative path"
        : path.length > 4096
          ? "must be less than or equal to 4096 characters"
          : path.split("/").includes("..")
            ? "must not contain '..'"
            : path.split("/").some((name) => name.length > 255)
              ? "filenames must be less than or equal to 255 characters"
              : path.startsWith("..")
                ? "must not start with '..'"
                : path.includes("\0")
                  ? "must not contain NUL"
                  : undefined;
  if (problem !== undefined) throw new PodyardError("InvalidArgument", `invalid path: ${problem}: ${JSON.stringify(path.slice(0, 300))}`);
}

async function writeFiles(target: string, payload: Payload): Promise<void> {
  for (const [path, { content, mode, userId }] of payload) {
    const file = join(target, path);
    await mkdir(dirname(file), { recursive: true, mode: 0o755 });
    await writeFile(file, content, { mode: 0o600, flag: "wx" });
    if (userId !== undefined && process.getuid?.() === 0) await chown(file, userId, -1);
    await chmod(file, mode);
  }
}

async function holds(directory: string, payload: Payload): Promise<boolean> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true }).catch(() => []);
  const files = entries.filter((entry) => entry.isFile());
  if (files.length !== payload.size) return false;
  for (const [path, { content }] of payload) {
    const present = await readFile(join(directory, path)).catch(() => undefined);
    if (present === undefined || !present.equals(content)) return false;
  }
  return true;
}
