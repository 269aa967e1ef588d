/** Turns what the layers know into what the contract shows: pure functions, one per report. */
import type { ImageReport, MachineReport, PodReport } from "../contract/host-api.ts";
import type { ContainerState, Pod } from "../contract/kubernetes-api.generated.ts";
import type { CachedImage } from "../images/image-store.ts";

/** A Pod as `podyard pod list` shows it; the STATUS column follows kubectl's rules. */
export function reportPod(pod: Pod): PodReport {
  const statuses = pod.status?.containerStatuses ?? [];
  const containers = (pod.spec?.containers ?? []).map((container) => {
    const status = statuses.find((candidate) => candidate.name === container.name);
    const { word, message } = describeState(status?.state);
    return { name: container.name, image: container.image ?? "", ready: status?.ready ?? false, restartCount: status?.restartCount ?? 0, state: word, message };
  });
  return {
    name: nameOf(pod),
    uid: pod.metadata?.uid ?? "",
    phase: pod.status?.phase ?? "Pending",
    reason: statusWord(pod, containers),
    ready: `${containers.filter((container) => container.ready).length}/${containers.length}`,
    restarts: containers.reduce((sum, container) => sum + container.restartCount, 0),
    podIP: pod.status?.podIP,
    createdAt: pod.metadata?.creationTimestamp,
    origin: pod.metadata?.annotations?.["kubernetes.io/config.source"] ?? "api",
    containers,
  };
}

/** A Pod's container 0 as `podyard vm list` shows it. */
export function reportMachine(pod: Pod, size: { readonly cpuCount: number; readonly memoryBytes: number } | undefined): MachineReport {
  const container = pod.spec?.containers[0];
  const status = pod.status?.containerStatuses?.find((candidate) => candidate.name === container?.name);
  const { word, message } = describeState(status?.state);
  return {
    name: nameOf(pod),
    podUid: pod.metadata?.uid ?? "",
    phase: pod.status?.phase ?? "Pending",
    state: pod.metadata?.deletionTimestamp === undefined ? word : "Terminating",
    ready: status?.ready ?? false,
    restartCount: status?.restartCount ?? 0,
    image: container?.image ?? "",
    podIP: pod.status?.podIP,
    cpuCount: size?.cpuCount,
    memoryBytes: size?.memoryBytes,
    startedAt: status?.state?.running?.startedAt,
    createdAt: pod.metadata?.creationTimestamp,
    message,
  };
}

export function reportImage(image: CachedImage): ImageReport {
  return {
    references: [...image.references],
    digest: image.digest,
    operatingSystem: image.operatingSystem,
    architecture: image.architecture,
    diskSize: image.diskSize,
    sizeOnDisk: image.sizeOnDisk,
    pulledAt: image.pulledAt.toISOString(),
    lastUsedAt: image.lastUsedAt.toISOString(),
    pinned: image.pinned,
    usedBy: [...image.usedBy],
    diskPath: image.diskPath,
  };
}

export function nameOf(pod: Pod): string {
  return `${pod.metadata?.namespace ?? "default"}/${pod.metadata?.name ?? ""}`;
}

function describeState(state: ContainerState | undefined): { readonly word: string; readonly message: string | undefined } {
  if (state?.running !== undefined) return { word: "Running", message: undefined };
  if (state?.terminated !== undefined) {
    const { reason, exitCode, message } = state.terminated;
    return { word: reason ?? `ExitCode:${exitCode}`, message };
  }
  return { word: state?.waiting?.reason ?? "ContainerCreating", message: state?.waiting?.message };
}

function statusWord(pod: Pod, containers: readonly { readonly state: string; readonly ready: boolean }[]): string {
  if (pod.metadata?.deletionTimestamp !== undefined) return "Terminating";
  if (pod.status?.reason !== undefined && pod.status.reason !== "") return pod.status.reason;
  if (pod.status?.phase === "Succeeded") return "Completed";
  const waiting = containers.find((container) => container.state !== "Running");
  return pod.status?.phase === "Running" && waiting === undefined ? "Running" : (waiting?.state ?? pod.status?.phase ?? "Pending");
}
