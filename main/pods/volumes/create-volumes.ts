/**
 * The volumes of Pods on disk, see volumes.ts. Below `<podsDirectory>/<uid>/` this owns `volumes/<kind>/<name>` (the
 * content), `volumes/.ready/` (what was set up once), `volume-subpaths/` (bind mounts that pin subPaths) and `etc/` (hosts,
 * resolv.conf); everything else there is the sync loop's. Work on one Pod is done one after the other.
 */
import { constants } from "node:fs";
import { chmod, lstat, mkdir, open, readdir, readFile, realpath, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, PodyardError } from "../../contract/errors.ts";
import type { Pod, Volume } from "../../contract/kubernetes-api.generated.ts";
import type { Logger } from "../../contract/logger.ts";
import type { NodeView, PodObjects } from "../../kubernetes/cluster.ts";
import { quantityValue } from "../resources.ts";
import { writeAtomically } from "./atomic-writer.ts";
import { diskUsage } from "./disk-usage.ts";
import { checkHostPath } from "./host-path.ts";
import { canMount, mountMemory, mountsBelow, unmountBelow } from "./mounts.ts";
import { referencedObjects } from "./referenced-objects.ts";
import { applyFileSystemGroup } from "./ownership.ts";
import { payloadOf } from "./payload.ts";
import { resolveMount } from "./resolve-mount.ts";
import { isErrno, removeTree } from "./safe-path.ts";
import { createTokenCache } from "./token-cache.ts";
import type { ResolvedMount, Volumes, VolumeUsage } from "./volumes.ts";

export interface VolumesOptions {
  readonly podsDirectory: string;
  readonly objects: Pick<PodObjects, "secret" | "configMap" | "token">;
  readonly node: Pick<NodeView, "allocatable">;
  readonly logger: Logger;
  /** Milliseconds since the epoch; the tests' clock. */
  readonly now?: () => number;
}

const kinds = ["configMap", "downwardAPI", "emptyDir", "projected", "secret"] as const;
type Kind = (typeof kinds)[number];

