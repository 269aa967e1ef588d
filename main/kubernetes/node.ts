/**
 * This host's Node object: created with labels and taint, measured every 10 s, written when something changed or every
 * five minutes, made again when somebody deletes it (until the host leaves). Cordon belongs to the administrator: nothing
 * here changes it. What the rest of the host needs to know about the node is read from here (NodeView).
 */
import { hasCode, messageOf, PodyardError } from "../contract/errors.ts";
import type { ContainerImage, Node, Taint } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { pause } from "./backoff.ts";
import type { KubernetesClient } from "./client.ts";
import type { NodeView } from "./cluster.ts";
import type { EventRecorder } from "./events.ts";
import { currentAddresses } from "./node-addresses.ts";
import { identifyHost, measureHost } from "./node-measure.ts";
import type { HostInfo, Measurement } from "./node-measure.ts";
import { isDeepEqual, newNode, nodeLabels, nodeStatusOf, pressuresOf, problemTypesOf, refusedLabels, resourcesOf, statusPatch } from "./node-status.ts";
import type { NodeFacts, NodeProblem, Pressure, Reserve } from "./node-status.ts";
import { nodes } from "./resources.ts";
import { startWatchLoop } from "./watch-loop.ts";

export interface NodeSettings {
  readonly labels: Readonly<Record<string, string>>;
  /** Set when the Node is created, never later. */
  readonly taints: readonly Taint[];
  readonly reserve: Reserve;
  readonly maximumPods: number;
  readonly virtualMachineSlots: number;
  readonly kubeletPort: number;
  /** Instead of the addresses found. */
  readonly addresses?: readonly string[];
  readonly clusterDNS?: { readonly servers: readonly string[]; readonly domain: string };
}

export interface KubernetesNodeOptions {
  readonly client: KubernetesClient;
  readonly nodeName: string;
  readonly settings: NodeSettings;
  /** Our version, `0.1.0`. */
  readonly version: string;
  /** The directory whose file system holds Pods' disks. */
  readonly storageDirectory: string;
  /** The directory of the images, if it may be on another file system. */
  readonly imageDirectory?: string;
  readonly recorder: EventRecorder;
  readonly logger: Logger;
  /** VM images in the store, for the scheduler's preference. */
  images?(): readonly ContainerImage[];
  /** Extra conditions, asked at every measurement. */
  problems?(): readonly NodeProblem[];
  /** 10 s. */
  readonly intervalMilliseconds?: number;
  readonly now?: () => Date;
  /** For tests of pressure. */
  measure?(directory: string): Promise<Measurement>;
}

/** The release whose behaviour we follow. */
export const kubernetesVersion = "v1.35.4";
const heartbeatMilliseconds = 5 * 60_000;

export class KubernetesNode implements NodeView {
  readonly name: string;
  /** Resolves when the cluster first has this node as Ready. */
  readonly ready: Promise<void>;
  readonly #options: KubernetesNodeOptions;
  readonly #becomeReady: () => void;
  readonly #addressListeners = new Set<() => void>();
  readonly #pressureSeenAt: Partial<Record<Pressure, Date>> = {};
  #host: HostInfo | undefined;
  #facts: NodeFacts | undefined;
  #addresses: readonly string[] = [];
  /** The cluster's copy. */
  #current: Node | undefined;
  #isReconciled = false;
  #isLeaving = false;
  /** The first status is always written, which proves that the cluster has it: `ready` depends on that. */
  #writtenAt = Number.NEGATIVE_INFINITY;
  #heartbeat = heartbeatMilliseconds;
  #wake = Promise.withResolvers<void>();

  constructor(options: KubernetesNodeOptions) {
    this.name = options.nodeName;
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.ready = promise;
    this.#becomeReady = resolve;
    const refused = refusedLabels(options.settings.labels);
    if (refused.length > 0) {
      throw new PodyardError("InvalidArgument", `node label ${refused.map((key) => `"${key}"`).join(", ")}: a node may not give itself this label, or it is not a valid one`, {
        fix: `kubectl label node ${options.nodeName} KEY=VALUE, as an administrator`,
      });
    }
  }

  addresses(): readonly string[] {
    return this.#addresses;
  }

  labels(): Readonly<Record<string, string>> {
    return this.#current?.metadata?.labels ?? (this.#host === undefined ? {} : nodeLabels(this.name, this.#host, this.#options.settings.labels));
  }

  allocatable(): Readonly<Record<string, number>> {
    return this.#facts === undefined ? {} : resourcesOf(this.#facts).allocatable;
  }

  accepting(): boolean {
    return !this.#isLeaving;
  }

  clusterDNS(): { readonly servers: readonly string[]; readonly domain: string } | undefined {
    return this.#options.settings.clusterDNS;
  }

