/**
 * What the parts of the sync loop share: the manager's options, and what a container may know of and tell to its Pod.
 */
import { PodyardError } from "../contract/errors.ts";
import type { RegistryCredentials } from "../contract/image.ts";
import type { Container, EphemeralContainer, Pod } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import type { ContainerEngine } from "../containers/container-engine.ts";
import type { ImageStore } from "../images/image-store.ts";
import type { NodeView, PodObjects, PodReporter, PodSource } from "../kubernetes/cluster.ts";
import type { Guests } from "../virtual-machines/guest.ts";
import type { PodNetwork, PodNetworks, VirtualMachine, VirtualMachineDriver } from "../virtual-machines/virtual-machine.ts";
import type { BackoffLimits } from "./backoff.ts";
import { type EnvironmentVariable, expandCommand, resolveEnvironment } from "./environment.ts";
import type { GuestLoginSettings } from "./guest-login.ts";
import type { MachineSlots } from "./machine-slots.ts";
import type { PodDns, PodHostname } from "./pod-network-files.ts";
import type { PodRecord } from "./pod-record.ts";
import type { MachineSize } from "./resources.ts";
import type { ResolvedMount, Volumes } from "./volumes/volumes.ts";

export interface PodManagerSettings {
  /** Machines that may exist at a time. */
  readonly maximumMachines: number;
  /** For a Pod that asks for nothing; absent = the platform's own default. */
  readonly defaultMachineSize?: MachineSize;
  readonly guestLogin: GuestLoginSettings;
  /** Seconds until a guest that does not answer is a failed start. Default 300. */
  readonly guestReadinessTimeoutSeconds?: number;
  /** Seconds a postStart hook of container 0 may take. Default 600. */
  readonly postStartTimeoutSeconds?: number;
  /** Seconds a guest gets to power off after its main process ended. Default 5. */
  readonly powerOffSeconds?: number;
  /** Wait before restarts and repeated pulls. Default: the kubelet's 10 s to 300 s. */
  readonly backoff?: BackoffLimits;
}

export interface PodManagerOptions {
  readonly source: PodSource;
  readonly reporter: PodReporter;
  readonly objects: PodObjects;
  readonly node: NodeView;
  readonly images: ImageStore;
  readonly pullCredentials: (pod: Pod, reference: string) => Promise<readonly RegistryCredentials[]>;
  readonly machines: VirtualMachineDriver;
  readonly networks: PodNetworks;
  readonly guests: Guests;
  readonly engine: ContainerEngine;
  readonly dataDirectory: string;
  readonly settings: PodManagerSettings;
  readonly logger: Logger;
}

/** A Pod as its containers see it. */
export interface PodContext {
  readonly uid: string;
  /** Id of machine and network: the UID without dashes. */
  readonly machineId: string;
  readonly options: PodManagerOptions;
  readonly volumes: Volumes;
  readonly slots: MachineSlots;
  readonly record: PodRecord;
  readonly logger: Logger;
  pod(): Pod;
  /** Undefined until {@link ready} resolved once. */
  network(): PodNetwork | undefined;
  podIPs(): readonly string[];
  hostname(): PodHostname;
  dns(): PodDns;
  /** Resolves when network and volumes are there. */
  ready(signal: AbortSignal): Promise<PodNetwork>;
  /** Resolves with the side-cars' sandbox, plumbed into the Pod's network. */
  sandbox(): Promise<void>;
  /** The machine found at start, once. */
  takeAdoptedMachine(): VirtualMachine | undefined;
  /** Something a status shows has changed. */
  changed(): void;
  /** Container 0's image is a container image: the Pod as a whole must wait. */
  refuseImage(): void;
  event(type: "Normal" | "Warning", reason: string, message: string, container?: string): void;
}

/** Why a container cannot be created or started now: its waiting reason and message, and the event's reason. */
export class ContainerProblem extends Error {
  readonly reason: string;
  readonly eventReason: string;

  constructor(reason: "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError", message: string, options?: { readonly cause?: unknown }) {
    super(message, options);
    this.reason = reason;
    this.eventReason = "Failed";
  }
}

export interface ContainerInputs {
  readonly variables: readonly EnvironmentVariable[];
  readonly command: readonly string[] | undefined;
  readonly args: readonly string[] | undefined;
  readonly mounts: readonly ResolvedMount[];
}

/** Environment, command and mounts of a container as they are now. Errors: ContainerProblem. */
export async function resolveInputs(context: PodContext, container: Container | EphemeralContainer): Promise<ContainerInputs> {
  const pod = context.pod();
  try {
    const resolved = await resolveEnvironment(pod, container, { objects: context.options.objects, node: context.options.node, podIPs: context.podIPs() });
    for (const { type, reason, message } of resolved.events) context.event(type, reason, message, container.name);
    if (resolved.kind === "unresolved") throw new PodyardError("InvalidArgument", resolved.message);
    const { command, args } = expandCommand(container, resolved.variables);
    const environment = new Map(resolved.variables.map(({ name, value }) => [name, value]));
    const mounts = await context.volumes.resolveMounts(pod, container, environment);
    return { variables: resolved.variables, command, args, mounts };
  } catch (error) {
    throw new ContainerProblem("CreateContainerConfigError", error instanceof Error ? error.message : String(error), { cause: error });
  }
}

/** `name_namespace(uid)`: a Pod as the kubelet's messages name it. */
export function formatPod(pod: Pod): string {
  return `${pod.metadata?.name ?? ""}_${pod.metadata?.namespace ?? ""}(${pod.metadata?.uid ?? ""})`;
}
