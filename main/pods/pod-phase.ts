/**
 * The phase of a Pod from its container statuses, by the kubelet's rules. Pure.
 * https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-phase
 */
import type { ContainerStatus, Pod } from "../contract/kubernetes-api.generated.ts";
import { shouldRestart } from "./restart-policy.ts";

export type PodPhase = "Pending" | "Running" | "Succeeded" | "Failed";

/**
 * `ended`: the Pod was stopped and nothing will be started again whatever the restart policy says.
 * A container that waits after it ran once counts as stopped, one that never ran as waiting.
 */
export function podPhase(pod: Pod, statuses: readonly ContainerStatus[], ended: boolean): PodPhase {
  const statusOf = (name: string): ContainerStatus | undefined => statuses.find((status) => status.name === name);
  const count = { initPending: 0, initFailed: 0, sideCarPending: 0, unknown: 0, running: 0, waiting: 0, stopped: 0, final: 0, succeeded: 0 };

  for (const container of pod.spec?.initContainers ?? []) {
    const { state, lastState, started } = statusOf(container.name) ?? {};
    if (container.restartPolicy === "Always") {
      // A native side-car that stopped says nothing about the phase.
      if (state?.running !== undefined) {
        count.running += 1;
        if (started !== true) count.sideCarPending += 1;
      } else if (state?.terminated === undefined && lastState?.terminated === undefined) {
        count.sideCarPending += 1;
        if (state?.waiting === undefined) count.unknown += 1;
        else count.waiting += 1;
      }
      continue;
    }
    const exit = state?.terminated ?? (state?.waiting === undefined ? undefined : lastState?.terminated);
    if (state?.running !== undefined || exit === undefined) count.initPending += 1;
    // An init container is done by exit code 0; Always means OnFailure for it.
    else if (exit.exitCode !== 0 && !shouldRestart(pod, container, "init", exit.exitCode)) count.initFailed += 1;
  }
  let activeStarted = false;
  for (const container of pod.spec?.containers ?? []) {
    const { state, lastState } = statusOf(container.name) ?? {};
    const exit = state?.terminated ?? (state?.waiting === undefined ? undefined : lastState?.terminated);
    if (state?.running !== undefined || state?.terminated !== undefined) activeStarted = true;
    if (state?.running !== undefined) count.running += 1;
    else if (exit !== undefined) {
      count.stopped += 1;
      // One that waits is about to start again, also when only its new image is the reason.
      if (state?.terminated !== undefined && !shouldRestart(pod, container, "main", exit.exitCode)) count.final += 1;
      if (exit.exitCode === 0) count.succeeded += 1;
    } else if (state?.waiting !== undefined) count.waiting += 1;
    else count.unknown += 1;
  }

  if (count.initFailed > 0) return "Failed";
  // What never got to run when the Pod was stopped cannot have succeeded.
  const unfinished = ended && count.running === 0 ? "Failed" : "Pending";
  if (count.initPending > 0 || (count.sideCarPending > 0 && !activeStarted) || count.waiting > 0) return unfinished;
  if (count.running > 0 && count.unknown === 0) return "Running";
  if (count.running === 0 && count.stopped > 0 && count.unknown === 0) {
    if (!ended && count.stopped !== count.final) return "Running";
    return count.stopped === count.succeeded ? "Succeeded" : "Failed";
  }
  return unfinished;
}
