/**
 * The interface of this folder: virtual machine images in OCI registries and in the local cache. Other layers import
 * only this file; the composition root builds the real store.
 */
import type { Architecture, Digest, GuestDefaults, OperatingSystem, PullPolicy, PullProgress, RegistryCredentials } from "../contract/image.ts";

/** An image that is whole in the cache: verified, read-only, ready to be cloned. */
export interface CachedImage {
  /** Every reference (normalised, `registry/repository:tag` or `@sha256:…`) that names it here. */
  readonly references: readonly string[];
  /** Digest of the manifest. */
  readonly digest: Digest;
  readonly operatingSystem: OperatingSystem;
  readonly architecture: Architecture | undefined;
  /** Raw sparse disk image. */
  readonly diskPath: string;
  /** Logical size in bytes. */
  readonly diskSize: number;
  /** macOS auxiliary storage (NVRAM). */
  readonly auxiliaryPath: string | undefined;
  /** base64 of the dataRepresentation of VZMacHardwareModel and VZMacMachineIdentifier. */
  readonly hardwareModel: string | undefined;
  readonly machineIdentifier: string | undefined;
  readonly guest: GuestDefaults;
  /** Bytes allocated on disk. */
  readonly sizeOnDisk: number;
  readonly pulledAt: Date;
  readonly lastUsedAt: Date;
  readonly pinned: boolean;
  /** Owners (VM ids) whose overlays refer to the disk; such an image is never removed. */
  readonly usedBy: readonly string[];
}

export type RemoteKind = { readonly kind: "virtual-machine" | "container" | "unknown"; readonly digest: Digest };

export interface PullOptions {
  readonly policy: PullPolicy;
  /** Tried in order; none = anonymous. */
  readonly credentials: readonly RegistryCredentials[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: PullProgress) => void;
}

export interface PushSource {
  readonly diskPath: string;
  readonly auxiliaryPath?: string;
  readonly operatingSystem: OperatingSystem;
  readonly architecture?: Architecture;
  readonly hardwareModel?: string;
  readonly machineIdentifier?: string;
  readonly guest?: GuestDefaults;
}

export interface ImageStore {
  list(): Promise<readonly CachedImage[]>;
  /** The cached image of a reference or digest, without asking the registry. */
  find(reference: string): Promise<CachedImage | undefined>;
  /** Looks at the remote manifest only: is this a VM image at all? Falls back on the cache when the registry is away. */
  classify(reference: string, credentials: readonly RegistryCredentials[], signal?: AbortSignal): Promise<RemoteKind>;
  /**
   * Makes the image present as the policy says; concurrent pulls of one digest share the download (each caller's
   * credentials are checked). With the registry away, IfNotPresent and Never work from the cache.
   * Errors: InvalidArgument (reference or format), NotFound, Unauthorized, Unavailable, Corrupt, NoSpace, Cancelled.
   */
  pull(reference: string, options: PullOptions): Promise<{ readonly image: CachedImage; readonly downloaded: boolean; readonly milliseconds: number }>;
  push(reference: string, source: PushSource, options: Omit<PullOptions, "policy">): Promise<Digest>;
  /** Errors: NotFound, Conflict (in use or pinned). */
  remove(reference: string): Promise<void>;
  pin(reference: string, pinned: boolean): Promise<void>;
  /** Marks the image in use by an owner (persisted) until {@link release}. Idempotent. */
  retain(digest: Digest, owner: string): Promise<void>;
  release(owner: string): Promise<void>;
  /** Removes unpinned, unused images, least recently used first, until that many bytes were freed. Returns bytes freed. */
  collectGarbage(bytesNeeded: number): Promise<number>;
  /** Bytes used by and free for the cache. */
  usage(): Promise<{ readonly usedBytes: number; readonly availableBytes: number; readonly capacityBytes: number }>;
}
