import { tmpdir } from "node:os";
import { describe, expect, test } from "vitest";
import type { Pod } from "../../contract/kubernetes-api.generated.ts";
import type { PodUsage } from "../../pods/pod-runtime.ts";
import { startTestServer } from "../../../test/support/kubelet/server.ts";
import { cadvisorMetrics } from "./cadvisor-metrics.ts";
import { kubeletMetrics } from "./kubelet-metrics.ts";
import { createHostUsage } from "./node-usage.ts";
import type { NodeUsage } from "./node-usage.ts";
import { formatMetrics } from "./prometheus.ts";
import { quantityBytes } from "./quantity.ts";
import { resourceMetrics } from "./resource-metrics.ts";
import { statsSummary } from "./stats-summary.ts";

const time = new Date("2026-01-02T03:04:05.678Z");
const startTime = new Date("2026-01-02T03:00:00.500Z");
const fileSystem = { availableBytes: 60, capacityBytes: 100, usedBytes: 40, inodes: 10, inodesFree: 7 };
const node: NodeUsage = {
  startTime,
  time,
  cpuNanoseconds: 12_500_000_000,
  cpuNanocores: 250_000_000,
  memoryWorkingSetBytes: 3000,
  memoryUsageBytes: 4000,
  memoryAvailableBytes: 5000,
  memoryTotalBytes: 8000,
  cpuCores: 2,
  swap: { usedBytes: 1, availableBytes: 2 },
  fileSystem,
  imageFileSystem: fileSystem,
};
const usage: PodUsage = {
  namespace: "ns",
  name: "web",
  uid: "u-1",
  startTime,
  network: { receivedBytes: 11, transmittedBytes: 22 },
  volumes: [{ name: "data", usedBytes: 1, capacityBytes: 3, availableBytes: 2 }],
  containers: [
    { name: "vm", startTime, time, cpuNanoseconds: 1_500_000_000, cpuNanocores: 7, memoryWorkingSetBytes: 100.4, memoryUsageBytes: 200, rootFileSystemUsedBytes: 9, logsUsedBytes: 1 },
    { name: "side", startTime, time, cpuNanoseconds: 0, cpuNanocores: 0, memoryWorkingSetBytes: 0, memoryUsageBytes: 0, rootFileSystemUsedBytes: undefined, logsUsedBytes: undefined },
  ],
};
const pod: Pod = {
  metadata: { name: "web", namespace: "ns", uid: "u-1" },
  spec: { containers: [{ name: "vm", image: "registry/vm:1", resources: { limits: { memory: "2Gi" } } }, { name: "side", image: "busybox" }] },
  status: { containerStatuses: [{ name: "vm", image: "", imageID: "", ready: true, restartCount: 0, containerID: "qemu://abc", state: { running: {} } }] },
};

test("/metrics/resource is as metrics-server wants it", () => {
  const stamp = time.getTime();
  expect(formatMetrics(resourceMetrics({ node, pods: [usage] })).split("\n").filter((line) => !line.startsWith("# HELP"))).toEqual([
    "# TYPE container_cpu_usage_seconds_total counter",
    `container_cpu_usage_seconds_total{container="vm",pod="web",namespace="ns"} 1.5 ${stamp}`,
    `container_cpu_usage_seconds_total{container="side",pod="web",namespace="ns"} 1e-9 ${stamp}`, // 0 would hide the Pod
    "# TYPE container_memory_working_set_bytes gauge",
    `container_memory_working_set_bytes{container="vm",pod="web",namespace="ns"} 100 ${stamp}`,
    `container_memory_working_set_bytes{container="side",pod="web",namespace="ns"} 1 ${stamp}`,
    "# TYPE container_start_time_seconds gauge",
    `container_start_time_seconds{container="vm",pod="web",namespace="ns"} ${startTime.getTime() / 1000}`,
    `container_start_time_seconds{container="side",pod="web",namespace="ns"} ${startTime.getTime() / 1000}`,
    "# TYPE node_cpu_usage_seconds_total counter",
    `node_cpu_usage_seconds_total 12.5 ${stamp}`,
    "# TYPE node_memory_working_set_bytes gauge",
    `node_memory_working_set_bytes 3000 ${stamp}`,
    "# TYPE node_swap_usage_bytes gauge",
    `node_swap_usage_bytes 1 ${stamp}`,
    "# TYPE pod_cpu_usage_seconds_total counter",
    `pod_cpu_usage_seconds_total{namespace="ns",pod="web"} 1.500000001 ${stamp}`,
    "# TYPE pod_memory_working_set_bytes gauge",
    `pod_memory_working_set_bytes{namespace="ns",pod="web"} 101 ${stamp}`,
    "# TYPE resource_scrape_error gauge",
    "resource_scrape_error 0",
    "",
  ]);
});

