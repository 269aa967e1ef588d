/** A point in time that may be brought forward but never put off: how long a stop may still take. */
export class Deadline {
  readonly #controller = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  /** Milliseconds since the epoch. */
  #at = Number.POSITIVE_INFINITY;

  constructor(at: number) {
    this.shorten(at);
  }

  static afterSeconds(seconds: number): Deadline {
    return new Deadline(Date.now() + seconds * 1000);
  }

  /** Aborts when the deadline passes. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get remainingMilliseconds(): number {
    return Math.max(0, this.#at - Date.now());
  }

  get remainingSeconds(): number {
    return Math.ceil(this.remainingMilliseconds / 1000);
  }

  get passed(): boolean {
    return this.#controller.signal.aborted;
  }

  shorten(at: number): void {
    if (at >= this.#at) return;
    this.#at = at;
    clearTimeout(this.#timer);
    const wait = at - Date.now();
    if (wait <= 0) this.#controller.abort();
    // Beyond what a timer can hold it looks again later.
    else this.#timer = setTimeout(() => (Date.now() >= this.#at ? this.#controller.abort() : this.#rearm()), Math.min(wait, 2 ** 31 - 1)).unref();
  }

  #rearm(): void {
    const at = this.#at;
    this.#at = Number.POSITIVE_INFINITY;
    this.shorten(at);
  }

  /** Forgets the timer. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}
