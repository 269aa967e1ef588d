/**
 * fsGroup: the group that owns a volume's files, and the mode bits that let it in. Links are re-owned themselves, never
 * followed. https://kubernetes.io/docs/tasks/configure-pod-container/security-context/
 */
import { chmod, lchown, lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { PodyardError } from "../../contract/errors.ts";
import type { Pod } from "../../contract/kubernetes-api.generated.ts";

/** Gives a directory and all below it to the Pod's fsGroup. No-op without one, and on macOS, where a guest sees every shared file as its own. */
export async function applyFileSystemGroup(pod: Pod, directory: string, readOnly: boolean): Promise<void> {
  const group = pod.spec?.securityContext?.fsGroup;
  if (group === undefined || process.platform === "darwin") return;
  if (process.getuid?.() !== 0) throw new PodyardError("MissingPrerequisite", `spec.securityContext.fsGroup: ${group} needs a host that runs as root`);
  const root = await lstat(directory);
  const mask = (readOnly ? 0o440 : 0o660) | 0o110;
  const fits = root.gid === group && (root.mode & mask) === mask && (root.mode & 0o2000) !== 0;
  if (pod.spec?.securityContext?.fsGroupChangePolicy === "OnRootMismatch" && fits) return;
  await changeGroup(directory, group, readOnly ? 0o440 : 0o660);
}

/** The user that all containers run as, if it is one: then a token file can belong to it. */
export function commonUser(pod: Pod): number | undefined {
  const users = new Set(
    [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])].map(
      ({ securityContext }) => securityContext?.runAsUser ?? pod.spec?.securityContext?.runAsUser,
    ),
  );
  return users.size === 1 ? [...users][0] : undefined;
}

/** Children first, the root last, so that a root that fits means all was done. */
async function changeGroup(path: string, group: number, mask: number): Promise<void> {
  const entry = await lstat(path);
  if (entry.isDirectory()) for (const name of await readdir(path)) await changeGroup(join(path, name), group, mask);
  await lchown(path, entry.uid, group);
  if (!entry.isSymbolicLink()) await chmod(path, (entry.mode & 0o7777) | mask | (entry.isDirectory() ? 0o2110 : 0));
}
