/**
 * Names and labels of our containers. Labels say what is ours (two hosts may share an engine); names are for people and
 * stay those of macOS-vz-kubelet, `macos-vz_<namespace>_<pod>_<container>`.
 */
import type { ContainerSpecification } from "./container-engine.ts";

export const label = {
  host: "dev.podyard.host",
  podUid: "dev.podyard.pod-uid",
  namespace: "dev.podyard.namespace",
  podName: "dev.podyard.pod-name",
  container: "dev.podyard.container",
  restartCount: "dev.podyard.restart-count",
  role: "dev.podyard.role",
} as const;

export type Role = "sandbox" | "side-car";

interface Owner {
  readonly podUid: string;
  readonly namespace: string;
  readonly podName: string;
}

export function ownerLabels(hostId: string, owner: Owner, role: Role): Record<string, string> {
  return { [label.host]: hostId, [label.podUid]: owner.podUid, [label.namespace]: owner.namespace, [label.podName]: owner.podName, [label.role]: role };
}

/** Ours win over the caller's free labels. */
export function containerLabels(hostId: string, specification: ContainerSpecification): Record<string, string> {
  return {
    ...specification.labels,
    ...ownerLabels(hostId, specification, "side-car"),
    [label.container]: specification.name,
    [label.restartCount]: String(specification.restartCount),
  };
}

/** A filter for lists and events: everything of this host, of one Pod if given. */
export function labelFilter(hostId: string, podUid?: string): string[] {
  return podUid === undefined ? [`${label.host}=${hostId}`] : [`${label.host}=${hostId}`, `${label.podUid}=${podUid}`];
}

export function containerName(owner: Omit<Owner, "podUid">, name: string): string {
  return `macos-vz_${owner.namespace}_${owner.podName}_${name}`;
}

/** Kubernetes names hold no capitals, so that no container can have this one. */
export const sandboxContainer = "POD";

/** Another host on the same engine may hold the name for a Pod of the same name. */
export function uniqueContainerName(owner: Owner, name: string): string {
  return `${containerName(owner, name)}_${owner.podUid.replaceAll("-", "").slice(0, 8)}`;
}

export function finishedContainerName(currentName: string, restartCount: number): string {
  return `${currentName}_${restartCount}`;
}
