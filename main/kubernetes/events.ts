/**
 * Writes Events as client-go's recorder does: the same event again raises a count, ten that differ only in their message
 * become one, and one object cannot flood the cluster (25 at once, then one in five minutes). Best effort: nothing waits
 * for it, it never throws, and its memory is bounded. https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
 */
import { createHash, randomBytes } from "node:crypto";
import { hasCode, messageOf } from "../contract/errors.ts";
import type { Event, ObjectReference } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { pause } from "./backoff.ts";
import type { KubernetesClient } from "./client.ts";
import { events } from "./resources.ts";

export interface EventRecorderOptions {
  readonly client: KubernetesClient;
  readonly nodeName: string;
  readonly logger: Logger;
  readonly now?: () => Date;
}

interface Known {
  name: string;
  count: number;
  readonly firstTimestamp: string;
}

interface Similar {
  since: number;
  readonly messages: Set<string>;
}

const burst = 25;
const refillMilliseconds = 300_000;
const similarLimit = 10;
const similarWindowMilliseconds = 600_000;
const maximumKnown = 1024;
const maximumQueue = 1000;
const maximumAttempts = 12;
const retryMilliseconds = 10_000;

export class EventRecorder implements AsyncDisposable {
  readonly #options: EventRecorderOptions;
  readonly #known = new Map<string, Known>();
  readonly #similar = new Map<string, Similar>();
  readonly #buckets = new Map<string, { tokens: number; at: number }>();
  readonly #queue: Event[] = [];
  readonly #stop = new AbortController();
  #sending: Promise<void> | undefined;

  constructor(options: EventRecorderOptions) {
    this.#options = options;
  }

  /** `object` needs kind, name and uid; namespace if it has one. */
  record(object: ObjectReference, type: "Normal" | "Warning", reason: string, message: string): void {
    const now = this.#now();
    if (this.#stop.signal.aborted || !this.#mayRecord(object, now) || this.#queue.length >= maximumQueue) return;
    const time = now.toISOString().replace(/\.\d+Z$/, "Z");
    this.#queue.push({
      metadata: { namespace: object.namespace ?? "default" },
      involvedObject: object,
      type,
      reason,
      message: this.#combine(object, type, reason, message.slice(0, 1024), now),
      source: { component: "podyard", host: this.#options.nodeName },
      reportingComponent: "podyard",
      reportingInstance: this.#options.nodeName,
      firstTimestamp: time,
      lastTimestamp: time,
    });
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = undefined;
    });
  }

  /** Resolves when everything recorded so far was written or given up. */
  async flush(): Promise<void> {
    await this.#sending;
  }

  /** Gives up what is still to be written after a second. */
  async [Symbol.asyncDispose](): Promise<void> {
    const timer = setTimeout(() => this.#stop.abort(), 1000);
    await this.#sending;
    clearTimeout(timer);
    this.#stop.abort();
  }

  async #sendAll(): Promise<void> {
    for (let event = this.#queue.shift(); event !== undefined && !this.#stop.signal.aborted; event = this.#queue.shift()) {
      for (let attempt = 1; attempt <= maximumAttempts; attempt += 1) {
        try {
          await this.#send(event);
          break;
        } catch (error) {
          if (this.#stop.signal.aborted) return;
          if (!hasCode(error, "Unavailable")) {
            this.#options.logger.debug("an event was refused", { reason: event.reason, error: messageOf(error) });
            break;
          }
          await pause(retryMilliseconds * (0.5 + Math.random() / 2), this.#stop.signal);
        }
      }
    }
  }

  async #send(event: Event): Promise<void> {
    const { client } = this.#options;
    const namespace = event.metadata.namespace ?? "default";
    const { involvedObject: object } = event;
    const key = createHash("sha256").update(JSON.stringify([namespace, object.kind, object.name, object.uid, object.fieldPath, event.type, event.reason, event.message])).digest("base64");
    const signal = this.#stop.signal;
    const known = this.#known.get(key);
    if (known !== undefined) {
      try {
        await client.patch(events, { namespace, name: known.name }, "strategic-merge", { count: known.count + 1, lastTimestamp: event.lastTimestamp }, { signal });
        known.count += 1;
        return;
      } catch (error) {
        // Expired after an hour by default: begin again.
        if (!hasCode(error, "NotFound")) throw error;
      }
    }
    const name = `${(object.name ?? "").slice(0, 200)}.${randomBytes(8).toString("hex")}`;
    await client.create(events, { namespace }, { ...event, metadata: { namespace, name }, count: 1 }, { signal });
    this.#known.delete(key);
    this.#known.set(key, { name, count: 1, firstTimestamp: event.firstTimestamp ?? "" });
    dropOldest(this.#known);
  }

  #mayRecord(object: ObjectReference, now: Date): boolean {
    const key = `${object.kind} ${object.uid ?? object.name}`;
    const bucket = this.#buckets.get(key) ?? { tokens: burst, at: now.getTime() };
    const refilled = Math.min(burst, bucket.tokens + (now.getTime() - bucket.at) / refillMilliseconds);
    const isAllowed = refilled >= 1;
    this.#buckets.delete(key);
    this.#buckets.set(key, { tokens: isAllowed ? refilled - 1 : refilled, at: now.getTime() });
    dropOldest(this.#buckets);
    return isAllowed;
  }

  #combine(object: ObjectReference, type: string, reason: string, message: string, now: Date): string {
    const key = JSON.stringify([object.kind, object.namespace, object.name, object.uid, type, reason]);
    let similar = this.#similar.get(key);
    if (similar === undefined || now.getTime() - similar.since > similarWindowMilliseconds) similar = { since: now.getTime(), messages: new Set() };
    this.#similar.delete(key);
    this.#similar.set(key, similar);
    dropOldest(this.#similar);
    if (similar.messages.has(message)) return message;
    if (similar.messages.size >= similarLimit) return `(combined from similar events): ${message}`;
    similar.messages.add(message);
    return message;
  }

  #now(): Date {
    return this.#options.now?.() ?? new Date();
  }
}

function dropOldest(map: Map<string, unknown>): void {
  if (map.size <= maximumKnown) return;
  const oldest = map.keys().next();
  if (oldest.done !== true) map.delete(oldest.value);
}
