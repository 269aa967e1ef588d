/**
 * The interface of this folder: side-car containers on a Docker engine. Other layers import only this file.
 * Everything we create carries our labels (`dev.podyard.host`, `dev.podyard.pod-uid`, `dev.podyard.container`,
 * `dev.podyard.restart-count`); nothing without them is ever touched.
 */
import type { PullPolicy, RegistryCredentials } from "../contract/image.ts";
import type { AttachRequest, ExecRequest, LogRequest, ProcessSession, Readable } from "../contract/streams.ts";

export interface SandboxSpecification {
  readonly podUid: string;
  readonly namespace: string;
  readonly podName: string;
  readonly hostname: string;
  readonly sysctls: Readonly<Record<string, string>>;
}

export interface ContainerMount {
  readonly hostPath: string;
  readonly containerPath: string;
  readonly readOnly: boolean;
  readonly propagation?: "None" | "HostToContainer" | "Bidirectional";
}

export interface ContainerSpecification {
  readonly podUid: string;
  readonly namespace: string;
  readonly podName: string;
  /** The container's name in the Pod. */
  readonly name: string;
  readonly restartCount: number;
  /** Image id (`sha256:…`) or reference present in the engine. */
  readonly image: string;
  /** Overrides the image's entrypoint; `args` its cmd. Absent = the image's. */
  readonly command?: readonly string[];
  readonly args?: readonly string[];
  readonly environment: readonly { readonly name: string; readonly value: string }[];
  readonly workingDirectory?: string;
  readonly stdin: boolean;
  readonly stdinOnce: boolean;
  readonly terminal: boolean;
  readonly mounts: readonly ContainerMount[];
  /** CPU in nano-CPUs (1e9 = one core) and bytes. Absent = unlimited. */
  readonly cpuLimit?: number;
  readonly cpuShares?: number;
  readonly memoryLimit?: number;
  readonly user?: string;
  readonly groups?: readonly string[];
  readonly privileged?: boolean;
  readonly readOnlyRootFileSystem?: boolean;
  readonly capabilitiesAdd?: readonly string[];
  readonly capabilitiesDrop?: readonly string[];
  readonly noNewPrivileges?: boolean;
  readonly seccompProfile?: "Unconfined" | "RuntimeDefault";
  readonly shareProcessNamespace?: boolean;
  readonly hostProcessNamespace?: boolean;
  readonly stopSignal?: string;
  /** Free labels kept with the container (hash of the spec, termination message path, …). */
  readonly labels: Readonly<Record<string, string>>;
}

export type ContainerState = "created" | "running" | "paused" | "restarting" | "exited" | "dead";

export interface ContainerInfo {
  /** Docker id. */
  readonly id: string;
  readonly podUid: string;
  readonly namespace: string;
  readonly podName: string;
  readonly name: string;
  readonly restartCount: number;
  readonly state: ContainerState;
  readonly image: string;
  readonly imageId: string;
  readonly createdAt: Date;
  readonly startedAt: Date | undefined;
  readonly finishedAt: Date | undefined;
  readonly exitCode: number | undefined;
  readonly outOfMemoryKilled: boolean;
  readonly error: string | undefined;
  readonly processId: number | undefined;
  readonly labels: Readonly<Record<string, string>>;
}

export interface EngineImage {
  readonly id: string;
  readonly repositoryDigests: readonly string[];
  readonly references: readonly string[];
  readonly sizeBytes: number;
  readonly user: string;
}

/** Cumulative counters; nanoseconds and bytes. */
export interface ContainerStatistics {
  readonly time: Date;
  readonly cpuNanoseconds: number;
  readonly memoryWorkingSetBytes: number;
  readonly memoryUsageBytes: number;
}

export interface ContainerEngine {
  /** Undefined = reachable; otherwise the sentence and its fix. Never throws. */
  problem(): Promise<{ readonly message: string; readonly fix: string } | undefined>;
  version(): Promise<string>;
  /** Errors as ImageStore.pull. Concurrent pulls are shared. */
  pull(reference: string, options: { readonly policy: PullPolicy; readonly credentials: readonly RegistryCredentials[]; readonly signal?: AbortSignal }): Promise<{ readonly image: EngineImage; readonly downloaded: boolean; readonly milliseconds: number }>;
  findImage(reference: string): Promise<EngineImage | undefined>;
  listImages(): Promise<readonly EngineImage[]>;
  /** The container that holds the side-cars' namespaces; no network of Docker's. Idempotent; started again if it died. */
  ensureSandbox(specification: SandboxSpecification): Promise<{ readonly id: string; readonly processId: number }>;
  create(specification: ContainerSpecification): Promise<ContainerInfo>;
  start(id: string): Promise<void>;
  /** SIGTERM (or the image's stop signal), then SIGKILL after the grace period (seconds). Idempotent. */
  stop(id: string, graceSeconds: number): Promise<void>;
  remove(id: string): Promise<void>;
  inspect(id: string): Promise<ContainerInfo | undefined>;
  /** All containers of ours, sandboxes excluded; of one Pod if given. */
  list(podUid?: string): Promise<readonly ContainerInfo[]>;
  /** Sandbox and containers of a Pod. Idempotent. */
  removePod(podUid: string): Promise<void>;
  /** Removes Pods of ours whose UID is not in `keep`. */
  sweep(keep: ReadonlySet<string>): Promise<void>;
  /** Lines as the container wrote them (with RFC 3339 times if asked), streams merged in order. */
  logs(id: string, request: LogRequest): Promise<Readable>;
  exec(id: string, request: ExecRequest): Promise<ProcessSession>;
  attach(id: string, request: AttachRequest): Promise<ProcessSession>;
  statistics(id: string): Promise<ContainerStatistics | undefined>;
  /** Reads a file of the container (at most `limit` bytes, from the end), e.g. the termination message. */
  readFile(id: string, path: string, limit: number): Promise<Buffer | undefined>;
  /** Calls back when a container of ours changed state (started, died, …) or the engine came back. */
  watch(onChange: (podUid: string) => void): AsyncDisposable;
}
