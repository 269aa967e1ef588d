/**
 * The way into Pods for kubectl, the gateway and the UI: finds the container, says in the kubelet's words why not, and
 * hands the stream over to the guest, the machine or the engine.
 */
import type { Duplex, Readable } from "node:stream";
import { PodyardError } from "../contract/errors.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import { type AttachRequest, type ExecRequest, type LogRequest, type ProcessSession, sessionOfDuplex } from "../contract/streams.ts";
import type { ContainerUnit } from "./container-unit.ts";
import { connectTo } from "./dial.ts";
import { readLog } from "./logs.ts";
import { MachineContainer } from "./machine-container.ts";
import type { PodKey, PodRuntime, PodUsage } from "./pod-runtime.ts";
import { resolvePort } from "./pod-target.ts";
import type { PodWorker } from "./pod-worker.ts";
import { viewOnly } from "./rfb-view-only.ts";
import { SidecarContainer } from "./sidecar-container.ts";
import { UsageMeter } from "./usage.ts";

export const SCREEN_ANNOTATION = "podyard.dev/screen";
/** Ports of every Pod that the host answers with the machine's screen. */
export const SCREEN_CONTROL_PORT = 65001;
export const SCREEN_VIEW_PORT = 65002;

export class PodAccess implements PodRuntime {
  readonly #workers: ReadonlyMap<string, PodWorker>;
  readonly #meter = new UsageMeter();

  constructor(workers: ReadonlyMap<string, PodWorker>) {
    this.#workers = workers;
  }

