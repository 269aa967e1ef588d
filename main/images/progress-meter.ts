/** Turns byte counts into progress a person can read: at most ten reports a second, speed over the last five seconds. */
import type { PullProgress } from "../contract/image.ts";

const reportMilliseconds = 100;
const windowMilliseconds = 5000;

export class ProgressMeter {
  readonly #reference: string;
  readonly #report: ((progress: PullProgress) => void) | undefined;
  readonly #samples: { readonly time: number; readonly bytes: number }[] = [];
  #lastReport = Number.NEGATIVE_INFINITY;
  #latest: PullProgress | undefined;

  constructor(reference: string, report: ((progress: PullProgress) => void) | undefined) {
    this.#reference = reference;
    this.#report = report;
  }

  /** Bytes are cumulative. The first and the last report of a phase are never left out. */
  update(phase: PullProgress["phase"], bytesDone: number, bytesTotal: number): void {
    const now = performance.now();
    const isSamePhase = this.#latest?.phase === phase;
    if (isSamePhase && bytesDone < bytesTotal && now - this.#lastReport < reportMilliseconds) return;
    if (!isSamePhase) this.#samples.length = 0;
    this.#samples.push({ time: now, bytes: bytesDone });
    while (this.#samples.length > 2 && now - (this.#samples[0]?.time ?? now) > windowMilliseconds) this.#samples.shift();
    const [oldest] = this.#samples;
    const elapsed = oldest === undefined ? 0 : now - oldest.time;
    const speed = oldest === undefined || elapsed <= 0 ? 0 : Math.max(0, Math.round(((bytesDone - oldest.bytes) * 1000) / elapsed));
    this.#lastReport = now;
    this.#latest = { reference: this.#reference, phase, bytesDone, bytesTotal, speed };
    this.#report?.(this.#latest);
  }

  done(): void {
    this.update("done", this.#latest?.bytesDone ?? 0, this.#latest?.bytesTotal ?? 0);
  }
}
