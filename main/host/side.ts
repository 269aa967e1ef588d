/** Where Pods come from and go to: a cluster or this host alone. The rest of the host does not know which. */
import type { NodeStatusReport, Problem } from "../contract/host-api.ts";
import type { NodeView, PodObjects, PodReporter, PodSource } from "../kubernetes/cluster.ts";
import type { PodRuntime } from "../pods/pod-runtime.ts";
import type { Standalone } from "../pods/standalone.ts";

export interface NodeImage {
  readonly names: readonly string[];
  readonly sizeBytes: number;
}

/** `isBlocking`: no Pod can run. */
export type HostProblem = Problem & { readonly isBlocking: boolean };

export interface Side {
  readonly mode: "cluster" | "standalone";
  readonly nodeName: string;
  readonly source: PodSource;
  readonly reporter: PodReporter;
  readonly objects: PodObjects;
  readonly node: NodeView;
  /** Settles when this host is a Ready node (standalone: at once). */
  readonly ready: Promise<void>;
  /** `isSyncLoopAlive` throws while the loop is stuck. */
  start(runtime: PodRuntime, isSyncLoopAlive: () => void): Promise<AsyncDisposable>;
  status(): Promise<Omit<NodeStatusReport, "mode">>;
  kubeletPort(): number | undefined;
  /** Errors: Unsupported (standalone). */
  leave(signal: AbortSignal): Promise<{ readonly message: string; readonly command: string }>;
  /** `problems()` gave something new. */
  problemsChanged(): void;
  readonly standalone: Standalone | undefined;
}