  /** The Node as the cluster has it. Undefined before it exists and after it was deleted. */
  current(): Node | undefined {
    return this.#current;
  }

  /** Called when the addresses changed. Returns the unsubscriber. */
  onAddressesChanged(listener: () => void): () => void {
    this.#addressListeners.add(listener);
    return () => this.#addressListeners.delete(listener);
  }

  /** Measures and writes now instead of within 10 s: a problem came or went. */
  refresh(): void {
    this.#wake.resolve();
  }

  /** From now on no Pod is accepted, the condition NodeLeaving is shown, and a deleted Node stays deleted. */
  setLeaving(isLeaving: boolean): void {
    this.#isLeaving = isLeaving;
    this.refresh();
  }

  /** Resolves after the first measurement; the cluster may be away. */
  async start(): Promise<AsyncDisposable> {
    const controller = new AbortController();
    this.#host = await identifyHost();
    this.#facts = await this.#measure(this.#host);
    this.#event("Normal", "Starting", `Starting Podyard ${this.#options.version}.`);
    const watch = startWatchLoop({
      client: this.#options.client,
      resource: nodes,
      scope: {},
      fieldSelector: `metadata.name=${this.name}`,
      logger: this.#options.logger,
      replaced: (found) => this.#observe(found[0]),
      changed: (type, node) => this.#observe(type === "DELETED" ? undefined : node),
    });
    const finished = this.#run(controller.signal);
    return {
      async [Symbol.asyncDispose]() {
        controller.abort();
        await Promise.all([finished, watch[Symbol.asyncDispose]()]);
      },
    };
  }

  async #run(signal: AbortSignal): Promise<void> {
    let lastError: string | undefined;
    let attempts = 0;
    while (!signal.aborted) {
      this.#wake = Promise.withResolvers();
      try {
        await this.#sync(signal);
        lastError = undefined;
        attempts = 0;
      } catch (error) {
        if (signal.aborted) return;
        attempts += 1;
        const message = messageOf(error);
        if (message !== lastError) this.#options.logger.warn("the node status cannot be written", { error: message });
        lastError = message;
      }
      const interval = this.#options.intervalMilliseconds ?? 10_000;
      // The first failures are often of seconds only: an API server that restarts.
      const wait = attempts === 0 ? interval : Math.min(interval, 200 * 2 ** attempts);
      const timer = new AbortController();
      await Promise.race([pause(wait, AbortSignal.any([signal, timer.signal])), this.#wake.promise]);
      timer.abort();
    }
  }

  async #sync(signal: AbortSignal): Promise<void> {
    const { client } = this.#options;
    const host = this.#host ?? (await identifyHost());
    const facts = await this.#measure(host);
    this.#facts = facts;
    const problemTypes = problemTypesOf(facts);
    const current = this.#current ?? (await this.#getOrCreate(facts, host, problemTypes, signal));
    if (current === undefined) return;
    this.#current = current;
    if (!this.#isReconciled) await this.#reconcile(current, host, signal);
    const wanted = nodeStatusOf(facts, this.#current?.status);
    const { patch, isChange } = statusPatch(this.#current ?? current, wanted, problemTypes);
    if (!isChange && performance.now() - this.#writtenAt < this.#heartbeat) return;
    try {
      const former = this.#current;
      const written = await client.patch(nodes, { name: this.name, subresource: "status" }, "strategic-merge", patch, { signal });
      this.#writtenAt = performance.now();
      // Spread over a fleet that started at the same time.
      this.#heartbeat = heartbeatMilliseconds * (0.5 + Math.random());
      this.#current = written;
      this.#announce(former, written);
    } catch (error) {
      if (hasCode(error, "NotFound")) {
        this.#current = undefined;
        this.refresh();
      }
      throw error;
    }
  }

  async #getOrCreate(facts: NodeFacts, host: HostInfo, problemTypes: readonly string[], signal: AbortSignal): Promise<Node | undefined> {
    const { client, settings, logger } = this.#options;
    try {
      return await client.get(nodes, { name: this.name }, { signal });
    } catch (error) {
      if (!hasCode(error, "NotFound")) throw error;
    }
    if (this.#isLeaving) return undefined;
    const labels = nodeLabels(this.name, host, settings.labels);
    const created = await client.create(nodes, {}, newNode(this.name, labels, settings.taints, nodeStatusOf(facts, undefined), problemTypes), { signal });
    this.#isReconciled = true;
    this.#writtenAt = performance.now();
    logger.info("node registered", { node: this.name });
    this.#announce(undefined, created);
    return created;
  }

  /** A Node from an earlier run: labels are brought up to date, taints cannot be. */
  async #reconcile(current: Node, host: HostInfo, signal: AbortSignal): Promise<void> {
    const { client, settings, logger } = this.#options;
    const wanted = nodeLabels(this.name, host, settings.labels);
    const labels = Object.fromEntries(Object.entries(wanted).filter(([key, value]) => current.metadata?.labels?.[key] !== value));
    if (Object.keys(labels).length > 0) this.#current = await client.patch(nodes, { name: this.name }, "merge", { metadata: { labels } }, { signal });
    for (const { key, value, effect } of settings.taints) {
      if (current.spec?.taints?.some((taint) => taint.key === key && taint.effect === effect && (taint.value ?? "") === (value ?? ""))) continue;
      logger.warn("the Node exists without a wanted taint, and a node may not change its own", { fix: `kubectl taint node ${this.name} ${key}=${value ?? ""}:${effect}` });
    }
    const formerBoot = current.status?.nodeInfo?.bootID;
    if (formerBoot !== undefined && formerBoot !== "" && host.bootID !== "" && formerBoot !== host.bootID) this.#event("Warning", "Rebooted", `Node ${this.name} has been rebooted, boot id: ${host.bootID}`);
    this.#isReconciled = true;
  }

  #observe(node: Node | undefined): void {
    const former = this.#current;
    this.#current = node;
    if (node === undefined) {
      if (former !== undefined) this.#options.logger.warn(this.#isLeaving ? "the Node was deleted" : "the Node was deleted: it is made again", { node: this.name });
      this.#isReconciled = false;
      this.refresh();
      return;
    }
    if (former !== undefined && (former.spec?.unschedulable ?? false) !== (node.spec?.unschedulable ?? false)) {
      const isCordoned = node.spec?.unschedulable === true;
      this.#event("Normal", isCordoned ? "NodeNotSchedulable" : "NodeSchedulable", `Node ${this.name} status is now: ${isCordoned ? "NodeNotSchedulable" : "NodeSchedulable"}`);
    }
    // The controller manager sets conditions to Unknown after a silence.
    if (node.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "Unknown")) this.refresh();
  }

  #announce(former: Node | undefined, written: Node): void {
    const statusOf = (node: Node | undefined, type: string): string | undefined => node?.status?.conditions?.find((condition) => condition.type === type)?.status;
    const report = (type: string, reasons: Readonly<Record<string, string>>): void => {
      const status = statusOf(written, type) ?? "";
      const reason = reasons[status];
      if (reason !== undefined && status !== statusOf(former, type)) this.#event("Normal", reason, `Node ${this.name} status is now: ${reason}`);
    };
    report("MemoryPressure", { True: "NodeHasInsufficientMemory", False: "NodeHasSufficientMemory" });
    report("DiskPressure", { True: "NodeHasDiskPressure", False: "NodeHasNoDiskPressure" });
    report("PIDPressure", { True: "NodeHasInsufficientPID", False: "NodeHasSufficientPID" });
    report("Ready", { True: "NodeReady", False: "NodeNotReady" });
    if (statusOf(written, "Ready") === "True") this.#becomeReady();
  }

