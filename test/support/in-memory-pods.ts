/**
 * The world around the sync loop, in memory: machines, guests, networks, containers, images and an API that outlive a
 * host. A host is a set of interfaces onto that world which can be killed at any call: from then on nothing it asked for
 * ever answers, as if the process had got SIGKILL. For tests of order and resumption, and for measuring the loop alone.
 */
import { appendFile, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { PodyardError } from "../../main/contract/errors.ts";
import type { ContainerStatus, Pod, PodStatus } from "../../main/contract/kubernetes-api.generated.ts";
import { silentLogger } from "../../main/contract/logger.ts";
import type { ContainerInfo } from "../../main/containers/container-engine.ts";
import type { CachedImage } from "../../main/images/image-store.ts";
import type { PodManagerOptions, PodManagerSettings } from "../../main/pods/pod-context.ts";
import type { MainProcessState } from "../../main/virtual-machines/guest.ts";
import type { PodNetwork, VirtualMachine, VirtualMachineExit, VirtualMachineSpecification, VirtualMachineState } from "../../main/virtual-machines/virtual-machine.ts";

interface MemoryMachine {
  readonly specification: VirtualMachineSpecification;
  state: VirtualMachineState;
  startedAt: Date | undefined;
  exit: VirtualMachineExit | undefined;
  readonly stopped: PromiseWithResolvers<VirtualMachineExit>;
  main: MainProcessState;
  mainAttempt: string;
  readonly mainExited: PromiseWithResolvers<void>;
}

interface MemoryContainer {
  info: ContainerInfo;
}

export interface ApiEvent {
  readonly pod: string;
  readonly type: string;
  readonly reason: string;
  readonly message: string;
  readonly container: string | undefined;
}

export class MemoryWorld {
  readonly machines = new Map<string, MemoryMachine>();
  readonly networks = new Map<string, PodNetwork>();
  readonly containers = new Map<string, MemoryContainer>();
  readonly sandboxes = new Set<string>();
  readonly retained = new Map<string, string>();
  readonly pods = new Map<string, Pod>();
  readonly events: ApiEvent[] = [];
  readonly statusWrites: PodStatus[] = [];
  /** What happened, in order: `create machine ID 0`, `start main ATTEMPT`, … */
  readonly journal: string[] = [];
  /** A reference whose pull fails, or which is a container's. */
  readonly brokenImages = new Map<string, Error>();
  readonly containerImages = new Set<string>();
  /** Milliseconds a main process takes to obey SIGTERM; Infinity = it ignores it. */
  stopDelay = 0;
  readonly #sourceListeners = new Set<(uid: string) => void>();
  readonly #engineListeners = new Set<(uid: string) => void>();
  readonly #waiters = new Set<() => void>();
  #counter = 0;

  /** Any change wakes those who wait for a condition. */
  notify(): void {
    for (const waiter of this.#waiters) waiter();
  }

  /** Resolves once the condition holds; rejects with what the world looks like when it does not in time. */
  async until(what: string, condition: () => boolean, milliseconds = 5000): Promise<void> {
    const deadline = Date.now() + milliseconds;
    while (!condition()) {
      if (Date.now() > deadline) throw new Error(`${what} did not happen. Journal:\n${this.journal.join("\n")}\nEvents:\n${this.events.map(({ reason, message }) => `${reason}: ${message}`).join("\n")}\nStatus: ${JSON.stringify([...this.pods.values()].map(({ status }) => status), undefined, 1)}`);
      await new Promise<void>((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          this.#waiters.delete(wake);
          resolve();
        };
        // A condition may also look at files and timers, which tell nobody.
        const timer = setTimeout(wake, 20);
        this.#waiters.add(wake);
      });
    }
  }

  addPod(pod: Pod): void {
    this.setPod(pod.metadata?.uid ?? "", pod);
  }

  setPod(uid: string, pod: Pod | undefined): void {
    if (pod === undefined) this.pods.delete(uid);
    else this.pods.set(uid, { ...pod, metadata: { ...pod.metadata, resourceVersion: String(++this.#counter) } });
    for (const listener of this.#sourceListeners) listener(uid);
    this.notify();
  }

  deletePod(uid: string, graceSeconds = 30): void {
    const pod = this.pods.get(uid);
    if (pod !== undefined) this.setPod(uid, { ...pod, metadata: { ...pod.metadata, deletionTimestamp: new Date().toISOString(), deletionGracePeriodSeconds: graceSeconds } });
  }

  status(uid: string): PodStatus | undefined {
    return this.pods.get(uid)?.status;
  }

  containerStatus(uid: string, name: string): ContainerStatus | undefined {
    const status = this.status(uid);
    return [...(status?.containerStatuses ?? []), ...(status?.initContainerStatuses ?? [])].find((container) => container.name === name);
  }

  /** The main process of container 0 ends by itself. */
  exitMain(id: string, exitCode: number): void {
    const machine = this.machines.get(id);
    if (machine?.main.state !== "running") return;
    machine.main = { state: "exited", startedAt: machine.main.startedAt, finishedAt: new Date(), exit: { exitCode } };
    this.journal.push(`main exited ${exitCode}`);
    machine.mainExited.resolve();
  }

  stopMachine(id: string, cause: VirtualMachineExit["cause"], exitCode: number): void {
    const machine = this.machines.get(id);
    if (machine === undefined || machine.state === "stopped") return;
    machine.state = "stopped";
    machine.exit = { cause, exitCode, message: cause, finishedAt: new Date() };
    this.journal.push(`machine stopped ${cause}`);
    machine.stopped.resolve(machine.exit);
    this.notify();
  }

  exitContainer(podUid: string, name: string, exitCode: number): void {
    for (const container of this.containers.values()) {
      if (container.info.podUid !== podUid || container.info.name !== name || container.info.state !== "running") continue;
      container.info = { ...container.info, state: "exited", exitCode, finishedAt: new Date() };
      this.journal.push(`container exited ${name} ${exitCode}`);
    }
    for (const listener of this.#engineListeners) listener(podUid);
    this.notify();
  }

  /** A host on this world. */
  host(dataDirectory: string, settings: Partial<PodManagerSettings> = {}): MemoryHost {
    return new MemoryHost(this, dataDirectory, settings, this.#sourceListeners, this.#engineListeners);
  }

  nextId(): string {
    return String(++this.#counter).padStart(12, "0");
  }
}

/** Calls are counted from 1; `killAt` is called before (and, answered true there, instead of) the call, `killAfter` once it has acted. */
export interface Faults {
  before?(call: number, name: string): boolean;
  after?(call: number, name: string): boolean;
}

export class MemoryHost {
  readonly world: MemoryWorld;
  readonly options: PodManagerOptions;
  faults: Faults = {};
  calls = 0;
  isDead = false;
  readonly #dataDirectory: string;
  readonly #died: (() => void)[] = [];
  readonly synced = Promise.withResolvers<void>();

  constructor(world: MemoryWorld, dataDirectory: string, settings: Partial<PodManagerSettings>, sourceListeners: Set<(uid: string) => void>, engineListeners: Set<(uid: string) => void>) {
    this.world = world;
    this.#dataDirectory = dataDirectory;
    this.synced.resolve();
    const alive = (listeners: Set<(uid: string) => void>, listener: (uid: string) => void) => {
      const guarded = (uid: string) => {
        if (!this.isDead) listener(uid);
      };
      listeners.add(guarded);
      return () => listeners.delete(guarded);
    };
    const { world: w } = this;
    this.options = {
      dataDirectory,
      logger: silentLogger,
      settings: { maximumMachines: 2, guestLogin: { user: "admin" }, powerOffSeconds: 0.2, ...settings },
      pullCredentials: async () => [],
      source: { synced: this.synced.promise, current: () => w.pods, subscribe: (listener) => alive(sourceListeners, listener) },
      node: { name: "node", addresses: () => ["192.0.2.1"], labels: () => ({}), allocatable: () => ({ cpu: 64_000, memory: 2 ** 40, pods: 1000, "ephemeral-storage": 2 ** 40, "podyard.dev/vm": 1000 }), accepting: () => true, clusterDNS: () => undefined },
      reporter: this.#guard("reporter", {
        writeStatus: async (pod, status) => {
          const known = w.pods.get(pod.metadata?.uid ?? "");
          if (known === undefined) return "gone" as const;
          const updated = { ...known, status, metadata: { ...known.metadata, resourceVersion: w.nextId() } };
          w.statusWrites.push(status);
          w.pods.set(pod.metadata?.uid ?? "", updated);
          w.notify();
          return updated;
        },
        remove: async (pod) => {
          w.journal.push(`remove ${pod.metadata?.name}`);
          w.setPod(pod.metadata?.uid ?? "", undefined);
        },
        event: (pod, type, reason, message, container) => {
          if (!this.isDead) w.events.push({ pod: pod.metadata?.name ?? "", type, reason, message, container });
        },
      }),
      objects: this.#guard("objects", {
        secret: async () => undefined,
        configMap: async () => undefined,
        serviceAccount: async () => undefined,
        services: async () => [],
        token: async () => ({ token: "token", expiresAt: new Date(Date.now() + 3_600_000) }),
        use: () => {},
        subscribe: () => () => {},
      }),
      images: this.#guard("images", this.#images()),
      machines: this.#guard("machines", {
        facts: async () => ({ name: "qemu" as const, version: "1", operatingSystem: "linux" as const, architecture: "amd64" as const, accelerator: "none", acceleratorNote: undefined, problems: [] }),
        create: async (specification) => {
          if (w.machines.has(specification.id)) throw new PodyardError("AlreadyExists", `Machine ${specification.id} exists.`);
          const machine: MemoryMachine = { specification, state: "created", startedAt: undefined, exit: undefined, stopped: Promise.withResolvers(), main: { state: "absent" }, mainAttempt: "", mainExited: Promise.withResolvers() };
          w.machines.set(specification.id, machine);
          w.journal.push(`create machine ${specification.labels["restart-count"]}`);
          return this.#machine(machine);
        },
        adopt: async () => [...w.machines.values()].map((machine) => this.#machine(machine)),
        sweep: async () => {},
      }),
      networks: this.#guard("networks", {
        ensure: async (request) => {
          const known = w.networks.get(request.id);
          const network = known ?? { id: request.id, podIP: `10.0.0.${w.networks.size + 2}`, sidecarIP: `10.0.1.${w.networks.size + 2}`, gatewayIP: "10.0.0.1", macAddress: "02:00:00:00:00:01", interfaceName: "tap0" };
          if (known === undefined) w.journal.push("create network");
          w.networks.set(request.id, network);
          return network;
        },
        find: async (id) => w.networks.get(id),
        attachSidecars: async () => {},
        remove: async (id) => void w.networks.delete(id),
        sweep: async (keep) => {
          for (const id of w.networks.keys()) if (!keep.has(id)) w.networks.delete(id);
        },
      }),
      guests: { open: (machine) => this.#guard("guest", this.#guest(machine.specification.id)) },
      engine: this.#guard("engine", this.#engine((listener) => alive(engineListeners, listener))),
    };
  }

  /** SIGKILL: nothing the host asked for ever answers any more. */
  kill(): void {
    if (this.isDead) return;
    this.isDead = true;
    for (const died of this.#died) died();
  }

  onDeath(action: () => void): void {
    this.#died.push(action);
  }

  #guard<Target extends object>(name: string, target: Target): Target {
    return new Proxy(target, {
      get: (object, key) => {
        const value: unknown = Reflect.get(object, key);
        if (value instanceof Promise) return this.#untilDeath(value);
        if (typeof value !== "function") return value;
        return (...parameters: unknown[]): unknown => {
          const act = (): unknown => Reflect.apply(value as (...all: unknown[]) => unknown, object, parameters);
          const isAsync = value.constructor.name === "AsyncFunction";
          if (!isAsync) return act();
          if (this.isDead) return new Promise(() => {});
          const call = ++this.calls;
          const described = `${name}.${String(key)}`;
          if (this.faults.before?.(call, described) === true) {
            this.kill();
            return new Promise(() => {});
          }
          return this.#untilDeath(
            Promise.resolve(act()).finally(() => {
              if (!this.isDead && this.faults.after?.(call, described) === true) this.kill();
            }),
          );
        };
      },
    });
  }

  async #untilDeath<Value>(promise: Promise<Value>): Promise<Value> {
    try {
      const value = await promise;
      return this.isDead ? await new Promise<never>(() => {}) : value;
    } catch (error) {
      if (this.isDead) return await new Promise<never>(() => {});
      throw error;
    }
  }

  #images(): PodManagerOptions["images"] {
    const { world: w } = this;
    const image = (reference: string): CachedImage => ({
      references: [reference],
      digest: `sha256:${"a".repeat(64)}`,
      operatingSystem: "linux",
      architecture: "amd64",
      diskPath: "/dev/null",
      diskSize: 1,
      auxiliaryPath: undefined,
      hardwareModel: undefined,
      machineIdentifier: undefined,
      guest: { user: "root", password: "root" },
      sizeOnDisk: 1,
      pulledAt: new Date(0),
      lastUsedAt: new Date(0),
      pinned: false,
      usedBy: [...w.retained.keys()],
    });
    return {
      list: async () => [image("image")],
      find: async (reference) => image(reference),
      classify: async (reference) => ({ kind: w.containerImages.has(reference) ? "container" : "virtual-machine", digest: `sha256:${"a".repeat(64)}` }),
      pull: async (reference) => {
        const broken = w.brokenImages.get(reference);
        if (broken !== undefined) throw broken;
        return { image: image(reference), downloaded: false, milliseconds: 1 };
      },
      push: async () => `sha256:${"a".repeat(64)}`,
      remove: async () => {},
      pin: async () => {},
      retain: async (digest, owner) => void w.retained.set(owner, digest),
      release: async (owner) => void w.retained.delete(owner),
      collectGarbage: async () => 0,
      usage: async () => ({ usedBytes: 0, availableBytes: 1, capacityBytes: 1 }),
    };
  }

  #machine(machine: MemoryMachine): VirtualMachine {
    const { world: w } = this;
    const { id } = machine.specification;
    const directory = join(this.#dataDirectory, "machines", id);
    return this.#guard("machine", {
      specification: machine.specification,
      get state() {
        return machine.state;
      },
      createdAt: new Date(0),
      get startedAt() {
        return machine.startedAt;
      },
      get exit() {
        return machine.exit;
      },
      stopped: machine.stopped.promise,
      start: async () => {
        if (machine.state !== "created") return;
        machine.state = "running";
        machine.startedAt = new Date();
        w.journal.push("start machine");
      },
      requestStop: async () => w.stopMachine(id, "guest-power-off", 0),
      kill: async () => w.stopMachine(id, "killed", 137),
      pause: async () => {},
      resume: async () => {},
      delete: async () => {
        w.stopMachine(id, "killed", 137);
        if (w.machines.get(id) === machine) {
          w.machines.delete(id);
          w.journal.push("delete machine");
          w.notify();
        }
      },
      openConsole: async () => new PassThrough(),
      openScreen: async () => new PassThrough(),
      consoleLogPath: join(directory, "console.log"),
      statistics: async () => ({ time: new Date(), cpuNanoseconds: 1, memoryWorkingSetBytes: 1, receivedBytes: 0, transmittedBytes: 0, diskUsedBytes: 0 }),
      dial: async () => new PassThrough(),
    });
  }

  #guest(id: string): ReturnType<PodManagerOptions["guests"]["open"]> {
    const { world: w } = this;
    const machine = () => {
      const found = w.machines.get(id);
      if (found === undefined || found.state !== "running") throw new PodyardError("Unavailable", "The guest is away.");
      return found;
    };
    const abortable = async (promise: Promise<unknown>, signal: AbortSignal) => {
      const aborted = Promise.withResolvers<never>();
      const onAbort = () => aborted.reject(new PodyardError("Cancelled", "Cancelled."));
      if (signal.aborted) onAbort();
      signal.addEventListener("abort", onAbort, { once: true });
      await Promise.race([promise, aborted.promise]);
    };
    return {
      waitReady: async () => void machine(),
      mount: async () => {},
      configure: async () => {},
      exec: async () => ({ stdin: undefined, stdout: Readable.from([]), stderr: undefined, resize() {}, exit: Promise.resolve({ exitCode: 0 }), async [Symbol.asyncDispose]() {} }),
      startMainProcess: async ({ attempt }) => {
        const found = machine();
        if (found.mainAttempt === attempt) return;
        found.mainAttempt = attempt;
        found.main = { state: "running", processId: 1, startedAt: new Date() };
        w.journal.push(`start main ${attempt.split("-").at(-1)}`);
        w.notify();
      },
      mainProcess: async () => machine().main,
      waitMainProcess: async (signal) => {
        const found = machine();
        await abortable(found.mainExited.promise, signal);
        if (found.main.state !== "exited") throw new PodyardError("Internal", "Not exited.");
        return found.main;
      },
      signalMainProcess: async () => {
        w.journal.push("signal main");
        if (w.stopDelay === 0) w.exitMain(id, 143);
        else if (Number.isFinite(w.stopDelay)) setTimeout(() => w.exitMain(id, 143), w.stopDelay);
      },
      attach: async () => {
        throw new PodyardError("Unsupported", "Not here.");
      },
      resizeMainTerminal: async () => {},
      copyOutput: async (path, signal) => {
        await mkdir(dirname(path), { recursive: true });
        await appendFile(path, "2026-01-01T00:00:00Z stdout F hello\n");
        await abortable(machine().mainExited.promise, signal);
      },
      shutDown: async () => w.stopMachine(id, "guest-power-off", 0),
      statistics: async () => undefined,
      [Symbol.asyncDispose]: async () => {},
    };
  }

  #engine(subscribe: (listener: (uid: string) => void) => () => void): PodManagerOptions["engine"] {
    const { world: w } = this;
    const get = (id: string) => {
      const found = w.containers.get(id);
      if (found === undefined) throw new PodyardError("NotFound", `No container ${id}.`);
      return found;
    };
    return {
      problem: async () => undefined,
      version: async () => "1",
      pull: async (reference) => ({ image: { id: "sha256:1", repositoryDigests: [], references: [reference], sizeBytes: 1, user: "" }, downloaded: false, milliseconds: 1 }),
      findImage: async (reference) => ({ id: "sha256:1", repositoryDigests: [], references: [reference], sizeBytes: 1, user: "" }),
      listImages: async () => [],
      ensureSandbox: async ({ podUid }) => {
        w.sandboxes.add(podUid);
        return { id: podUid, processId: 1 };
      },
      create: async (specification) => {
        const { podUid, namespace, podName, name, restartCount, image, labels } = specification;
        if ([...w.containers.values()].some(({ info }) => info.podUid === podUid && info.name === name && info.restartCount === restartCount)) throw new PodyardError("AlreadyExists", `Container ${name} exists.`);
        const info: ContainerInfo = { id: w.nextId(), podUid, namespace, podName, name, restartCount, state: "created", image, imageId: image, createdAt: new Date(), startedAt: undefined, finishedAt: undefined, exitCode: undefined, outOfMemoryKilled: false, error: undefined, processId: undefined, labels };
        w.containers.set(info.id, { info });
        return info;
      },
      start: async (id) => {
        const container = get(id);
        if (container.info.state === "running") return;
        container.info = { ...container.info, state: "running", startedAt: new Date() };
        w.journal.push(`start container ${container.info.name} ${container.info.restartCount}`);
        // Init containers have nothing to wait for.
        if (container.info.name.startsWith("init")) w.exitContainer(container.info.podUid, container.info.name, 0);
      },
      stop: async (id) => {
        const container = get(id);
        if (container.info.state !== "running") return;
        w.journal.push(`stop container ${container.info.name}`);
        w.exitContainer(container.info.podUid, container.info.name, 143);
      },
      remove: async (id) => void w.containers.delete(id),
      inspect: async (id) => w.containers.get(id)?.info,
      list: async (podUid) => [...w.containers.values()].map(({ info }) => info).filter((info) => podUid === undefined || info.podUid === podUid),
      removePod: async (podUid) => {
        w.sandboxes.delete(podUid);
        for (const [id, { info }] of w.containers) if (info.podUid === podUid) w.containers.delete(id);
      },
      sweep: async (keep) => {
        for (const uid of w.sandboxes) if (!keep.has(uid)) w.sandboxes.delete(uid);
        for (const [id, { info }] of w.containers) if (!keep.has(info.podUid)) w.containers.delete(id);
      },
      logs: async () => Readable.from([]),
      exec: async () => ({ stdin: undefined, stdout: Readable.from([]), stderr: undefined, resize() {}, exit: Promise.resolve({ exitCode: 0 }), async [Symbol.asyncDispose]() {} }),
      attach: async () => {
        throw new PodyardError("Unsupported", "Not here.");
      },
      statistics: async () => undefined,
      readFile: async () => undefined,
      watch: (listener) => {
        const end = subscribe(listener);
        return {
          async [Symbol.asyncDispose]() {
            end();
          },
        };
      },
    };
  }
}
