/**
 * Leaves the cluster in good order: cordon, evict the node's own Pods (respecting disruption budgets), say so on the Node.
 * A node may not delete its own Node object, so the last command is the administrator's.
 */
import { hasCode, messageOf, PodyardError } from "../contract/errors.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { pause } from "./backoff.ts";
import type { KubernetesClient } from "./client.ts";
import type { PodSource } from "./cluster.ts";
import type { KubernetesNode } from "./node.ts";
import { evictions, nodes } from "./resources.ts";

export interface LeaveOptions {
  readonly client: KubernetesClient;
  readonly node: KubernetesNode;
  readonly pods: PodSource;
  readonly logger: Logger;
  readonly signal: AbortSignal;
  /** Told as Pods go: how many are left, and why one stays. */
  progress?(remaining: number, obstacle: string | undefined): void;
}

export interface LeaveResult {
  /** For the administrator: removes the Node and its lease. */
  readonly deleteCommand: string;
}

/**
 * Resolves when no Pod is left. Cancelled by the signal, after which the node is still cordoned and can be brought back with
 * {@link stay}. Errors: Unavailable, Cancelled.
 */
export async function leave(options: LeaveOptions): Promise<LeaveResult> {
  const { client, node, pods, logger, signal } = options;
  node.setLeaving(true);
  await client.patch(nodes, { name: node.name }, "merge", { spec: { unschedulable: true } }, { signal });
  await pods.synced;
  let changed = Promise.withResolvers<void>();
  const unsubscribe = pods.subscribe(() => changed.resolve());
  try {
    while (true) {
      signal.throwIfAborted();
      changed = Promise.withResolvers();
      const remaining = [...pods.current().values()].filter(isEvictable);
      if (remaining.length === 0) return { deleteCommand: `kubectl delete node ${node.name}` };
      const obstacles = await Promise.all(remaining.filter((pod) => pod.metadata?.deletionTimestamp === undefined).map((pod) => evict(client, pod, signal)));
      const obstacle = obstacles.find((sentence) => sentence !== undefined);
      options.progress?.(remaining.length, obstacle);
      if (obstacle !== undefined) logger.info("a Pod cannot be evicted yet", { obstacle });
      const timer = new AbortController();
      await Promise.race([changed.promise, pause(5000, AbortSignal.any([signal, timer.signal]))]);
      timer.abort();
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    throw new PodyardError("Cancelled", `leaving was interrupted: node ${node.name} is cordoned`, { cause: error, fix: `kubectl uncordon ${node.name}, to use it again` });
  } finally {
    unsubscribe();
  }
}

/** Takes back an interrupted {@link leave}: Pods are accepted again. */
export async function stay(options: Pick<LeaveOptions, "client" | "node" | "signal">): Promise<void> {
  const { client, node, signal } = options;
  await client.patch(nodes, { name: node.name }, "merge", { spec: { unschedulable: null } }, { signal });
  node.setLeaving(false);
}

/** Finished Pods hold nothing; a mirror Pod belongs to a file. DaemonSet Pods would come back and tolerate the cordon. */
function isEvictable(pod: Pod): boolean {
  if (pod.status?.phase === "Succeeded" || pod.status?.phase === "Failed") return pod.metadata?.deletionTimestamp !== undefined;
  if (pod.metadata?.annotations?.["kubernetes.io/config.mirror"] !== undefined) return false;
  return pod.metadata?.ownerReferences?.some((owner) => owner.controller === true && owner.kind === "DaemonSet") !== true;
}

/** A sentence if it did not work yet. */
async function evict(client: KubernetesClient, pod: Pod, signal: AbortSignal): Promise<string | undefined> {
  const { namespace = "default", name = "", uid } = pod.metadata ?? {};
  try {
    const deleteOptions = uid === undefined ? {} : { deleteOptions: { preconditions: { uid } } };
    await client.create(evictions, { namespace, name, subresource: "eviction" }, { metadata: { namespace, name }, ...deleteOptions }, { signal });
    return undefined;
  } catch (error) {
    if (hasCode(error, "NotFound", "Conflict")) return undefined;
    signal.throwIfAborted();
    return messageOf(error);
  }
}
