/**
 * One container's life, whatever runs it: prepare, run, end, wait, again. Subclasses know machines or side-cars; this
 * file knows restart policy, back-off, hooks, probes and stopping. A unit is one loop; starting it again after a crash of
 * the host repeats `prepare`, which therefore finds or makes everything it needs.
 */
import { messageOf } from "../contract/errors.ts";
import type { Container, ContainerStateTerminated, EphemeralContainer } from "../contract/kubernetes-api.generated.ts";
import { afterFailure, formatDuration, KUBELET_BACKOFF, remaining } from "./backoff.ts";
import { Deadline } from "./deadline.ts";
import { runHook } from "./hooks.ts";
import { sentenceOf } from "./machine-exit.ts";
import { ContainerProblem, formatPod, type PodContext } from "./pod-context.ts";
import type { ContainerRecord } from "./pod-record.ts";
import type { ContainerSnapshot } from "./pod-state.ts";
import { type ContainerTarget, pause, pauseWhile, unlessAborted } from "./pod-target.ts";
import { check } from "./probe-actions.ts";
import { ContainerProber } from "./prober.ts";
import { type ContainerKind, isNativeSidecar, shouldRestart } from "./restart-policy.ts";

/** Between attempts to create a container that its configuration or the engine forbids now. */
const RETRY_DELAY = 10_000;
/** What a process gets at least after its preStop hook used the grace up. */
const MINIMUM_GRACE = 2000;
/** To find a running container again after the host came back, before it is simply killed. */
const REATTACH_TIMEOUT = 10_000;

export abstract class ContainerUnit {
  readonly name: string;
  readonly kind: ContainerKind;
  protected readonly context: PodContext;
  protected waiting: { readonly reason: string; readonly message?: string } | undefined;
  #spec: Container | EphemeralContainer;
  #run: Promise<void> | undefined;
  #running: Promise<void> | undefined;
  #prober: ContainerProber | undefined;
  #preparing = new AbortController();
  #retry = new AbortController();
  #stop: Deadline | undefined;
  #stopping: Promise<void> | undefined;
  #replacing: Promise<void> | undefined;
  /** Resolves when the present attempt, or the next one, runs. */
  #supervised = Promise.withResolvers<void>();

  constructor(context: PodContext, spec: Container | EphemeralContainer, kind: ContainerKind) {
    this.context = context;
    this.#spec = spec;
    this.name = spec.name;
    this.kind = kind;
  }

  /** Finds or makes what runs and records `state.running` (or `state.terminated`). Idempotent. Errors: ContainerProblem. */
  protected abstract prepare(signal: AbortSignal): Promise<void>;
  /** Waits for the end of what runs and records `state.terminated`. Never rejects. */
  protected abstract supervise(): Promise<void>;
  /** Asks the main process to end; the kill comes after that many seconds. */
  protected abstract requestStop(graceSeconds: number): Promise<void>;
  /** Ends what runs or is half prepared, now. Idempotent. */
  protected abstract kill(): Promise<void>;
  /** What probes and hooks work with. */
  abstract target(): ContainerTarget;
  /** Whether anything of it may still run. */
  abstract get mayRun(): boolean;

  get spec(): Container | EphemeralContainer {
    const spec = this.context.pod().spec;
    const containers = this.kind === "init" ? spec?.initContainers : this.kind === "main" ? spec?.containers : spec?.ephemeralContainers;
    // The image and the resources may be changed in place; the last known spec serves a Pod that lost the container.
    this.#spec = containers?.find(({ name }) => name === this.name) ?? this.#spec;
    return this.#spec;
  }

  get record(): ContainerRecord {
    return this.context.record.container(this.name);
  }

  get isNativeSidecar(): boolean {
    return isNativeSidecar(this.spec, this.kind);
  }

  get isRunning(): boolean {
    return this.record.state?.running !== undefined;
  }

  /** Started as far as the next init container is concerned. */
  get isStarted(): boolean {
    return this.isRunning && (this.record.started ?? false);
  }