test("/metrics/resource says when it could not be measured", async () => {
  await using host = await startTestServer();
  host.pods.usage = () => Promise.reject(new Error("the engine is away"));
  const { status, body } = await host.fetch("/metrics/resource");
  expect(status).toBe(200);
  expect(body).toMatch(/^resource_scrape_error 1$/m);
  expect(body).not.toContain("node_cpu");
});

describe("/stats/summary", () => {
  test("has everything with whole numbers and times to the second", () => {
    const summary = JSON.parse(JSON.stringify(statsSummary({ nodeName: "n", node, pods: [usage], onlyCpuAndMemory: false })));
    const at = "2026-01-02T03:04:05Z";
    const disk = { time: at, availableBytes: 60, capacityBytes: 100, usedBytes: 40, inodesFree: 7, inodes: 10, inodesUsed: 3 };
    expect(summary.node).toEqual({
      nodeName: "n",
      startTime: "2026-01-02T03:00:00Z",
      cpu: { time: at, usageNanoCores: 250_000_000, usageCoreNanoSeconds: 12_500_000_000 },
      memory: { time: at, availableBytes: 5000, usageBytes: 4000, workingSetBytes: 3000 },
      swap: { time: at, swapAvailableBytes: 2, swapUsageBytes: 1 },
      fs: disk,
      runtime: { imageFs: disk },
    });
    expect(summary.pods).toHaveLength(1);
    expect(summary.pods[0]).toMatchObject({
      podRef: { name: "web", namespace: "ns", uid: "u-1" },
      cpu: { usageCoreNanoSeconds: 1_500_000_000, usageNanoCores: 7 },
      memory: { workingSetBytes: 100, usageBytes: 200 },
      network: { name: "eth0", rxBytes: 11, txBytes: 22 },
      volume: [{ name: "data", usedBytes: 1, capacityBytes: 3, availableBytes: 2 }],
      "ephemeral-storage": { usedBytes: 10 },
      containers: [{ name: "vm", rootfs: { usedBytes: 9 }, logs: { usedBytes: 1 }, memory: { workingSetBytes: 100 } }, { name: "side" }],
    });
  });

  test("can be cut down to CPU and memory, and be asked for by POST", async () => {
    await using host = await startTestServer();
    host.pods.usages = [usage];
    const { body } = await host.fetch("/stats/summary?only_cpu_and_memory=true", { method: "POST" });
    const summary = JSON.parse(body);
    expect(Object.keys(summary.node).sort()).toEqual(expect.arrayContaining(["cpu", "memory", "nodeName", "startTime"]));
    expect(summary.node.fs).toBeUndefined();
    expect(Object.keys(summary.pods[0]).sort()).toEqual(["containers", "cpu", "memory", "podRef", "startTime"]);
    expect(Object.keys(summary.pods[0].containers[0]).sort()).toEqual(["cpu", "memory", "name", "startTime"]);
  });
});

