/**
 * Where container 0's output goes: with a main process its own, copied from the guest; without, the machine's console.
 * Either way into one file per attempt in the CRI format.
 */
import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { Guest } from "../virtual-machines/guest.ts";
import type { VirtualMachine } from "../virtual-machines/virtual-machine.ts";
import { mirrorConsole } from "./console-mirror.ts";
import { unlessAborted } from "./pod-target.ts";

/** To copy the last output after the main process ended. */
const LAST_OUTPUT_TIMEOUT = 30_000;
const STOP_TIMEOUT = 5000;

export class MachineOutput {
  readonly #directory: string;
  readonly #logger: Logger;
  readonly #stops: AbortController[] = [];
  #copying: Promise<void> | undefined;
  #complete = new AbortController();

  /** `podDirectory` is the Pod's, `container` the name of container 0. */
  constructor(podDirectory: string, container: string, logger: Logger) {
    this.#directory = join(podDirectory, "logs", container);
    this.#logger = logger;
  }

  /** Aborts when the log of the present attempt is complete. */
  get complete(): AbortSignal {
    return this.#complete.signal;
  }

  path(attempt: number): string {
    return join(this.#directory, `${attempt}.log`);
  }

  /** Goes on where the log of the attempt stops. Idempotent. */
  async mirror(machine: VirtualMachine, attempt: number): Promise<void> {
    const path = await this.#prepare(attempt);
    if (this.#copying === undefined) this.#begin((signal) => mirrorConsole(machine.consoleLogPath, path, signal));
  }

  async copy(guest: Guest, attempt: number): Promise<void> {
    const path = await this.#prepare(attempt);
    // Two copies into one file would double every line.
    await this.stop();
    this.#begin((signal) => guest.copyOutput(path, signal));
  }

  /** The main process ended: resolves when all of its output is here, the machine is gone, or it takes too long. */
  async drained(machine: VirtualMachine): Promise<void> {
    if (this.#copying === undefined || machine.state === "stopped") return;
    const gone = new AbortController();
    void machine.stopped.then(() => gone.abort());
    await unlessAborted(this.#copying, AbortSignal.any([gone.signal, AbortSignal.timeout(LAST_OUTPUT_TIMEOUT)])).catch(() => {});
  }

  /** Nothing more will come; resolves when what came is written. */
  async stop(): Promise<void> {
    for (const stop of this.#stops.splice(0)) stop.abort();
    // A stop must end even if the guest's connection hangs.
    if (this.#copying !== undefined) await unlessAborted(this.#copying, AbortSignal.timeout(STOP_TIMEOUT)).catch(() => {});
    this.#copying = undefined;
  }

  /** The attempt's end is recorded: followers of its log are done. */
  end(): void {
    this.#complete.abort();
    this.#complete = new AbortController();
  }

  async #prepare(attempt: number): Promise<string> {
    await mkdir(dirname(this.path(attempt)), { recursive: true, mode: 0o700 });
    return this.path(attempt);
  }

  #begin(copy: (signal: AbortSignal) => Promise<void>): void {
    const stop = new AbortController();
    this.#stops.push(stop);
    this.#copying = copy(stop.signal).catch((error: unknown) => {
      if (!stop.signal.aborted) this.#logger.warn("The output of a container could not be copied.", { error: messageOf(error) });
    });
  }
}
