/**
 * The body of /stats/summary. Pure. All leaf numbers are unsigned integers.
 * https://pkg.go.dev/k8s.io/kubelet/pkg/apis/stats/v1alpha1#Summary
 */
import type { ContainerUsage, PodUsage } from "../../pods/pod-runtime.ts";
import type { FileSystemUsage, NodeUsage } from "./node-usage.ts";

export interface StatsSummaryInput {
  readonly nodeName: string;
  readonly node: NodeUsage;
  readonly pods: readonly PodUsage[];
  /** Leaves out disks, networks and volumes, as `?only_cpu_and_memory=true` asks. */
  readonly onlyCpuAndMemory: boolean;
}

export function statsSummary({ nodeName, node, pods, onlyCpuAndMemory }: StatsSummaryInput): object {
  const time = timestamp(node.time);
  return {
    node: {
      nodeName,
      startTime: timestamp(node.startTime),
      cpu: { time, usageNanoCores: integer(node.cpuNanocores), usageCoreNanoSeconds: integer(node.cpuNanoseconds) },
      memory: {
        time,
        availableBytes: integer(node.memoryAvailableBytes),
        usageBytes: integer(node.memoryUsageBytes),
        workingSetBytes: integer(node.memoryWorkingSetBytes),
      },
      ...(node.swap === undefined ? {} : { swap: { time, swapAvailableBytes: integer(node.swap.availableBytes), swapUsageBytes: integer(node.swap.usedBytes) } }),
      ...(onlyCpuAndMemory ? {} : { fs: fileSystem(time, node.fileSystem), runtime: { imageFs: fileSystem(time, node.imageFileSystem) } }),
    },
    pods: pods.map((pod) => podStats(pod, node, onlyCpuAndMemory)),
  };
}

function podStats(pod: PodUsage, node: NodeUsage, onlyCpuAndMemory: boolean): object {
  const latest = pod.containers.reduce((time, container) => (container.time > time ? container.time : time), pod.containers[0]?.time ?? node.time);
  const time = timestamp(latest);
  const sum = (field: (container: ContainerUsage) => number): number => integer(pod.containers.reduce((total, container) => total + field(container), 0));
  const usedDisk = pod.containers.reduce((total, container) => total + (container.rootFileSystemUsedBytes ?? 0) + (container.logsUsedBytes ?? 0), 0);
  return {
    podRef: { name: pod.name, namespace: pod.namespace, uid: pod.uid },
    startTime: timestamp(pod.startTime),
    containers: pod.containers.map((container) => containerStats(container, node, onlyCpuAndMemory)),
    cpu: { time, usageNanoCores: sum((container) => container.cpuNanocores), usageCoreNanoSeconds: sum((container) => container.cpuNanoseconds) },
    memory: { time, usageBytes: sum((container) => container.memoryUsageBytes), workingSetBytes: sum((container) => container.memoryWorkingSetBytes) },
    ...(onlyCpuAndMemory
      ? {}
      : {
          ...(pod.network === undefined
            ? {}
            : {
                network: {
                  time,
                  name: "eth0",
                  rxBytes: integer(pod.network.receivedBytes),
                  txBytes: integer(pod.network.transmittedBytes),
                  interfaces: [{ name: "eth0", rxBytes: integer(pod.network.receivedBytes), txBytes: integer(pod.network.transmittedBytes) }],
                },
              }),
          volume: pod.volumes.map((volume) => ({
            time,
            availableBytes: integer(volume.availableBytes),
            capacityBytes: integer(volume.capacityBytes),
            usedBytes: integer(volume.usedBytes),
            name: volume.name,
          })),
          "ephemeral-storage": { ...fileSystem(time, node.fileSystem), usedBytes: integer(usedDisk) },
        }),
  };
}

function containerStats(container: ContainerUsage, node: NodeUsage, onlyCpuAndMemory: boolean): object {
  const time = timestamp(container.time);
  const disk = (usedBytes: number | undefined): object => ({
    ...fileSystem(time, node.fileSystem),
    ...(usedBytes === undefined ? {} : { usedBytes: integer(usedBytes) }),
  });
  return {
    name: container.name,
    startTime: timestamp(container.startTime),
    cpu: { time, usageNanoCores: integer(container.cpuNanocores), usageCoreNanoSeconds: integer(container.cpuNanoseconds) },
    memory: { time, usageBytes: integer(container.memoryUsageBytes), workingSetBytes: integer(container.memoryWorkingSetBytes) },
    ...(onlyCpuAndMemory || container.rootFileSystemUsedBytes === undefined ? {} : { rootfs: disk(container.rootFileSystemUsedBytes) }),
    ...(onlyCpuAndMemory || container.logsUsedBytes === undefined ? {} : { logs: disk(container.logsUsedBytes) }),
  };
}

function fileSystem(time: string, usage: FileSystemUsage): object {
  return {
    time,
    availableBytes: integer(usage.availableBytes),
    capacityBytes: integer(usage.capacityBytes),
    usedBytes: integer(usage.usedBytes),
    inodesFree: integer(usage.inodesFree),
    inodes: integer(usage.inodes),
    inodesUsed: integer(usage.inodes - usage.inodesFree),
  };
}

/** RFC 3339 to the second, as metav1.Time is written. */
function timestamp(time: Date): string {
  return `${time.toISOString().slice(0, 19)}Z`;
}

function integer(value: number): number {
  return Math.max(0, Math.round(value));
}
