/**
 * The volumes of Pods on this host's disk, as the kubelet lays them out: `<podsDirectory>/<uid>/volumes/<kind>/<name>`.
 * This file is what the sync loop calls. Container 0 sees the directories through virtio-fs, side-cars as bind mounts.
 * https://kubernetes.io/docs/concepts/storage/volumes/
 */
import type { Container, Pod } from "../../contract/kubernetes-api.generated.ts";

export interface ResolvedMount {
  readonly volumeName: string;
  /** Real path, no symbolic links: what may be shared or bind-mounted. */
  readonly hostPath: string;
  readonly mountPath: string;
  readonly readOnly: boolean;
  readonly isFile: boolean;
  readonly propagation: "None" | "HostToContainer" | "Bidirectional";
}

export interface VolumeUsage {
  readonly name: string;
  readonly usedBytes: number;
  readonly capacityBytes: number;
  readonly availableBytes: number;
}

export interface Volumes {
  /**
   * Makes every volume of the Pod present. Idempotent, also over host restarts. Rejects with the kubelet's sentence
   * (`MountVolume.SetUp failed for volume "x" : configmap "y" not found`): report it as event FailedMount and try again.
   */
  prepare(pod: Pod): Promise<void>;
  /**
   * Where each volumeMount of the container is on the host. `environment` serves subPathExpr. Creates missing subPaths.
   * Errors: InvalidArgument (CreateContainerConfigError with this message).
   */
  resolveMounts(pod: Pod, container: Pick<Container, "name" | "volumeMounts">, environment: ReadonlyMap<string, string>): Promise<readonly ResolvedMount[]>;
  /** Brings ConfigMap, Secret, downward API and token files up to date with the Pod and its objects. Rejects as {@link prepare}. */
  refresh(pod: Pod): Promise<void>;
  /** When {@link refresh} is next needed for a token, without any object changing. */
  nextRefresh(podUid: string): Date | undefined;
  /** ConfigMaps and Secrets that the Pod's volumes, environment and pull secrets refer to, for PodObjects.use. */
  objectsOf(pod: Pod): readonly { readonly kind: "Secret" | "ConfigMap"; readonly namespace: string; readonly name: string }[];
  usage(podUid: string): Promise<readonly VolumeUsage[]>;
  /** Volumes over their size limit, with the kubelet's eviction message; first one found. */
  overLimit(pod: Pod): Promise<{ readonly volumeName: string; readonly message: string } | undefined>;
  /** Unmounts and deletes the Pod's volumes and managed files. Idempotent, follows no link, crosses no mount. */
  teardown(podUid: string): Promise<void>;
  /** Writes the Pod's /etc/hosts or /etc/resolv.conf for side-cars and gives the file's path. */
  writeManagedFile(podUid: string, name: "hosts" | "resolv.conf", content: string): Promise<string>;
}
