/**
 * Whether a container that ended starts again: the Pod's restartPolicy, unless the container has its own (native
 * side-cars, and ContainerRestartRules of Kubernetes 1.35). Pure.
 * https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-restarts
 */
import type { Container, EphemeralContainer, Pod } from "../contract/kubernetes-api.generated.ts";

export type ContainerKind = "init" | "main" | "ephemeral";

/** A native side-car: an init container that keeps running (`restartPolicy: Always`). */
export function isNativeSidecar(container: Pick<Container, "restartPolicy">, kind: ContainerKind): boolean {
  return kind === "init" && container.restartPolicy === "Always";
}

export function shouldRestart(pod: Pod, container: Container | EphemeralContainer, kind: ContainerKind, exitCode: number): boolean {
  if (kind === "ephemeral") return false;
  for (const rule of container.restartPolicyRules ?? []) {
    if (rule.action !== "Restart" || rule.exitCodes === undefined) continue;
    const listed = (rule.exitCodes.values ?? []).includes(exitCode);
    if (rule.exitCodes.operator === "In" ? listed : rule.exitCodes.operator === "NotIn" && !listed) return true;
  }
  const policy = container.restartPolicy ?? pod.spec?.restartPolicy ?? "Always";
  if (kind === "init" && container.restartPolicy !== "Always" && exitCode === 0) return false;
  if (policy === "Always") return true;
  return policy === "OnFailure" && exitCode !== 0;
}
