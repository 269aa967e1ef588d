/**
 * The end of a Pod: everything stops within the grace (main containers together, then native side-cars backwards), the
 * API learns the final status and removes the Pod, and what it used is freed. Each step may be repeated after a crash: the
 * record stays until everything else is gone, and without a Pod in the API it leads straight here again.
 * https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination
 */
import { hasCode, messageOf } from "../contract/errors.ts";
import { Deadline } from "./deadline.ts";
import type { PodWorker } from "./pod-worker.ts";

const RETRY_DELAY = 2000;

export class PodTermination {
  readonly #worker: PodWorker;
  readonly #deadline: Deadline;
  readonly #startedAt: number;
  readonly #vanished = new AbortController();
  #stopping: Promise<void> | undefined;
  #running: Promise<void> | undefined;

  constructor(worker: PodWorker, graceSeconds: number) {
    this.#worker = worker;
    // After a crash the grace that already passed is not given again.
    const known = worker.record.data.terminating;
    this.#startedAt = known === undefined ? Date.now() : Math.min(Date.now(), Date.parse(known.startedAt));
    this.#deadline = new Deadline(this.#startedAt + graceSeconds * 1000);
  }

  /** Removes the Pod; called again with every change, the grace only ever shrinks. `onGone` once nothing is left. */
  request(graceSeconds: number, vanished: boolean, onGone: () => void): void {
    this.#deadline.shorten(this.#startedAt + graceSeconds * 1000);
    if (vanished) this.#vanished.abort();
    if (this.#running === undefined) this.#running = this.#run(graceSeconds, onGone);
  }

  /** Settles when nothing of a removed Pod is left; undefined while it is not being removed. */
  get running(): Promise<void> | undefined {
    return this.#running;
  }

  /** Stops all containers. Idempotent. */
  stopAll(): Promise<void> {
    this.#stopping ??= this.#stopAll().catch((error: unknown) => {
      this.#stopping = undefined;
      throw error;
    });
    return this.#stopping;
  }

  async #run(graceSeconds: number, onGone: () => void): Promise<void> {
    const worker = this.#worker;
    const { data } = worker.record;
    data.terminating ??= { startedAt: new Date(this.#startedAt).toISOString(), graceSeconds };
    // A full disk must not keep a Pod from being stopped: without the record only the grace may be given again.
    await worker.record.save().catch((error: unknown) => worker.logger.warn("The Pod's record could not be written.", { error: messageOf(error) }));
    await this.#untilItWorks("stopped", () => this.stopAll());
    if (worker.isDetached) return;
    await this.#untilItWorks("freed", async () => {
      await worker.machine?.discard();
      await worker.options.networks.remove(worker.machineId);
    });
    if (!this.#vanished.signal.aborted) {
      await worker.publishFinal(this.#vanished.signal);
      await this.#untilItWorks("removed from the API", async () => {
        if (this.#vanished.signal.aborted || worker.writer.isGone) return;
        await worker.options.reporter.remove(worker.pod());
      });
    }
    if (worker.isDetached) return;
    await this.#untilItWorks("cleaned up", () => this.#cleanUp());
    if (worker.isDetached) return;
    onGone();
  }

  async #stopAll(): Promise<void> {
    const units = [...this.#worker.units.values()];
    const sidecars = units.filter((unit) => unit.isNativeSidecar).reverse();
    const results = await Promise.allSettled(units.filter((unit) => !unit.isNativeSidecar).map((unit) => unit.stop(this.#deadline)));
    for (const sidecar of sidecars) results.push(...(await Promise.allSettled([sidecar.stop(this.#deadline)])));
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  async #cleanUp(): Promise<void> {
    const { options, volumes, uid, machineId, units, record } = this.#worker;
    if ([...units.values()].some((unit) => unit !== this.#worker.machine)) {
      try {
        await options.engine.removePod(uid);
      } catch (error) {
        // What the engine holds is swept when it is back; the rest need not wait for it.
        if (!hasCode(error, "Unavailable", "MissingPrerequisite")) throw error;
        this.#worker.logger.warn("The container engine is away; the Pod's containers will be removed later.", { error: messageOf(error) });
      }
    }
    await volumes.teardown(uid);
    await options.images.release(machineId);
    options.objects.use(uid, []);
    await record.remove();
  }

  async #untilItWorks(what: string, act: () => Promise<void>): Promise<void> {
    while (!this.#worker.isDetached) {
      try {
        return await act();
      } catch (error) {
        if (this.#worker.isDetached) return;
        this.#worker.logger.warn(`The Pod could not be ${what} yet; trying again.`, { error: messageOf(error) });
        await this.#worker.pause(RETRY_DELAY);
      }
    }
  }
}
