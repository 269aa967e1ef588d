/**
 * Tells the cluster what became of its Pods: status, final removal, events. A status is compared with the newest copy known
 * here, our own last write included, so that an unchanged status costs no request and a changed one costs one.
 */
import type { Pod, PodStatus } from "../contract/kubernetes-api.generated.ts";
import { ApiError } from "./api-error.ts";
import type { KubernetesClient } from "./client.ts";
import type { PodReporter } from "./cluster.ts";
import type { EventRecorder } from "./events.ts";
import { podStatusPatch } from "./pod-status-patch.ts";
import { pods } from "./resources.ts";
import { withoutManagedFields } from "./watch-loop.ts";

export interface ApiPodReporterOptions {
  readonly client: KubernetesClient;
  readonly recorder: EventRecorder;
}

/** A Pod that vanished without our doing leaves its entry behind; this bounds them. */
const maximumWritten = 1024;

export class ApiPodReporter implements PodReporter {
  readonly #options: ApiPodReporterOptions;
  /** What the server answered to our last write, by UID. Dropped with the Pod. */
  readonly #written = new Map<string, { readonly resourceVersion: string; readonly status: PodStatus }>();

  constructor(options: ApiPodReporterOptions) {
    this.#options = options;
  }

  async writeStatus(pod: Pod, status: PodStatus): Promise<Pod | "gone"> {
    const { namespace = "default", name = "", uid = "", resourceVersion } = pod.metadata ?? {};
    const written = this.#written.get(uid);
    const current = written !== undefined && isNewer(written.resourceVersion, resourceVersion ?? "0") ? written.status : (pod.status ?? {});
    const patch = podStatusPatch(uid, current, status);
    if (patch === undefined) return current === pod.status ? pod : { ...pod, status: current };
    try {
      const result = withoutManagedFields(await this.#options.client.patch(pods, { namespace, name, subresource: "status" }, "strategic-merge", patch));
      this.#written.delete(uid);
      this.#written.set(uid, { resourceVersion: result.metadata?.resourceVersion ?? "0", status: result.status ?? {} });
      const oldest = this.#written.keys().next();
      if (this.#written.size > maximumWritten && oldest.done !== true) this.#written.delete(oldest.value);
      return result;
    } catch (error) {
      if (!isGone(error)) throw error;
      this.#written.delete(uid);
      return "gone";
    }
  }

  async remove(pod: Pod): Promise<void> {
    const { namespace = "default", name = "", uid = "" } = pod.metadata ?? {};
    try {
      await this.#options.client.delete(pods, { namespace, name }, { gracePeriodSeconds: 0, uid });
    } catch (error) {
      if (!isGone(error)) throw error;
    }
    this.#written.delete(uid);
  }

  event(pod: Pod, type: "Normal" | "Warning", reason: string, message: string, container?: string): void {
    const { namespace = "default", name = "", uid = "", resourceVersion } = pod.metadata ?? {};
    const object = { apiVersion: "v1", kind: "Pod", namespace, name, uid, ...(resourceVersion !== undefined && { resourceVersion }), ...(container !== undefined && { fieldPath: fieldPathOf(pod, container) }) };
    this.#options.recorder.record(object, type, reason, message);
  }
}

function fieldPathOf(pod: Pod, container: string): string {
  const has = (list: readonly { readonly name: string }[] | undefined): boolean => list?.some(({ name }) => name === container) === true;
  const list = has(pod.spec?.initContainers) ? "initContainers" : has(pod.spec?.ephemeralContainers) ? "ephemeralContainers" : "containers";
  return `spec.${list}{${container}}`;
}

/**
 * Not there, or another Pod of the same name: a patch then is "invalid", since it would change the UID, and a deletion is
 * a conflict with its precondition. Other conflicts are for a later attempt.
 */
function isGone(error: unknown): boolean {
  if (!(error instanceof ApiError)) return false;
  const isOther = error.causes.some(({ field }) => field === "metadata.uid") || (error.code === "Conflict" && /\bUID\b/.test(error.message));
  return error.code === "NotFound" || isOther;
}

/** Versions of one kind are numbers of one sequence (KEP-5504); anything else counts as older. */
function isNewer(version: string, than: string): boolean {
  return /^\d+$/.test(version) && /^\d+$/.test(than) && BigInt(version) > BigInt(than);
}
