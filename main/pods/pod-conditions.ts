/**
 * The conditions of a Pod: the ones a node owns are computed, those of others (readiness gates, controllers) are kept, and
 * a transition time changes only with the status. Pure.
 * https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-conditions
 */
import type { ContainerStatus, PodCondition, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { PodPhase } from "./pod-phase.ts";
import type { PodSnapshot } from "./pod-state.ts";
import { parseQuantity } from "./resources.ts";

interface Verdict {
  readonly status: "True" | "False";
  readonly reason?: string;
  readonly message?: string;
}

const owned: ReadonlySet<string> = new Set([
  "PodReadyToStartContainers",
  "Initialized",
  "Ready",
  "ContainersReady",
  "PodScheduled",
  "PodResizePending",
  "PodResizeInProgress",
]);

/** `phase` is the one the Pod is going to have: a Pod that is being failed is not ready, even while its phase still waits for its containers to end. */
export function podConditions(
  snapshot: PodSnapshot,
  before: PodStatus,
  phase: PodPhase,
  initStatuses: readonly ContainerStatus[],
  statuses: readonly ContainerStatus[],
): readonly PodCondition[] {
  const { pod } = snapshot;
  const old = before.conditions ?? [];
  const terminal = phase === "Succeeded" || phase === "Failed";
  // The API's list is fresher than ours for what others write.
  const foreign = (pod.status?.conditions ?? old).filter(({ type }) => !owned.has(type));
  const containersReady = containersReadyOf(snapshot, phase, initStatuses, statuses);
  const verdicts: (readonly [string, Verdict])[] = [
    ["PodReadyToStartContainers", { status: snapshot.sandboxReady ? "True" : "False" }],
    ["Initialized", initializedOf(snapshot, before, phase, initStatuses, statuses)],
    ["Ready", containersReady.status === "True" ? readinessGatesOf(snapshot, foreign) : containersReady],
    ["ContainersReady", containersReady],
    ["PodScheduled", { status: "True" }],
  ];
  // Told only with the terminal phase, so that a controller does not act on a Pod that still runs.
  if (snapshot.disruption !== undefined && terminal && !snapshot.mayRun) verdicts.push(["DisruptionTarget", { status: "True", ...snapshot.disruption }]);
  if (!terminal && wantsResize(snapshot, before))
    verdicts.push(["PodResizePending", { status: "True", reason: "Infeasible", message: "In-place pod resize is not supported on this node" }]);

  const computed = verdicts.map(([type, verdict]): PodCondition => {
    const known = old.find((condition) => condition.type === type);
    const unchanged = known?.status === verdict.status && known.lastTransitionTime !== undefined;
    return {
      type,
      ...(pod.metadata?.generation !== undefined && { observedGeneration: pod.metadata.generation }),
      ...verdict,
      // Null in the API: never probed. Kept out, as the server fills it.
      lastTransitionTime: unchanged ? (known.lastTransitionTime ?? "") : `${snapshot.now.toISOString().slice(0, 19)}Z`,
    };
  });
  return [...foreign.filter(({ type }) => !computed.some((condition) => condition.type === type)), ...computed];
}

function containersReadyOf({ pod }: PodSnapshot, phase: PodPhase, initStatuses: readonly ContainerStatus[], statuses: readonly ContainerStatus[]): Verdict {
  if (phase === "Succeeded") return { status: "False", reason: "PodCompleted" };
  if (phase === "Failed") return { status: "False", reason: "PodFailed" };
  const sideCars = (pod.spec?.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === "Always");
  const unready = [...sideCars, ...(pod.spec?.containers ?? [])]
    .map(({ name }) => name)
    .filter((name) => ![...initStatuses, ...statuses].some((status) => status.name === name && status.ready));
  return unready.length === 0
    ? { status: "True" }
    : { status: "False", reason: "ContainersNotReady", message: `containers with unready status: [${unready.join(" ")}]` };
}

function initializedOf(
  { pod }: PodSnapshot,
  before: PodStatus,
  phase: PodPhase,
  initStatuses: readonly ContainerStatus[],
  statuses: readonly ContainerStatus[],
): Verdict {
  if (phase === "Succeeded") return { status: "True", reason: "PodCompleted" };
  // Once a container of the Pod started, initialisation is behind it, even while a native side-car restarts.
  const everStarted = statuses.some(
    ({ state, lastState }) => state?.running !== undefined || state?.terminated !== undefined || lastState?.terminated !== undefined,
  );
  if (everStarted) return { status: "True" };
  const incomplete = (pod.spec?.initContainers ?? []).filter(({ name, restartPolicy }) => {
    const status = initStatuses.find((candidate) => candidate.name === name);
    return restartPolicy === "Always" ? status?.started !== true : status?.ready !== true;
  });
  if (incomplete.length === 0 || (phase === "Running" && before.conditions?.some(({ type, status }) => type === "Initialized" && status === "True")))
    return { status: "True" };
  return {
    status: "False",
    reason: "ContainersNotInitialized",
    message: `containers with incomplete status: [${incomplete.map(({ name }) => name).join(" ")}]`,
  };
}

function readinessGatesOf({ pod }: PodSnapshot, foreign: readonly PodCondition[]): Verdict {
  const problems = (pod.spec?.readinessGates ?? []).flatMap(({ conditionType }) => {
    const condition = foreign.find(({ type }) => type === conditionType);
    if (condition === undefined) return [`corresponding condition of pod readiness gate "${conditionType}" does not exist.`];
    return condition.status === "True" ? [] : [`the status of pod readiness gate "${conditionType}" is not "True", but ${condition.status}`];
  });
  return problems.length === 0 ? { status: "True" } : { status: "False", reason: "ReadinessGatesNotReady", message: problems.join(", ") };
}

/** The spec asks for other requests than the container was given: a machine cannot be resized while it runs. */
function wantsResize({ pod }: PodSnapshot, before: PodStatus): boolean {
  const old = [...(before.containerStatuses ?? []), ...(before.initContainerStatuses ?? [])];
  return [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])].some(({ name, resources }) => {
    const allocated = old.find((status) => status.name === name)?.allocatedResources;
    return (
      allocated !== undefined &&
      ["cpu", "memory"].some(
        (key) =>
          allocated[key] !== undefined && resources?.requests?.[key] !== undefined && parseQuantity(allocated[key]) !== parseQuantity(resources.requests[key]),
      )
    );
  });
}
