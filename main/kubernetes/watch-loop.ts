/**
 * Keeps a set of objects fresh: list once, then watch from there; again from the last known version when the watch ends,
 * and from a new list when that version has expired. The API server may be away for any time. The same as client-go's
 * Reflector, without its memory: what to keep is the caller's choice.
 */
import { setImmediate } from "node:timers/promises";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { isExpired } from "./api-error.ts";
import { Backoff } from "./backoff.ts";
import type { KubernetesClient } from "./client.ts";
import type { ApiObject, Resource, Scope } from "./resources.ts";

export interface WatchLoopOptions<T extends ApiObject> {
  readonly client: KubernetesClient;
  readonly resource: Resource<T>;
  readonly scope: Scope;
  readonly fieldSelector?: string;
  readonly logger: Logger;
  /** The complete set, at the start and whenever changes may have been missed. */
  replaced(objects: readonly T[]): void;
  changed(type: "ADDED" | "MODIFIED" | "DELETED", object: T): void;
  /** An attempt failed; the loop goes on. */
  failed?(error: unknown): void;
}

/** Starts the loop; disposing ends it, after which no callback is called. */
export function startWatchLoop<T extends ApiObject>(options: WatchLoopOptions<T>): AsyncDisposable {
  const controller = new AbortController();
  const finished = run(options, controller.signal);
  return {
    async [Symbol.asyncDispose]() {
      controller.abort(new PodyardError("Cancelled", `watching ${options.resource.plural} was stopped`));
      await finished;
    },
  };
}

/** The object without `managedFields`, which are often most of its size and of no use here. */
export function withoutManagedFields<T extends ApiObject>(object: T): T {
  if (object.metadata?.managedFields === undefined) return object;
  const { managedFields: _, ...metadata } = object.metadata;
  return { ...object, metadata };
}

async function run<T extends ApiObject>(options: WatchLoopOptions<T>, signal: AbortSignal): Promise<void> {
  const backoff = new Backoff({ initialMilliseconds: 250, maximumMilliseconds: 30_000 });
  let version: string | undefined;
  while (!signal.aborted) {
    try {
      version ??= await list(options, signal);
      if (signal.aborted) return;
      for await (const event of watch(options, version, signal)) {
        if (signal.aborted) return;
        backoff.reset();
        version = event;
      }
      // A server that ends every watch at once must not be asked in a tight loop.
      await setImmediate();
    } catch (error) {
      if (signal.aborted) return;
      if (isExpired(error)) version = undefined;
      options.logger.debug("watch interrupted", { resource: options.resource.plural, ...options.scope, error: messageOf(error) });
      options.failed?.(error);
      await backoff.wait(signal).catch(() => undefined);
    }
  }
}

async function list<T extends ApiObject>(options: WatchLoopOptions<T>, signal: AbortSignal): Promise<string> {
  const { items, resourceVersion } = await options.client.list(options.resource, options.scope, {
    ...(options.fieldSelector !== undefined && { fieldSelector: options.fieldSelector }),
    signal,
  });
  if (!signal.aborted) options.replaced(items.map(withoutManagedFields));
  return resourceVersion;
}

/** Yields the version reached after each event. */
async function* watch<T extends ApiObject>(options: WatchLoopOptions<T>, resourceVersion: string, signal: AbortSignal): AsyncGenerator<string> {
  const started = performance.now();
  let events = 0;
  const stream = options.client.watch(options.resource, options.scope, {
    resourceVersion,
    ...(options.fieldSelector !== undefined && { fieldSelector: options.fieldSelector }),
    timeoutSeconds: 300 + Math.floor(Math.random() * 300),
    signal,
  });
  for await (const event of stream) {
    events += 1;
    if (event.type === "BOOKMARK") {
      if (event.resourceVersion !== "") yield event.resourceVersion;
      continue;
    }
    if (signal.aborted) return;
    options.changed(event.type, withoutManagedFields(event.object));
    const reached = event.object.metadata?.resourceVersion;
    if (reached !== undefined) yield reached;
  }
  if (events === 0 && performance.now() - started < 1000) throw new PodyardError("Unavailable", `watch ${options.resource.plural}: the API server ended it at once`);
}
