/**
 * The pool of the store's threads. Threads start on demand, do not keep the process alive, and end when idle for a
 * while, so that a host that pulls nothing pays nothing.
 */
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { PodyardError } from "../contract/errors.ts";
import { cancelled, throwIfCancelled } from "./cancellation.ts";
import type { FromWorker, PieceOutcome, PieceTask, ToWorker } from "./piece-task.ts";

/** A task under way; a followed download is told how far it has grown. */
export interface RunningTask {
  readonly outcome: Promise<PieceOutcome>;
  grown(available: number, ended: boolean): void;
}

interface Job {
  readonly id: number;
  readonly task: PieceTask;
  readonly resolve: (outcome: PieceOutcome) => void;
  readonly reject: (error: unknown) => void;
  worker?: Worker;
  latest?: ToWorker;
}

const idleMilliseconds = 10_000;
const workerUrl = new URL(import.meta.url.endsWith(".ts") ? "./piece-worker.ts" : "./piece-worker.js", import.meta.url);

export class PieceWorkers implements AsyncDisposable {
  readonly size: number;
  readonly #idle: Worker[] = [];
  readonly #busy = new Map<Worker, Job>();
  readonly #queue: Job[] = [];
  #nextId = 1;
  #reaper: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(size = Math.max(2, Math.min(8, availableParallelism()))) {
    this.size = size;
  }

  /** The outcome of one task. Errors: Cancelled; NoSpace, Corrupt and Internal for failures of the file system. */
  async run(task: PieceTask, signal?: AbortSignal): Promise<Exclude<PieceOutcome, { kind: "failed" }>> {
    throwIfCancelled(signal);
    const running = this.start(task, signal);
    return settled(await running.outcome, task, signal);
  }

  /** Queues a task. Once a thread has it, it runs to its end; the signal takes it out of the queue only. */
  start(task: PieceTask, signal?: AbortSignal): RunningTask {
    const { promise, resolve, reject } = Promise.withResolvers<PieceOutcome>();
    const job: Job = { id: this.#nextId, task, resolve, reject };
    this.#nextId += 1;
    const onAbort = (): void => {
      const index = this.#queue.indexOf(job);
      if (index === -1 || signal === undefined) return;
      this.#queue.splice(index, 1);
      reject(cancelled(signal));
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#queue.push(job);
    this.#dispatch();
    const outcome = promise.finally(() => signal?.removeEventListener("abort", onAbort));
    return {
      outcome,
      grown: (available, ended) => {
        job.latest = { kind: "grown", id: job.id, available, ended };
        job.worker?.postMessage(job.latest);
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#reaper);
    const closed = new PodyardError("Cancelled", "The image store was closed.");
    for (const job of this.#queue.splice(0)) job.reject(closed);
    for (const job of this.#busy.values()) job.reject(closed);
    await Promise.all([...this.#idle.splice(0), ...this.#busy.keys()].map((worker) => worker.terminate()));
  }

  #dispatch(): void {
    if (this.#isClosed) return;
    for (const job of this.#queue.slice()) {
      // A followed download waits for the network, so it must not keep others from a thread: it may always have one more.
      const isOverLimit = job.task.kind !== "follow" && [...this.#busy.values()].filter((busy) => busy.task.kind !== "follow").length >= this.size;
      if (isOverLimit) continue;
      this.#queue.splice(this.#queue.indexOf(job), 1);
      const worker = this.#idle.pop() ?? this.#spawn();
      job.worker = worker;
      this.#busy.set(worker, job);
      worker.ref();
      worker.postMessage({ kind: "task", id: job.id, task: job.task } satisfies ToWorker, job.task.kind === "decode" ? [job.task.compressed.buffer] : []);
      if (job.latest !== undefined) worker.postMessage(job.latest, []);
    }
  }

  #spawn(): Worker {
    const worker = new Worker(workerUrl, { name: "image" });
    worker.on("message", ({ outcome }: FromWorker) => {
      this.#busy.get(worker)?.resolve(outcome);
      this.#busy.delete(worker);
      worker.unref();
      this.#idle.push(worker);
      this.#dispatch();
      this.#reapLater();
    });
    const onEnd = (error: unknown): void => {
      this.#busy.get(worker)?.reject(new PodyardError("Internal", "A thread of the image store ended.", { cause: error }));
      this.#busy.delete(worker);
      const index = this.#idle.indexOf(worker);
      if (index !== -1) this.#idle.splice(index, 1);
      if (!this.#isClosed) this.#dispatch();
    };
    worker.on("error", onEnd);
    worker.on("exit", (code) => onEnd(new Error(`exit code ${code}`)));
    return worker;
  }

  #reapLater(): void {
    clearTimeout(this.#reaper);
    this.#reaper = setTimeout(() => {
      for (const worker of this.#idle.splice(0)) void worker.terminate();
    }, idleMilliseconds);
    this.#reaper.unref();
  }
}

/** Turns the failures of a task into errors. */
export function settled(outcome: PieceOutcome, task: PieceTask, signal?: AbortSignal): Exclude<PieceOutcome, { kind: "failed" }> {
  if (outcome.kind !== "failed") return outcome;
  if (outcome.code === "ABORTED" && signal?.aborted === true) throw cancelled(signal);
  if (outcome.code === "ENOSPC" || outcome.code === "EDQUOT") throw new PodyardError("NoSpace", `No space is left on the device of ${task.path}.`, { fix: "Free space, or remove images that are not used." });
  throw new PodyardError("Internal", `The file ${task.path} could not be processed: ${outcome.message}.`);
}
