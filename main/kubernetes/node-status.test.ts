import { describe, expect, it } from "vitest";
import type { Node, NodeCondition } from "../contract/kubernetes-api.generated.ts";
import type { HostInfo, Measurement } from "./node-measure.ts";
import { nodeLabels, nodeStatusOf, pressuresOf, problemTypesOf, refusedLabels, resourcesOf, statusPatch } from "./node-status.ts";
import type { NodeFacts } from "./node-status.ts";

const gibibyte = 1024 ** 3;
const measurement: Measurement = {
  cpus: 8,
  memoryBytes: 16 * gibibyte,
  memoryAvailableBytes: 8 * gibibyte,
  isMemoryCritical: false,
  diskBytes: 500 * gibibyte,
  diskAvailableBytes: 100 * gibibyte,
  inodes: 1000,
  inodesFree: 900,
  processes: { current: 300, maximum: 4000 },
};
const host: HostInfo = {
  architecture: "arm64",
  bootID: "boot",
  kernelVersion: "24.6.0",
  machineID: "machine",
  operatingSystem: "darwin",
  osImage: "macOS 15.6",
  systemUUID: "machine",
  cpuModel: "Apple M2 Pro",
};
const facts: NodeFacts = {
  measurement,
  host,
  addresses: ["192.0.2.7"],
  kubeletPort: 10250,
  kubeletVersion: "v1.35.4-podyard.0.1.0",
  containerRuntimeVersion: "podyard://0.1.0",
  reserve: { cpuMillicores: 500, memoryBytes: 2 * gibibyte, diskBytes: 10 * gibibyte },
  maximumPods: 2,
  virtualMachineSlots: 2,
  images: [],
  problems: [],
  pressureSeenAt: {},
  isLeaving: false,
  now: new Date("2026-01-01T00:10:00.500Z"),
};
const condition = (conditions: readonly NodeCondition[] | undefined, type: string): NodeCondition | undefined => conditions?.find((known) => known.type === type);
const nodeWith = (status: Node["status"], annotations: Readonly<Record<string, string>> = { "podyard.dev/problem-conditions": "" }): Node => ({ metadata: { name: "a", annotations }, ...(status && { status }) });

describe("resources", () => {
  it("are what was measured, minus the reserve, never below nothing", () => {
    const { capacity, allocatable } = resourcesOf(facts);
    expect(capacity).toEqual({ cpu: 8000, memory: 16 * gibibyte, "ephemeral-storage": 500 * gibibyte, pods: 2, "podyard.dev/vm": 2 });
    expect(allocatable).toMatchObject({ cpu: 7500, memory: 14 * gibibyte, "ephemeral-storage": 490 * gibibyte, pods: 2, "podyard.dev/vm": 2 });
    expect(resourcesOf({ ...facts, reserve: { ...facts.reserve, memoryBytes: 17 * gibibyte } }).allocatable["memory"]).toBe(0);
  });

  it("are spelled as the API server spells them", () => {
    expect(nodeStatusOf(facts, undefined).allocatable).toEqual({ cpu: "7500m", memory: "14680064Ki", "ephemeral-storage": "513802240Ki", pods: "2", "podyard.dev/vm": "2" });
  });
});

describe("pressure", () => {
  const cases: readonly (readonly [string, Partial<Measurement>, readonly string[]])[] = [
    ["none", {}, []],
    ["little memory", { memoryAvailableBytes: 99 * 1024 ** 2 }, ["MemoryPressure"]],
    ["a Mac that says nothing of free memory", { memoryAvailableBytes: undefined }, []],
    ["a Mac in critical memory pressure", { memoryAvailableBytes: undefined, isMemoryCritical: true }, ["MemoryPressure"]],
    ["a disk nine tenths full", { diskAvailableBytes: 49 * gibibyte }, ["DiskPressure"]],
    ["a full disk of the images", { imageDisk: { diskBytes: 100 * gibibyte, diskAvailableBytes: 9 * gibibyte, inodes: 0, inodesFree: 0 } }, ["DiskPressure"]],
    ["few inodes", { inodesFree: 49 }, ["DiskPressure"]],
    ["a file system without inodes", { inodes: 0, inodesFree: 0 }, []],
    ["many processes", { processes: { current: 3700, maximum: 4000 } }, ["PIDPressure"]],
    ["unknown processes", { processes: undefined }, []],
  ];
  it.each(cases)("%s", (_, change, expected) => expect([...pressuresOf({ ...measurement, ...change })]).toEqual(expected));

  it("stays five minutes after it was last seen", () => {
    const at = (seconds: number): string | undefined => condition(nodeStatusOf({ ...facts, pressureSeenAt: { DiskPressure: new Date(facts.now.getTime() - seconds * 1000) } }, undefined).conditions, "DiskPressure")?.status;
    expect([at(0), at(299), at(301)]).toEqual(["True", "True", "False"]);
  });
});

