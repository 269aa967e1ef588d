/**
 * One Pod's worker: compares what is desired (the API's Pod) with what is (machine, containers, record) and starts or
 * stops what differs. Level-triggered and serial: whatever happens only wakes it, and it looks at everything again. What
 * takes long (pulls, boots, stops) runs beside it in the units; it never waits for them here.
 */
import { messageOf } from "../contract/errors.ts";
import type { Container, EphemeralContainer, Pod, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import type { OperatingSystem } from "../contract/image.ts";
import type { PodNetwork, VirtualMachine } from "../virtual-machines/virtual-machine.ts";
import { refusedEphemeralFields } from "./admission.ts";
import type { ContainerUnit } from "./container-unit.ts";
import { Deadline } from "./deadline.ts";
import { MachineContainer } from "./machine-container.ts";
import type { MachineSlots } from "./machine-slots.ts";
import { PodAdmittance } from "./pod-admittance.ts";
import type { PodContext, PodManagerOptions } from "./pod-context.ts";
import type { PodDns, PodHostname } from "./pod-network-files.ts";
import type { PodRecord } from "./pod-record.ts";
import { PodSetup } from "./pod-setup.ts";
import { PodTermination } from "./pod-termination.ts";
import { pause } from "./pod-target.ts";
import { SidecarContainer } from "./sidecar-container.ts";
import { computeStatus } from "./status.ts";
import { StatusWriter } from "./status-writer.ts";
import type { Volumes } from "./volumes/volumes.ts";

/** How often volumes are measured against their limits, as the kubelet's eviction manager does. */
const EVICTION_INTERVAL = 10_000;

export interface PodWorkerOptions {
  readonly options: PodManagerOptions;
  readonly volumes: Volumes;
  readonly slots: MachineSlots;
  readonly operatingSystem: OperatingSystem;
  readonly record: PodRecord;
  readonly machine: VirtualMachine | undefined;
  /** Other admitted Pods of this node that are not finished. */
  otherPods(uid: string): readonly Pod[];
  /** False until the source's first list is in: a Pod that is missing may still come. */
  isSynced(): boolean;
  onStatus(uid: string): void;
  /** Everything of the Pod is gone. */
  onGone(uid: string): void;
}

export class PodWorker implements PodContext {
  readonly uid: string;
  readonly machineId: string;
  readonly options: PodManagerOptions;
  readonly volumes: Volumes;
  readonly slots: MachineSlots;
  readonly record: PodRecord;
  readonly logger: Logger;
  readonly writer: StatusWriter;
  readonly #worker: PodWorkerOptions;
  #setup: PodSetup;
  readonly #admittance: PodAdmittance;
  readonly #units = new Map<string, ContainerUnit>();
  readonly #halt = new AbortController();
  readonly #timers = new Map<string, NodeJS.Timeout>();
  #pod: Pod;
  #status: PodStatus | undefined;
  #machine: VirtualMachine | undefined;
  #dirty = false;
  #reconciling = false;
  #detached = false;
  #termination: PodTermination | undefined;
  #completion: Promise<void> | undefined;
  #isRetired = false;

  constructor(worker: PodWorkerOptions) {
    this.#worker = worker;
    this.options = worker.options;
    this.volumes = worker.volumes;
    this.slots = worker.slots;
    this.record = worker.record;
    this.#pod = worker.record.data.pod;
    this.#machine = worker.machine;
    this.uid = this.#pod.metadata?.uid ?? "";
    this.machineId = this.uid.replaceAll("-", "").toLowerCase();
    this.logger = worker.options.logger.child({ pod: `${this.#pod.metadata?.namespace}/${this.#pod.metadata?.name}`, uid: this.uid });
    this.writer = new StatusWriter(worker.options.reporter, this.logger);
    this.#setup = this.#newSetup();
    const { options, record, logger, uid } = this;
    this.#admittance = new PodAdmittance({
      options,
      operatingSystem: worker.operatingSystem,
      record,
      logger,
      signal: this.#halt.signal,
      pod: () => this.#pod,
      otherPods: () => worker.otherPods(uid),
      event: (...event) => this.event(...event),
      changed: () => this.changed(),
    });
  }

  #newSetup(): PodSetup {
    const { options, volumes, uid, machineId } = this;
    return new PodSetup({ options, volumes, uid, machineId, pod: () => this.#pod, event: (...event) => this.event(...event), changed: () => this.changed() });
  }

  get units(): ReadonlyMap<string, ContainerUnit> {
    return this.#units;
  }

  get machine(): MachineContainer | undefined {
    for (const unit of this.#units.values()) if (unit instanceof MachineContainer) return unit;
    return undefined;
  }

  get status(): PodStatus | undefined {
    return this.#status;
  }

  /** Admitted and not over: counts for the admission of others. */
  get countsForAdmission(): boolean {
    return this.record.data.admitted && this.record.data.failure === undefined && !this.#isRetired;
  }

  get mayRun(): boolean {
    for (const unit of this.#units.values()) if (unit.mayRun || unit.isRunning) return true;
    return false;
  }

  pod(): Pod {
    return this.#pod;
  }

  network(): PodNetwork | undefined {
    return this.#setup.network;
  }

  podIPs(): readonly string[] {
    const address = this.#setup.network?.podIP;
    return address === undefined || address === "" ? [] : [address];
  }

  hostname(): PodHostname {
    return this.#setup.hostname();
  }

  dns(): PodDns {
    return this.#setup.dns();
  }

  ready(signal: AbortSignal): Promise<PodNetwork> {
    return this.#setup.ready(signal);
  }

  sandbox(): Promise<void> {
    return this.#setup.sandbox();
  }

  takeAdoptedMachine(): VirtualMachine | undefined {
    const machine = this.#machine;
    this.#machine = undefined;
    return machine;
  }

  event(type: "Normal" | "Warning", reason: string, message: string, container?: string): void {
    this.options.reporter.event(this.#pod, type, reason, message, container);
  }

  refuseImage(): void {
    this.#admittance.refuseImage();
  }

  /** Something may have changed: look at everything again. */
  changed(): void {
    if (this.#detached) return;
    this.#dirty = true;
    if (this.#reconciling) return;
    this.#reconciling = true;
    // Not at once: many changes come together, and callers do not expect the world to move under them.
    queueMicrotask(() => void this.#drain());
  }

  /** Objects that the Pod refers to have changed. */
  objectsChanged(): void {
    for (const unit of this.#units.values()) unit.poke();
    this.#refreshVolumes();
  }

  engineChanged(): void {
    for (const unit of this.#units.values()) if (unit instanceof SidecarContainer) unit.engineChanged();
  }

  /** The host goes away; everything runs on. */
  async detach(): Promise<void> {
    this.#detached = true;
    this.#halt.abort();
    this.#setup.stop();
    this.writer.stop();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    for (const unit of this.#units.values()) unit.detach();
    await this.machine?.release();
    await this.record.save();
  }

  async #drain(): Promise<void> {
    while (this.#dirty && !this.#detached) {
      this.#dirty = false;
      try {
        await this.#reconcile();
        this.#publish();
      } catch (error) {
        this.logger.error("A Pod could not be brought up to date; trying again.", { error: messageOf(error) });
        this.#at("retry", Date.now() + 5000);
      }
    }
    this.#reconciling = false;
  }

  async #reconcile(): Promise<void> {
    const { data } = this.record;
    const desired = this.options.source.current().get(this.uid);
    if (desired !== undefined) await this.#take(desired);
    const vanished = desired === undefined && this.#worker.isSynced();
    this.#makeUnits();
    if (vanished) return this.#terminate(0, true);
    if (this.#pod.metadata?.deletionTimestamp !== undefined) {
      return this.#terminate(this.#pod.metadata.deletionGracePeriodSeconds ?? this.#pod.spec?.terminationGracePeriodSeconds ?? 30, false);
    }
    if (this.#termination !== undefined) return;
    if (data.failure !== undefined) return this.#complete();
    const phase = this.#status?.phase ?? this.#pod.status?.phase;
    if (this.#isOver() || phase === "Succeeded" || phase === "Failed") return this.#complete();
    if (!(await this.#admit())) return;
    if (this.#isPastDeadline()) return this.#fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");
    this.#setup.start();
    this.#startUnits();
    this.#watchVolumes();
  }

  /** Takes over the API's object; the record keeps it for the time the API does not have it any more. */
  async #take(desired: Pod): Promise<void> {
    if (desired === this.#pod) return;
    const before = this.#pod;
    this.#pod = desired;
    this.record.data.pod = desired;
    const worthSaving = (pod: Pod) => JSON.stringify([pod.metadata?.generation, pod.metadata?.deletionTimestamp, pod.metadata?.annotations, pod.metadata?.labels]);
    if (worthSaving(before) !== worthSaving(desired)) {
      await this.record.save();
      if (this.#setup.isReady) this.#refreshVolumes();
      for (const unit of this.#units.values()) unit.poke();
    }
  }

  #makeUnits(): void {
    const make = (spec: Container | EphemeralContainer, kind: "init" | "main" | "ephemeral", index: number) => {
      if (this.#units.has(spec.name)) return;
      this.#units.set(spec.name, kind === "main" && index === 0 ? new MachineContainer(this, spec, kind) : new SidecarContainer(this, spec, kind));
    };
    const spec = this.#pod.spec;
    for (const [index, container] of (spec?.initContainers ?? []).entries()) make(container, "init", index);
    for (const [index, container] of (spec?.containers ?? []).entries()) make(container, "main", index);
    for (const [index, container] of (spec?.ephemeralContainers ?? []).entries()) make(container, "ephemeral", index);
  }

  /** False: refused, rejected, or not decided yet. */
  async #admit(): Promise<boolean> {
    const admittance = await this.#admittance.admit();
    if (admittance === "rejected") this.changed();
    // An image that proves wrong later gives back what was taken in good faith.
    if (admittance === "withdrawn") this.#giveBack().catch((error: unknown) => this.logger.warn("What a refused Pod had taken could not be given back.", { error: messageOf(error) }));
    return admittance === "admitted";
  }

  async #giveBack(): Promise<void> {
    const units = [...this.#units.values()];
    this.record.data.admitted = false;
    this.record.data.containers = {};
    this.#setup.stop();
    this.#setup = this.#newSetup();
    this.#units.clear();
    this.#makeUnits();
    await this.record.save();
    using now = new Deadline(0);
    await Promise.allSettled(units.map((unit) => unit.stop(now)));
    this.slots.release(this.machineId);
    await this.options.engine.removePod(this.uid);
    await this.options.networks.remove(this.machineId);
  }

  #startUnits(): void {
    const units = [...this.#units.values()];
    this.machine?.prefetch(this.#halt.signal);
    let initialized = true;
    for (const unit of units.filter(({ kind }) => kind === "init")) {
      if (unit.isNativeSidecar ? unit.isStarted : unit.isFinished && unit.exitCode === 0) {
        if (unit.isNativeSidecar) unit.start();
        continue;
      }
      initialized = false;
      unit.start();
      break;
    }
    // Once begun, a container is not held back by a native side-car that restarts.
    const begun = units.some((unit) => unit.kind === "main" && unit.record.state !== undefined);
    for (const unit of units) {
      if (unit.kind === "main" && (initialized || begun)) unit.start();
      if (unit.kind === "init" && unit.isNativeSidecar && begun) unit.start();
      if (unit.kind !== "ephemeral") continue;
      const [refused] = refusedEphemeralFields(this.#pod, unit.spec, this.#worker.operatingSystem);
      if (refused === undefined) unit.start();
      else unit.refuse(refused.message);
    }
  }

  /** Nothing will be started again: all main containers ended for good, or an init container failed for good. */
  #isOver(): boolean {
    const units = [...this.#units.values()];
    const main = units.filter(({ kind }) => kind === "main");
    if (units.some((unit) => unit.kind === "init" && !unit.isNativeSidecar && unit.isFinished && unit.exitCode !== 0)) return true;
    return main.length > 0 && main.every((unit) => unit.isFinished);
  }

  /** Stops what is left of a Pod that is over and frees its machine and network; logs stay until it is deleted. */
  #complete(): void {
    if (this.#completion !== undefined) return;
    this.#completion = this.#runCompletion().catch((error: unknown) => {
      this.logger.error("A finished Pod could not be stopped; trying again.", { error: messageOf(error) });
      this.#completion = undefined;
      this.#at("retry", Date.now() + 5000);
    });
  }

  async #runCompletion(): Promise<void> {
    this.#setup.stop();
    const { disruption, failure } = this.record.data;
    const grace = failure?.reason === "DeadlineExceeded" || disruption === undefined ? (this.#pod.spec?.terminationGracePeriodSeconds ?? 30) : 0;
    this.#termination ??= new PodTermination(this, grace);
    await this.#termination.stopAll();
    await this.machine?.discard();
    await this.options.networks.remove(this.machineId);
    this.#isRetired = true;
    this.changed();
  }

  #terminate(graceSeconds: number, vanished: boolean): void {
    this.#setup.stop();
    this.#halt.abort();
    this.#termination ??= new PodTermination(this, graceSeconds);
    this.#termination.request(graceSeconds, vanished, () => {
      this.#detached = true;
      this.writer.stop();
      for (const timer of this.#timers.values()) clearTimeout(timer);
      this.#worker.onGone(this.uid);
    });
  }

  async #fail(reason: string, message: string, disruption?: { readonly reason: string; readonly message: string }): Promise<void> {
    this.event("Warning", reason, message);
    this.record.data.failure = { reason, message };
    if (disruption !== undefined) this.record.data.disruption = disruption;
    await this.record.save();
    this.changed();
  }

  #isPastDeadline(): boolean {
    const seconds = this.#pod.spec?.activeDeadlineSeconds;
    if (seconds === undefined) return false;
    const at = Date.parse(this.record.data.startTime) + seconds * 1000;
    if (Date.now() >= at) return true;
    this.#at("deadline", at);
    return false;
  }

  #watchVolumes(): void {
    if (!this.#setup.isReady) return;
    const refreshAt = this.volumes.nextRefresh(this.uid);
    if (refreshAt !== undefined) this.#at("refresh", refreshAt.getTime(), () => this.#refreshVolumes());
    if ((this.#pod.spec?.volumes ?? []).some(({ emptyDir }) => emptyDir?.sizeLimit !== undefined) && !this.#timers.has("eviction")) {
      this.#at("eviction", Date.now() + EVICTION_INTERVAL, () => void this.#evictIfOverLimit());
    }
  }

  async #evictIfOverLimit(): Promise<void> {
    try {
      const over = await this.volumes.overLimit(this.#pod);
      if (over !== undefined) await this.#fail("Evicted", over.message, { reason: "TerminationByKubelet", message: over.message });
    } catch (error) {
      this.logger.warn("A Pod's volumes could not be measured.", { error: messageOf(error) });
    }
    this.changed();
  }

  #refreshVolumes(): void {
    if (!this.#setup.isReady || this.#termination !== undefined) return;
    this.options.objects.use(this.uid, this.volumes.objectsOf(this.#pod));
    this.volumes.refresh(this.#pod).then(
      () => this.changed(),
      (error: unknown) => {
        this.event("Warning", "FailedMount", messageOf(error));
        this.#at("refresh", Date.now() + 10_000, () => this.#refreshVolumes());
      },
    );
  }

  #at(name: string, time: number, action: () => void = () => this.changed()): void {
    if (this.#detached) return;
    clearTimeout(this.#timers.get(name));
    const timer = setTimeout(
      () => {
        this.#timers.delete(name);
        action();
      },
      Math.min(2 ** 31 - 1, Math.max(0, time - Date.now())),
    );
    this.#timers.set(name, timer.unref());
  }

  /** Computes the status and reports it if it says something new. */
  #publish(): void {
    const { data } = this.record;
    const before = this.#status;
    const status = computeStatus(
      {
        pod: this.#pod,
        // A Pod rejected at the door has no containers to tell about.
        containers: data.failure !== undefined && !data.admitted ? [] : [...this.#units.values()].map((unit) => unit.snapshot()),
        hostIPs: this.options.node.addresses(),
        podIPs: this.podIPs(),
        startTime: new Date(data.startTime),
        sandboxReady: this.#setup.isReady && !this.#isRetired,
        ...(data.failure === undefined ? {} : { failure: data.failure }),
        ...(this.#admittance.refusal === undefined ? {} : { refusal: this.#admittance.refusal }),
        ...(data.disruption === undefined ? {} : { disruption: data.disruption }),
        mayRun: this.mayRun,
        now: new Date(),
      },
      before,
    );
    this.#status = status;
    if (JSON.stringify(before) !== JSON.stringify(status)) this.#worker.onStatus(this.uid);
    if (this.options.source.current().has(this.uid)) this.writer.report(this.#pod, status);
  }

  /** Publishes now and waits until the API has it, for at most that long. */
  async publishFinal(signal: AbortSignal): Promise<void> {
    this.#publish();
    await this.writer.flushed(signal);
  }

  async pause(milliseconds: number): Promise<void> {
    await pause(milliseconds, this.#detached ? AbortSignal.abort() : undefined);
  }

  /** Settles when nothing of the Pod is left; undefined while it is not being removed. */
  get removal(): Promise<void> | undefined {
    return this.#termination?.running;
  }

  get isDetached(): boolean {
    return this.#detached;
  }
}
