/**
 * Whether a Pod may begin: asks admission and the image's registry, remembers the answer, and says a refusal once. A
 * refused Pod waits and uses nothing; it is judged again whenever it changes.
 */
import { messageOf } from "../contract/errors.ts";
import type { OperatingSystem } from "../contract/image.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { admitPod } from "./admission.ts";
import type { PodManagerOptions } from "./pod-context.ts";
import type { PodRecord } from "./pod-record.ts";
import { unlessAborted } from "./pod-target.ts";

/** How long a registry may take to say what an image is before the Pod goes on and the pull reports its problem. */
const CLASSIFY_TIMEOUT = 15_000;

export interface PodAdmittanceOptions {
  readonly options: PodManagerOptions;
  readonly operatingSystem: OperatingSystem;
  readonly record: PodRecord;
  readonly logger: Logger;
  readonly signal: AbortSignal;
  pod(): Pod;
  otherPods(): readonly Pod[];
  readonly event: (type: "Normal" | "Warning", reason: string, message: string) => void;
  readonly changed: () => void;
}

/** `withdrawn`: it was admitted, and what it took must be given back. */
export type Admittance = "admitted" | "rejected" | "waiting" | "withdrawn";

export class PodAdmittance {
  readonly #options: PodAdmittanceOptions;
  #refusal: { readonly message: string; readonly image?: string } | undefined;
  #announced: string | undefined;
  #classifying: Promise<void> | undefined;
  #isClassified = false;

  constructor(options: PodAdmittanceOptions) {
    this.#options = options;
  }

  /** Why the Pod waits, for the status. */
  get refusal(): string | undefined {
    return this.#refusal?.message;
  }

  /** Container 0's image turned out to be a container's. */
  refuseImage(): void {
    const image = this.#image();
    this.#isClassified = false;
    this.#refusal = { image, message: `NotAVirtualMachineImage: spec.containers[0].image: ${image} is a container image, and the first container of a Pod on this node is a virtual machine.` };
    this.#options.changed();
  }

  async admit(): Promise<Admittance> {
    const { options, operatingSystem, record, event, changed } = this.#options;
    const { data } = record;
    if (this.#refusal?.image !== undefined && this.#refusal.image === this.#image()) {
      this.#announce("NotAVirtualMachineImage");
      return data.admitted ? "withdrawn" : "waiting";
    }
    if (data.admitted) return "admitted";
    if (this.#classifying !== undefined) return "waiting";
    const verdict = admitPod(this.#options.pod(), { node: options.node, operatingSystem, otherPods: this.#options.otherPods() });
    if (verdict.verdict === "refuse") {
      this.#refusal = { message: verdict.message };
      this.#announce("UnsupportedPodField");
      return "waiting";
    }
    if (verdict.verdict === "reject") {
      event("Warning", verdict.reason, verdict.message);
      data.failure = { reason: verdict.reason, message: `Pod was rejected: ${verdict.message}` };
      await record.save();
      return "rejected";
    }
    this.#refusal = undefined;
    // Nothing is made, not even a side-car, before it is known whether this Pod can have a machine at all.
    if (!this.#isClassified) {
      this.#classifying ??= this.#classify().finally(() => {
        this.#classifying = undefined;
        changed();
      });
      return "waiting";
    }
    data.admitted = true;
    await record.save();
    return "admitted";
  }

  async #classify(): Promise<void> {
    const { options, logger } = this.#options;
    const reference = this.#image();
    try {
      const signal = AbortSignal.any([this.#options.signal, AbortSignal.timeout(CLASSIFY_TIMEOUT)]);
      const credentials = await unlessAborted(options.pullCredentials(this.#options.pod(), reference), signal);
      const { kind } = await unlessAborted(options.images.classify(reference, credentials, signal), signal);
      if (kind === "container") return this.refuseImage();
    } catch (error) {
      logger.debug("The image's kind is not known yet; its pull will tell.", { image: reference, error: messageOf(error) });
    }
    this.#isClassified = true;
  }

  #image(): string {
    return this.#options.pod().spec?.containers[0]?.image ?? "";
  }

  #announce(reason: string): void {
    const message = this.#refusal?.message;
    if (message === undefined || message === this.#announced) return;
    this.#announced = message;
    this.#options.event("Warning", reason, message);
  }
}
