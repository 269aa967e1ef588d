/**
 * The sync loop: one worker per Pod. On start it takes up again what a former host left (records, machines, containers,
 * networks), and only once the source told which Pods there are, ends what nobody wants any more.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { OperatingSystem } from "../contract/image.ts";
import type { VirtualMachine } from "../virtual-machines/virtual-machine.ts";
import { RESTART_LABEL } from "./machine-container.ts";
import { MachineSlots } from "./machine-slots.ts";
import { PodAccess, withStatus } from "./pod-access.ts";
import type { PodManagerOptions } from "./pod-context.ts";
import { PodRecord, readRecords } from "./pod-record.ts";
import { PodWorker } from "./pod-worker.ts";
import { createVolumes } from "./volumes/create-volumes.ts";

export type { PodManagerOptions, PodManagerSettings } from "./pod-context.ts";

/** A Pod as the UI and the CLI show it. */
export interface PodOverview {
  /** With the latest status this host computed. */
  readonly pod: Pod;
  /** Container 0's machine, if there is one now. */
  readonly machine: VirtualMachine | undefined;
}

export interface PodManager {
  /** Takes up what runs and begins to follow the source. The returned value stops following; Pods run on. */
  start(): Promise<AsyncDisposable>;
  readonly runtime: PodAccess;
  overview(): readonly PodOverview[];
  /** Called with the UID of a Pod whose status changed or that is gone. Returns the unsubscriber. */
  onChange(listener: (change: { readonly uid: string; readonly pod: Pod; readonly deleted: boolean }) => void): () => void;
  /** Throws while it does not follow its source: before the first list of Pods, and after the stop. For /healthz. Errors: Unavailable. */
  checkHealth(): void;
  /** Slots for machines, taken and in all. */
  slots(): { readonly used: number; readonly maximum: number };
}

/** Milliseconds that a stop waits for Pods whose removal is under way; what remains then is taken up by the next host. */
const REMOVAL_PATIENCE = 10_000;

/** A UID becomes a directory's name. */
const UID = /^[A-Za-z0-9][A-Za-z0-9._-]{7,127}$/;