  async #measure(host: HostInfo): Promise<NodeFacts> {
    const { client, settings, version, storageDirectory, imageDirectory } = this.#options;
    const measuring = this.#options.measure?.(storageDirectory) ?? measureHost(storageDirectory, imageDirectory);
    const [measurement, found] = await Promise.all([measuring, settings.addresses ?? currentAddresses(client.connection.server)]);
    // Between two networks a laptop has no address for a while; the last one is better than none.
    const addresses = found.length > 0 ? found : this.#addresses;
    const time = this.#options.now?.() ?? new Date();
    for (const pressure of pressuresOf(measurement)) this.#pressureSeenAt[pressure] = time;
    if (!isDeepEqual(addresses, this.#addresses)) {
      this.#addresses = addresses;
      for (const listener of this.#addressListeners) listener();
    }
    return {
      measurement,
      host,
      addresses,
      kubeletPort: settings.kubeletPort,
      kubeletVersion: `${kubernetesVersion}-podyard.${version}`,
      containerRuntimeVersion: `podyard://${version}`,
      reserve: settings.reserve,
      maximumPods: settings.maximumPods,
      virtualMachineSlots: settings.virtualMachineSlots,
      images: this.#options.images?.() ?? [],
      problems: this.#options.problems?.() ?? [],
      pressureSeenAt: this.#pressureSeenAt,
      isLeaving: this.#isLeaving,
      now: time,
    };
  }

  #event(type: "Normal" | "Warning", reason: string, message: string): void {
    // As the kubelet does: the UID is the name, which `kubectl describe node` looks for.
    this.#options.recorder.record({ kind: "Node", name: this.name, uid: this.name }, type, reason, message);
  }
}