  list(): readonly Pod[] {
    return [...this.#workers.values()].map((worker) => withStatus(worker));
  }

  async running(): Promise<readonly Pod[]> {
    const pods: Pod[] = [];
    for (const worker of this.#workers.values()) {
      const running = [...worker.units.values()].filter((unit) => unit.mayRun || unit.isRunning);
      if (running.length === 0) continue;
      const { name, namespace, uid } = worker.pod().metadata ?? {};
      pods.push({
        metadata: { ...(name === undefined ? {} : { name }), ...(namespace === undefined ? {} : { namespace }), ...(uid === undefined ? {} : { uid }) },
        spec: { containers: running.map((unit) => ({ name: unit.name, image: unit.record.image ?? unit.spec.image ?? "", resources: {} })) },
        status: {},
      });
    }
    return pods;
  }

  async logs(pod: PodKey, container: string, request: LogRequest): Promise<Readable> {
    const { worker, unit } = this.#find(pod, container);
    const { record } = unit;
    if (unit instanceof MachineContainer) {
      if (request.previous) {
        if (record.restartCount === 0) throw previousNotFound(container, pod);
        return readLog(unit.logPath(record.restartCount - 1), { ...request, follow: false }, AbortSignal.abort());
      }
      this.#requireStarted(unit, pod);
      return readLog(unit.logPath(), request, unit.ended);
    }
    const wanted = request.previous ? record.restartCount - 1 : record.restartCount;
    const containers = await worker.options.engine.list(worker.uid);
    // Between two attempts the log is that of the last one.
    const found = containers.find((info) => info.name === container && info.restartCount === wanted && (request.previous || info.startedAt !== undefined));
    if (found === undefined) {
      if (request.previous) throw previousNotFound(container, pod);
      this.#requireStarted(unit, pod);
      throw new PodyardError("NotFound", `the log of container ${JSON.stringify(container)} in pod ${JSON.stringify(pod.name)} is no longer there`);
    }
    return worker.options.engine.logs(found.id, { ...request, previous: false });
  }

  async exec(pod: PodKey, container: string, request: ExecRequest): Promise<ProcessSession> {
    const { worker, unit } = this.#find(pod, container);
    if (unit instanceof MachineContainer) {
      const guest = unit.guest;
      if (guest === undefined) throw notRunning(unit, pod);
      const workingDirectory = request.workingDirectory ?? unit.spec.workingDir;
      return guest.exec({ ...request, environment: { ...unit.environment, ...request.environment }, ...(workingDirectory === undefined || workingDirectory === "" ? {} : { workingDirectory }) });
    }
    return worker.options.engine.exec(runningId(unit, pod), request);
  }

  async attach(pod: PodKey, container: string, request: AttachRequest): Promise<ProcessSession & { readonly terminal: boolean }> {
    const { worker, unit } = this.#find(pod, container);
    const terminal = unit.spec.tty ?? false;
    const withStdin = { ...request, stdin: request.stdin && (unit.spec.stdin ?? false) };
    if (unit instanceof MachineContainer) {
      // Without a command there is no process; what the machine says and hears is its serial console.
      if (!unit.hasCommand) return withTerminal(consoleSession(await this.#machineOf(pod).openConsole(), withStdin.stdin), terminal);
      const guest = unit.guest;
      if (guest === undefined) throw notRunning(unit, pod);
      return withTerminal(await guest.attach(withStdin), terminal);
    }
    return withTerminal(await worker.options.engine.attach(runningId(unit, pod), withStdin), terminal);
  }

  async dial(pod: PodKey, port: number, signal?: AbortSignal): Promise<Duplex> {
    const { worker } = this.#findPod(pod);
    if (port === SCREEN_CONTROL_PORT || port === SCREEN_VIEW_PORT) return this.#sharedScreen(worker, port);
    for (const unit of worker.units.values()) {
      if (!(unit instanceof SidecarContainer)) continue;
      const declared = (unit.spec.ports ?? []).some(({ containerPort, protocol }) => containerPort === port && (protocol ?? "TCP") === "TCP");
      const address = worker.network()?.sidecarIP;
      if (declared && address !== undefined) return connectTo(address, resolvePort(unit.spec, port), signal);
    }
    const machine = worker.machine;
    if (machine?.machine === undefined || !machine.mayRun) throw machine === undefined ? new PodyardError("NotFound", `pod ${JSON.stringify(pod.name)} has no virtual machine`) : notRunning(machine, pod);
    return machine.machine.dial(port, signal);
  }

  usage(): Promise<readonly PodUsage[]> {
    return this.#meter.measure([...this.#workers.values()]);
  }

  async console(pod: PodKey): Promise<Duplex> {
    return this.#machineOf(pod).openConsole();
  }

  async screen(pod: PodKey): Promise<Duplex> {
    return this.#machineOf(pod).openScreen();
  }

  /** Ends container 0 gracefully; the restart policy decides what follows. */
  async stopMachine(pod: PodKey, graceSeconds: number): Promise<void> {
    const { worker } = this.#findPod(pod);
    const machine = worker.machine;
    if (machine === undefined || !machine.mayRun) throw machine === undefined ? new PodyardError("NotFound", `pod ${JSON.stringify(pod.name)} has no virtual machine`) : notRunning(machine, pod);
    await machine.end(graceSeconds);
  }

  async #sharedScreen(worker: PodWorker, port: number): Promise<Duplex> {
    const { name, namespace, annotations } = worker.pod().metadata ?? {};
    const allowed = annotations?.[SCREEN_ANNOTATION] ?? "control";
    // An unknown value is a typing mistake for something narrower, never for more.
    if (allowed !== "control" && allowed !== "view") throw new PodyardError("Forbidden", `The screen of pod ${namespace}/${name} is off: annotation ${SCREEN_ANNOTATION} is ${JSON.stringify(allowed)}.`);
    if (port === SCREEN_CONTROL_PORT && allowed === "view") {
      throw new PodyardError("Forbidden", `The screen of pod ${namespace}/${name} may only be viewed (annotation ${SCREEN_ANNOTATION}: view): use port ${SCREEN_VIEW_PORT}.`);
    }
    const screen = await this.#machineOf({ namespace: namespace ?? "", name: name ?? "" }).openScreen();
    return port === SCREEN_VIEW_PORT ? viewOnly(screen) : screen;
  }

  #machineOf(pod: PodKey) {
    const { worker } = this.#findPod(pod);
    const unit = worker.machine;
    if (unit?.machine === undefined || !unit.mayRun) throw unit === undefined ? new PodyardError("NotFound", `pod ${JSON.stringify(pod.name)} has no virtual machine`) : notRunning(unit, pod);
    return unit.machine;
  }

  #findPod(pod: PodKey): { readonly worker: PodWorker } {
    let found: PodWorker | undefined;
    for (const worker of this.#workers.values()) {
      const metadata = worker.pod().metadata;
      if (metadata?.namespace !== pod.namespace || metadata?.name !== pod.name || (pod.uid !== undefined && pod.uid !== worker.uid)) continue;
      // While a Pod's predecessor of the same name is still being cleaned up, the one in the API is meant.
      if (found === undefined || worker.options.source.current().has(worker.uid)) found = worker;
    }
    if (found === undefined) throw new PodyardError("NotFound", `pod ${JSON.stringify(pod.name)} does not exist`);
    return { worker: found };
  }

