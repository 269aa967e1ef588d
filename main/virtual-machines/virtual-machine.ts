/**
 * The interface of this folder: virtual machines, their networks and their guests, whatever the driver. One contract
 * suite (virtual-machine.contract.ts) holds every driver to it. Other layers import only this file and guest.ts.
 *
 * A machine is a detached process (group) with a control socket and an on-disk record written before it starts; the host
 * may die at any moment and {@link VirtualMachineDriver.adopt} finds everything again.
 */
import type { Duplex } from "node:stream";
import type { Architecture, OperatingSystem } from "../contract/image.ts";

/** A directory or file of the host that the guest shall see. Position in the list = name in the share (`0`, `1`, …). */
export interface SharedPath {
  readonly hostPath: string;
  readonly readOnly: boolean;
}

export interface VirtualMachineSpecification {
  /** Stable for a Pod; a restart of container 0 reuses it. Lower-case hex, at least 8 characters, the first 8 unique. */
  readonly id: string;
  /** Shown in process lists, logs and the UI: `namespace/pod`. */
  readonly name: string;
  /** Written into the record as is and given back on adoption (Pod UID, restart count, …). */
  readonly labels: Readonly<Record<string, string>>;
  readonly cpuCount: number;
  readonly memoryBytes: number;
  readonly image: {
    readonly digest: string;
    readonly diskPath: string;
    readonly diskSize: number;
    readonly auxiliaryPath?: string;
    readonly hardwareModel?: string;
    readonly machineIdentifier?: string;
    readonly operatingSystem: OperatingSystem;
    readonly architecture?: Architecture;
  };
  /** The record of the Pod's network as {@link PodNetworks.ensure} gave it. */
  readonly network: PodNetwork;
  readonly sharedPaths: readonly SharedPath[];
}

export type VirtualMachineState = "created" | "starting" | "running" | "paused" | "stopped";

/** Why a machine is stopped. `exitCode` is container 0's when it has no main process (design: power-off 0, panic 1, killed 137). */
export interface VirtualMachineExit {
  readonly cause: "guest-power-off" | "guest-reset" | "guest-panic" | "killed" | "volume-server-lost" | "failed-to-start";
  readonly exitCode: number;
  readonly message: string;
  readonly finishedAt: Date;
}

/** Cumulative counters; nanoseconds and bytes. */
export interface VirtualMachineStatistics {
  readonly time: Date;
  readonly cpuNanoseconds: number;
  readonly memoryWorkingSetBytes: number;
  readonly receivedBytes: number;
  readonly transmittedBytes: number;
  readonly diskUsedBytes: number;
}

export interface VirtualMachine {
  readonly specification: VirtualMachineSpecification;
  readonly state: VirtualMachineState;
  readonly createdAt: Date;
  readonly startedAt: Date | undefined;
  /** Present once `state` is stopped. Kept in the record until delete(). */
  readonly exit: VirtualMachineExit | undefined;
  /** Settles when the machine is stopped (at once if it is). Never rejects. */
  readonly stopped: Promise<VirtualMachineExit>;
  /** Errors: MissingPrerequisite, Conflict, Internal. Idempotent while starting or running. */
  start(signal?: AbortSignal): Promise<void>;
  /** Asks the guest to power off (ACPI button or the platform's like) and returns; the caller waits on `stopped`. */
  requestStop(): Promise<void>;
  /** Ends the process group now. Idempotent; resolves when nothing of it runs. */
  kill(): Promise<void>;
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Kills if needed, then removes record, overlay, sockets. The network is the Pod's and stays. Idempotent. */
  delete(): Promise<void>;
  /** A new connection to the serial console; any number at once, output goes to all. */
  openConsole(): Promise<Duplex>;
  /** A new RFB connection to the screen. */
  openScreen(): Promise<Duplex>;
  /** Everything the console printed since this machine was created. */
  readonly consoleLogPath: string;
  statistics(): Promise<VirtualMachineStatistics>;
  /** A TCP connection to a port of the guest. */
  dial(port: number, signal?: AbortSignal): Promise<Duplex>;
}

/** What this host can do; `problems` are MissingPrerequisite sentences, each with its fix, empty = can run machines. */
export interface DriverFacts {
  readonly name: "qemu" | "virtualization";
  readonly version: string;
  readonly operatingSystem: OperatingSystem;
  readonly architecture: Architecture;
  /** `kvm`, `tcg`, `virtualization`. With a sentence for the user where it is the slow one. */
  readonly accelerator: string;
  readonly acceleratorNote: string | undefined;
  readonly problems: readonly { readonly message: string; readonly fix: string }[];
}

export interface VirtualMachineDriver {
  facts(): Promise<DriverFacts>;
  /** Clones the disk and writes the record; nothing runs yet. Errors: AlreadyExists, InvalidArgument, NoSpace. */
  create(specification: VirtualMachineSpecification): Promise<VirtualMachine>;
  /** All machines that have a record, running or not, reconnected. A record that cannot be read is set aside, its process left alone. */
  adopt(): Promise<readonly VirtualMachine[]>;
  /** Removes what a crash left behind and no record or keeper explains (sockets, overlays). `keep` = ids of living Pods. */
  sweep(keep: ReadonlySet<string>): Promise<void>;
}

/** A Pod's network: written to disk by {@link PodNetworks.ensure}, the same after a restart of the machine or the host. */
export interface PodNetwork {
  readonly id: string;
  /** The Pod's address: the guest's own. Empty string where the driver learns it from the guest (macOS). */
  readonly podIP: string;
  /** Where the side-cars answer (their own namespace); side-cars' declared ports also answer on podIP. */
  readonly sidecarIP: string;
  /** The host's side: default gateway and DNS server of guest and side-cars. */
  readonly gatewayIP: string;
  readonly macAddress: string;
  /** Name of the tap (Linux) or the vmnet interface. */
  readonly interfaceName: string;
}

export interface PodNetworkRequest {
  /** Same id as the machine's. */
  readonly id: string;
  readonly hostname: string;
  /** DNS servers to forward to; empty = the host's resolver. */
  readonly nameservers: readonly string[];
  readonly searchDomains: readonly string[];
  readonly hostAliases: readonly { readonly ip: string; readonly hostnames: readonly string[] }[];
  /** Declared ports of side-cars that shall answer on podIP. */
  readonly sidecarPorts: readonly { readonly port: number; readonly protocol: "TCP" | "UDP" | "SCTP" }[];
  /** hostPort declarations: host address:port to podIP:port. */
  readonly hostPorts: readonly { readonly hostPort: number; readonly hostIP?: string; readonly port: number; readonly protocol: "TCP" | "UDP" | "SCTP" }[];
}

export interface PodNetworks {
  /** Creates or repairs; idempotent. `vm.pod.internal` and `sidecars.pod.internal` resolve inside. Errors: MissingPrerequisite, Conflict (host port taken). */
  ensure(request: PodNetworkRequest): Promise<PodNetwork>;
  find(id: string): Promise<PodNetwork | undefined>;
  /** Plumbs the network namespace of a process (the side-cars' sandbox) into the Pod's network; idempotent. */
  attachSidecars(id: string, processId: number): Promise<void>;
  /** Removes interface, addresses, rules, DNS/DHCP server. Idempotent. */
  remove(id: string): Promise<void>;
  /** Removes every network not in `keep`. */
  sweep(keep: ReadonlySet<string>): Promise<void>;
}
