/**
 * One machine: QEMU and, if it shares paths, virtiofsd, both detached. The record is written before each step, so that
 * {@link QemuMachine.reconnect} of a later host knows what may exist. What ended QEMU is read from its trace file
 * (exit-cause.ts), never from having been there.
 */
import { spawn } from "node:child_process";
import { access, mkdir, open, readFile, rm, stat } from "node:fs/promises";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { dirname } from "node:path";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { PodyardError, messageOf } from "../../../contract/errors.ts";
import type { Logger } from "../../../contract/logger.ts";
import { writeRecord } from "../../../records/atomic-file.ts";
import {
  environmentWithSystemPath,
  findProcess,
  identify,
  isRunning,
  killProcess,
  processStatus,
  residentBytes,
  runProgram,
  waitForExit,
} from "../../processes.ts";
import type { ProcessIdentity } from "../../processes.ts";
import type { VirtualMachine, VirtualMachineExit, VirtualMachineSpecification, VirtualMachineState, VirtualMachineStatistics } from "../../virtual-machine.ts";
import { bootId } from "./acceleration.ts";
import { causeFromTrace, didRun, exitOf } from "./exit-cause.ts";
import type { MachinePaths } from "./paths.ts";
import { QmpClient } from "./qmp.ts";
import type { MachineRecord } from "./record.ts";
import { SerialConsole } from "./serial-console.ts";
import { startVolumeServer } from "./volume-server.ts";

export interface QemuMachineContext {
  readonly paths: MachinePaths;
  readonly logger: Logger;
  /** Program and arguments for the machine; may probe the hardware first. */
  readonly commandLine: (specification: VirtualMachineSpecification) => Promise<readonly string[]>;
  readonly onDeleted: () => void;
}

/** /proc/PID/stat counts in USER_HZ, which Linux fixes at 100 for user space. */
const nanosecondsPerTick = 10_000_000;

/** `exec` keeps the lock's descriptor open in QEMU itself: the lock ends with it, whatever becomes of the host. */
const lockAndRun = 'exec 9>"$1"; flock -n 9 || exit 75; shift; exec "$@"';

export class QemuMachine implements VirtualMachine {
  readonly specification: VirtualMachineSpecification;
  readonly stopped: Promise<VirtualMachineExit>;
  readonly consoleLogPath: string;
  readonly #context: QemuMachineContext;
  readonly #paths: MachinePaths;
  readonly #logger: Logger;
  readonly #console: SerialConsole;
  readonly #lifetime = new AbortController();
  #record: MachineRecord;
  #saving: Promise<void> = Promise.resolve();
  #isPaused = false;
  #control: QmpClient | undefined;
  #starting: Promise<void> | undefined;
  #finishing: Promise<void> | undefined;
  #pendingCause: VirtualMachineExit["cause"] | undefined;
  #settleStopped: (exit: VirtualMachineExit) => void = () => undefined;