  #find(pod: PodKey, container: string): { readonly worker: PodWorker; readonly unit: ContainerUnit } {
    const { worker } = this.#findPod(pod);
    const unit = worker.units.get(container);
    if (unit === undefined) throw new PodyardError("NotFound", `container ${JSON.stringify(container)} not found in pod ${JSON.stringify(pod.name)}`);
    return { worker, unit };
  }

  #requireStarted(unit: ContainerUnit, pod: PodKey): void {
    const { state, lastState } = unit.record;
    if (state?.running !== undefined || state?.terminated !== undefined || lastState?.terminated !== undefined) return;
    // A machine that boots shows its console already.
    if (unit instanceof MachineContainer && !unit.hasCommand && unit.mayRun) return;
    throw notRunning(unit, pod);
  }
}

/** The API's Pod with the latest status this host computed. */
export function withStatus(worker: PodWorker): Pod {
  const pod = worker.pod();
  return worker.status === undefined ? pod : { ...pod, status: worker.status };
}

function runningId(unit: ContainerUnit, pod: PodKey): string {
  if (unit instanceof SidecarContainer && unit.isRunning && unit.info !== undefined) return unit.info.id;
  throw notRunning(unit, pod);
}

/** The kubelet's sentence for a container that does not run. */
function notRunning(unit: ContainerUnit, pod: PodKey): PodyardError {
  const { name } = unit;
  const where = `container ${JSON.stringify(name)} in pod ${JSON.stringify(pod.name)}`;
  const terminated = unit.record.state?.terminated ?? unit.record.lastState?.terminated;
  const waiting = unit.waitingReason?.reason;
  if (terminated !== undefined && waiting === undefined) return new PodyardError("Conflict", `${where} is terminated`);
  const why =
    waiting === "ErrImagePull" ? "image can't be pulled" : waiting === "ImagePullBackOff" ? "trying and failing to pull image" : (waiting ?? (unit.kind === "main" ? "ContainerCreating" : "PodInitializing"));
  return new PodyardError("Conflict", `${where} is waiting to start: ${why}`);
}

function previousNotFound(container: string, pod: PodKey): PodyardError {
  return new PodyardError("Conflict", `previous terminated container ${JSON.stringify(container)} in pod ${JSON.stringify(pod.name)} not found`);
}

function consoleSession(console: Duplex, stdin: boolean): ProcessSession {
  return { ...sessionOfDuplex(console), stdin: stdin ? console : undefined };
}

function withTerminal(session: ProcessSession, terminal: boolean): ProcessSession & { readonly terminal: boolean } {
  return {
    stdin: session.stdin,
    stdout: session.stdout,
    stderr: session.stderr,
    exit: session.exit,
    terminal,
    resize: (size) => session.resize(size),
    [Symbol.asyncDispose]: () => session[Symbol.asyncDispose](),
  };
}
