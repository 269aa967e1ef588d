/** Numbers: /stats/summary and the four Prometheus endpoints. */
import type { ServerResponse } from "node:http";
import { messageOf } from "../../contract/errors.ts";
import type { Logger } from "../../contract/logger.ts";
import type { PodRuntime } from "../../pods/pod-runtime.ts";
import { HttpError, sendJson, sendText } from "../http.ts";
import type { KubeletRoute } from "../http.ts";
import { cadvisorMetrics } from "../metrics/cadvisor-metrics.ts";
import { kubeletMetrics, processMetrics } from "../metrics/kubelet-metrics.ts";
import type { RequestCounter } from "../metrics/kubelet-metrics.ts";
import type { NodeUsage } from "../metrics/node-usage.ts";
import { formatMetrics, prometheusContentType } from "../metrics/prometheus.ts";
import type { MetricFamily } from "../metrics/prometheus.ts";
import { resourceMetrics } from "../metrics/resource-metrics.ts";
import { statsSummary } from "../metrics/stats-summary.ts";

/** Where the numbers come from that neither Pods nor the server itself know. */
export interface MetricsSources {
  /** Usually `createHostUsage`. */
  nodeUsage(): Promise<NodeUsage>;
  /** When the node's certificates end. */
  certificateExpiry(): { readonly client: Date | undefined; readonly serving: Date | undefined };
  /** Added to /metrics. */
  readonly additional?: () => readonly MetricFamily[];
  /** The whole of /metrics/probes; without it the path is 404. */
  readonly probes?: () => readonly MetricFamily[];
}

export interface MetricsRouteOptions {
  readonly pods: PodRuntime;
  readonly node: { readonly name: string; readonly kubernetesVersion: string };
  readonly sources: MetricsSources;
  readonly requests: RequestCounter;
  readonly logger: Logger;
}

export function metricsRoutes({ pods, node, sources, requests, logger }: MetricsRouteOptions): readonly Omit<KubeletRoute, "subresources">[] {
  const route = (pattern: string, handle: KubeletRoute["handle"], methods: readonly string[] = ["GET"]): Omit<KubeletRoute, "subresources"> => ({
    methods,
    pattern,
    isLongRunning: false,
    handle,
  });
  const usage = async (): Promise<{ node: NodeUsage; pods: Awaited<ReturnType<PodRuntime["usage"]>> }> => {
    const [nodeUsage, podUsage] = await Promise.all([sources.nodeUsage(), pods.usage()]);
    return { node: nodeUsage, pods: podUsage };
  };

  return [
    route(
      "/stats/summary",
      async ({ query, response }) => {
        const onlyCpuAndMemory = ["true", "1"].includes(query.get("only_cpu_and_memory") ?? "");
        sendJson(response, statsSummary({ nodeName: node.name, ...(await usage()), onlyCpuAndMemory }));
      },
      ["GET", "POST"],
    ),
    route("/metrics", async ({ response }) => {
      const families = kubeletMetrics({
        nodeName: node.name,
        kubernetesVersion: node.kubernetesVersion,
        desired: pods.list(),
        running: await pods.running(),
        certificates: sources.certificateExpiry(),
        now: new Date(),
      });
      sendMetrics(response, [...families, requests.family(), ...(await processMetrics()), ...(sources.additional?.() ?? [])]);
    }),
    route("/metrics/resource", async ({ response }) => {
      const measured = await usage().catch((error: unknown) => {
        logger.warn("usage could not be measured", { error: messageOf(error) });
        return undefined;
      });
      sendMetrics(response, resourceMetrics(measured));
    }),
    route("/metrics/cadvisor", async ({ response }) => {
      const measured = await usage();
      sendMetrics(response, cadvisorMetrics(measured.node, measured.pods, pods.list()));
    }),
    route("/metrics/probes", async ({ response }) => {
      if (sources.probes === undefined) throw new HttpError(404, "404: Page Not Found");
      sendMetrics(response, sources.probes());
    }),
  ];
}

function sendMetrics(response: ServerResponse, families: readonly MetricFamily[]): void {
  sendText(response, formatMetrics(families), prometheusContentType);
}
