/**
 * What a process of ours sets before it loads anything: sources compiled once are kept beside themselves (`build/code`,
 * or the user's cache where the installation is read-only), so that later starts neither strip types nor compile. The
 * compiler for types alone would take 30 MB for the life of the host. Kept code is trusted as the sources are, which is
 * why it never lies in a shared temporary directory. https://nodejs.org/api/module.html#module-compile-cache
 */
import { accessSync, constants, existsSync } from "node:fs";
import module from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";

/** @param {string} root the installation's directory */
export function prepareProcess(root) {
  // V8 would let the space of young objects grow to 32 MB at the first burst and keep it: the host's data lives outside of it.
  setFlagsFromString("--semi-space-growth-factor=1");
  if (process.env.NODE_COMPILE_CACHE === undefined) module.enableCompileCache(directoryOf(root));
}

function directoryOf(root) {
  const beside = join(root, "build/code");
  if (isWritable(existsSync(beside) ? beside : existsSync(join(root, "build")) ? join(root, "build") : root)) return beside;
  if (process.platform === "darwin") return join(homedir(), "Library/Caches/podyard-code");
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "podyard-code");
}

function isWritable(path) {
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
