/** Waiting between attempts: exponential with jitter, so that a fleet does not return to a recovered API server at once. */
import { setTimeout as delay } from "node:timers/promises";

export interface BackoffOptions {
  readonly initialMilliseconds: number;
  readonly maximumMilliseconds: number;
}

export class Backoff {
  readonly #options: BackoffOptions;
  readonly #random: () => number;
  #attempts = 0;

  constructor(options: BackoffOptions, random: () => number = Math.random) {
    this.#options = options;
    this.#random = random;
  }

  /** The next attempt is the first again. */
  reset(): void {
    this.#attempts = 0;
  }

  /** Milliseconds until the next attempt: half fixed, half random. */
  next(): number {
    const full = Math.min(this.#options.initialMilliseconds * 2 ** Math.min(this.#attempts, 30), this.#options.maximumMilliseconds);
    this.#attempts += 1;
    return Math.round(full / 2 + (full / 2) * this.#random());
  }

  /** Rejects with the signal's reason when aborted. */
  async wait(signal: AbortSignal): Promise<void> {
    await delay(this.next(), undefined, { signal, ref: false });
  }
}

/** Resolves after `milliseconds`, or false at once when aborted. Never rejects and never keeps the process alive. */
export async function pause(milliseconds: number, signal: AbortSignal): Promise<boolean> {
  if (signal.aborted) return false;
  return delay(milliseconds, true, { signal, ref: false }).catch(() => false);
}