describe("conditions", () => {
  it("have the kubelet's names and order", () => {
    expect(nodeStatusOf(facts, undefined).conditions?.map(({ type, status, reason }) => [type, status, reason])).toEqual([
      ["MemoryPressure", "False", "KubeletHasSufficientMemory"],
      ["DiskPressure", "False", "KubeletHasNoDiskPressure"],
      ["PIDPressure", "False", "KubeletHasSufficientPID"],
      ["Ready", "True", "KubeletReady"],
    ]);
  });

  it("keep the time of their last change", () => {
    const first = nodeStatusOf(facts, undefined);
    const later = nodeStatusOf({ ...facts, now: new Date("2026-01-01T01:00:00Z"), problems: [{ type: "X", reason: "Y", message: "Z.", isBlocking: true }] }, first);
    expect(condition(later.conditions, "DiskPressure")).toMatchObject({ lastTransitionTime: "2026-01-01T00:10:00Z", lastHeartbeatTime: "2026-01-01T01:00:00Z" });
    expect(condition(later.conditions, "Ready")).toMatchObject({ status: "False", lastTransitionTime: "2026-01-01T01:00:00Z", message: "Z." });
  });

  it("show problems with their fix; only blocking ones make the node not ready", () => {
    const problems = [{ type: "DockerUnavailable", reason: "NotRunning", message: "Docker does not answer", fix: "start Docker" }];
    const { conditions } = nodeStatusOf({ ...facts, problems }, undefined);
    expect(condition(conditions, "DockerUnavailable")).toMatchObject({ status: "True", message: "Docker does not answer. start Docker" });
    expect(condition(conditions, "Ready")?.status).toBe("True");
    expect(condition(nodeStatusOf({ ...facts, addresses: [] }, undefined).conditions, "Ready")?.message).toContain("no address");
    expect(problemTypesOf({ problems, isLeaving: true })).toEqual(["DockerUnavailable", "NodeLeaving"]);
  });
});

describe("the patch", () => {
  const settled = nodeStatusOf(facts, undefined);

  it("says nothing new when only time went by", () => {
    expect(statusPatch(nodeWith(settled), nodeStatusOf({ ...facts, now: new Date("2026-01-01T00:20:00Z") }, settled), []).isChange).toBe(false);
  });

  it("ignores what the server adds and does not touch conditions of others", () => {
    const foreign: NodeCondition = { type: "NetworkUnavailable", status: "False" };
    const current = nodeWith({ ...settled, nodeInfo: settled.nodeInfo && { ...settled.nodeInfo, swap: { capacity: 0 } }, conditions: [foreign, ...(settled.conditions ?? [])] });
    const { patch, isChange } = statusPatch(current, settled, []);
    expect(isChange).toBe(false);
    expect(JSON.stringify(patch)).not.toContain("NetworkUnavailable");
  });

  it("replaces addresses instead of adding to them", () => {
    const { patch, isChange } = statusPatch(nodeWith(settled), nodeStatusOf({ ...facts, addresses: ["192.0.2.8"] }, settled), []);
    expect(isChange).toBe(true);
    expect(patch).toMatchObject({ status: { addresses: [{ $patch: "replace" }, { type: "InternalIP", address: "192.0.2.8" }] } });
  });

  it("removes the condition of a problem that is gone, even of an earlier run", () => {
    const old = { type: "DockerUnavailable", status: "True" };
    const current = nodeWith({ ...settled, conditions: [...(settled.conditions ?? []), old] }, { "podyard.dev/problem-conditions": "DockerUnavailable" });
    const { patch, isChange } = statusPatch(current, settled, []);
    expect(isChange).toBe(true);
    expect(patch).toMatchObject({ metadata: { annotations: { "podyard.dev/problem-conditions": "" } }, status: { conditions: expect.arrayContaining([{ type: "DockerUnavailable", $patch: "delete" }]) } });
  });

  it("lists the fifty largest images with five names each", () => {
    const images = Array.from({ length: 60 }, (_, index) => ({ names: Array.from({ length: 7 }, (__, name) => `image-${index}:${name}`), sizeBytes: index }));
    const listed = nodeStatusOf({ ...facts, images }, undefined).images;
    expect(listed).toHaveLength(50);
    expect(listed?.[0]).toMatchObject({ sizeBytes: 59 });
    expect(listed?.[0]?.names).toHaveLength(5);
  });
});

describe("labels", () => {
  it("tell host and processor, and facts cannot be overruled", () => {
    expect(nodeLabels("a", host, { "kubernetes.io/os": "plan9", rack: "7" })).toMatchObject({ "kubernetes.io/os": "darwin", rack: "7", "feature.node.kubernetes.io/cpu-model.name": "Apple-M2-Pro" });
  });

  const cases: readonly (readonly [string, string, boolean])[] = [
    ["example.com/rack", "7", true],
    ["type", "virtual-kubelet", true],
    ["topology.kubernetes.io/zone", "a", true],
    ["node.kubernetes.io/anything", "a", true],
    ["node-role.kubernetes.io/worker", "", false],
    ["kubernetes.io/role", "agent", false],
    ["node-restriction.kubernetes.io/x", "a", false],
    ["with space", "a", false],
    ["a", "not valid!", false],
    ["UPPER.example/a", "a", false],
  ];
  it.each(cases)("%s=%s is permitted: %s", (key, value, isPermitted) => expect(refusedLabels({ [key]: value })).toEqual(isPermitted ? [] : [key]));
});
