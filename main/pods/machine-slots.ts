/**
 * Slots for virtual machines. macOS allows two guests at a time and a third start fails only after its disk was cloned,
 * so a Pod takes a slot first and waits in line, visibly, when there is none. A machine holds its slot until it is deleted.
 */
import { PodyardError } from "../contract/errors.ts";

export class MachineSlots {
  readonly maximum: number;
  readonly #holders = new Set<string>();
  readonly #waiting = new Map<string, () => void>();

  constructor(maximum: number) {
    this.maximum = maximum;
  }

  get used(): number {
    return this.#holders.size;
  }

  /** Records a machine that already exists, even beyond the maximum (it was lowered while machines ran). */
  hold(owner: string): void {
    this.#holders.add(owner);
  }

  /** True if the owner has a slot now. Idempotent. Those who wait in line go first. */
  tryAcquire(owner: string): boolean {
    if (this.#holders.has(owner)) return true;
    if (this.#holders.size >= this.maximum || this.#waiting.size > 0) return false;
    this.#holders.add(owner);
    return true;
  }

  /** Waits in line. Errors: Cancelled. */
  async acquire(owner: string, signal: AbortSignal): Promise<void> {
    if (this.tryAcquire(owner)) return;
    await new Promise<void>((resolve, reject) => {
      const onAbort = () => {
        this.#waiting.delete(owner);
        reject(new PodyardError("Cancelled", "Waiting for a virtual machine slot was cancelled."));
      };
      if (signal.aborted) return onAbort();
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiting.set(owner, () => {
        signal.removeEventListener("abort", onAbort);
        resolve();
      });
      this.#admit();
    });
  }

  release(owner: string): void {
    if (this.#holders.delete(owner)) this.#admit();
  }

  #admit(): void {
    for (const [owner, grant] of this.#waiting) {
      if (this.#holders.size >= this.maximum) return;
      this.#waiting.delete(owner);
      this.#holders.add(owner);
      grant();
    }
  }
}
