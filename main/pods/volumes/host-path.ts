/** hostPath volumes: the checks that `type` asks for. https://kubernetes.io/docs/concepts/storage/volumes/#hostpath */
import { mkdir, open, stat } from "node:fs/promises";
import { PodyardError } from "../../contract/errors.ts";
import { isErrno } from "./safe-path.ts";

/** Checks the path, or creates it for the types that say so. Errors: InvalidArgument with the kubelet's sentence. */
export async function checkHostPath(path: string, type: string): Promise<void> {
  if (!path.startsWith("/") || path.split("/").includes(".."))
    throw new PodyardError("InvalidArgument", `hostPath ${JSON.stringify(path)} must be absolute and must not contain ".."`);
  const found = await stat(path).catch((error: unknown) => {
    if (isErrno(error, "ENOENT", "ENOTDIR")) return undefined;
    throw error;
  });
  const demand = (fits: boolean | undefined, what: string): void => {
    if (fits !== true) throw new PodyardError("InvalidArgument", `hostPath type check failed: ${path} is not a ${what}`);
  };
  switch (type) {
    case "":
      // No check; a missing path is created as a directory, as container runtimes do.
      if (found === undefined) await mkdir(path, { recursive: true, mode: 0o755 });
      return;
    case "DirectoryOrCreate":
      return found === undefined ? void (await mkdir(path, { recursive: true, mode: 0o755 })) : demand(found.isDirectory(), "directory");
    case "Directory":
      return demand(found?.isDirectory(), "directory");
    case "FileOrCreate":
      return found === undefined ? await (await open(path, "a", 0o644)).close() : demand(found.isFile(), "file");
    case "File":
      return demand(found?.isFile(), "file");
    case "Socket":
      return demand(found?.isSocket(), "socket file");
    case "CharDevice":
      return demand(found?.isCharacterDevice(), "character device");
    case "BlockDevice":
      return demand(found?.isBlockDevice(), "block device");
    default:
      throw new PodyardError("InvalidArgument", `${type} is an invalid volume type`);
  }
}
