/**
 * /metrics: the kubelet's own series, of which rules and dashboards of a cluster use the names. Those of other parts (Pod
 * start times, image pulls, requests to the API server) are injected as families.
 * https://kubernetes.io/docs/reference/instrumentation/metrics/
 */
import { readdir, readFile } from "node:fs/promises";
import type { Pod } from "../../contract/kubernetes-api.generated.ts";
import type { MetricFamily, MetricSample } from "./prometheus.ts";

export interface KubeletMetricsInput {
  readonly nodeName: string;
  /** `v1.35.4`; the Kubernetes version this node claims. */
  readonly kubernetesVersion: string;
  readonly desired: readonly Pod[];
  readonly running: readonly Pod[];
  /** When the certificates end; undefined = there is none yet. */
  readonly certificates: { readonly client: Date | undefined; readonly serving: Date | undefined };
  readonly now: Date;
}

/** Pure; everything about Pods, node and certificates. */
export function kubeletMetrics(input: KubeletMetricsInput): readonly MetricFamily[] {
  const [major = "", minor = ""] = input.kubernetesVersion.replace(/^v/, "").split(".");
  return [
    gauge("kubelet_node_name", "The node's name. The count is always 1.", [{ labels: { node: input.nodeName }, value: 1 }]),
    gauge("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run.", [{ labels: { static: "" }, value: input.desired.length }]),
    gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox", [{ value: input.running.length }]),
    gauge("kubelet_running_containers", "Number of containers currently running", containerStates(input.desired)),
    gauge("kubelet_certificate_manager_client_ttl_seconds", "TTL (in seconds) of the Kubelet's client certificate.", secondsLeft(input.certificates.client, input.now)),
    gauge("kubelet_certificate_manager_server_ttl_seconds", "TTL (in seconds) of the Kubelet's serving certificate.", secondsLeft(input.certificates.serving, input.now)),
    gauge("kubernetes_build_info", "A metric with a constant '1' value labeled by the version this node implements.", [
      { labels: { git_version: input.kubernetesVersion, major, minor, platform: `${process.platform}/${process.arch === "x64" ? "amd64" : process.arch}` }, value: 1 },
    ]),
  ];
}

/** The host process itself. */
export async function processMetrics(): Promise<readonly MetricFamily[]> {
  const { user, system } = process.cpuUsage();
  const startSeconds = (Date.now() - process.uptime() * 1000) / 1000;
  return [
    { name: "process_cpu_seconds_total", help: "Total user and system CPU time spent in seconds.", type: "counter", samples: [{ value: (user + system) / 1e6 }] },
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", [{ value: process.memoryUsage.rss() }]),
    gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", [{ value: startSeconds }]),
    ...(await fileDescriptorMetrics()),
  ];
}

/** Counts requests by method, path and kind. */
export class RequestCounter {
  readonly #counts = new Map<string, { readonly labels: Readonly<Record<string, string>>; value: number }>();

  /** `path` is the first part of the route's pattern, never what a client made up. */
  count(method: string, path: string, isLongRunning: boolean): void {
    const known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"].includes(method) ? method : "other";
    const labels = { long_running: String(isLongRunning), method: known, path, server_type: "readwrite" };
    const key = JSON.stringify(labels);
    const entry = this.#counts.get(key) ?? { labels, value: 0 };
    entry.value += 1;
    this.#counts.set(key, entry);
  }

  family(): MetricFamily {
    return { name: "kubelet_http_requests_total", help: "Number of the http requests received since the server started", type: "counter", samples: [...this.#counts.values()] };
  }
}

function containerStates(pods: readonly Pod[]): readonly MetricSample[] {
  const counts = { created: 0, running: 0, exited: 0 };
  for (const { status } of pods) {
    for (const { state } of [...(status?.containerStatuses ?? []), ...(status?.initContainerStatuses ?? []), ...(status?.ephemeralContainerStatuses ?? [])]) {
      if (state?.running !== undefined) counts.running += 1;
      else if (state?.terminated !== undefined) counts.exited += 1;
      else counts.created += 1;
    }
  }
  return Object.entries(counts).map(([state, value]) => ({ labels: { container_state: state }, value }));
}

function secondsLeft(end: Date | undefined, now: Date): readonly MetricSample[] {
  return end === undefined ? [] : [{ value: Math.round((end.getTime() - now.getTime()) / 1000) }];
}

async function fileDescriptorMetrics(): Promise<readonly MetricFamily[]> {
  if (process.platform !== "linux") return [];
  const [open, limits] = await Promise.all([readdir("/proc/self/fd"), readFile("/proc/self/limits", "utf8")]);
  const maximum = /^Max open files\s+([0-9]+)/m.exec(limits)?.[1];
  return [
    gauge("process_open_fds", "Number of open file descriptors.", [{ value: open.length }]),
    gauge("process_max_fds", "Maximum number of open file descriptors.", maximum === undefined ? [] : [{ value: Number(maximum) }]),
  ];
}

function gauge(name: string, help: string, samples: readonly MetricSample[]): MetricFamily {
  return { name, help, type: "gauge", samples };
}
