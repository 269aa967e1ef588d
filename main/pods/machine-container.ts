/**
 * Container 0: a virtual machine, and otherwise a container. Every attempt is a fresh clone with the Pod's network and
 * MAC address. With a command its main process is the container; without one the machine itself is. Design, "Container 0".
 *
 * `prepare` may be repeated at any point after a crash: machines, mounts and main processes are found again by their ids.
 */
import { dirname, join } from "node:path";
import { hasCode, messageOf, PodyardError } from "../contract/errors.ts";
import type { CachedImage } from "../images/image-store.ts";
import type { ContainerStateTerminated } from "../contract/kubernetes-api.generated.ts";
import type { Guest, MainProcessState } from "../virtual-machines/guest.ts";
import type { VirtualMachine } from "../virtual-machines/virtual-machine.ts";
import { KUBELET_BACKOFF } from "./backoff.ts";
import { ContainerUnit } from "./container-unit.ts";
import { connectTo } from "./dial.ts";
import { guestLogin } from "./guest-login.ts";
import { type PulledImage, pullImage } from "./image-pull.ts";
import { logTail } from "./logs.ts";
import { MachineOutput } from "./machine-output.ts";
import { repositoryOf, sentenceOf, terminatedBy, terminatedMachine } from "./machine-exit.ts";
import { type ContainerInputs, ContainerProblem, resolveInputs } from "./pod-context.ts";
import { hostEntries } from "./pod-network-files.ts";
import { type ContainerTarget, unlessAborted } from "./pod-target.ts";
import { machineSize } from "./resources.ts";

/** On the machine: which attempt of the container it is. */
export const RESTART_LABEL = "restart-count";

export class MachineContainer extends ContainerUnit {
  #machine: VirtualMachine | undefined;
  #guest: Guest | undefined;
  #inputs: ContainerInputs | undefined;
  #pull: Promise<PulledImage<CachedImage>> | undefined;
  readonly #output: MachineOutput;

  constructor(...parameters: ConstructorParameters<typeof ContainerUnit>) {
    super(...parameters);
    this.#output = new MachineOutput(this.context.record.directory, this.name, this.context.logger.child({ container: this.name }));
  }

  get machine(): VirtualMachine | undefined {
    return this.#machine;
  }

  /** The guest, once it answered. */
  get guest(): Guest | undefined {
    return this.isRunning ? this.#guest : undefined;
  }

  /** Aborts when the present attempt's log is complete: what a follower waits for. */
  get ended(): AbortSignal {
    return this.record.state?.terminated === undefined ? this.#output.complete : AbortSignal.abort();
  }

