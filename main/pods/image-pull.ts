/**
 * Pulls one container's image with the kubelet's events, waiting reasons and back-off: ErrImagePull, then ImagePullBackOff
 * until it is tried again; ErrImageNeverPull and InvalidImageName wait likewise, since the cache or the Pod may change.
 * https://kubernetes.io/docs/concepts/containers/images/#imagepullbackoff
 */
import type { PullPolicy, RegistryCredentials } from "../contract/image.ts";
import { afterFailure, type BackoffLimits, type BackoffState, formatDuration } from "./backoff.ts";
import { sentenceOf } from "./machine-exit.ts";
import { abortError, pauseWhile } from "./pod-target.ts";

export interface ImagePull<Image> {
  /** As the Pod names it now: it may be changed while a pull waits for its next attempt. */
  reference(): string;
  /** Aborts when the Pod has changed; the signal after that is a new one. */
  changed(): AbortSignal;
  readonly policy: PullPolicy;
  readonly limits: BackoffLimits;
  readonly signal: AbortSignal;
  credentials(reference: string): Promise<readonly RegistryCredentials[]>;
  isPresent(reference: string): Promise<boolean>;
  pull(reference: string, credentials: readonly RegistryCredentials[]): Promise<{ readonly image: Image; readonly downloaded: boolean; readonly milliseconds: number }>;
  sizeOf(image: Image): number;
  readonly event: (type: "Normal" | "Warning", reason: string, message: string) => void;
  readonly onWaiting: (waiting: { readonly reason: string; readonly message: string } | undefined) => void;
}

export interface PulledImage<Image> {
  readonly image: Image;
  readonly reference: string;
}

/** How long ErrImagePull shows before it becomes ImagePullBackOff. */
const SHOW_ERROR = 3000;

const component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
const REFERENCE = new RegExp(
  `^(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\\[[0-9a-fA-F:]+\\])(?::\\d+)?/)?${component}(?:/${component})*(?::\\w[\\w.-]{0,127})?(?:@[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,})?$`,
);

export function isImageReference(reference: string): boolean {
  return reference.length <= 512 && REFERENCE.test(reference);
}

/** Resolves with the image. Rejects only when the signal aborts. */
export async function pullImage<Image>(options: ImagePull<Image>): Promise<PulledImage<Image>> {
  const { policy, signal, event, onWaiting } = options;
  let tried: string | undefined;
  let state: BackoffState | undefined;
  for (;;) {
    if (signal.aborted) throw abortError(signal);
    const reference = options.reference();
    const quoted = JSON.stringify(reference);
    if (reference !== tried) state = undefined;
    tried = reference;
    const isNamed = () => options.reference() === reference;
    let problem: { readonly reason: string; readonly message: string };
    try {
      if (!isImageReference(reference)) throw new InvalidName();
      const credentials = await options.credentials(reference);
      const present = policy === "Always" ? false : await options.isPresent(reference);
      if (policy === "Never" && !present) throw new NeverPresent();
      if (!present) event("Normal", "Pulling", `Pulling image ${quoted}`);
      const { image, downloaded, milliseconds } = await options.pull(reference, credentials);
      const duration = formatDuration(Math.round(milliseconds));
      if (downloaded || !present) event("Normal", "Pulled", `Successfully pulled image ${quoted} in ${duration} (${duration} including waiting). Image size: ${options.sizeOf(image)} bytes.`);
      else event("Normal", "Pulled", `Container image ${quoted} already present on machine`);
      onWaiting(undefined);
      return { image, reference };
    } catch (error) {
      if (signal.aborted) throw abortError(signal);
      if (error instanceof InvalidName) {
        problem = { reason: "InvalidImageName", message: `Failed to apply default image tag ${quoted}: couldn't parse image name ${quoted}: invalid reference format` };
        event("Warning", "InspectFailed", problem.message);
      } else if (error instanceof NeverPresent) {
        problem = { reason: "ErrImageNeverPull", message: `Container image ${quoted} is not present with pull policy of Never` };
        event("Warning", "ErrImageNeverPull", problem.message);
      } else {
        problem = { reason: "ErrImagePull", message: sentenceOf(error) };
        event("Warning", "Failed", `Failed to pull image ${quoted}: ${problem.message}`);
      }
      event("Warning", "Failed", `Error: ${problem.reason}`);
    }
    onWaiting(problem);
    state = afterFailure(state, Date.now(), options.limits);
    const shown = Math.min(SHOW_ERROR, state.delay);
    await pauseWhile(isNamed, shown, signal, options.changed);
    if (problem.reason === "ErrImagePull" && !signal.aborted && isNamed()) {
      event("Normal", "BackOff", `Back-off pulling image ${quoted}`);
      event("Warning", "Failed", "Error: ImagePullBackOff");
      onWaiting({ reason: "ImagePullBackOff", message: `Back-off pulling image ${quoted}: ErrImagePull: ${problem.message}` });
    }
    await pauseWhile(isNamed, state.delay - shown, signal, options.changed);
  }
}

class InvalidName extends Error {}
class NeverPresent extends Error {}
