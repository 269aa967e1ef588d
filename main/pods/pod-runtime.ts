/**
 * What the kubelet server, the gateway and the doctor may ask of Pods. Container names include init and ephemeral ones.
 * Errors everywhere: NotFound (Pod or container; the message is kubectl's), InvalidArgument, Conflict (not running yet;
 * the message is the kubelet's `container "c" in pod "p" is waiting to start: …`), Unavailable, Unsupported.
 */
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { AttachRequest, Duplex, ExecRequest, LogRequest, ProcessSession, Readable } from "../contract/streams.ts";

export interface PodKey {
  readonly namespace: string;
  readonly name: string;
  /** If given and another, the Pod is not found. */
  readonly uid?: string;
}

/** Cumulative CPU in nanoseconds, memory and disk in bytes. */
export interface ContainerUsage {
  readonly name: string;
  readonly startTime: Date;
  readonly time: Date;
  readonly cpuNanoseconds: number;
  readonly cpuNanocores: number;
  readonly memoryWorkingSetBytes: number;
  readonly memoryUsageBytes: number;
  readonly rootFileSystemUsedBytes: number | undefined;
  readonly logsUsedBytes: number | undefined;
}

export interface PodUsage {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  readonly startTime: Date;
  readonly containers: readonly ContainerUsage[];
  readonly network: { readonly receivedBytes: number; readonly transmittedBytes: number } | undefined;
  readonly volumes: readonly { readonly name: string; readonly usedBytes: number; readonly capacityBytes: number; readonly availableBytes: number }[];
}

export interface PodRuntime {
  /** Desired Pods with the latest status this host computed. */
  list(): readonly Pod[];
  /** What truly runs, as PodList items with metadata and the running containers; a Pod being stopped is absent once nothing of it runs. */
  running(): Promise<readonly Pod[]>;
  logs(pod: PodKey, container: string, request: LogRequest): Promise<Readable>;
  exec(pod: PodKey, container: string, request: ExecRequest): Promise<ProcessSession>;
  /** `terminal` of the session is the container's, not the request's. */
  attach(pod: PodKey, container: string, request: AttachRequest): Promise<ProcessSession & { readonly terminal: boolean }>;
  /** A connection to a port of the Pod: the guest's, or a side-car's declared one; reserved ports go to the host's own servers. */
  dial(pod: PodKey, port: number, signal?: AbortSignal): Promise<Duplex>;
  usage(): Promise<readonly PodUsage[]>;
  /** Container 0's serial console and screen. */
  console(pod: PodKey): Promise<Duplex>;
  screen(pod: PodKey): Promise<Duplex>;
}
