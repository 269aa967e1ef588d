/**
 * Paths below a directory whose content is hostile: a container may put symbolic links into its volumes, and swap them at
 * any moment. On Linux every component is opened without following links, relative to the one before (`/proc/self/fd/N/name`
 * is Node's openat), and the result is held open so that it can be bind-mounted as what was checked. Elsewhere the real path
 * is checked, which leaves the moment between check and use. https://github.com/kubernetes/kubernetes/issues/60813
 */
import { constants } from "node:fs";
import { chmod, lstat, mkdir, open, readdir, realpath, rmdir, unlink, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { PodyardError } from "../../contract/errors.ts";

/** O_PATH of Linux, which Node does not name: a handle for the place, without reading it. */
const openPath = 0o10000000;
const isLinux = process.platform === "linux";

/** A place below a root, checked; on Linux held open until disposed. */
export interface PlaceBeneath extends AsyncDisposable {
  readonly realPath: string;
  readonly isFile: boolean;
  /** File descriptor of the very place; undefined where the platform has none. */
  readonly descriptor: number | undefined;
}

/** Splits a relative path. Errors: InvalidArgument for absolute paths, `..` and NUL. */
export function componentsOf(relative: string): readonly string[] {
  const components = relative.split("/").filter((component) => component !== "" && component !== ".");
  if (relative.startsWith("/") || components.includes("..") || relative.includes("\0"))
    throw new PodyardError("InvalidArgument", `path ${JSON.stringify(relative)} must be relative and must not contain ".."`);
  return components;
}

/** Opens an existing place. Links inside the root may be followed as long as they end inside. Errors: Forbidden (escapes), NotFound. */
export async function openBeneath(root: string, relative: string): Promise<PlaceBeneath> {
  const base = await realpath(root);
  const target = await realpath(join(base, ...componentsOf(relative))).catch((error: unknown) => {
    throw new PodyardError("NotFound", `${JSON.stringify(relative)} does not exist in the volume`, { cause: error });
  });
  assertBeneath(base, target);
  if (!isLinux) {
    const isFile = !(await lstat(target)).isDirectory();
    return { realPath: target, isFile, descriptor: undefined, async [Symbol.asyncDispose]() {} };
  }
  const handle = await walk(base, target === base ? [] : target.slice(base.length + 1).split("/"));
  const isFile = !(await handle.stat()).isDirectory();
  return { realPath: target, isFile, descriptor: handle.fd, [Symbol.asyncDispose]: () => handle.close() };
}

/** Creates what is missing of a directory below the root, with the mode given. Errors: Forbidden (escapes). */
export async function makeDirectoryBeneath(root: string, relative: string, mode: number): Promise<void> {
  const base = await realpath(root);
  const components = componentsOf(relative);
  let existing = base;
  let present = 0;
  // The longest part that is there, links resolved.
  while (present < components.length) {
    const next = await realpath(join(base, ...components.slice(0, present + 1))).catch(() => undefined);
    if (next === undefined) break;
    existing = next;
    present += 1;
  }
  assertBeneath(base, existing);
  const missing = components.slice(present);
  if (missing.length === 0) return;
  if (!isLinux) {
    for (const name of missing) {
      existing = join(existing, name);
      await mkdir(existing, { mode });
      assertBeneath(base, await realpath(existing));
      await chmod(existing, mode);
    }
    return;
  }
  let handle = await walk(base, existing === base ? [] : existing.slice(base.length + 1).split("/"));
  try {
    for (const name of missing) {
      const path = `/proc/self/fd/${handle.fd}/${name}`;
      await mkdir(path, { mode }).catch((error: unknown) => {
        if (!isErrno(error, "EEXIST")) throw error;
      });
      const next = await openDirectory(path);
      await handle.close();
      handle = next;
      await chmod(`/proc/self/fd/${handle.fd}`, mode);
    }
  } finally {
    await handle.close();
  }
}

/** Deletes a tree: never follows a link, and stops with Conflict at another file system. Missing is fine. */
export async function removeTree(path: string): Promise<void> {
  const top = await lstat(path).catch(() => undefined);
  if (top !== undefined) await removeEntry(path, top.dev);
}

async function removeEntry(path: string, device: number): Promise<void> {
  const entry = await lstat(path).catch(() => undefined);
  if (entry === undefined) return;
  if (!entry.isDirectory()) return await unlink(path);
  if (entry.dev !== device) throw new PodyardError("Conflict", `${path} is on another file system: something is still mounted there`);
  const names = await readdir(path).catch(async (error: unknown) => {
    // A container may have taken our own permission away.
    if (!isErrno(error, "EACCES")) throw error;
    await chmod(path, 0o700);
    return await readdir(path);
  });
  for (const name of names) await removeEntry(join(path, name), device);
  await rmdir(path);
}

export function isErrno(error: unknown, ...codes: readonly string[]): boolean {
  return error instanceof Error && "code" in error && typeof error.code === "string" && codes.includes(error.code);
}

function assertBeneath(base: string, target: string): void {
  if (target !== base && !target.startsWith(`${base}/`)) throw new PodyardError("Forbidden", "the path leads out of the volume");
}

/** Opens component after component; a link that appeared since the check is an error, not followed. */
async function walk(base: string, components: readonly string[]): Promise<FileHandle> {
  let handle = await openDirectory(base);
  for (const [index, name] of components.entries()) {
    const parent = handle;
    try {
      handle = await open(`/proc/self/fd/${parent.fd}/${name}`, openPath | constants.O_NOFOLLOW);
    } finally {
      await parent.close();
    }
    const status = await handle.stat();
    if (status.isSymbolicLink() || (index < components.length - 1 && !status.isDirectory())) {
      await handle.close();
      throw new PodyardError("Forbidden", "the path changed while it was being checked");
    }
  }
  return handle;
}

function openDirectory(path: string): Promise<FileHandle> {
  return open(path, openPath | constants.O_DIRECTORY | constants.O_NOFOLLOW);
}
