/**
 * /metrics/resource, which metrics-server reads. Pure. Traps handled here:
 * - The Pod's name is the second label of containers and Pods alike: virtual-kubelet's test suite takes it by position.
 * - metrics-server drops a Pod if one of its containers has CPU or memory 0, so the smallest unit is the floor: a container
 *   that just started has used something.
 * - container_start_time_seconds has no timestamp; a changed start tells the reader that the counter was reset.
 * Model: pkg/kubelet/metrics/collectors/resource_metrics.go (1.35).
 */
import type { ContainerUsage, PodUsage } from "../../pods/pod-runtime.ts";
import type { NodeUsage } from "./node-usage.ts";
import type { MetricFamily, MetricSample } from "./prometheus.ts";

/** `usage` undefined = it could not be read; then only the scrape error is reported. */
export function resourceMetrics(usage: { readonly node: NodeUsage; readonly pods: readonly PodUsage[] } | undefined): readonly MetricFamily[] {
  const error: MetricFamily = {
    name: "resource_scrape_error",
    help: "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    type: "gauge",
    samples: [{ value: usage === undefined ? 1 : 0 }],
  };
  if (usage === undefined) return [error];

  const { node, pods } = usage;
  const containers = pods.flatMap((pod) =>
    pod.containers.map((container) => ({ container, labels: { container: container.name, pod: pod.name, namespace: pod.namespace } })),
  );
  const ofContainers = (value: (container: ContainerUsage) => number): readonly MetricSample[] =>
    containers.map(({ container, labels }) => ({ labels, value: value(container), time: container.time }));
  const ofPods = (value: (container: ContainerUsage) => number): readonly MetricSample[] =>
    pods.flatMap((pod) => {
      const first = pod.containers[0];
      if (first === undefined) return [];
      const time = pod.containers.reduce((latest, container) => (container.time > latest ? container.time : latest), first.time);
      return [{ labels: { namespace: pod.namespace, pod: pod.name }, value: pod.containers.reduce((sum, container) => sum + value(container), 0), time }];
    });

  return [
    counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", ofContainers(cpuSeconds)),
    gauge("container_memory_working_set_bytes", "Current working set of the container in bytes", ofContainers(workingSet)),
    gauge(
      "container_start_time_seconds",
      "Start time of the container since unix epoch in seconds",
      containers.map(({ container, labels }) => ({ labels, value: container.startTime.getTime() / 1000 })),
    ),
    counter("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", [{ value: node.cpuNanoseconds / 1e9, time: node.time }]),
    gauge("node_memory_working_set_bytes", "Current working set of the node in bytes", [{ value: node.memoryWorkingSetBytes, time: node.time }]),
    gauge("node_swap_usage_bytes", "Current swap usage of the node in bytes", node.swap === undefined ? [] : [{ value: node.swap.usedBytes, time: node.time }]),
    counter("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", ofPods(cpuSeconds)),
    gauge("pod_memory_working_set_bytes", "Current working set of the pod in bytes", ofPods(workingSet)),
    error,
  ];
}

function cpuSeconds(container: ContainerUsage): number {
  return Math.max(1, container.cpuNanoseconds) / 1e9;
}

function workingSet(container: ContainerUsage): number {
  return Math.max(1, Math.round(container.memoryWorkingSetBytes));
}

function counter(name: string, help: string, samples: readonly MetricSample[]): MetricFamily {
  return { name, help: `[STABLE] ${help}`, type: "counter", samples };
}

function gauge(name: string, help: string, samples: readonly MetricSample[]): MetricFamily {
  return { name, help: `[STABLE] ${help}`, type: "gauge", samples };
}