  constructor(record: MachineRecord, context: QemuMachineContext) {
    this.#record = record;
    this.#context = context;
    this.#paths = context.paths;
    this.#logger = context.logger.child({ machine: record.specification.name });
    this.specification = record.specification;
    this.consoleLogPath = context.paths.consoleLog;
    this.#console = new SerialConsole(context.paths.serialSocket);
    this.stopped = new Promise((resolve) => (this.#settleStopped = resolve));
    if (record.exit !== undefined) this.#settleStopped(record.exit);
  }

  get state(): VirtualMachineState {
    const { state } = this.#record;
    return state === "running" && this.#isPaused ? "paused" : state;
  }

  get createdAt(): Date {
    return this.#record.createdAt;
  }

  get startedAt(): Date | undefined {
    return this.#record.startedAt;
  }

  get exit(): VirtualMachineExit | undefined {
    return this.#record.exit;
  }

  start(signal?: AbortSignal): Promise<void> {
    if (this.#record.state === "running") return Promise.resolve();
    if (this.#record.state === "stopped")
      return Promise.reject(new PodyardError("Conflict", `${this.specification.name} has stopped; a stopped machine is deleted and created anew.`));
    return (this.#starting ??= this.#start(signal).finally(() => (this.#starting = undefined)));
  }

  async requestStop(): Promise<void> {
    if (this.#record.state === "stopped") return;
    const control = this.#requireControl();
    // A paused guest would see the button only after it goes on.
    if (this.#isPaused) await control.command("cont");
    await control.command("system_powerdown");
  }

  async kill(): Promise<void> {
    if (this.#record.state === "stopped") return this.#killProcesses();
    this.#pendingCause ??= "killed";
    await this.#killProcesses();
    await this.#finish();
  }

  async pause(): Promise<void> {
    await this.#requireControl().command("stop");
    this.#isPaused = true;
  }

  async resume(): Promise<void> {
    await this.#requireControl().command("cont");
    this.#isPaused = false;
  }

  async delete(): Promise<void> {
    await this.kill();
    this.#lifetime.abort();
    for (const socket of [this.#paths.qmpSocket, this.#paths.serialSocket, this.#paths.screenSocket, this.#paths.volumeSocket])
      await rm(socket, { force: true });
    // The record goes first: what remains after a crash here is swept, while a record without a disk would be a lie.
    await rm(this.#paths.record, { force: true });
    await rm(this.#paths.directory, { recursive: true, force: true });
    this.#context.onDeleted();
  }

  async openConsole(): Promise<Duplex> {
    this.#requireRunning();
    return this.#console.open();
  }

  openScreen(): Promise<Duplex> {
    this.#requireRunning();
    return connected(connect({ path: this.#paths.screenSocket }), `The screen of ${this.specification.name} does not answer.`);
  }

  dial(port: number, signal?: AbortSignal): Promise<Duplex> {
    const host = this.specification.network.podIP;
    const socket = connect({ host, port, noDelay: true, keepAlive: true });
    return connected(socket, `${this.specification.name} does not answer on ${host}:${port}.`, signal);
  }

  async statistics(): Promise<VirtualMachineStatistics> {
    const processes = [this.#record.qemu, this.#record.volumeServer].filter((identity) => identity !== undefined && isRunning(identity));
    let cpuTicks = 0;
    let memory = 0;
    for (const identity of processes) {
      if (identity === undefined) continue;
      cpuTicks += processStatus(identity.processId)?.cpuTicks ?? 0;
      memory += await residentBytes(identity.processId);
    }
    const { interfaceName } = this.specification.network;
    const counter = async (name: string): Promise<number> =>
      Number((await readFile(`/sys/class/net/${interfaceName}/statistics/${name}`, "utf8").catch(() => "0")).trim());
    const disk = await stat(this.#paths.overlay).catch(() => undefined);
    return {
      time: new Date(),
      cpuNanoseconds: cpuTicks * nanosecondsPerTick,
      memoryWorkingSetBytes: memory,
      // What the host sends is what the guest receives.
      receivedBytes: await counter("tx_bytes"),
      transmittedBytes: await counter("rx_bytes"),
      diskUsedBytes: (disk?.blocks ?? 0) * 512,
    };
  }

  /** Writes the overlay (again, after a crash in between); nothing runs yet. */
  async prepareDisk(): Promise<void> {
    const { diskPath, diskSize } = this.specification.image;
    const bytes = Math.max(diskSize, (await stat(diskPath)).size);
    await rm(this.#paths.overlay, { force: true });
    // The base's format is said, never guessed: a guest must not turn its raw disk into a qcow2 that names host files.
    await runProgram("qemu-img", [
      "create",
      "-q",
      "-f",
      "qcow2",
      "-o",
      `lazy_refcounts=on,backing_fmt=raw,backing_file=${diskPath.replaceAll(",", ",,")}`,
      this.#paths.overlay,
      String(bytes),
    ]);
  }

  /** After a restart of the host: finds the processes of the record again, or what ended them. */
  async reconnect(): Promise<void> {
    if (this.#record.state === "created" || this.#record.state === "stopped") return;
    const isSameBoot = this.#record.bootId === (await bootId());
    let { qemu } = this.#record;
    // A crash between spawning and recording leaves a process only its command line tells of.
    if (qemu === undefined && isSameBoot) qemu = await this.#findQemu();
    if (qemu === undefined || !isSameBoot || !isRunning(qemu)) {
      const hasRun = didRun(await this.#trace());
      if (this.#record.state === "starting" && !hasRun) {
        await this.#killProcesses();
        await this.#save({ ...this.#record, state: "created", qemu: undefined, volumeServer: undefined });
        return;
      }
      await this.#finish(isSameBoot ? undefined : "The host was restarted.");
      return;
    }
    const volumeServer = this.#record.volumeServer ?? (this.specification.sharedPaths.length > 0 ? await this.#findVolumeServer() : undefined);
    await this.#save({ ...this.#record, qemu, volumeServer });
    await this.#connectControl(10_000).catch((error: unknown) => this.#logger.warn("QEMU runs but does not answer yet.", { error: messageOf(error) }));
    await this.#save({ ...this.#record, state: "running", startedAt: this.#record.startedAt ?? new Date() });
    this.#watch(qemu, this.#record.volumeServer);
  }

  async #start(signal: AbortSignal | undefined): Promise<void> {
    try {
      signal?.throwIfAborted();
      const argv = await this.#context.commandLine(this.specification);
      if (
        !(await access(this.#paths.overlay).then(
          () => true,
          () => false,
        ))
      )
        await this.prepareDisk();
      await rm(this.#paths.trace, { force: true });
      await this.#save({ ...this.#record, state: "starting", argv: [...argv], bootId: await bootId() });
      if (this.specification.sharedPaths.length > 0) {
        const { identity, exited } = await startVolumeServer(this.specification.sharedPaths, this.#paths, signal);
        await this.#save({ ...this.#record, volumeServer: identity });
        void exited.then(() => this.#volumeServerEnded());
      }
      const qemu = await this.#spawn(argv);
      await this.#connectControl(60_000, signal, qemu);
      await this.#save({ ...this.#record, state: "running", startedAt: new Date() });
      this.#watch(qemu, undefined);
    } catch (error) {
      const exit = await this.#failedToStart(error);
      if (signal?.aborted === true) throw new PodyardError("Cancelled", `The start of ${this.specification.name} was cancelled.`);
      if (error instanceof PodyardError && error.code !== "Unavailable" && error.code !== "Timeout") throw error;
      throw new PodyardError("Internal", exit.message, { cause: error });
    }
  }

  async #failedToStart(reason: unknown): Promise<VirtualMachineExit> {
    await this.#killProcesses();
    const log = (await readFile(this.#paths.log, "utf8").catch(() => "")).trim().split("\n").slice(-3).join(" ");
    this.#pendingCause = "failed-to-start";
    await this.#finish(`${messageOf(reason)}${log === "" ? "" : ` QEMU said: ${log}`}`);
    return this.#record.exit ?? exitOf("failed-to-start", new Date());
  }

  async #spawn(argv: readonly string[]): Promise<ProcessIdentity> {
    for (const socket of [this.#paths.qmpSocket, this.#paths.serialSocket, this.#paths.screenSocket]) await rm(socket, { force: true });
    await mkdir(dirname(this.#paths.qmpSocket), { recursive: true, mode: 0o700 });
    const log = await open(this.#paths.log, "a", 0o600);
    try {
      if (this.#pendingCause !== undefined) throw new PodyardError("Cancelled", `${this.specification.name} was ended while it started.`);
      const child = spawn("sh", ["-c", lockAndRun, "sh", this.#paths.lock, ...argv], {
        detached: true,
        cwd: "/",
        stdio: ["ignore", log.fd, log.fd],
        env: environmentWithSystemPath(),
      });
      child.once("error", () => undefined);
      child.unref();
      const identity = child.pid === undefined ? undefined : identify(child.pid);
      if (identity === undefined) throw new PodyardError("Internal", "QEMU could not be spawned.");
      await this.#save({ ...this.#record, qemu: identity });
      return identity;
    } finally {
      await log.close();
    }
  }

  /** Connects as soon as QEMU listens. Errors: Unavailable (it ended), Timeout, Cancelled. */
  async #connectControl(milliseconds: number, signal?: AbortSignal, qemu = this.#record.qemu): Promise<void> {
    const deadline = Date.now() + milliseconds;
    for (;;) {
      signal?.throwIfAborted();
      if (this.#pendingCause !== undefined) throw new PodyardError("Cancelled", `${this.specification.name} was ended while it started.`);
      if (qemu !== undefined && !isRunning(qemu)) throw new PodyardError("Unavailable", "QEMU ended at once.");
      try {
        const control = await QmpClient.connect(this.#paths.qmpSocket, (event) => this.#onEvent(event), 5000);
        this.#control = control;
        this.#isPaused = !["running", "prelaunch", "inmigrate"].includes(await control.status());
        return;
      } catch (error) {
        if (Date.now() > deadline) throw error;
      }
      await delay(15);
    }
  }

  #onEvent(event: string): void {
    if (event === "STOP") this.#isPaused = true;
    else if (event === "RESUME") this.#isPaused = false;
  }

  /** Follows the processes until they end. An adopted virtiofsd is nobody's child, so it is looked at. */
  #watch(qemu: ProcessIdentity, adoptedVolumeServer: ProcessIdentity | undefined): void {
    void this.#followControl(qemu).catch((error: unknown) => this.#logger.error("The machine is no longer watched.", { error: messageOf(error) }));
    if (adoptedVolumeServer !== undefined)
      void waitForExit(adoptedVolumeServer, this.#lifetime.signal).then(
        () => this.#volumeServerEnded(),
        () => undefined,
      );
  }

  async #followControl(qemu: ProcessIdentity): Promise<void> {
    while (isRunning(qemu) && this.#record.state !== "stopped") {
      if (this.#control === undefined) await this.#connectControl(5000).catch(() => undefined);
      if (this.#control === undefined) {
        await delay(1000, undefined, { ref: false });
        continue;
      }
      await this.#control.closed;
      this.#control = undefined;
      // QEMU closes its socket shortly before it is gone.
      for (let attempt = 0; attempt < 200 && isRunning(qemu); attempt++) await delay(10);
    }
    await this.#finish();
  }

  /** It also ends when QEMU does; only while QEMU still answers is it the cause. */
  async #volumeServerEnded(): Promise<void> {
    if (this.#record.state === "stopped" || this.#pendingCause !== undefined) return;
    const status = await this.#control?.status().catch(() => undefined);
    if (status === undefined || status === "shutdown") return;
    this.#logger.warn("The machine's virtiofsd ended; the machine cannot go on without its volumes.");
    this.#pendingCause = "volume-server-lost";
    await this.#killProcesses();
    await this.#finish();
  }

  #finish(detail?: string): Promise<void> {
    return (this.#finishing ??= this.#recordExit(detail));
  }

  async #recordExit(detail: string | undefined): Promise<void> {
    const traced = causeFromTrace(await this.#trace());
    // A guest that was quicker than our kill has powered off all the same.
    const cause = this.#pendingCause === undefined || (this.#pendingCause === "killed" && traced !== "killed") ? traced : this.#pendingCause;
    const ended = await stat(this.#paths.trace).catch(() => undefined);
    const finishedAt = cause === "guest-power-off" || cause === "guest-reset" || cause === "guest-panic" ? (ended?.mtime ?? new Date()) : new Date();
    const exit = exitOf(cause, finishedAt, detail);
    this.#control?.close();
    this.#control = undefined;
    await this.#killProcesses();
    await this.#save({ ...this.#record, state: "stopped", exit }).catch((error: unknown) =>
      this.#logger.error("The machine's end could not be recorded.", { error: messageOf(error) }),
    );
    this.#lifetime.abort();
    this.#console.close();
    this.#logger.info(exit.message, { cause, exitCode: exit.exitCode });
    this.#settleStopped(exit);
  }

  /** Resolves when neither QEMU nor virtiofsd runs, recorded or not. */
  async #killProcesses(): Promise<void> {
    const isSameBoot = this.#record.bootId === (await bootId());
    if (!isSameBoot) return;
    const qemu = this.#record.qemu ?? (await this.#findQemu());
    if (qemu !== undefined) await killProcess(qemu);
    if (this.specification.sharedPaths.length === 0) return;
    const server = this.#record.volumeServer ?? (await this.#findVolumeServer());
    if (server === undefined || !isRunning(server)) return;
    try {
      // Its sandbox is a child in the same process group.
      process.kill(-server.processId, "SIGKILL");
    } catch {
      // It ended by itself, as it does when QEMU goes.
    }
    await killProcess(server);
  }

  /** Whatever of it a crash kept from being recorded. */
  #findQemu(): Promise<ProcessIdentity | undefined> {
    return findProcess((argument) => argument.startsWith("socket,id=control,") && argument.includes(`path=${this.#paths.qmpSocket},`));
  }

  #findVolumeServer(): Promise<ProcessIdentity | undefined> {
    return findProcess((argument) => argument === `--socket-path=${this.#paths.volumeSocket}`);
  }

  async #save(record: MachineRecord): Promise<void> {
    this.#record = record;
    // In order, each with the newest state: two steps at once must not write back an older one.
    this.#saving = this.#saving.catch(() => undefined).then(() => writeRecord(this.#paths.record, this.#record));
    await this.#saving;
  }

  async #trace(): Promise<string> {
    return readFile(this.#paths.trace, "utf8").catch(() => "");
  }

  #requireRunning(): void {
    if (this.#record.state !== "running") throw new PodyardError("Conflict", `${this.specification.name} is ${this.#record.state}, not running.`);
  }

  #requireControl(): QmpClient {
    this.#requireRunning();
    if (this.#control === undefined) throw new PodyardError("Unavailable", `The process of ${this.specification.name} does not answer.`);
    return this.#control;
  }
}

/** The signal ends the attempt, not the connection. */
function connected(socket: Socket, sentence: string, signal?: AbortSignal): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const abort = (): void => void socket.destroy(new Error("aborted"));
    const fail = (error: Error): void => {
      signal?.removeEventListener("abort", abort);
      reject(new PodyardError(signal?.aborted === true ? "Cancelled" : "Unavailable", sentence, { cause: error }));
    };
    signal?.addEventListener("abort", abort);
    if (signal?.aborted === true) abort();
    socket.once("error", fail);
    socket.once("connect", () => {
      signal?.removeEventListener("abort", abort);
      socket.off("error", fail);
      resolve(socket);
    });
  });
}
