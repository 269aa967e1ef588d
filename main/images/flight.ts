/**
 * One piece of work with several callers: each sees its progress, each can leave, and the work is cancelled when the last
 * one has left.
 */
import { abortable } from "./cancellation.ts";

export class Flight<Progress> {
  readonly #controller = new AbortController();
  readonly #listeners = new Map<symbol, ((progress: Progress) => void) | undefined>();
  readonly #result: Promise<void>;
  #latest: Progress | undefined;

  constructor(work: (signal: AbortSignal, report: (progress: Progress) => void) => Promise<void>) {
    this.#result = work(this.#controller.signal, (progress) => {
      this.#latest = progress;
      for (const listener of this.#listeners.values()) listener?.(progress);
    });
    this.#result.catch(() => undefined);
  }

  /** True once it is being cancelled; a new caller needs a new flight after this one has ended. */
  get isLeaving(): boolean {
    return this.#controller.signal.aborted;
  }

  /** Settles when the work has ended, however it did. */
  get ended(): Promise<void> {
    return this.#result.catch(() => undefined);
  }

  /** Waits for the end as one of the callers. Errors: those of the work; Cancelled. */
  async join(signal: AbortSignal | undefined, onProgress: ((progress: Progress) => void) | undefined): Promise<void> {
    const key = Symbol("caller");
    this.#listeners.set(key, onProgress);
    if (this.#latest !== undefined) onProgress?.(this.#latest);
    try {
      await abortable(this.#result, signal);
    } finally {
      this.#listeners.delete(key);
      if (this.#listeners.size === 0) this.#controller.abort(signal?.reason);
      // The last caller leaves an idle staging directory behind, not one that is still being written.
      if (this.isLeaving) await this.ended;
    }
  }

  cancel(reason: unknown): void {
    this.#controller.abort(reason);
  }
}
