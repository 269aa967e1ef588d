/**
 * Pulls one container's image with the kubelet's events, waiting reasons and back-off: ErrImagePull, then ImagePullBackOff
 * until it is tried again; ErrImageNeverPull and InvalidImageName wait likewise, since the cache or the Pod may change.
 * https://kubernetes.io/docs/concepts/containers/images/#imagepullbackoff
 */
import type { PullPolicy, RegistryCredentials } from "../contract/image.ts";
import { afterFailure, type BackoffLimits, type BackoffState, formatDuration } from "./backoff.ts";
import { sentenceOf } from "./machine-exit.ts";
import { abortError, pause } from "./pod-target.ts";

export interface ImagePull<Image> {
  readonly reference: string;
  readonly policy: PullPolicy;
  readonly limits: BackoffLimits;
  readonly signal: AbortSignal;
  credentials(): Promise<readonly RegistryCredentials[]>;
  isPresent(): Promise<boolean>;
  pull(credentials: readonly RegistryCredentials[]): Promise<{ readonly image: Image; readonly downloaded: boolean; readonly milliseconds: number }>;
  sizeOf(image: Image): number;
  readonly event: (type: "Normal" | "Warning", reason: string, message: string) => void;
  readonly onWaiting: (waiting: { readonly reason: string; readonly message: string } | undefined) => void;
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
export async function pullImage<Image>(options: ImagePull<Image>): Promise<Image> {
  const { reference, policy, signal, event, onWaiting } = options;
  const quoted = JSON.stringify(reference);
  let state: BackoffState | undefined;
  for (;;) {
    if (signal.aborted) throw abortError(signal);
    let problem: { readonly reason: string; readonly message: string };
    try {
      if (!isImageReference(reference)) throw new InvalidName();
      const credentials = await options.credentials();
      const present = policy === "Always" ? false : await options.isPresent();
      if (policy === "Never" && !present) throw new NeverPresent();
      if (!present) event("Normal", "Pulling", `Pulling image ${quoted}`);
      const { image, downloaded, milliseconds } = await options.pull(credentials);
      const duration = formatDuration(Math.round(milliseconds));
      if (downloaded || !present) event("Normal", "Pulled", `Successfully pulled image ${quoted} in ${duration} (${duration} including waiting). Image size: ${options.sizeOf(image)} bytes.`);
      else event("Normal", "Pulled", `Container image ${quoted} already present on machine`);
      onWaiting(undefined);
      return image;
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
    await pause(shown, signal);
    if (problem.reason === "ErrImagePull" && !signal.aborted) {
      event("Normal", "BackOff", `Back-off pulling image ${quoted}`);
      event("Warning", "Failed", "Error: ImagePullBackOff");
      onWaiting({ reason: "ImagePullBackOff", message: `Back-off pulling image ${quoted}: ErrImagePull: ${problem.message}` });
    }
    await pause(state.delay - shown, signal);
  }
}

class InvalidName extends Error {}
class NeverPresent extends Error {}