test("/metrics/cadvisor names image, container and limit", () => {
  const text = formatMetrics(cadvisorMetrics(node, [usage], [pod]));
  const labels = 'container="vm",id="/kubepods/podu-1/abc",image="registry/vm:1",name="abc",namespace="ns",pod="web"';
  expect(text).toContain(`container_cpu_usage_seconds_total{${labels},cpu="total"} 1.5 ${time.getTime()}\n`);
  expect(text).toContain(`container_spec_memory_limit_bytes{${labels}} 2147483648\n`);
  expect(text).toContain(`container_network_receive_bytes_total{container="",id="/kubepods/podu-1",image="",interface="eth0",name="",namespace="ns",pod="web"} 11\n`);
  expect(text).toContain("machine_memory_bytes 8000\n");
  expect(text).not.toMatch(/container_fs_usage_bytes\{container="side"/); // not measured is not zero
});

test("/metrics tells of node, Pods, certificates, requests and process", async () => {
  await using host = await startTestServer();
  await host.fetch("/nothing/the/client/made/up");
  await host.fetch("/healthz");
  const { body, headers } = await host.fetch("/metrics");
  expect(headers["content-type"]).toBe("text/plain; version=0.0.4; charset=utf-8");
  expect(body).toMatch(/^kubelet_node_name\{node="test-node"\} 1$/m);
  expect(body).toMatch(/^kubelet_running_pods 1$/m);
  expect(body).toMatch(/^kubelet_certificate_manager_client_ttl_seconds (5[0-9]|60)$/m);
  expect(body).not.toMatch(/^kubelet_certificate_manager_server_ttl_seconds/m);
  expect(body).toMatch(/^kubernetes_build_info\{git_version="v1.35.4",major="1",minor="35",platform="\w+\/\w+"\} 1$/m);
  expect(body).toContain('kubelet_http_requests_total{long_running="false",method="GET",path="other",server_type="readwrite"} 1\n');
  expect(body).toContain('kubelet_http_requests_total{long_running="false",method="GET",path="healthz",server_type="readwrite"} 1\n');
  expect(body).toMatch(/^process_resident_memory_bytes [0-9]+$/m);
  expect((await host.fetch("/metrics/probes")).status).toBe(404);
});

test("containers are counted by state", () => {
  const families = kubeletMetrics({ nodeName: "n", kubernetesVersion: "v1.35.4", desired: [pod], running: [], certificates: { client: undefined, serving: undefined }, now: time });
  expect(families.find(({ name }) => name === "kubelet_running_containers")?.samples.map(({ value }) => value)).toEqual([0, 1, 0]);
});

test("labels and help are escaped", () => {
  expect(formatMetrics([{ name: "m", help: "a\\b\nc", type: "gauge", samples: [{ labels: { l: 'q"\\\n' }, value: Number.POSITIVE_INFINITY }] }])).toBe(
    '# HELP m a\\\\b\\nc\n# TYPE m gauge\nm{l="q\\"\\\\\\n"} +Inf\n',
  );
});

test.each([
  ["128974848", 128974848],
  ["129e6", 129e6],
  ["129M", 129e6],
  ["123Mi", 123 * 2 ** 20],
  ["1.5Gi", 1.5 * 2 ** 30],
  ["2E", 2e18],
  ["500m", 1],
  ["lots", 0],
  [undefined, 0],
])("the quantity %s is %d", (text, expected) => {
  expect(quantityBytes(text)).toBe(expected);
});

test("this host can be measured, and its CPU only grows", async () => {
  const measure = createHostUsage({ state: tmpdir(), images: tmpdir() });
  const first = await measure();
  const second = await measure();
  expect(first.cpuNanoseconds).toBeGreaterThan(0);
  expect(second.cpuNanoseconds).toBeGreaterThanOrEqual(first.cpuNanoseconds);
  expect(first.memoryWorkingSetBytes).toBeGreaterThan(0);
  expect(first.memoryWorkingSetBytes).toBeLessThan(first.memoryTotalBytes);
  expect(first.fileSystem.capacityBytes).toBeGreaterThan(first.fileSystem.availableBytes);
});
