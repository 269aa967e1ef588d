/**
 * What Pods use, for /stats/summary and /metrics/resource. Counters are made monotone (a machine's restart begins a new
 * clock at zero, metrics-server drops a Pod whose counter goes backwards) and CPU and memory are never zero for what runs
 * (it drops a Pod with a zero). Rates come from two samples.
 */
import { stat } from "node:fs/promises";
import { messageOf } from "../contract/errors.ts";
import { MachineContainer } from "./machine-container.ts";
import type { ContainerUsage, PodUsage } from "./pod-runtime.ts";
import type { PodWorker } from "./pod-worker.ts";
import { SidecarContainer } from "./sidecar-container.ts";

interface Sample {
  readonly time: number;
  readonly cpuNanoseconds: number;
  readonly startTime: number;
  readonly cpuNanocores: number;
}

/** Samples closer together than this reuse the rate. */
const SHORTEST_INTERVAL = 1000;
const MEASURE_TIMEOUT = 3000;

export class UsageMeter {
  readonly #samples = new Map<string, Sample>();

  async measure(workers: readonly PodWorker[]): Promise<readonly PodUsage[]> {
    const usages = await Promise.all(workers.map((worker) => this.#pod(worker)));
    const living = new Set(workers.map(({ uid }) => uid));
    for (const key of this.#samples.keys()) if (!living.has(key.split("/")[0] ?? "")) this.#samples.delete(key);
    return usages.filter((usage) => usage !== undefined);
  }

  async #pod(worker: PodWorker): Promise<PodUsage | undefined> {
    const { name = "", namespace = "" } = worker.pod().metadata ?? {};
    const containers: ContainerUsage[] = [];
    let network: PodUsage["network"];
    await Promise.all(
      [...worker.units.values()].map(async (unit) => {
        const startedAt = unit.record.state?.running?.startedAt;
        if (startedAt === undefined) return;
        try {
          if (unit instanceof MachineContainer && unit.machine !== undefined) {
            const [statistics, guest] = await Promise.all([unit.machine.statistics(), within(unit.guest?.statistics())]);
            network = { receivedBytes: statistics.receivedBytes, transmittedBytes: statistics.transmittedBytes };
            containers.push(
              this.#container(worker.uid, unit.name, new Date(startedAt), {
                time: statistics.time,
                cpuNanoseconds: statistics.cpuNanoseconds,
                memoryWorkingSetBytes: guest?.memoryUsedBytes ?? statistics.memoryWorkingSetBytes,
                memoryUsageBytes: statistics.memoryWorkingSetBytes,
                rootFileSystemUsedBytes: statistics.diskUsedBytes,
                logsUsedBytes: await stat(unit.logPath()).then(
                  ({ size }) => size,
                  () => 0,
                ),
              }),
            );
          } else if (unit instanceof SidecarContainer && unit.info !== undefined) {
            const statistics = await within(worker.options.engine.statistics(unit.info.id));
            if (statistics !== undefined) containers.push(this.#container(worker.uid, unit.name, new Date(startedAt), { ...statistics, rootFileSystemUsedBytes: undefined, logsUsedBytes: undefined }));
          }
        } catch (error) {
          worker.logger.debug("A container's usage could not be measured.", { container: unit.name, error: messageOf(error) });
        }
      }),
    );
    if (containers.length === 0) return undefined;
    const volumes = await worker.volumes.usage(worker.uid).catch(() => []);
    return {
      namespace,
      name,
      uid: worker.uid,
      startTime: new Date(worker.record.data.startTime),
      containers: containers.sort((one, other) => one.name.localeCompare(other.name)),
      network,
      volumes: volumes.map(({ name: volume, usedBytes, capacityBytes, availableBytes }) => ({ name: volume, usedBytes, capacityBytes, availableBytes })),
    };
  }

  #container(uid: string, name: string, startTime: Date, measured: Omit<ContainerUsage, "name" | "startTime" | "cpuNanocores">): ContainerUsage {
    const key = `${uid}/${name}`;
    const last = this.#samples.get(key);
    const known = last?.startTime === startTime.getTime() ? last : undefined;
    const time = measured.time.getTime();
    const cpuNanoseconds = Math.max(1, measured.cpuNanoseconds, known?.cpuNanoseconds ?? 0);
    const elapsed = known === undefined ? time - startTime.getTime() : time - known.time;
    let cpuNanocores = known?.cpuNanocores ?? 0;
    if (known === undefined || elapsed >= SHORTEST_INTERVAL) {
      // Nanoseconds of CPU per second are nanocores.
      cpuNanocores = elapsed <= 0 ? 0 : Math.round(((cpuNanoseconds - (known?.cpuNanoseconds ?? 0)) * 1000) / elapsed);
      this.#samples.set(key, { time, cpuNanoseconds, startTime: startTime.getTime(), cpuNanocores });
    }
    return { ...measured, name, startTime, cpuNanoseconds, cpuNanocores, memoryWorkingSetBytes: Math.max(1, measured.memoryWorkingSetBytes) };
  }
}

/** The value, or undefined when it takes too long: a hung guest must not hold up the metrics of all others. */
async function within<Value>(promise: Promise<Value> | undefined): Promise<Value | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), MEASURE_TIMEOUT);
  });
  try {
    return await Promise.race([promise, late]);
  } catch {
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}
