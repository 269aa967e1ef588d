/**
 * A Pod's status from what the sync loop observed: pure, by the kubelet's rules (phase, conditions, container statuses),
 * so that kubectl, controllers and `kubectl wait` see what they see of any node. Times are whole seconds and change only
 * with what they describe, so that an unchanged Pod gives an equal status and no patch.
 * https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
 */
import type { Container, ContainerState, ContainerStatus, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { ContainerSnapshot, PodSnapshot } from "./pod-state.ts";
import { podConditions } from "./pod-conditions.ts";
import { podPhase, type PodPhase } from "./pod-phase.ts";
import { onePerFamily } from "./downward-api.ts";
import { qosClass } from "./resources.ts";
import { shouldRestart } from "./restart-policy.ts";

/** All termination messages of a Pod together; each container gets an equal part. */
const terminationMessagesBytes = 12 * 1024;
const lostContainer = "The container could not be located when the pod was terminated";

/** `previous` is the last status we computed, else the API's; foreign conditions are kept from `snapshot.pod.status`. */
export function computeStatus(snapshot: PodSnapshot, previous: PodStatus | undefined): PodStatus {
  const { pod } = snapshot;
  const before = previous ?? pod.status ?? {};
  const spec = pod.spec ?? { containers: [] };
  const hasInit = (spec.initContainers?.length ?? 0) > 0;
  const statusesOf = (
    containers: readonly ContainerSpec[],
    kind: ContainerSnapshot["kind"],
    old: readonly ContainerStatus[] | undefined,
  ): readonly ContainerStatus[] =>
    containers.map((container) =>
      containerStatus(
        snapshot,
        container,
        kind,
        hasInit,
        old?.find(({ name }) => name === container.name),
      ),
    );
  const containerStatuses = sortByName(statusesOf(spec.containers, "main", before.containerStatuses));
  const initContainerStatuses = statusesOf(spec.initContainers ?? [], "init", before.initContainerStatuses);
  const ephemeralContainerStatuses = sortByName(statusesOf(spec.ephemeralContainers ?? [], "ephemeral", before.ephemeralContainerStatuses));

  const { phase, intended, reason, message } = phaseOf(snapshot, before, [...initContainerStatuses, ...containerStatuses]);
  const conditions = podConditions(snapshot, before, intended, initContainerStatuses, containerStatuses);
  // A Pod rejected at the door has no container to tell about.
  const rejected = snapshot.failure !== undefined && snapshot.containers.length === 0 && !snapshot.sandboxReady;
  const hostIPs = onePerFamily(snapshot.hostIPs);
  const podIPs = snapshot.podIPs.length > 0 ? onePerFamily(snapshot.podIPs) : (before.podIPs ?? []).map(({ ip }) => ip);
  const startTime = before.startTime ?? (snapshot.startTime === undefined ? undefined : toSeconds(snapshot.startTime));
  return {
    phase,
    ...(reason !== undefined && reason !== "" && { reason }),
    ...(message !== undefined && message !== "" && { message }),
    conditions,
    ...(pod.metadata?.generation !== undefined && { observedGeneration: Math.max(pod.metadata.generation, before.observedGeneration ?? 0) }),
    ...(hostIPs[0] !== undefined && { hostIP: hostIPs[0], hostIPs: hostIPs.map((ip) => ({ ip })) }),
    ...(podIPs[0] !== undefined && { podIP: podIPs[0], podIPs: podIPs.map((ip) => ({ ip })) }),
    ...(startTime !== undefined && { startTime }),
    qosClass: before.qosClass ?? qosClass(pod),
    ...(hasInit && !rejected && { initContainerStatuses }),
    ...(!rejected && { containerStatuses }),
    ...(ephemeralContainerStatuses.length > 0 && { ephemeralContainerStatuses }),
    // Written by others; a status that left them out would delete them.
    ...(pod.status?.resourceClaimStatuses !== undefined && { resourceClaimStatuses: pod.status.resourceClaimStatuses }),
  };
}

/** RFC 3339 in whole seconds, the precision of the API. */
export function toSeconds(time: Date): string {
  return `${time.toISOString().slice(0, 19)}Z`;
}

type ContainerSpec = Pick<Container, "name" | "image" | "volumeMounts" | "resources" | "restartPolicy" | "restartPolicyRules">;

/** `intended` differs from `phase` while a Pod that is over still has something running. */
function phaseOf(
  snapshot: PodSnapshot,
  before: PodStatus,
  statuses: readonly ContainerStatus[],
): { readonly phase: PodPhase; readonly intended: PodPhase; readonly reason: string | undefined; readonly message: string | undefined } {
  const kept = { reason: before.reason || snapshot.pod.status?.reason, message: before.message || snapshot.pod.status?.message };
  // A terminal phase is for ever, and is never announced while anything may still run.
  const known = [before.phase, snapshot.pod.status?.phase].find(isTerminal);
  if (known !== undefined) return { phase: known, intended: known, ...kept };
  const computed =
    snapshot.failure !== undefined
      ? "Failed"
      : snapshot.refusal !== undefined && !hasEnded(snapshot)
        ? "Pending"
        : podPhase(snapshot.pod, statuses, hasEnded(snapshot));
  if (isTerminal(computed) && snapshot.mayRun) return { phase: asPhase(before.phase) ?? "Pending", intended: computed, ...kept };
  if (snapshot.failure !== undefined) return { phase: computed, intended: computed, ...snapshot.failure };
  // Only a phase that stays keeps the reason it was given.
  return {
    phase: computed,
    intended: computed,
    reason: computed === before.phase ? kept.reason : undefined,
    message: computed === before.phase ? kept.message : undefined,
  };
}

/** The Pod was stopped as a whole and nothing of it runs any more: what has no exit code will never get one. */
function hasEnded({ pod, failure, disruption, mayRun }: PodSnapshot): boolean {
  return !mayRun && (failure !== undefined || disruption !== undefined || pod.metadata?.deletionTimestamp !== undefined);
}

function containerStatus(
  snapshot: PodSnapshot,
  container: ContainerSpec,
  kind: ContainerSnapshot["kind"],
  hasInit: boolean,
  old: ContainerStatus | undefined,
): ContainerStatus {
  const { pod } = snapshot;
  const seen = snapshot.containers.find((candidate) => candidate.name === container.name && candidate.kind === kind);
  const limit = Math.floor(
    terminationMessagesBytes /
      Math.max(1, (pod.spec?.containers.length ?? 0) + (pod.spec?.initContainers?.length ?? 0) + (pod.spec?.ephemeralContainers?.length ?? 0)),
  );
  const waiting: ContainerState =
    snapshot.refusal === undefined
      ? { waiting: { reason: hasInit && kind !== "ephemeral" ? "PodInitializing" : "ContainerCreating" } }
      : { waiting: { reason: "CreateContainerConfigError", message: snapshot.refusal } };

  const observed = normalState(seen?.state, limit);
  let state = observed === undefined || isEmpty(observed) ? undefined : observed;
  let lastState = normalState(seen?.lastState, limit) ?? old?.lastState ?? {};
  let restartCount = Math.max(seen?.restartCount ?? 0, old?.restartCount ?? 0);
  const finished = old?.state?.terminated;
  // The API server refuses a status in which a container that must not restart is no longer terminated.
  if (
    state?.terminated === undefined &&
    finished !== undefined &&
    ((state === undefined && hasEnded(snapshot)) || !shouldRestart(pod, container, kind, finished.exitCode))
  )
    state = { terminated: finished };
  if (state === undefined) {
    state = waiting;
    if (old?.state?.running !== undefined && lastState.terminated === undefined && !hasEnded(snapshot)) {
      const unknown = { exitCode: 137, reason: "ContainerStatusUnknown" };
      // What ran and is gone must not read as "never started", which would put the Pod back to Pending; and what must not run twice is over.
      if (!shouldRestart(pod, container, kind, unknown.exitCode) && !snapshot.mayRun) state = { terminated: { ...unknown, message: lostContainer } };
      else {
        lastState = { terminated: { ...unknown, message: "The container could not be located when the pod was deleted.  The container used to be Running" } };
        restartCount += 1;
      }
    } else if (finished !== undefined && seen?.lastState === undefined) lastState = { terminated: finished };
  }
  if (state.waiting !== undefined && hasEnded(snapshot) && (kind !== "init" || lastState.terminated !== undefined)) {
    // The last exit is the final one; without any, the container counts as failed once the Pod was initialised.
    const lost = observed === undefined && old?.state?.running !== undefined;
    if (lastState.terminated !== undefined && !lost) [state, lastState] = [lastState, {}];
    else if (finished !== undefined) state = { terminated: finished };
    else if (initialised(snapshot)) state = { terminated: { exitCode: 137, reason: "ContainerStatusUnknown", message: lostContainer } };
  }
  const running = state.running !== undefined;
  const created = (seen?.containerId ?? "") !== "";
  const started = running ? (seen?.started ?? false) : false;
  const plainInit = kind === "init" && container.restartPolicy !== "Always";
  const ready = plainInit ? state.terminated?.exitCode === 0 : kind === "ephemeral" ? false : running && started && (seen?.ready ?? false);
  const requests = old?.allocatedResources ?? container.resources?.requests;
  const resources = seen?.resources ?? old?.resources ?? container.resources;
  return {
    name: container.name,
    state,
    lastState,
    ready,
    ...(kind !== "ephemeral" && { started }),
    restartCount,
    image: seen?.image || old?.image || (container.image ?? ""),
    imageID: seen?.imageId || old?.imageID || "",
    ...((created || old?.containerID !== undefined) && { containerID: seen?.containerId || old?.containerID || "" }),
    ...(created && requests !== undefined && kind !== "ephemeral" && { allocatedResources: requests }),
    ...(created && resources !== undefined && kind !== "ephemeral" && { resources }),
    ...((container.volumeMounts?.length ?? 0) > 0 && {
      volumeMounts: (container.volumeMounts ?? []).map(({ name, mountPath, readOnly }) => ({
        name,
        mountPath,
        ...(readOnly === true && { readOnly, recursiveReadOnly: "Disabled" }),
      })),
    }),
  };
}

/** Whether all init containers are done (or, as native side-cars, started) as far as this snapshot tells. */
function initialised({ pod, containers }: PodSnapshot): boolean {
  return (pod.spec?.initContainers ?? []).every(({ name, restartPolicy }) => {
    const state = containers.find((container) => container.name === name && container.kind === "init")?.state;
    return restartPolicy === "Always" ? state?.running !== undefined || state?.terminated !== undefined : state?.terminated?.exitCode === 0;
  });
}

/** Whole seconds, and a termination message of at most its share, cut at a character. */
function normalState(state: ContainerState | undefined, messageLimit: number): ContainerState | undefined {
  const wholeSecond = (time: string | undefined): string | undefined => {
    const date = time === undefined ? undefined : new Date(time);
    return date === undefined || Number.isNaN(date.getTime()) ? undefined : toSeconds(date);
  };
  if (state?.running !== undefined) {
    const startedAt = wholeSecond(state.running.startedAt);
    return { running: startedAt === undefined ? {} : { startedAt } };
  }
  if (state?.terminated !== undefined) {
    const { startedAt, finishedAt, message, ...rest } = state.terminated;
    const [start, end] = [wholeSecond(startedAt), wholeSecond(finishedAt)];
    const text = message === undefined ? undefined : truncate(message, messageLimit);
    return {
      terminated: {
        ...rest,
        ...(text !== undefined && text !== "" && { message: text }),
        ...(start !== undefined && { startedAt: start }),
        ...(end !== undefined && { finishedAt: end }),
      },
    };
  }
  return state;
}

function truncate(text: string, bytes: number): string {
  const encoded = Buffer.from(text, "utf8");
  if (encoded.length <= bytes) return text;
  // A cut inside a character leaves continuation bytes, which the API server would reject: step back over them.
  let end = bytes;
  while (end > 0 && ((encoded[end] ?? 0) & 0xc0) === 0x80) end -= 1;
  return encoded.toString("utf8", 0, end);
}

function sortByName(statuses: readonly ContainerStatus[]): readonly ContainerStatus[] {
  return [...statuses].sort((left, right) => (left.name < right.name ? -1 : 1));
}

function isEmpty(state: ContainerState): boolean {
  return state.running === undefined && state.terminated === undefined && state.waiting === undefined;
}

function isTerminal(phase: string | undefined): phase is "Succeeded" | "Failed" {
  return phase === "Succeeded" || phase === "Failed";
}

function asPhase(phase: string | undefined): PodPhase | undefined {
  return phase === "Pending" || phase === "Running" || phase === "Succeeded" || phase === "Failed" ? phase : undefined;
}