  /** Ended, and not to be started again. */
  get isFinished(): boolean {
    const terminated = this.record.state?.terminated;
    return terminated !== undefined && (this.#stop !== undefined || (this.record.replaced !== true && !shouldRestart(this.context.pod(), this.spec, this.kind, terminated.exitCode)));
  }

  get exitCode(): number | undefined {
    return this.record.state?.terminated?.exitCode;
  }

  /** What the status says while it neither runs nor ended; the kubelet server's messages use it too. */
  get waitingReason(): { readonly reason: string; readonly message?: string } | undefined {
    return this.waiting;
  }

  /** Begins or goes on. Idempotent. */
  start(): void {
    // Ending a loop wakes the worker, which starts what can be started: one that has nothing to do must not begin.
    if (this.#stop === undefined && !this.isFinished) this.#begin();
    if (this.isRunning && this.#hasNewImage && (this.kind === "main" || this.isNativeSidecar)) this.#replace();
  }

  /** The Pod names another image than the one of the present attempt: the one field of a container that may be changed. */
  get #hasNewImage(): boolean {
    const { image } = this.record;
    return image !== undefined && image !== (this.spec.image ?? "");
  }

  /** Ends what runs to start it again with its new image, at once and whatever the restart policy says, as the kubelet does. */
  #replace(): void {
    if (this.#replacing !== undefined || this.#running === undefined || this.#stop !== undefined) return;
    const replace = async (): Promise<void> => {
      this.record.replaced = true;
      await this.context.record.save();
      await this.#killRunning(Deadline.afterSeconds(this.#podGrace()), undefined, `Container ${this.name} definition changed, will be restarted`);
    };
    this.#replacing = replace()
      .catch((error: unknown) => this.context.logger.error("A container could not be ended for its new image.", { container: this.name, error: messageOf(error) }))
      .finally(() => (this.#replacing = undefined));
  }

  #begin(): void {
    if (this.#run !== undefined) return;
    this.#run = this.#loop().catch((error: unknown) => {
      this.context.logger.error("A container's loop ended unexpectedly.", { container: this.name, error: messageOf(error) });
    });
    void this.#run.then(() => {
      this.#run = undefined;
      this.context.changed();
    });
  }

  /** Aborts when the Pod, or an object it refers to, has changed; the signal after that is a new one. */
  protected get podChanged(): AbortSignal {
    return this.#retry.signal;
  }

  /** Something it may wait for has changed: try again at once. */
  poke(): void {
    this.#retry.abort();
    this.#retry = new AbortController();
  }

  /** A field of it cannot be honoured: it waits, alone, and nothing is made. */
  refuse(message: string): void {
    if (this.waiting?.message === message) return;
    this.event("Warning", "Failed", `Error: ${message}`);
    this.setWaiting({ reason: "CreateContainerConfigError", message });
  }

  /** Ends what runs now, gracefully; what follows is up to the restart policy. Resolves when its end is recorded. */
  async end(graceSeconds: number): Promise<void> {
    await this.#killRunning(Deadline.afterSeconds(graceSeconds), undefined, `Stopping container ${this.name}`);
  }

  /** Stops for good; may be called again with less time. Resolves when nothing of it runs and its end is recorded. */
  async stop(deadline: Deadline): Promise<void> {
    this.#stop ??= deadline;
    this.#prober?.stopKilling();
    this.#stopping ??= this.#stopNow(deadline);
    await this.#stopping;
  }

  /** The host goes away: forget timers and probes, touch nothing that runs. */
  detach(): void {
    this.#stop ??= new Deadline(Number.POSITIVE_INFINITY);
    this.#preparing.abort();
    this.#prober?.stop();
  }

