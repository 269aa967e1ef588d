/**
 * /metrics/cadvisor: the series by which the usual dashboards show containers (they filter on `image!="", container!=""`).
 * Pure; only what this host truly measures. https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md
 */
import type { Container, Pod } from "../../contract/kubernetes-api.generated.ts";
import type { ContainerUsage, PodUsage } from "../../pods/pod-runtime.ts";
import type { NodeUsage } from "./node-usage.ts";
import { quantityBytes } from "./quantity.ts";
import type { MetricFamily, MetricSample } from "./prometheus.ts";

export function cadvisorMetrics(node: NodeUsage, pods: readonly PodUsage[], specifications: readonly Pod[]): readonly MetricFamily[] {
  const containers = pods.flatMap((pod) => {
    const specification = specifications.find((candidate) => candidate.metadata?.uid === pod.uid);
    return pod.containers.map((container) => describeContainer(pod, container, specification));
  });
  const each = (value: (container: ContainerUsage) => number | undefined, extra: Readonly<Record<string, string>> = {}): readonly MetricSample[] =>
    containers.flatMap(({ usage, labels }) => {
      const measured = value(usage);
      return measured === undefined ? [] : [{ labels: { ...labels, ...extra }, value: measured, time: usage.time }];
    });
  const network = (value: (usage: NonNullable<PodUsage["network"]>) => number): readonly MetricSample[] =>
    pods.flatMap((pod) =>
      pod.network === undefined
        ? []
        : [{ labels: { container: "", id: podId(pod), image: "", interface: "eth0", name: "", namespace: pod.namespace, pod: pod.name }, value: value(pod.network) }],
    );

  return [
    family("machine_cpu_cores", "Number of logical CPU cores.", "gauge", [{ value: node.cpuCores }]),
    family("machine_memory_bytes", "Amount of memory installed on the machine.", "gauge", [{ value: node.memoryTotalBytes }]),
    family("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter", each(({ cpuNanoseconds }) => cpuNanoseconds / 1e9, { cpu: "total" })),
    family("container_memory_working_set_bytes", "Current working set in bytes.", "gauge", each(({ memoryWorkingSetBytes }) => memoryWorkingSetBytes)),
    family("container_memory_usage_bytes", "Current memory usage in bytes, including all memory.", "gauge", each(({ memoryUsageBytes }) => memoryUsageBytes)),
    family("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", "gauge", each(({ rootFileSystemUsedBytes }) => rootFileSystemUsedBytes)),
    family("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", "gauge", each(({ startTime }) => startTime.getTime() / 1000)),
    family("container_last_seen", "Last time a container was seen by the exporter.", "gauge", each(({ time }) => Math.floor(time.getTime() / 1000))),
    family(
      "container_spec_memory_limit_bytes",
      "Memory limit for the container.",
      "gauge",
      containers.map(({ labels, memoryLimit }) => ({ labels, value: memoryLimit })),
    ),
    family("container_network_receive_bytes_total", "Cumulative count of bytes received.", "counter", network(({ receivedBytes }) => receivedBytes)),
    family("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", "counter", network(({ transmittedBytes }) => transmittedBytes)),
  ];
}

interface DescribedContainer {
  readonly usage: ContainerUsage;
  readonly labels: Readonly<Record<string, string>>;
  /** 0 = none. */
  readonly memoryLimit: number;
}

function describeContainer(pod: PodUsage, usage: ContainerUsage, specification: Pod | undefined): DescribedContainer {
  const spec = specification?.spec;
  const candidates: readonly Pick<Container, "name" | "image" | "resources">[] = [...(spec?.containers ?? []), ...(spec?.initContainers ?? []), ...(spec?.ephemeralContainers ?? [])];
  const container = candidates.find(({ name }) => name === usage.name);
  const status = specification?.status;
  const statuses = [...(status?.containerStatuses ?? []), ...(status?.initContainerStatuses ?? []), ...(status?.ephemeralContainerStatuses ?? [])];
  const containerId = (statuses.find(({ name }) => name === usage.name)?.containerID ?? "").replace(/^[a-z]+:\/\//, "");
  return {
    usage,
    labels: {
      container: usage.name,
      id: `${podId(pod)}/${containerId === "" ? usage.name : containerId}`,
      image: container?.image ?? "",
      name: containerId,
      namespace: pod.namespace,
      pod: pod.name,
    },
    memoryLimit: quantityBytes(container?.resources?.limits?.["memory"]),
  };
}

function podId(pod: PodUsage): string {
  return `/kubepods/pod${pod.uid}`;
}

function family(name: string, help: string, type: "counter" | "gauge", samples: readonly MetricSample[]): MetricFamily {
  return { name, help, type, samples };
}
