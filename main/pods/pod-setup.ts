/**
 * What a Pod's containers share, made once and repaired after a crash: network, volumes, the side-cars' sandbox. Every
 * step is idempotent and tried again with the kubelet's events until it works or the Pod goes.
 */
import { readFile } from "node:fs/promises";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { PodNetwork, PodNetworkRequest } from "../virtual-machines/virtual-machine.ts";
import { afterFailure, type BackoffState } from "./backoff.ts";
import { sentenceOf } from "./machine-exit.ts";
import type { PodManagerOptions } from "./pod-context.ts";
import { dnsOf, hostnameOf, type PodDns, type PodHostname } from "./pod-network-files.ts";
import { pause, unlessAborted } from "./pod-target.ts";
import type { Volumes } from "./volumes/volumes.ts";

const RETRY = { initial: 2000, maximum: 60_000 };

export interface PodSetupOptions {
  readonly options: PodManagerOptions;
  readonly volumes: Volumes;
  readonly uid: string;
  readonly machineId: string;
  readonly pod: () => Pod;
  readonly event: (type: "Normal" | "Warning", reason: string, message: string) => void;
  readonly changed: () => void;
}

export class PodSetup {
  readonly #options: PodSetupOptions;
  readonly #stop = new AbortController();
  #ready: Promise<PodNetwork> | undefined;
  #sandbox: Promise<void> | undefined;
  #network: PodNetwork | undefined;
  #dns: PodDns | undefined;
  #isReady = false;

  constructor(options: PodSetupOptions) {
    this.#options = options;
  }

  get network(): PodNetwork | undefined {
    return this.#network;
  }

  /** Network and volumes are there. */
  get isReady(): boolean {
    return this.#isReady;
  }

  hostname(): PodHostname {
    return hostnameOf(this.#options.pod(), this.#options.options.node.clusterDNS()?.domain ?? "cluster.local");
  }

  dns(): PodDns {
    return this.#dns ?? { nameservers: [], searchDomains: [], options: [], events: [] };
  }

  /** Begins. Idempotent. */
  start(): void {
    if (this.#ready !== undefined) return;
    this.#ready = this.#run(this.#stop.signal);
    this.#ready.catch(() => {});
  }

  /** Resolves when network and volumes are there. Errors: Cancelled. */
  async ready(signal: AbortSignal): Promise<PodNetwork> {
    this.start();
    if (this.#ready === undefined) throw new PodyardError("Internal", "The Pod's network was not begun.");
    return unlessAborted(this.#ready, AbortSignal.any([signal, this.#stop.signal]));
  }

  /** Resolves with the sandbox plumbed into the network. Errors: as ContainerEngine.ensureSandbox and PodNetworks.attachSidecars. */
  sandbox(): Promise<void> {
    this.#sandbox ??= this.#ensureSandbox().finally(() => {
      this.#sandbox = undefined;
    });
    return this.#sandbox;
  }

  /** No further attempt. */
  stop(): void {
    this.#stop.abort();
  }

  async #run(signal: AbortSignal): Promise<PodNetwork> {
    const { options, volumes, uid, pod, event } = this.#options;
    const network = await this.#untilItWorks(signal, "FailedCreatePodSandBox", (error) => `Failed to create pod sandbox: ${sentenceOf(error)}`, async () => {
      const dns = dnsOf(pod(), options.node.clusterDNS(), await readFile("/etc/resolv.conf", "utf8").catch(() => ""));
      if (this.#dns === undefined) for (const { reason, message } of dns.events) event("Warning", reason, message);
      this.#dns = dns;
      return options.networks.ensure(networkRequest(this.#options.machineId, pod(), this.hostname(), dns));
    });
    this.#network = network;
    this.#options.changed();
    await this.#untilItWorks(signal, "FailedMount", messageOf, async () => {
      options.objects.use(uid, volumes.objectsOf(pod()));
      await volumes.prepare(pod());
    });
    this.#isReady = true;
    this.#options.changed();
    return network;
  }

  async #untilItWorks<Value>(signal: AbortSignal, reason: string, sentence: (error: unknown) => string, act: () => Promise<Value>): Promise<Value> {
    let backoff: BackoffState | undefined;
    for (;;) {
      try {
        if (signal.aborted) throw new PodyardError("Cancelled", "The Pod is being stopped.");
        return await act();
      } catch (error) {
        if (signal.aborted) throw error;
        this.#options.event("Warning", reason, sentence(error));
        backoff = afterFailure(backoff, Date.now(), RETRY);
        await pause(backoff.delay, signal);
      }
    }
  }

  async #ensureSandbox(): Promise<void> {
    const { options, uid, machineId, pod } = this.#options;
    const { name = "", namespace = "" } = pod().metadata ?? {};
    const sysctls = Object.fromEntries((pod().spec?.securityContext?.sysctls ?? []).map((sysctl) => [sysctl.name, sysctl.value]));
    const { processId } = await options.engine.ensureSandbox({ podUid: uid, namespace, podName: name, hostname: this.hostname().shown, sysctls });
    await options.networks.attachSidecars(machineId, processId);
  }
}

/** Pure: the network a Pod asks for. Ports of side-cars (native ones too) answer on the Pod's address. */
export function networkRequest(id: string, pod: Pod, hostname: PodHostname, dns: PodDns): PodNetworkRequest {
  const spec = pod.spec ?? { containers: [] };
  const sidecars = [...spec.containers.slice(1), ...(spec.initContainers ?? [])];
  const protocolOf = (protocol: string | undefined) => (protocol === "UDP" || protocol === "SCTP" ? protocol : "TCP");
  return {
    id,
    hostname: hostname.hostname,
    nameservers: dns.nameservers,
    searchDomains: dns.searchDomains,
    hostAliases: (spec.hostAliases ?? []).map(({ ip, hostnames = [] }) => ({ ip, hostnames })),
    sidecarPorts: sidecars.flatMap(({ ports = [] }) => ports.map(({ containerPort, protocol }) => ({ port: containerPort, protocol: protocolOf(protocol) }))),
    hostPorts: [...spec.containers, ...(spec.initContainers ?? [])].flatMap(({ ports = [] }) =>
      ports.flatMap(({ hostPort, hostIP, containerPort, protocol }) =>
        hostPort === undefined || hostPort === 0 ? [] : [{ hostPort, ...(hostIP === undefined || hostIP === "" ? {} : { hostIP }), port: containerPort, protocol: protocolOf(protocol) }],
      ),
    ),
  };
}