export function createPodManager(options: PodManagerOptions): PodManager {
  const { source, machines, engine, networks, images, node, logger } = options;
  const podsDirectory = join(options.dataDirectory, "pods");
  const volumes = createVolumes({ podsDirectory, objects: options.objects, node, logger });
  const slots = new MachineSlots(options.settings.maximumMachines);
  const workers = new Map<string, PodWorker>();
  const listeners = new Set<(change: { readonly uid: string; readonly pod: Pod; readonly deleted: boolean }) => void>();
  const runtime = new PodAccess(workers);
  const stop = new AbortController();
  let isSynced = false;
  let operatingSystem: OperatingSystem = "linux";

  function announce(uid: string, pod: Pod, deleted: boolean): void {
    for (const listener of listeners) {
      try {
        listener({ uid, pod, deleted });
      } catch (error) {
        logger.error("A listener of Pod changes failed.", { error: messageOf(error) });
      }
    }
  }

  function addWorker(record: PodRecord, machine: VirtualMachine | undefined): PodWorker {
    const worker = new PodWorker({
      options,
      volumes,
      slots,
      operatingSystem,
      record,
      machine,
      otherPods: (uid) => [...workers.values()].filter((other) => other.uid !== uid && other.countsForAdmission).map((other) => other.pod()),
      isSynced: () => isSynced,
      onStatus: (uid) => announce(uid, withStatus(worker), false),
      onGone: (uid) => {
        workers.delete(uid);
        announce(uid, worker.pod(), true);
        // A Pod that came under the same UID (a manifest put back) or waited for the name starts now.
        for (const waiting of source.current().keys()) if (!workers.has(waiting)) onSourceChange(waiting);
      },
    });
    workers.set(worker.uid, worker);
    return worker;
  }

  function onSourceChange(uid: string): void {
    if (stop.signal.aborted) return;
    const known = workers.get(uid);
    if (known !== undefined) return known.changed();
    const pod = source.current().get(uid);
    if (pod === undefined) return;
    if (!UID.test(uid)) {
      logger.error("A Pod's UID cannot name a directory; the Pod is left alone.", { uid });
      return;
    }
    // Side-cars are called by the Pod's name, and a predecessor still holds its share of the node: it goes first.
    if ([...workers.values()].some((worker) => hasSameName(worker.pod(), pod))) return;
    const record = PodRecord.create(podsDirectory, pod, new Date());
    const machine = strays.get(uid);
    const attempt = Number(machine?.specification.labels[RESTART_LABEL]);
    // The Pod's record could not be read; its machine tells which attempt it is, or it would be taken for an old one.
    if (attempt > 0) record.container(pod.spec?.containers[0]?.name ?? "").restartCount = attempt;
    addWorker(record, machine).changed();
    strays.delete(uid);
  }

  /** Machines of Pods without a readable record, by Pod UID: the source may still want them. */
  const strays = new Map<string, VirtualMachine>();

  async function takeUp(): Promise<void> {
    const [records, adopted, facts] = await Promise.all([readRecords(podsDirectory, logger), machines.adopt(), machines.facts()]);
    operatingSystem = facts.operatingSystem;
    for (const machine of adopted) {
      slots.hold(machine.specification.id);
      strays.set(machine.specification.labels["pod-uid"] ?? machine.specification.id, machine);
    }
    for (const record of records) {
      const uid = record.data.pod.metadata?.uid ?? "";
      addWorker(record, strays.get(uid)).changed();
      strays.delete(uid);
    }
  }

  async function endUnknown(): Promise<void> {
    await source.synced;
    if (stop.signal.aborted) return;
    isSynced = true;
    for (const uid of source.current().keys()) onSourceChange(uid);
    for (const worker of workers.values()) worker.changed();
    for (const machine of strays.values()) {
      logger.warn("A machine that no Pod explains is stopped.", { machine: machine.specification.name, id: machine.specification.id });
      await machine.delete().catch((error: unknown) => logger.error("A machine that no Pod explains could not be removed.", { id: machine.specification.id, error: messageOf(error) }));
      slots.release(machine.specification.id);
    }
    strays.clear();
    const uids = new Set(workers.keys());
    const ids = new Set([...workers.values()].map(({ machineId }) => machineId));
    await attempt("machines", () => machines.sweep(ids));
    await attempt("networks", () => networks.sweep(ids));
    await attempt("containers", () => engine.sweep(uids));
    await attempt("images", async () => {
      for (const { usedBy } of await images.list()) for (const owner of usedBy) if (!ids.has(owner)) await images.release(owner);
    });
  }

  async function attempt(what: string, act: () => Promise<void>): Promise<void> {
    try {
      await act();
    } catch (error) {
      logger.warn(`What former Pods left of their ${what} could not be removed now.`, { error: messageOf(error) });
    }
  }

  return {
    runtime,
    overview: () => [...workers.values()].map((worker) => ({ pod: withStatus(worker), machine: worker.machine?.machine })),
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    checkHealth() {
      if (stop.signal.aborted) throw new PodyardError("Unavailable", "the host is stopping");
      if (!isSynced) throw new PodyardError("Unavailable", "the Pods of this node are not known yet");
    },
    slots: () => ({ used: slots.used, maximum: slots.maximum }),
    async start() {
      await mkdir(podsDirectory, { recursive: true, mode: 0o700 });
      await takeUp();
      const unsubscribe = [source.subscribe(onSourceChange), options.objects.subscribe((uids) => uids.forEach((uid) => workers.get(uid)?.objectsChanged()))];
      const watching = engine.watch((uid) => workers.get(uid)?.engineChanged());
      for (const uid of source.current().keys()) onSourceChange(uid);
      const ending = endUnknown().catch((error: unknown) => logger.error("What former Pods left could not be ended.", { error: messageOf(error) }));
      return {
        async [Symbol.asyncDispose]() {
          stop.abort();
          for (const end of unsubscribe) end();
          await watching[Symbol.asyncDispose]();
          if (isSynced) await ending;
          // A Pod is gone from the API before its last remains are from here: an engine or a directory must not go before them.
          await settleWithin(REMOVAL_PATIENCE, [...workers.values()].flatMap(({ removal }) => removal ?? []));
          await Promise.allSettled([...workers.values()].map((worker) => worker.detach()));
        },
      };
    },
  };
}

function hasSameName(one: Pod, other: Pod): boolean {
  return one.metadata?.name === other.metadata?.name && one.metadata?.namespace === other.metadata?.namespace;
}

async function settleWithin(milliseconds: number, work: readonly Promise<void>[]): Promise<void> {
  const patience = Promise.withResolvers<void>();
  const timer = setTimeout(patience.resolve, milliseconds);
  await Promise.race([Promise.allSettled(work), patience.promise]);
  clearTimeout(timer);
}
