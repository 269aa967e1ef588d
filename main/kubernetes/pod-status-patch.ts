/**
 * The smallest strategic merge patch from one PodStatus to another, as a pure function. Conditions and fields that others
 * own are left alone: the scheduler's PodScheduled, readiness gates, DisruptionTarget by an eviction, resource claims.
 * Merge keys: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#PodStatus
 */
import type { PodCondition, PodStatus } from "../contract/kubernetes-api.generated.ts";
import { isDeepEqual } from "./node-status.ts";

/** Ours to remove when the wanted status no longer has them. Others are only added or changed. */
const ownConditions = new Set(["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodResizePending", "PodResizeInProgress"]);
/** Ours to unset. */
const clearedFields = ["reason", "message", "podIP", "containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses", "resources", "allocatedResources", "resize"] as const;
/** Set once or always present. */
const keptFields = ["phase", "hostIP", "qosClass", "startTime", "observedGeneration"] as const;
/** Lists with merge key `ip`, which would otherwise only grow. */
const addressFields = ["podIPs", "hostIPs"] as const;

/** Undefined if nothing differs. */
export function podStatusPatch(uid: string, current: PodStatus, wanted: PodStatus): unknown {
  const status: Record<string, unknown> = {};
  for (const field of [...clearedFields, ...keptFields]) if (wanted[field] !== undefined && !isDeepEqual(current[field], wanted[field])) status[field] = wanted[field];
  for (const field of clearedFields) if (wanted[field] === undefined && isPresent(current[field])) status[field] = null;
  for (const field of addressFields) {
    const addresses = wanted[field];
    if (addresses !== undefined && !isDeepEqual(current[field] ?? [], addresses)) status[field] = [{ $patch: "replace" }, ...addresses];
    // Without podIP there are no podIPs either: the server wants them to agree.
    else if (addresses === undefined && field === "podIPs" && isPresent(current[field])) status[field] = [{ $patch: "replace" }];
  }
  const conditions = conditionPatches(current.conditions ?? [], wanted.conditions ?? []);
  if (conditions.length > 0) status["conditions"] = conditions;
  return Object.keys(status).length === 0 ? undefined : { metadata: { uid }, status };
}

function conditionPatches(current: readonly PodCondition[], wanted: readonly PodCondition[]): readonly unknown[] {
  const withoutProbeTime = (condition: PodCondition): unknown => ({ ...condition, lastProbeTime: undefined });
  const changed = wanted.filter((condition) => {
    const known = current.find(({ type }) => type === condition.type);
    return known === undefined || !isDeepEqual(withoutProbeTime(known), withoutProbeTime(condition));
  });
  // A merge would keep a former reason or message.
  const complete = changed.map((condition) => {
    const known = current.find(({ type }) => type === condition.type);
    const cleared = (["reason", "message"] as const).filter((field) => condition[field] === undefined && known?.[field] !== undefined);
    return { ...condition, ...Object.fromEntries(cleared.map((field) => [field, null])) };
  });
  const removed = current.filter(({ type }) => ownConditions.has(type) && !wanted.some((condition) => condition.type === type));
  return [...complete, ...removed.map(({ type }) => ({ type, $patch: "delete" }))];
}

function isPresent(value: unknown): boolean {
  return value !== undefined && value !== null && value !== "" && !(Array.isArray(value) && value.length === 0);
}