export function createVolumes(options: VolumesOptions): Volumes {
  const { podsDirectory, objects, node, logger } = options;
  const tokens = createTokenCache({
    objects,
    logger,
    now: options.now ?? Date.now,
    stored: (podUid, { volumeName, path }) =>
      readFile(join(podDirectory(podUid), "volumes", "projected", volumeName, "..data", path), "utf8").catch(() => undefined),
  });
  const sources = { objects, node, tokens };
  const queues = new Map<string, Promise<unknown>>();

  function podDirectory(podUid: string): string {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(podUid)) throw new PodyardError("InvalidArgument", `metadata.uid: ${JSON.stringify(podUid)} is not a UID`);
    return join(podsDirectory, podUid);
  }

  /** One after the other per Pod; a failure does not hold up the next. */
  function inTurn<Result>(podUid: string, work: () => Promise<Result>): Promise<Result> {
    const turn = (queues.get(podUid) ?? Promise.resolve()).then(work, work);
    queues.set(podUid, turn);
    const forget = (): void => {
      if (queues.get(podUid) === turn) queues.delete(podUid);
    };
    turn.then(forget, forget);
    return turn;
  }

  function directoryOf(pod: Pod, volume: Volume): string | undefined {
    const kind = kindOf(volume);
    return kind === undefined ? undefined : join(podDirectory(pod.metadata?.uid ?? ""), "volumes", kind, volume.name);
  }

  async function setUp(pod: Pod, volume: Volume): Promise<void> {
    if (!/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/.test(volume.name))
      throw new PodyardError("InvalidArgument", `spec.volumes: ${JSON.stringify(volume.name)} is not a name`);
    if (volume.hostPath !== undefined) return await checkHostPath(volume.hostPath.path, volume.hostPath.type ?? "");
    const directory = directoryOf(pod, volume);
    if (directory === undefined) throw new PodyardError("Unsupported", `spec.volumes: the kind of volume "${volume.name}" is not supported`);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    if (volume.emptyDir !== undefined) return await setUpEmptyDir(pod, volume, directory);
    await chmod(directory, 0o755);
    await writeFiles(pod, volume, directory);
  }

  async function setUpEmptyDir(pod: Pod, volume: Volume, directory: string): Promise<void> {
    const inMemory = volume.emptyDir?.medium === "Memory";
    const mounted = inMemory && (await mountsBelow(await realpath(directory))).length > 0;
    const marker = join(podDirectory(pod.metadata?.uid ?? ""), "volumes", ".ready", volume.name);
    // Set up once: what containers made of modes and owners since is theirs. A tmpfs is gone after a reboot, whatever the marker says.
    if (mounted || !inMemory) {
      if ((await lstat(marker).catch(() => undefined)) !== undefined) return;
    }
    if (inMemory && !mounted) {
      if (!canMount())
        throw new PodyardError("MissingPrerequisite", `spec.volumes: emptyDir "${volume.name}" with medium Memory needs a Linux host that runs as root`);
      await mountMemory(directory, memoryLimit(volume));
    }
    await chmod(directory, 0o777);
    await applyFileSystemGroup(pod, directory, false);
    await mkdir(join(marker, ".."), { recursive: true, mode: 0o700 });
    await writeFile(marker, "", { mode: 0o600 });
  }

  function memoryLimit(volume: Volume): number {
    const available = node.allocatable()["memory"] ?? Number.MAX_SAFE_INTEGER;
    const limit = volume.emptyDir?.sizeLimit === undefined ? 0 : quantityValue(volume.emptyDir.sizeLimit);
    return limit > 0 ? Math.min(limit, available) : available;
  }

  async function writeFiles(pod: Pod, volume: Volume, directory: string): Promise<void> {
    const payload = await payloadOf(pod, volume, sources);
    if (payload === undefined) return;
    const changed = await writeAtomically(directory, payload, (data) => applyFileSystemGroup(pod, data, true));
    if (changed) await applyFileSystemGroup(pod, directory, true);
  }

  /** The kubelet's sentence around what went wrong with each volume; all are tried. */
  async function forEach(pod: Pod, work: (volume: Volume) => Promise<void>): Promise<void> {
    const problems: PodyardError[] = [];
    for (const volume of pod.spec?.volumes ?? []) {
      try {
        await work(volume);
      } catch (error) {
        const code = error instanceof PodyardError ? error.code : "Internal";
        problems.push(new PodyardError(code, `MountVolume.SetUp failed for volume "${volume.name}" : ${messageOf(error)}`, { cause: error }));
      }
    }
    if (problems[0] !== undefined)
      throw problems.length === 1 ? problems[0] : new PodyardError(problems[0].code, problems.map(({ message }) => message).join("; "));
  }

  return {
    prepare: (pod) => inTurn(pod.metadata?.uid ?? "", () => forEach(pod, (volume) => setUp(pod, volume))),

    refresh: (pod) =>
      inTurn(pod.metadata?.uid ?? "", () =>
        forEach(pod, async (volume) => {
          const directory = volume.emptyDir === undefined ? directoryOf(pod, volume) : undefined;
          // A Pod that was torn down meanwhile must not get its files back.
          if (directory !== undefined && (await lstat(directory).catch(() => undefined)) !== undefined) await writeFiles(pod, volume, directory);
        }),
      ),

    resolveMounts: (pod, container, environment) =>
      inTurn(pod.metadata?.uid ?? "", async () => {
        const mounts: ResolvedMount[] = [];
        for (const [index, mount] of (container.volumeMounts ?? []).entries()) {
          const volume = pod.spec?.volumes?.find(({ name }) => name === mount.name);
          if (volume === undefined) throw new PodyardError("InvalidArgument", `volumeMounts: there is no volume "${mount.name}" in the Pod`);
          const root = volume.hostPath?.path ?? directoryOf(pod, volume);
          if (root === undefined) throw new PodyardError("Unsupported", `spec.volumes: the kind of volume "${volume.name}" is not supported`);
          const pinDirectory = join(podDirectory(pod.metadata?.uid ?? ""), "volume-subpaths", volume.name, container.name, String(index));
          const isReadOnly = volume.hostPath === undefined && volume.emptyDir === undefined;
          mounts.push(await resolveMount({ root, mount, environment, containerName: container.name, pinDirectory, isReadOnly, logger }));
        }
        return mounts;
      }),

    nextRefresh: (podUid) => tokens.nextRefresh(podUid),
    objectsOf: referencedObjects,

    async usage(podUid) {
      const result: VolumeUsage[] = [];
      const base = join(podDirectory(podUid), "volumes");
      for (const kind of kinds) {
        for (const name of await namesIn(join(base, kind))) {
          const usage = await diskUsage(join(base, kind, name)).catch(() => undefined);
          if (usage !== undefined) result.push({ name, ...usage });
        }
      }
      return result;
    },

    async overLimit(pod) {
      for (const volume of pod.spec?.volumes ?? []) {
        const limit = volume.emptyDir?.sizeLimit;
        const directory = directoryOf(pod, volume);
        if (limit === undefined || directory === undefined || quantityValue(limit) === 0) continue;
        const usage = await diskUsage(directory).catch(() => undefined);
        if (usage !== undefined && usage.usedBytes > quantityValue(limit))
          return { volumeName: volume.name, message: `Usage of EmptyDir volume "${volume.name}" exceeds the limit "${limit}". ` };
      }
      return undefined;
    },

    teardown: (podUid) =>
      inTurn(podUid, async () => {
        tokens.forget(podUid);
        const directory = await realpath(podDirectory(podUid)).catch(() => undefined);
        if (directory === undefined) return;
        const own = ["volume-subpaths", "volumes", "etc"].map((name) => join(directory, name));
        for (const path of own) await unmountBelow(path);
        for (const path of own) await removeTree(path);
        await rmdir(directory).catch((error: unknown) => {
          if (!isErrno(error, "ENOTEMPTY", "EEXIST", "ENOENT")) throw error;
        });
      }),

    writeManagedFile: (podUid, name, content) =>
      inTurn(podUid, async () => {
        const directory = join(podDirectory(podUid), "etc");
        await mkdir(directory, { recursive: true, mode: 0o700 });
        const path = join(directory, name);
        if ((await readFile(path, "utf8").catch(() => undefined)) === content) return path;
        // In place, not renamed: the file is bind-mounted into running containers by its inode.
        const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_NOFOLLOW | constants.O_TRUNC, 0o644);
        try {
          await file.writeFile(content);
        } finally {
          await file.close();
        }
        await chmod(path, 0o644);
        return path;
      }),
  };
}

function kindOf(volume: Volume): Kind | undefined {
  return kinds.find((kind) => volume[kind] !== undefined);
}

async function namesIn(directory: string): Promise<readonly string[]> {
  return (await readdir(directory).catch(() => [])).sort((left, right) => (left < right ? -1 : 1));
}
