/**
 * Brings one Pod's status to the API: the latest one only, one request at a time, again after failures, and again when
 * somebody else changed what is ours to say.
 */
import { messageOf } from "../contract/errors.ts";
import type { Pod, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import type { PodReporter } from "../kubernetes/cluster.ts";
import { afterFailure, type BackoffState } from "./backoff.ts";
import { pause, unlessAborted } from "./pod-target.ts";

const RETRY = { initial: 500, maximum: 30_000 };
/** A Pod on its way up changes many times a second; only what others act on is written at once. */
const COALESCE = 1000;
/** Running and ready come one after the other; they make one request. */
const GATHER = 100;

export class StatusWriter {
  readonly #reporter: PodReporter;
  readonly #logger: Logger;
  readonly #stop = new AbortController();
  #wanted: { readonly pod: Pod; readonly status: PodStatus } | undefined;
  #written: PodStatus | undefined;
  #resourceVersion: string | undefined;
  #writing: Promise<void> | undefined;
  #gone = false;
  #hurry = new AbortController();

  constructor(reporter: PodReporter, logger: Logger) {
    this.#reporter = reporter;
    this.#logger = logger;
  }

  /** The API no longer has the Pod (or has another of its name). */
  get isGone(): boolean {
    return this.#gone;
  }

  /** Reports the status, if the API does not have it yet. `pod` is the API's present object. */
  report(pod: Pod, status: PodStatus): void {
    if (this.#gone || this.#stop.signal.aborted) return;
    const known = this.#written !== undefined && contains(this.#written, status);
    // An object older than our last write says nothing about what became of it.
    if (known && (isOlder(pod, this.#resourceVersion) || contains(pod.status, status))) return;
    this.#wanted = { pod, status };
    if (isUrgent(this.#written ?? pod.status, status) || pod.metadata?.deletionTimestamp !== undefined) this.#hurry.abort();
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
  }

  /** Resolves when all that was reported is written, the Pod is gone, or the signal aborts. */
  async flushed(signal: AbortSignal): Promise<void> {
    this.#hurry.abort();
    while (this.#writing !== undefined && !signal.aborted) await unlessAborted(this.#writing, signal).catch(() => {});
  }

  stop(): void {
    this.#stop.abort();
  }

  async #write(): Promise<void> {
    let backoff: BackoffState | undefined;
    while (this.#wanted !== undefined && !this.#stop.signal.aborted) {
      await pause(COALESCE, AbortSignal.any([this.#hurry.signal, this.#stop.signal]));
      await pause(GATHER, this.#stop.signal);
      this.#hurry = new AbortController();
      const { pod, status } = this.#wanted;
      this.#wanted = undefined;
      try {
        const answer = await this.#reporter.writeStatus(pod, status);
        if (answer === "gone") {
          this.#gone = true;
          return;
        }
        this.#written = status;
        this.#resourceVersion = answer.metadata?.resourceVersion;
        backoff = undefined;
      } catch (error) {
        this.#wanted ??= { pod, status };
        backoff = afterFailure(backoff, Date.now(), RETRY);
        this.#logger.debug("A Pod's status could not be written; trying again.", { milliseconds: backoff.delay, error: messageOf(error) });
        await pause(backoff.delay, this.#stop.signal);
      }
    }
  }
}

/** Phase or readiness changed: endpoints, controllers and `kubectl wait` wait for it. */
function isUrgent(before: PodStatus | undefined, status: PodStatus): boolean {
  const ready = (of: PodStatus | undefined) => of?.conditions?.find(({ type }) => type === "Ready")?.status ?? "False";
  return (before?.phase ?? "Pending") !== status.phase || ready(before) !== ready(status);
}

function isOlder(pod: Pod, resourceVersion: string | undefined): boolean {
  const version = pod.metadata?.resourceVersion;
  if (version === undefined || resourceVersion === undefined || !/^\d+$/.test(version) || !/^\d+$/.test(resourceVersion)) return false;
  return BigInt(version) < BigInt(resourceVersion);
}

/** Whether `whole` says all that `part` says; lists of named or typed things are compared by name or type. */
export function contains(whole: unknown, part: unknown): boolean {
  if (part === undefined) return true;
  if (Array.isArray(part)) {
    if (!Array.isArray(whole)) return false;
    const keyOf = (item: unknown): unknown => (isObject(item) ? (item["type"] ?? item["name"]) : undefined);
    return part.every((item: unknown, index) => {
      const key = keyOf(item);
      return contains(key === undefined ? whole[index] : whole.find((other: unknown) => keyOf(other) === key), item);
    });
  }
  if (isObject(part)) return isObject(whole) && Object.entries(part).every(([key, value]) => contains(whole[key], value)) && statesEqual(whole, part);
  return whole === part;
}

/** A container's state is one of three: another key beside ours is a difference. */
function statesEqual(whole: Readonly<Record<string, unknown>>, part: Readonly<Record<string, unknown>>): boolean {
  const kinds = ["waiting", "running", "terminated"];
  return !kinds.some((kind) => part[kind] !== undefined) || kinds.every((kind) => (whole[kind] === undefined) === (part[kind] === undefined));
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
