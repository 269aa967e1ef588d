/**
 * The Pods that are bound to this node, by list and watch with the field selector that the Node authorizer demands.
 * Nothing is ever dropped because the API server is away: only its word removes a Pod.
 */
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import type { KubernetesClient } from "./client.ts";
import type { PodSource } from "./cluster.ts";
import { pods } from "./resources.ts";
import { startWatchLoop } from "./watch-loop.ts";

export interface ApiPodSourceOptions {
  readonly client: KubernetesClient;
  readonly nodeName: string;
  readonly logger: Logger;
}

export class ApiPodSource implements PodSource {
  readonly synced: Promise<void>;
  readonly #options: ApiPodSourceOptions;
  readonly #markSynced: () => void;
  readonly #listeners = new Set<(uid: string) => void>();
  #pods = new Map<string, Pod>();

  constructor(options: ApiPodSourceOptions) {
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.synced = promise;
    this.#markSynced = resolve;
  }

  current(): ReadonlyMap<string, Pod> {
    return this.#pods;
  }

  subscribe(onChange: (uid: string) => void): () => void {
    this.#listeners.add(onChange);
    return () => this.#listeners.delete(onChange);
  }

  start(): AsyncDisposable {
    const { client, nodeName, logger } = this.#options;
    return startWatchLoop({
      client,
      resource: pods,
      scope: {},
      fieldSelector: `spec.nodeName=${nodeName}`,
      logger,
      replaced: (found) => this.#replace(found),
      changed: (type, pod) => this.#change(type, pod),
    });
  }

  #replace(found: readonly Pod[]): void {
    const former = this.#pods;
    this.#pods = new Map(found.flatMap((pod) => (pod.metadata?.uid === undefined ? [] : [[pod.metadata.uid, pod] as const])));
    this.#markSynced();
    for (const [uid, pod] of this.#pods) if (former.get(uid)?.metadata?.resourceVersion !== pod.metadata?.resourceVersion) this.#notify(uid);
    for (const uid of former.keys()) if (!this.#pods.has(uid)) this.#notify(uid);
  }

  #change(type: "ADDED" | "MODIFIED" | "DELETED", pod: Pod): void {
    const uid = pod.metadata?.uid;
    if (uid === undefined) return;
    if (type === "DELETED") this.#pods.delete(uid);
    else this.#pods.set(uid, pod);
    this.#notify(uid);
  }

  #notify(uid: string): void {
    for (const listener of this.#listeners) listener(uid);
  }
}