  snapshot(): ContainerSnapshot {
    const record = this.record;
    const ended = record.state?.terminated !== undefined;
    const waiting = this.waiting ?? (record.replaced === true && this.#stop === undefined ? { reason: "ContainerCreating" } : undefined);
    const again = ended && waiting !== undefined;
    const state = again ? { waiting } : (record.state ?? (this.waiting === undefined ? undefined : { waiting: this.waiting }));
    return {
      name: this.name,
      kind: this.kind,
      state,
      lastState: again ? record.state : record.lastState,
      restartCount: record.restartCount,
      started: this.isRunning && (record.started ?? false),
      ready: this.isRunning && (record.ready ?? false),
      image: record.image ?? this.spec.image ?? "",
      imageId: record.imageId ?? "",
      containerId: record.containerId ?? "",
      ...(record.resources === undefined ? {} : { resources: record.resources }),
    };
  }

  protected event(type: "Normal" | "Warning", reason: string, message: string): void {
    this.context.event(type, reason, message, this.name);
  }

  protected setWaiting(waiting: { readonly reason: string; readonly message?: string } | undefined): void {
    this.waiting = waiting;
    this.context.changed();
  }

  protected async recordRunning(startedAt: Date): Promise<void> {
    this.waiting = undefined;
    const record = this.record;
    if (record.state?.running === undefined) {
      record.state = { running: { startedAt: startedAt.toISOString() } };
      // Without hook and probes it is ready as it starts, in the same status.
      const { lifecycle, startupProbe, readinessProbe } = this.spec;
      record.started = lifecycle?.postStart === undefined && startupProbe === undefined;
      record.ready = record.started && readinessProbe === undefined;
    }
    await this.context.record.save();
    this.context.changed();
  }

  protected async recordTerminated(terminated: ContainerStateTerminated): Promise<void> {
    this.#prober?.stop();
    this.waiting = undefined;
    const record = this.record;
    record.state = { terminated: { ...(record.containerId === undefined ? {} : { containerID: record.containerId }), ...terminated } };
    record.started = false;
    record.ready = false;
    await this.context.record.save();
    this.context.changed();
  }

  /** It has ended, though its end is not recorded yet: what fails now is no news. */
  protected stopProber(): void {
    this.#prober?.stop();
  }

  async #loop(): Promise<void> {
    const signal = this.#preparing.signal;
    while (!signal.aborted) {
      const ended = this.record.state?.terminated;
      if (ended !== undefined) {
        if (this.#stop !== undefined || this.isFinished || !(await this.#waitToRestart(ended, signal))) return;
      }
      try {
        await this.prepare(signal);
      } catch (error) {
        if (signal.aborted) return;
        const problem = error instanceof ContainerProblem ? error : new ContainerProblem("RunContainerError", sentenceOf(error));
        this.event("Warning", problem.eventReason, `Error: ${problem.message}`);
        this.setWaiting({ reason: problem.reason, message: problem.message });
        await pause(RETRY_DELAY, AbortSignal.any([signal, this.#retry.signal]));
        continue;
      }
      // A stop that came meanwhile waits for `#supervised` too and does the rest.
      if (this.isRunning) {
        this.#running = this.supervise();
        this.#supervised.resolve();
        await Promise.all([this.#running, this.#afterStart()]);
        this.#running = undefined;
        this.#supervised = Promise.withResolvers();
      }
    }
  }

  /** False if stopped meanwhile. */
  async #waitToRestart(ended: ContainerStateTerminated, signal: AbortSignal): Promise<boolean> {
    const limits = this.context.options.settings.backoff ?? KUBELET_BACKOFF;
    const finishedAt = ended.finishedAt === undefined ? Date.now() : Date.parse(ended.finishedAt);
    const record = this.record;
    const isNew = record.replaced === true || this.#hasNewImage;
    const known = !isNew && record.backoff !== undefined && finishedAt - record.backoff.at <= 2 * limits.maximum ? record.backoff : undefined;
    const delay = this.kind === "init" && !this.isNativeSidecar && ended.exitCode === 0 ? 0 : (known?.delay ?? 0);
    const wait = remaining(delay, finishedAt, Date.now());
    if (wait > 0) {
      const pod = formatPod(this.context.pod());
      this.event("Warning", "BackOff", `Back-off restarting failed container ${this.name} in pod ${pod}`);
      this.setWaiting({ reason: "CrashLoopBackOff", message: `back-off ${formatDuration(delay)} restarting failed container=${this.name} pod=${pod}` });
      await pauseWhile(() => !this.#hasNewImage, wait, signal, () => this.podChanged);
      if (signal.aborted) {
        this.waiting = undefined;
        return false;
      }
    }
    record.backoff = afterFailure(this.#hasNewImage ? undefined : record.backoff, finishedAt, limits);
    record.lastState = record.state;
    record.restartCount++;
    for (const key of ["state", "postStarted", "started", "ready", "ended", "replaced", "containerId"] as const) delete record[key];
    this.waiting = undefined;
    await this.context.record.save();
    return true;
  }

  /** postStart, then probes. Runs next to the main process, as Kubernetes says. */
  async #afterStart(): Promise<void> {
    const ended = new AbortController();
    void this.#running?.then(() => ended.abort());
    const handler = this.spec.lifecycle?.postStart;
    if (handler !== undefined && this.record.postStarted !== true) {
      const limit = AbortSignal.timeout((this.context.options.settings.postStartTimeoutSeconds ?? 600) * 1000);
      try {
        await runHook(handler, this.spec, this.target(), AbortSignal.any([ended.signal, this.#preparing.signal, limit]));
      } catch (error) {
        if (ended.signal.aborted || this.#stop !== undefined) return;
        this.event("Warning", "FailedPostStartHook", messageOf(error));
        await this.#killRunning(Deadline.afterSeconds(this.#podGrace()), "FailedPostStartHook");
        return;
      }
      this.record.postStarted = true;
      await this.context.record.save();
    }
    if (!this.isRunning || this.#stop !== undefined) return;
    this.#startProber();
  }

  #startProber(): void {
    const container = this.spec;
    const startedAt = this.record.state?.running?.startedAt;
    const { started = false, ready = false } = this.record;
    const publish = () => {
      const record = this.record;
      const now = { started: prober.started, ready: prober.ready };
      if (record.started === now.started && record.ready === now.ready) return;
      record.started = now.started;
      record.ready = now.ready;
      // Probes find out again; a disk that is full must not end the host.
      this.context.record.save().catch((error: unknown) => this.context.logger.warn("The Pod's record could not be written.", { error: messageOf(error) }));
      this.context.changed();
    };
    const prober: ContainerProber = new ContainerProber({
      container,
      startedAt: startedAt === undefined ? new Date() : new Date(startedAt),
      initial: { started, ready },
      check: (probe, signal) => check(probe, this.spec, this.target(), signal),
      onChange: publish,
      onEvent: (reason, message) => this.event("Warning", reason, message),
      onKill: (kind, graceSeconds) => {
        this.event("Normal", "Killing", `Container ${this.name} failed ${kind} probe, will be restarted`);
        void this.#killRunning(Deadline.afterSeconds(graceSeconds ?? this.#podGrace())).catch((error: unknown) =>
          this.context.logger.error("A container that failed its probe could not be killed.", { container: this.name, error: messageOf(error) }),
        );
      },
    });
    this.#prober = prober;
    publish();
  }

  #podGrace(): number {
    return this.context.pod().spec?.terminationGracePeriodSeconds ?? 30;
  }

  async #stopNow(deadline: Deadline): Promise<void> {
    if (this.isRunning && this.#running === undefined && !deadline.passed) {
      // It runs, but this host has only just come back: find it again first, to stop it as gently as it deserves.
      this.#begin();
      await unlessAborted(Promise.race([this.#supervised.promise, this.#run]), AbortSignal.any([deadline.signal, AbortSignal.timeout(REATTACH_TIMEOUT)])).catch(() => {});
    }
    if (this.#running === undefined) {
      // What is half made is given up; what came to run in this very moment is stopped like anything that runs.
      this.#preparing.abort();
      await Promise.race([this.#supervised.promise, this.#run]);
    }
    if (this.#running !== undefined && this.isRunning) {
      await this.#killRunning(deadline, undefined, `Stopping container ${this.name}`);
      this.#preparing.abort();
      await this.#run;
      return;
    }
    this.#preparing.abort();
    await this.#run;
    const recorded = this.isRunning;
    await this.kill();
    if (recorded) await this.recordTerminated({ exitCode: 137, reason: "Error", ...(this.record.state?.running?.startedAt === undefined ? {} : { startedAt: this.record.state.running.startedAt }), finishedAt: new Date().toISOString() });
  }

  /** preStop, the stop signal, the rest of the grace, then the kill. Resolves when the end is recorded. */
  async #killRunning(deadline: Deadline, reason?: string, message?: string): Promise<void> {
    const running = this.#running;
    if (running === undefined) return;
    if (message !== undefined) this.event("Normal", "Killing", message);
    else if (reason !== undefined) this.event("Normal", "Killing", reason);
    // A restart's grace ends early when the Pod is deleted with less.
    const limit = () => AbortSignal.any(this.#stop === undefined || this.#stop === deadline ? [deadline.signal] : [deadline.signal, this.#stop.signal]);
    const ended = new AbortController();
    void running.then(() => ended.abort());
    if (!deadline.passed) {
      const handler = this.spec.lifecycle?.preStop;
      if (handler !== undefined && reason !== "FailedPostStartHook") {
        try {
          await runHook(handler, this.spec, this.target(), AbortSignal.any([limit(), ended.signal]));
        } catch (error) {
          if (!ended.signal.aborted) this.event("Warning", "FailedPreStopHook", messageOf(error));
        }
      }
      const late = deadline.passed ? AbortSignal.timeout(MINIMUM_GRACE) : limit();
      const seconds = Math.max(MINIMUM_GRACE / 1000, Math.min(deadline.remainingSeconds, this.#stop?.remainingSeconds ?? deadline.remainingSeconds));
      await unlessAborted(this.requestStop(seconds), AbortSignal.any([late, ended.signal])).catch((error: unknown) =>
        this.context.logger.debug("A container could not be asked to stop.", { container: this.name, error: messageOf(error) }),
      );
      await unlessAborted(running, late).catch(() => {});
    }
    if (!ended.signal.aborted) await this.kill();
    await running;
  }
}
