/**
 * One volumeMount: the part of the volume it shows, checked and, where the platform can, pinned by a bind mount, so that a
 * container cannot swap a directory for a link between our check and its use.
 * https://kubernetes.io/docs/concepts/storage/volumes/#using-subpath
 */
import { mkdir, open, realpath, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { messageOf, PodyardError } from "../../contract/errors.ts";
import type { VolumeMount } from "../../contract/kubernetes-api.generated.ts";
import type { Logger } from "../../contract/logger.ts";
import { bindDescriptor, canMount, unmountBelow } from "./mounts.ts";
import { componentsOf, makeDirectoryBeneath, openBeneath, removeTree, type PlaceBeneath } from "./safe-path.ts";
import type { ResolvedMount } from "./volumes.ts";

export interface MountToResolve {
  /** The volume's directory on the host. */
  readonly root: string;
  readonly mount: VolumeMount;
  readonly environment: ReadonlyMap<string, string>;
  readonly containerName: string;
  /** Where the bind mount goes; its own for each mount of each container. */
  readonly pinDirectory: string;
  /** The volume as a whole is read-only. */
  readonly isReadOnly: boolean;
  readonly logger: Logger;
}

/** Errors: InvalidArgument, with the kubelet's sentences; they tell nothing of the host's file system. */
export async function resolveMount(options: MountToResolve): Promise<ResolvedMount> {
  const { root, mount, isReadOnly } = options;
  const base = {
    volumeName: mount.name,
    mountPath: mount.mountPath.startsWith("/") ? mount.mountPath : `/${mount.mountPath}`,
    readOnly: isReadOnly || mount.readOnly === true,
    propagation: mount.mountPropagation === "HostToContainer" || mount.mountPropagation === "Bidirectional" ? mount.mountPropagation : "None",
  } as const;
  const subPath = subPathOf(mount, options.environment);
  if (subPath === "") {
    const hostPath = await realpath(root).catch((error: unknown) => {
      throw new PodyardError("InvalidArgument", `volume "${mount.name}" is not there yet`, { cause: error });
    });
    return { ...base, hostPath, isFile: !(await stat(hostPath)).isDirectory() };
  }
  try {
    await makeDirectoryBeneath(root, subPath, (await stat(root)).mode & 0o7777);
  } catch (error) {
    throw quietly(options, `failed to create subPath directory for volumeMount "${mount.name}" of container "${options.containerName}"`, error);
  }
  try {
    await using place = await openBeneath(root, subPath);
    return { ...base, hostPath: await pin(place, options.pinDirectory), isFile: place.isFile };
  } catch (error) {
    throw quietly(options, `failed to prepare subPath for volumeMount "${mount.name}" of container "${options.containerName}"`, error);
  }
}

function subPathOf(mount: VolumeMount, environment: ReadonlyMap<string, string>): string {
  let text = mount.subPath ?? "";
  if (mount.subPathExpr !== undefined && mount.subPathExpr !== "") {
    text = mount.subPathExpr.replace(/\$(?:\$|\(([^)]*)\))/g, (_, name: string | undefined) => {
      if (name === undefined) return "$";
      const value = environment.get(name);
      if (value === undefined) throw new PodyardError("InvalidArgument", `missing value for "${name}"`);
      return value;
    });
  }
  if (text === "") return "";
  if (text.startsWith("/")) throw new PodyardError("InvalidArgument", `error SubPath \`${text}\` must not be an absolute path`);
  try {
    return componentsOf(text).join("/");
  } catch {
    throw new PodyardError("InvalidArgument", `unable to provision SubPath \`${text}\`: must not contain '..'`);
  }
}

/** The path to give away: a bind mount of the open place, or the real path where we cannot mount. */
async function pin(place: PlaceBeneath, target: string): Promise<string> {
  if (place.descriptor === undefined || !canMount()) return place.realPath;
  await mkdir(dirname(target), { recursive: true, mode: 0o700 });
  const wanted = await stat(`/proc/self/fd/${place.descriptor}`);
  const present = await stat(target).catch(() => undefined);
  // A restarted container finds its mount again.
  if (present !== undefined && present.dev === wanted.dev && present.ino === wanted.ino) return await realpath(target);
  const own = join(await realpath(dirname(target)), basename(target));
  await unmountBelow(own);
  await removeTree(own);
  if (place.isFile) await (await open(target, "a", 0o600)).close();
  else await mkdir(target, { recursive: true, mode: 0o700 });
  await bindDescriptor(place.descriptor, target);
  return await realpath(target);
}

/** The details could tell a Pod's author about the host's file system: they go to the log alone. */
function quietly({ logger }: MountToResolve, message: string, error: unknown): PodyardError {
  logger.warn(message, { error: messageOf(error) });
  return new PodyardError("InvalidArgument", message);
}
