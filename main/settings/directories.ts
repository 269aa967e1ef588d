/**
 * Where state, cache and sockets live (contract: docs/architecture.md). All are created 0700. The data directory is the
 * one thing that tells two hosts on one machine apart.
 */
import { chmodSync, lstatSync, mkdirSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { PodyardError } from "../contract/errors.ts";

export interface Directories {
  readonly data: string;
  readonly cache: string;
  /** Short, for sockets: the kernel limits their paths to about 100 bytes. */
  readonly runtime: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** The data directory named by flag, `PODYARD_DATA_DIR` or the platform's custom. */
export function dataDirectory(flag: string | undefined, environment: Environment): string {
  const named = flag ?? environment["PODYARD_DATA_DIR"];
  if (named !== undefined && named !== "") return resolve(named);
  if (process.platform === "darwin") return join(homedir(), "Library/Application Support/Podyard");
  return join(environment["XDG_STATE_HOME"] || join(homedir(), ".local/state"), "podyard");
}

/** The cache: on macOS the one of macOS-vz-kubelet, so that a fleet's images are found again. */
export function cacheDirectory(flag: string | undefined, environment: Environment): string {
  if (flag !== undefined) return resolve(flag);
  if (process.platform === "darwin") return join(homedir(), "Library/Caches/com.agoda.fleet.virtualization");
  return join(environment["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "podyard");
}

export function runtimeDirectory(environment: Environment): string {
  const user = process.getuid?.() ?? 0;
  if (process.platform === "darwin") return join(environment["TMPDIR"] ?? tmpdir(), "podyard");
  const session = environment["XDG_RUNTIME_DIR"];
  return session === undefined || session === "" ? join(tmpdir(), `podyard-${user}`) : join(session, "podyard");
}

/** Creates the three directories. Errors: Forbidden if one belongs to somebody else or others may write to it. */
export function createDirectories(directories: Directories): void {
  for (const path of [directories.data, directories.cache, directories.runtime]) {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const status = lstatSync(path);
    if (process.getuid !== undefined && status.uid !== process.getuid()) {
      throw new PodyardError("Forbidden", `${path} belongs to user ${status.uid}, not to you (${process.getuid()})`, { fix: `remove it or choose another directory with --data-dir, --cache-dir or $XDG_RUNTIME_DIR` });
    }
    if ((status.mode & 0o077) !== 0) chmodSync(path, 0o700);
  }
}
