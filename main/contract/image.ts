/** What renderer, CLI and host say to each other about images. */

/** `sha256:<64 hex>`. */
export type Digest = `sha256:${string}`;

export type OperatingSystem = "darwin" | "linux";
export type Architecture = "arm64" | "amd64";

/** Credentials for one registry, as a docker config.json or a pull secret holds them. */
export interface RegistryCredentials {
  readonly username?: string;
  readonly password?: string;
  /** OAuth2 refresh token (`identitytoken`). */
  readonly identityToken?: string;
  /** Bearer token used as it is (`registrytoken`). */
  readonly registryToken?: string;
}

export type PullPolicy = "Always" | "IfNotPresent" | "Never";

/** Bytes are compressed bytes on the wire; `speed` is bytes per second over the last seconds. */
export interface PullProgress {
  readonly reference: string;
  readonly phase: "resolving" | "downloading" | "verifying" | "done";
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly speed: number;
}

/** How to log in to a guest, unless the Pod's Secret or the host's settings say otherwise. */
export interface GuestDefaults {
  readonly user?: string;
  readonly password?: string;
  readonly port?: number;
}
