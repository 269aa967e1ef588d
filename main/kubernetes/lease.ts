/**
 * The node's heartbeat: a Lease in kube-node-lease, renewed every 10 s and valid for 40. On its own client with its own
 * connection and a short time-out, so that neither a long list nor a hanging connection lets the node appear dead.
 * https://kubernetes.io/docs/concepts/architecture/leases/#node-heart-beats
 */
import { hasCode, messageOf } from "../contract/errors.ts";
import type { Lease } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { Backoff, pause } from "./backoff.ts";
import type { KubernetesClient } from "./client.ts";
import { leases } from "./resources.ts";

export interface LeaseOptions {
  /** Used for nothing else; time-out about 10 s. */
  readonly client: KubernetesClient;
  readonly nodeName: string;
  /** UID of the Node, which becomes the owner: the lease goes when the Node goes. */
  nodeUid(): string | undefined;
  readonly logger: Logger;
  readonly now?: () => Date;
  /** 10 s. */
  readonly intervalMilliseconds?: number;
}

const namespace = "kube-node-lease";
const durationSeconds = 40;

export class NodeLease {
  readonly #options: LeaseOptions;
  #known: Lease | undefined;
  #renewedAt: Date | undefined;

  constructor(options: LeaseOptions) {
    this.#options = options;
  }

  /** When the cluster last confirmed that we live. */
  get renewedAt(): Date | undefined {
    return this.#renewedAt;
  }

  /** Renews until disposed. The lease is left to expire: a host that restarts within 40 s is never missed. */
  start(): AsyncDisposable {
    const controller = new AbortController();
    const finished = this.#run(controller.signal);
    return {
      async [Symbol.asyncDispose]() {
        controller.abort();
        await finished;
      },
    };
  }

  async #run(signal: AbortSignal): Promise<void> {
    const backoff = new Backoff({ initialMilliseconds: 200, maximumMilliseconds: 7_000 });
    let isFailing = false;
    while (!signal.aborted) {
      try {
        await this.#renew(signal);
        if (isFailing) this.#options.logger.info("node lease renewed again");
        isFailing = false;
        backoff.reset();
        await pause(this.#options.intervalMilliseconds ?? 10_000, signal);
      } catch (error) {
        if (signal.aborted) return;
        if (!isFailing) this.#options.logger.warn("the node lease cannot be renewed", { error: messageOf(error) });
        isFailing = true;
        await pause(backoff.next(), signal);
      }
    }
  }

  async #renew(signal: AbortSignal): Promise<void> {
    const { client, nodeName } = this.#options;
    const now = this.#options.now?.() ?? new Date();
    const uid = this.#options.nodeUid();
    const renewTime = now.toISOString().replace("Z", "000Z");
    const ownerReferences = uid === undefined ? [] : [{ apiVersion: "v1", kind: "Node", name: nodeName, uid }];
    const spec = { holderIdentity: nodeName, leaseDurationSeconds: durationSeconds, renewTime };
    const scope = { namespace, name: nodeName };
    const isOwned = this.#known?.metadata?.ownerReferences?.some((owner) => owner.uid === uid) === true;
    try {
      // The owner is added as soon as it is known, and replaced when the Node was created anew.
      const patch = { ...(uid !== undefined && !isOwned && { metadata: { ownerReferences } }), spec };
      this.#known = await client.patch(leases, scope, "merge", patch, { signal });
    } catch (error) {
      if (!hasCode(error, "NotFound")) throw error;
      this.#known = await client.create(leases, { namespace }, { metadata: { name: nodeName, ownerReferences }, spec }, { signal });
    }
    this.#renewedAt = now;
  }
}
