/**
 * The snapshot from which a Pod's status is computed: what the sync loop observed, no more. status.ts is a pure function
 * from it; the sync loop builds it from machines, containers and probes.
 */
import type { ContainerState, Pod, ResourceRequirements } from "../contract/kubernetes-api.generated.ts";

export interface ContainerSnapshot {
  readonly name: string;
  readonly kind: "init" | "main" | "ephemeral";
  /** Absent = nothing was created yet (reported as waiting: ContainerCreating or PodInitializing). */
  readonly state: ContainerState | undefined;
  /** The state before the last restart. */
  readonly lastState: ContainerState | undefined;
  readonly restartCount: number;
  /** Result of the startup probe; true without one once running. */
  readonly started: boolean;
  /** Result of the readiness probe; true without one once started. */
  readonly ready: boolean;
  /** The image as resolved (reference), and `repository@sha256:…` once known. */
  readonly image: string;
  readonly imageId: string;
  /** `vz://ID` for a machine under Virtualization, `qemu://ID`, `docker://ID`. Empty before creation. */
  readonly containerId: string;
  /** What was really given; absent before creation. */
  readonly resources?: ResourceRequirements;
}

export interface PodSnapshot {
  readonly pod: Pod;
  readonly containers: readonly ContainerSnapshot[];
  readonly hostIPs: readonly string[];
  /** Empty until known. */
  readonly podIPs: readonly string[];
  /** When this host first accepted the Pod. */
  readonly startTime: Date | undefined;
  /** Network and volumes are up. */
  readonly sandboxReady: boolean;
  /** The Pod as a whole failed (deadline, eviction, rejection): phase Failed with this reason. */
  readonly failure?: { readonly reason: string; readonly message: string };
  /** A field cannot be honoured: every container waits with CreateContainerConfigError and this message; phase Pending. */
  readonly refusal?: string;
  /** Set when the host evicts or shuts down: condition DisruptionTarget. */
  readonly disruption?: { readonly reason: string; readonly message: string };
  /** Whether any container may still be running; a terminal phase waits for false. */
  readonly mayRun: boolean;
  readonly now: Date;
}
