/** Waiting that can be given up: every wait of this folder ends with the error Cancelled when its signal fires. */
import { setTimeout as delay } from "node:timers/promises";
import { PodyardError } from "../contract/errors.ts";

const maximumDelayMilliseconds = 15_000;

export function cancelled(signal: AbortSignal): PodyardError {
  const { reason } = signal as { readonly reason: unknown };
  return reason instanceof PodyardError ? reason : new PodyardError("Cancelled", "The operation was cancelled.", { cause: reason });
}

/** Throws Cancelled if the signal fired. */
export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw cancelled(signal);
}

/** Settles as the promise does, or rejects with Cancelled as soon as the signal fires; the work itself is not stopped. */
export async function abortable<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const { promise, reject } = Promise.withResolvers<never>();
  const onAbort = (): void => reject(cancelled(signal));
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
    work.catch(() => undefined);
  }
}

/** Waits `base · 2^(attempt-1)` with jitter, or what the server asked for (seconds), at most 15 s. */
export async function backOff(attempt: number, baseMilliseconds: number, signal?: AbortSignal, retryAfterSeconds?: number): Promise<void> {
  const asked = retryAfterSeconds !== undefined && Number.isFinite(retryAfterSeconds) ? retryAfterSeconds * 1000 : undefined;
  const exponential = baseMilliseconds * 2 ** (attempt - 1) * (0.75 + Math.random() / 2);
  try {
    await delay(Math.min(asked ?? exponential, maximumDelayMilliseconds), undefined, { signal });
  } catch (error) {
    if (signal?.aborted === true) throw cancelled(signal);
    throw error;
  }
}

/** Runs `act` over the items, at most `limit` at a time; the first failure aborts the rest and is thrown after they ended. */
export async function forEachLimited<T>(items: readonly T[], limit: number, signal: AbortSignal | undefined, act: (item: T, signal: AbortSignal) => Promise<void>): Promise<void> {
  const failure = new AbortController();
  const combined = signal === undefined ? failure.signal : AbortSignal.any([signal, failure.signal]);
  let first: { readonly error: unknown } | undefined;
  const iterator = items.values();
  const runner = async (): Promise<void> => {
    for (const item of iterator) {
      if (combined.aborted) return;
      try {
        await act(item, combined);
      } catch (error) {
        first ??= { error };
        failure.abort(error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, runner));
  throwIfCancelled(signal);
  if (first !== undefined) throw first.error;
}
