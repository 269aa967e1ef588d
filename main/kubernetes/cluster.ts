/**
 * The interface of this folder towards pods: where desired Pods come from, where status and events go, and the objects
 * that Pods refer to. Two implementations: the API server as `system:node:NAME` (this folder), and files when standalone
 * (pods/standalone). Everything here is allowed to the Node authorizer; nothing lists what a node may not list.
 */
import type { ConfigMap, Pod, PodStatus, Secret, Service, ServiceAccount } from "../contract/kubernetes-api.generated.ts";

/** Desired Pods of this node, kept fresh. The map's key is the UID. */
export interface PodSource {
  /** Resolves once the first list is in: only then may unknown local Pods be killed. */
  readonly synced: Promise<void>;
  current(): ReadonlyMap<string, Pod>;
  /** Called for every added, changed or deleted Pod, after `current` changed. Returns the unsubscriber. */
  subscribe(onChange: (uid: string) => void): () => void;
}

export interface PodReporter {
  /**
   * Patches `pods/status` with the UID as precondition; only what differs is sent, conditions and fields of others are
   * kept. NotFound and Conflict (other UID) are returned as "gone"; the rest rejects (Unavailable: try again later).
   */
  writeStatus(pod: Pod, status: PodStatus): Promise<Pod | "gone">;
  /** Final removal from the API: grace period 0 with UID precondition. Gone is fine. */
  remove(pod: Pod): Promise<void>;
  /** Best effort, aggregated like client-go's recorder (count, lastTimestamp), never throws. `container` becomes involvedObject.fieldPath. */
  event(pod: Pod, type: "Normal" | "Warning", reason: string, message: string, container?: string): void;
}

/** Objects that Pods refer to; reads are from a per-object watch cache, reference-counted by Pod. */
export interface PodObjects {
  /** Undefined = does not exist. Errors: Unavailable, Forbidden. */
  secret(namespace: string, name: string): Promise<Secret | undefined>;
  configMap(namespace: string, name: string): Promise<ConfigMap | undefined>;
  serviceAccount(namespace: string, name: string): Promise<ServiceAccount | undefined>;
  /** All Services, for the service environment variables. Waits for the first list. */
  services(): Promise<readonly Service[]>;
  /** A token bound to the Pod. `expirationSeconds` as asked in the projection. */
  token(pod: Pod, audience: string | undefined, expirationSeconds: number): Promise<{ readonly token: string; readonly expiresAt: Date }>;
  /** Which objects a Pod uses, so that they are watched (and others no longer). Empty set at deletion. */
  use(podUid: string, objects: readonly { readonly kind: "Secret" | "ConfigMap"; readonly namespace: string; readonly name: string }[]): void;
  /** Called when a watched object changed, with the UIDs of the Pods that use it. */
  subscribe(onChange: (podUids: readonly string[]) => void): () => void;
}

/** What the node knows about itself and Pods need. */
export interface NodeView {
  readonly name: string;
  /** The node's InternalIPs. */
  addresses(): readonly string[];
  /** Labels as on the Node object, for admission. */
  labels(): Readonly<Record<string, string>>;
  /** Quantities in base units: cpu in millicores, memory and ephemeral-storage in bytes, others in units. */
  allocatable(): Readonly<Record<string, number>>;
  /** False while leaving or draining: new Pods are refused with NodeShutdown. */
  accepting(): boolean;
  /** Cluster DNS servers and domain, when configured. */
  clusterDNS(): { readonly servers: readonly string[]; readonly domain: string } | undefined;
}