  /** Environment of the present attempt, for commands that exec runs beside it. */
  get environment(): Readonly<Record<string, string>> {
    return Object.fromEntries((this.#inputs?.variables ?? []).map(({ name, value }) => [name, value]));
  }

  get hasCommand(): boolean {
    const { command = [], args = [] } = this.spec;
    return command.length + args.length > 0;
  }

  get mayRun(): boolean {
    return this.#machine !== undefined && this.#machine.state !== "stopped";
  }

  /** Log of an attempt, in the CRI format. */
  logPath(restartCount: number = this.record.restartCount): string {
    return this.#output.path(restartCount);
  }

  /** Begins the download early, while init containers still run. */
  prefetch(signal: AbortSignal): void {
    if (this.record.state !== undefined || this.#pull !== undefined || this.#machine !== undefined) return;
    const pull = this.#pullImage(signal);
    pull.catch(() => {
      if (this.#pull === pull) this.#pull = undefined;
    });
    this.#pull = pull;
  }

  target(): ContainerTarget {
    const machine = this.#machine;
    return {
      address: this.context.podIPs()[0] ?? this.name,
      exec: (request) => {
        if (this.#guest === undefined) throw new PodyardError("Unavailable", `The guest of container ${this.name} does not answer yet.`);
        return this.#guest.exec({ environment: this.environment, ...(this.spec.workingDir === undefined ? {} : { workingDirectory: this.spec.workingDir }), ...request });
      },
      dial: (port, host, signal) => {
        if (host !== undefined && host !== this.context.podIPs()[0]) return connectTo(host, port, signal);
        if (machine === undefined) throw new PodyardError("Unavailable", "connect: connection refused");
        return machine.dial(port, signal);
      },
    };
  }

  protected async prepare(signal: AbortSignal): Promise<void> {
    this.#machine ??= this.context.takeAdoptedMachine();
    const { record } = this;
    if (this.#machine !== undefined && this.#machine.specification.labels[RESTART_LABEL] !== String(record.restartCount)) await this.#discard();
    if (record.state?.running !== undefined && this.#machine === undefined) {
      const { startedAt } = record.state.running;
      await this.recordTerminated({ ...this.#lostExit(), ...(startedAt === undefined ? {} : { startedAt }) });
      return;
    }
    const machine = this.#machine ?? (await this.#create(signal));
    this.#machine = machine;
    if (machine.state !== "stopped") await this.#start(machine, signal);
    if (!this.hasCommand) await this.#output.mirror(machine, record.restartCount);
    const before = record.state?.running;
    try {
      await unlessAborted(Promise.race([this.#reachGuest(machine, signal), machine.stopped.then(() => {})]), signal);
    } catch (error) {
      if (signal.aborted) throw error;
      // A guest that cannot be reached is a failed attempt, not a host's problem: the machine goes, restartPolicy decides.
      if (error instanceof ContainerProblem) throw error;
      this.event("Warning", "Failed", `Error: ${messageOf(error)}`);
      await machine.kill();
      await this.#finish(terminatedBy(error, machine));
      return;
    }
    if (machine.state === "stopped" && before === undefined && record.ended === undefined) {
      await this.#finish(terminatedMachine(await machine.stopped, machine.startedAt));
      return;
    }
    const main: MainProcessState = this.hasCommand && machine.state !== "stopped" && this.#guest !== undefined ? await this.#guest.mainProcess() : { state: "absent" };
    await this.recordRunning(main.state === "absent" ? new Date() : main.startedAt);
    if (before === undefined) this.event("Normal", "Started", "Container started");
  }

  protected async supervise(): Promise<void> {
    const machine = this.#machine;
    if (machine === undefined) {
      await this.recordTerminated(this.#lostExit());
      return;
    }
    const startedAt = this.record.state?.running?.startedAt;
    let exit: ContainerStateTerminated | undefined = this.record.ended;
    if (exit === undefined && this.hasCommand && this.#guest !== undefined) exit = await this.#superviseMain(this.#guest, machine);
    if (exit === undefined) {
      const ended = await machine.stopped;
      this.stopProber();
      exit = { ...terminatedMachine(ended, machine.startedAt), ...(startedAt === undefined ? {} : { startedAt }) };
      await this.#finish(exit);
      return;
    }
    this.stopProber();
    // Written first: from here on a restarted host knows that the container ended and how.
    this.record.ended = exit;
    await this.context.record.save();
    await this.#output.drained(machine);
    await this.#powerOff(machine);
    await this.#finish(exit);
  }

  protected async requestStop(): Promise<void> {
    if (this.#machine === undefined || this.#machine.state === "stopped") return;
    const guest = this.#guest;
    if (guest !== undefined && this.hasCommand) return guest.signalMainProcess(15);
    await this.#askToPowerOff(this.#machine);
  }

  protected async kill(): Promise<void> {
    this.#machine ??= this.context.takeAdoptedMachine();
    await this.#machine?.kill();
    await this.#output.stop();
    await this.#closeGuest();
  }

  /** Removes the machine and gives its slot back; at the end of the Pod. */
  async discard(): Promise<void> {
    await this.#discard();
    this.context.slots.release(this.context.machineId);
  }

  /** The host goes away: connections close, the machine runs on. */
  async release(): Promise<void> {
    this.detach();
    await this.#output.stop();
    await this.#closeGuest();
  }

  async #discard(): Promise<void> {
    this.#machine ??= this.context.takeAdoptedMachine();
    await this.#output.stop();
    await this.#closeGuest();
    await this.#machine?.delete();
    this.#machine = undefined;
  }

  async #pullImage(signal: AbortSignal): Promise<PulledImage<CachedImage>> {
    const { images, pullCredentials, settings } = this.context.options;
    const policy = this.spec.imagePullPolicy === "Always" || this.spec.imagePullPolicy === "Never" ? this.spec.imagePullPolicy : "IfNotPresent";
    return pullImage<CachedImage>({
      reference: () => this.spec.image ?? "",
      changed: () => this.podChanged,
      policy,
      limits: settings.backoff ?? KUBELET_BACKOFF,
      signal,
      credentials: (named) => pullCredentials(this.context.pod(), named),
      isPresent: async (named) => (await images.find(named)) !== undefined,
      pull: async (named, credentials) => {
        try {
          return await images.pull(named, { policy, credentials, signal });
        } catch (error) {
          // The registry was away when the Pod came; now it says that this is no machine at all.
          if (hasCode(error, "InvalidArgument") && (await images.classify(named, credentials, signal)).kind === "container") this.context.refuseImage();
          throw error;
        }
      },
      sizeOf: (image) => image.sizeOnDisk,
      event: (type, reason, message) => this.event(type, reason, message),
      onWaiting: (waiting) => this.setWaiting(waiting),
    });
  }

  async #create(signal: AbortSignal): Promise<VirtualMachine> {
    const { context, record } = this;
    const { images, machines, settings } = context.options;
    // Kept until the machine is there, so that nobody begins it once more.
    this.#pull ??= this.#pullImage(signal);
    const pulling = this.#pull;
    const { image, reference } = await unlessAborted(pulling, signal);
    if (!context.slots.tryAcquire(context.machineId)) {
      const message = `Waiting for a virtual machine slot: all ${context.slots.maximum} of this node are in use.`;
      this.event("Warning", "WaitingForVirtualMachineSlot", message);
      this.setWaiting({ reason: "ContainerCreating", message });
      await context.slots.acquire(context.machineId, signal);
      this.setWaiting(undefined);
    }
    const network = await context.ready(signal);
    const inputs = await resolveInputs(context, this.spec);
    if (signal.aborted) throw new PodyardError("Cancelled", "The Pod is being stopped.");
    this.#inputs = inputs;
    const size = machineSize(context.pod(), image.operatingSystem, settings.defaultMachineSize);
    await images.retain(image.digest, context.machineId);
    const { name = "", namespace = "" } = context.pod().metadata ?? {};
    let machine: VirtualMachine;
    try {
      machine = await machines.create({
        id: context.machineId,
        name: `${namespace}/${name}`,
        labels: { "pod-uid": context.uid, namespace, "pod-name": name, container: this.name, [RESTART_LABEL]: String(record.restartCount) },
        ...size,
        image: {
          digest: image.digest,
          diskPath: image.diskPath,
          diskSize: image.diskSize,
          operatingSystem: image.operatingSystem,
          ...(image.architecture === undefined ? {} : { architecture: image.architecture }),
          ...(image.auxiliaryPath === undefined ? {} : { auxiliaryPath: image.auxiliaryPath }),
          ...(image.hardwareModel === undefined ? {} : { hardwareModel: image.hardwareModel }),
          ...(image.machineIdentifier === undefined ? {} : { machineIdentifier: image.machineIdentifier }),
        },
        network,
        sharedPaths: inputs.mounts.map(({ hostPath, readOnly }) => ({ hostPath, readOnly })),
      });
    } catch (error) {
      throw new ContainerProblem("CreateContainerError", sentenceOf(error), { cause: error });
    }
    this.#pull = undefined;
    const facts = await machines.facts();
    record.image = reference;
    record.guest = image.guest;
    record.imageId = `${repositoryOf(reference)}@${image.digest}`;
    record.containerId = `${facts.name === "virtualization" ? "vz" : facts.name}://${context.machineId}`;
    const given = { cpu: String(size.cpuCount), memory: String(size.memoryBytes) };
    record.resources = { requests: given, limits: given };
    await context.record.save();
    this.event("Normal", "Created", "Container created");
    context.changed();
    return machine;
  }

  async #start(machine: VirtualMachine, signal: AbortSignal): Promise<void> {
    try {
      await machine.start(signal);
    } catch (error) {
      if (signal.aborted) throw error;
      throw new ContainerProblem("RunContainerError", sentenceOf(error), { cause: error });
    }
  }

  /** Waits for the guest, then names, mounts and the main process. */
  async #reachGuest(machine: VirtualMachine, signal: AbortSignal): Promise<void> {
    const { context } = this;
    if (machine.state === "stopped") return;
    const image = await context.options.images.find(machine.specification.image.digest);
    // A Secret that is not there yet, or an image's record that was lost, says nothing against a machine that runs: it waits.
    const login = await guestLogin(context.pod(), image?.guest ?? this.record.guest ?? {}, context.options.settings.guestLogin, context.options.objects).catch((error: unknown) => {
      throw hasCode(error, "InvalidArgument") ? new ContainerProblem("CreateContainerConfigError", sentenceOf(error), { cause: error }) : error;
    });
    await this.#closeGuest();
    const guest = context.options.guests.open(machine, login, { stateDirectory: join(dirname(machine.consoleLogPath), "guest") });
    this.#guest = guest;
    const seconds = context.options.settings.guestReadinessTimeoutSeconds ?? 300;
    const limited = AbortSignal.any([signal, AbortSignal.timeout(seconds * 1000)]);
    // A machine that stops must not leave a connection attempt behind.
    const stop = new AbortController();
    void machine.stopped.then(() => stop.abort());
    try {
      await guest.waitReady(AbortSignal.any([limited, stop.signal]));
    } catch (error) {
      if (stop.signal.aborted) return;
      if (limited.aborted && !signal.aborted) throw new PodyardError("Timeout", `The guest did not answer on port ${login.port} within ${seconds} s.`);
      throw error;
    }
    const network = await context.ready(signal);
    const hostname = context.hostname();
    await guest.configure({ hostname: hostname.shown, hosts: hostEntries(context.pod(), hostname, { self: network.podIP, podIP: network.podIP, sidecarIP: network.sidecarIP }) });
    const inputs = (this.#inputs ??= await resolveInputs(context, this.spec));
    await guest.mount(inputs.mounts.map(({ mountPath, readOnly }, index) => ({ index, mountPath, readOnly })));
    if (this.hasCommand) await this.#startMain(guest, inputs);
  }

  async #startMain(guest: Guest, inputs: ContainerInputs): Promise<void> {
    const { spec } = this;
    const podSecurity = this.context.pod().spec?.securityContext;
    const userId = spec.securityContext?.runAsUser ?? podSecurity?.runAsUser;
    const groupId = spec.securityContext?.runAsGroup ?? podSecurity?.runAsGroup;
    if (this.record.state?.running === undefined) {
      await guest.startMainProcess({
        attempt: `${this.context.uid}-${this.record.restartCount}`,
        argv: [...(inputs.command ?? []), ...(inputs.args ?? [])].map((argument) => Buffer.from(argument)),
        environment: this.environment,
        ...(spec.workingDir === undefined || spec.workingDir === "" ? {} : { workingDirectory: spec.workingDir }),
        stdin: spec.stdin ?? false,
        stdinOnce: spec.stdinOnce ?? false,
        terminal: spec.tty ?? false,
        ...(userId === undefined ? {} : { userId }),
        ...(groupId === undefined ? {} : { groupId }),
        terminationMessagePath: spec.terminationMessagePath ?? "/dev/termination-log",
      });
    }
    await this.#output.copy(guest, this.record.restartCount);
  }

  /** How the main process ended; undefined if the machine went first. */
  async #superviseMain(guest: Guest, machine: VirtualMachine): Promise<ContainerStateTerminated | undefined> {
    const stop = new AbortController();
    const stopped = machine.stopped.then(() => undefined);
    try {
      const main = await Promise.race([guest.waitMainProcess(stop.signal), stopped]);
      if (main === undefined) return undefined;
      const { exitCode, signal } = main.exit;
      return {
        exitCode,
        ...(signal === undefined ? {} : { signal }),
        reason: exitCode === 0 ? "Completed" : "Error",
        ...(main.terminationMessage === undefined || main.terminationMessage === "" ? {} : { message: main.terminationMessage.slice(-4096) }),
        startedAt: main.startedAt.toISOString(),
        finishedAt: main.finishedAt.toISOString(),
      };
    } catch (error) {
      if (machine.state === "stopped") return undefined;
      this.context.logger.error("The main process can no longer be watched; its machine is stopped.", { container: this.name, error: messageOf(error) });
      await machine.kill();
      return undefined;
    } finally {
      stop.abort();
    }
  }

  /** Lets the guest write its caches back (volumes are shared), but not for long: its disk is thrown away. */
  async #powerOff(machine: VirtualMachine): Promise<void> {
    if (machine.state === "stopped") return;
    const limit = AbortSignal.timeout((this.context.options.settings.powerOffSeconds ?? 5) * 1000);
    await unlessAborted(this.#askToPowerOff(machine), limit).catch(() => {});
    await unlessAborted(machine.stopped, limit).catch(() => {});
    await machine.kill();
  }

  async #askToPowerOff(machine: VirtualMachine): Promise<void> {
    if (this.#guest !== undefined && this.isRunning) {
      try {
        return await this.#guest.shutDown();
      } catch (error) {
        this.context.logger.debug("The guest could not be asked to shut down; trying the power button.", { container: this.name, error: messageOf(error) });
      }
    }
    await machine.requestStop();
  }

  /** The log is whole, then the end is recorded. */
  async #finish(exit: ContainerStateTerminated): Promise<void> {
    await this.#output.stop();
    await this.#closeGuest();
    this.#inputs = undefined;
    const fallBack = exit.exitCode !== 0 && exit.message === undefined && this.spec.terminationMessagePolicy === "FallbackToLogsOnError";
    const message = fallBack ? await logTail(this.logPath(), 80, 2048).catch(() => "") : (exit.message ?? "");
    await this.recordTerminated({ ...exit, ...(message === "" ? {} : { message }) });
    this.#output.end();
  }

  async #closeGuest(): Promise<void> {
    const guest = this.#guest;
    this.#guest = undefined;
    try {
      await guest?.[Symbol.asyncDispose]();
    } catch (error) {
      this.context.logger.debug("A guest's connection did not close cleanly.", { container: this.name, error: messageOf(error) });
    }
  }

  #lostExit(): ContainerStateTerminated {
    if (this.record.ended !== undefined) return this.record.ended;
    return { exitCode: 137, reason: "ContainerStatusUnknown", message: "The container could not be located when the host came back.", finishedAt: new Date().toISOString() };
  }
}
