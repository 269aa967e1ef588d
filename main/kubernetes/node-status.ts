/**
 * The Node object as a pure function of what was measured: capacity, conditions, labels, and the smallest patch that
 * brings the cluster's copy there. Names, reasons and order are the kubelet's (pkg/kubelet/nodestatus), because alerts and
 * controllers match on them. https://kubernetes.io/docs/reference/node/node-status/
 */
import type { ContainerImage, Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo, Taint } from "../contract/kubernetes-api.generated.ts";
import { sentenceWithFix } from "../contract/errors.ts";
import type { FileSystem, HostInfo, Measurement } from "./node-measure.ts";

/** Something wrong with the host that the user can mend: a condition on the Node, the same sentence as in the doctor. */
export interface NodeProblem {
  /** Condition type, CamelCase: `DockerUnavailable`. */
  readonly type: string;
  readonly reason: string;
  readonly message: string;
  readonly fix?: string;
  /** True makes the Node not Ready: no Pod could run. */
  readonly isBlocking?: boolean;
}

/** Kept for hosts, never given to Pods. */
export interface Reserve {
  readonly cpuMillicores: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
}

export interface NodeFacts {
  readonly measurement: Measurement;
  readonly host: HostInfo;
  readonly addresses: readonly string[];
  readonly kubeletPort: number;
  /** `v1.35.4-podyard.0.1.0`: semantic version, or skew checks fail. */
  readonly kubeletVersion: string;
  /** `podyard://0.1.0`. */
  readonly containerRuntimeVersion: string;
  readonly reserve: Reserve;
  readonly maximumPods: number;
  readonly virtualMachineSlots: number;
  readonly images: readonly ContainerImage[];
  readonly problems: readonly NodeProblem[];
  /** When each pressure was last measured. */
  readonly pressureSeenAt: Readonly<Partial<Record<Pressure, Date>>>;
  readonly isLeaving: boolean;
  readonly now: Date;
}

export const virtualMachineResource = "podyard.dev/vm";
/** Lists the condition types that problems put on the Node, so that a later run can take them away. */
export const problemsAnnotation = "podyard.dev/problem-conditions";

const memoryThresholdBytes = 100 * 1024 * 1024;
const diskThreshold = 0.1;
const inodesThreshold = 0.05;
const processesThreshold = 0.1;
/** A pressure is kept this long after it was last seen, or Pods would move back and forth. */
const pressureHoldMilliseconds = 5 * 60_000;

const conditionNames = {
  MemoryPressure: { good: "KubeletHasSufficientMemory", bad: "KubeletHasInsufficientMemory", is: "kubelet has sufficient memory available", isNot: "kubelet has insufficient memory available" },
  DiskPressure: { good: "KubeletHasNoDiskPressure", bad: "KubeletHasDiskPressure", is: "kubelet has no disk pressure", isNot: "kubelet has disk pressure" },
  PIDPressure: { good: "KubeletHasSufficientPID", bad: "KubeletHasInsufficientPID", is: "kubelet has sufficient PID available", isNot: "kubelet has insufficient PID available" },
} as const;

export type Pressure = keyof typeof conditionNames;

/** Which pressures the measurement shows at this moment. Thresholds are the kubelet's defaults. */
export function pressuresOf(measurement: Measurement): ReadonlySet<Pressure> {
  const { memoryAvailableBytes, isMemoryCritical, imageDisk, processes } = measurement;
  const found = new Set<Pressure>();
  if (isMemoryCritical || (memoryAvailableBytes !== undefined && memoryAvailableBytes < memoryThresholdBytes)) found.add("MemoryPressure");
  if ([measurement, imageDisk].some((disk) => disk !== undefined && isFull(disk))) found.add("DiskPressure");
  if (processes !== undefined && processes.maximum - processes.current < processes.maximum * processesThreshold) found.add("PIDPressure");
  return found;
}

/** File systems without a fixed number of inodes report 0 (btrfs) or a huge number (APFS). */
function isFull({ diskAvailableBytes, diskBytes, inodes, inodesFree }: FileSystem): boolean {
  return diskAvailableBytes < diskBytes * diskThreshold || (inodes > 0 && inodesFree < inodes * inodesThreshold);
}

/** Capacity and allocatable in base units: millicores, bytes, units. */
export function resourcesOf(facts: Pick<NodeFacts, "measurement" | "reserve" | "maximumPods" | "virtualMachineSlots">): {
  readonly capacity: Readonly<Record<string, number>>;
  readonly allocatable: Readonly<Record<string, number>>;
} {
  const { measurement, reserve } = facts;
  const capacity = {
    cpu: measurement.cpus * 1000,
    memory: measurement.memoryBytes,
    "ephemeral-storage": measurement.diskBytes,
    pods: facts.maximumPods,
    [virtualMachineResource]: facts.virtualMachineSlots,
  };
  const allocatable = {
    ...capacity,
    cpu: Math.max(0, capacity.cpu - reserve.cpuMillicores),
    memory: Math.max(0, capacity.memory - reserve.memoryBytes),
    "ephemeral-storage": Math.max(0, capacity["ephemeral-storage"] - reserve.diskBytes),
  };
  return { capacity, allocatable };
}

/** The complete status. `previous` is the cluster's copy: its conditions' transition times are kept where nothing changed. */
export function nodeStatusOf(facts: NodeFacts, previous: NodeStatus | undefined): NodeStatus {
  const { host } = facts;
  const { capacity, allocatable } = resourcesOf(facts);
  const nodeInfo: NodeSystemInfo = {
    architecture: host.architecture,
    bootID: host.bootID,
    containerRuntimeVersion: facts.containerRuntimeVersion,
    kernelVersion: host.kernelVersion,
    kubeProxyVersion: "",
    kubeletVersion: facts.kubeletVersion,
    machineID: host.machineID,
    operatingSystem: host.operatingSystem,
    osImage: host.osImage,
    systemUUID: host.systemUUID,
  };
  return {
    addresses: facts.addresses.map((address): NodeAddress => ({ type: "InternalIP", address })),
    capacity: toQuantities(capacity),
    allocatable: toQuantities(allocatable),
    conditions: conditionsOf(facts, previous?.conditions ?? []),
    daemonEndpoints: { kubeletEndpoint: { Port: facts.kubeletPort } },
    images: largestImages(facts.images),
    nodeInfo,
  };
}

/** Labels of a new Node. `extra` wins, except where the value is a fact. */
export function nodeLabels(nodeName: string, host: HostInfo, extra: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const model = host.cpuModel.replaceAll(/[^A-Za-z0-9_.-]+/g, "-").slice(0, 63).replaceAll(/^[^A-Za-z0-9]+|[^A-Za-z0-9]+$/g, "");
  return {
    type: "virtual-kubelet",
    "node.kubernetes.io/exclude-from-external-load-balancers": "true",
    ...(model !== "" && { "feature.node.kubernetes.io/cpu-model.name": model }),
    ...extra,
    "kubernetes.io/hostname": nodeName,
    "kubernetes.io/os": host.operatingSystem,
    "kubernetes.io/arch": host.architecture,
    "beta.kubernetes.io/os": host.operatingSystem,
    "beta.kubernetes.io/arch": host.architecture,
  };
}

/** Kubernetes' own labels that a node may give itself; everything outside kubernetes.io and k8s.io is free. */
const permittedLabels = new Set([
  "kubernetes.io/hostname",
  "kubernetes.io/os",
  "kubernetes.io/arch",
  "beta.kubernetes.io/os",
  "beta.kubernetes.io/arch",
  "beta.kubernetes.io/instance-type",
  "node.kubernetes.io/instance-type",
  "node.kubernetes.io/exclude-from-external-load-balancers",
  "topology.kubernetes.io/zone",
  "topology.kubernetes.io/region",
  "failure-domain.beta.kubernetes.io/zone",
  "failure-domain.beta.kubernetes.io/region",
]);

/**
 * Labels that the cluster would refuse from a node (NodeRestriction, and what it takes as label), which would keep the
 * Node from being created at all.
 */
export function refusedLabels(labels: Readonly<Record<string, string>>): readonly string[] {
  return Object.entries(labels).flatMap(([key, value]) => {
    const [prefix, name] = key.includes("/") ? (key.split("/", 2) as [string, string]) : ["", key];
    const isSyntax = /^[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$/.test(name) && /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$/.test(prefix) && /^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$/.test(value);
    const isReserved = /(^|\.)(kubernetes|k8s)\.io$/.test(prefix) && !/(^|\.)(kubelet|node)\.kubernetes\.io$/.test(prefix);
    return isSyntax && (!isReserved || permittedLabels.has(key)) ? [] : [key];
  });
}

/** The Node to create. Taints can be set at no other time by a node itself. */
export function newNode(nodeName: string, labels: Readonly<Record<string, string>>, taints: readonly Taint[], status: NodeStatus, problemTypes: readonly string[]): Node {
  return {
    metadata: { name: nodeName, labels, annotations: { "volumes.kubernetes.io/controller-managed-attach-detach": "true", [problemsAnnotation]: problemTypes.join(",") } },
    spec: { ...(taints.length > 0 && { taints }) },
    status,
  };
}

/**
 * The strategic merge patch for `nodes/status` from the cluster's copy to `wanted`, and whether it says anything besides
 * heartbeats. Conditions of others (cloud routes, node-problem-detector) are not touched; those of problems that are gone
 * are removed.
 */
export function statusPatch(current: Node, wanted: NodeStatus, problemTypes: readonly string[]): { readonly patch: unknown; readonly isChange: boolean } {
  const status = current.status ?? {};
  const formerTypes = (current.metadata?.annotations?.[problemsAnnotation] ?? "").split(",").filter((type) => type !== "");
  const removed = formerTypes.filter((type) => !problemTypes.includes(type) && status.conditions?.some((condition) => condition.type === type));
  const withoutHeartbeat = (condition: NodeCondition): unknown => ({ ...condition, lastHeartbeatTime: undefined });
  const isSameCondition = (condition: NodeCondition): boolean => {
    const known = status.conditions?.find(({ type }) => type === condition.type);
    return known !== undefined && isDeepEqual(withoutHeartbeat(known), withoutHeartbeat(condition));
  };
  const changed: Record<string, unknown> = {};
  if (!isDeepEqual(status.addresses ?? [], wanted.addresses ?? [])) changed["addresses"] = [{ $patch: "replace" }, ...(wanted.addresses ?? [])];
  for (const field of ["capacity", "allocatable"] as const) {
    const former = status[field] ?? {};
    const entries = Object.entries(wanted[field] ?? {}).filter(([name, quantity]) => String(former[name]) !== String(quantity));
    if (entries.length > 0) changed[field] = Object.fromEntries(entries);
  }
  for (const field of ["daemonEndpoints", "nodeInfo"] as const) if (!isSubset(wanted[field], status[field])) changed[field] = wanted[field];
  if (!isDeepEqual(status.images ?? [], wanted.images ?? [])) changed["images"] = wanted.images;
  const conditions = wanted.conditions ?? [];
  const isChange = Object.keys(changed).length > 0 || removed.length > 0 || !conditions.every(isSameCondition);
  const isAnnotationStale = formerTypes.join(",") !== problemTypes.join(",");
  const patch = {
    ...(isAnnotationStale && { metadata: { annotations: { [problemsAnnotation]: problemTypes.join(",") } } }),
    status: { ...changed, conditions: [...conditions, ...removed.map((type) => ({ type, $patch: "delete" }))] },
  };
  return { patch, isChange: isChange || isAnnotationStale };
}

/** The kubelet's own conditions and those of problems; Ready is last. */
export function conditionsOf(facts: Pick<NodeFacts, "now" | "pressureSeenAt" | "problems" | "isLeaving" | "addresses">, previous: readonly NodeCondition[]): readonly NodeCondition[] {
  const now = toSeconds(facts.now);
  const make = (type: string, status: "True" | "False", reason: string, message: string): NodeCondition => {
    const former = previous.find((condition) => condition.type === type);
    const lastTransitionTime = former?.status === status && former.lastTransitionTime !== undefined ? former.lastTransitionTime : now;
    return { type, status, reason, message, lastHeartbeatTime: now, lastTransitionTime };
  };
  const pressures = (Object.keys(conditionNames) as Pressure[]).map((type) => {
    const names = conditionNames[type];
    const seenAt = facts.pressureSeenAt[type];
    const isPressed = seenAt !== undefined && facts.now.getTime() - seenAt.getTime() < pressureHoldMilliseconds;
    return isPressed ? make(type, "True", names.bad, names.isNot) : make(type, "False", names.good, names.is);
  });
  const problems = facts.problems.map((problem) => make(problem.type, "True", problem.reason, sentenceOf(problem)));
  const leaving = facts.isLeaving ? [make("NodeLeaving", "True", "Leaving", "the host is leaving the cluster; its Pods are being evicted")] : [];
  const obstacles = [...facts.problems.filter((problem) => problem.isBlocking === true).map(sentenceOf), ...(facts.addresses.length === 0 ? ["the host has no address that others can reach"] : [])];
  const ready = obstacles.length === 0 ? make("Ready", "True", "KubeletReady", "kubelet is posting ready status") : make("Ready", "False", "KubeletNotReady", obstacles.join("; "));
  // Ready is last, as the kubelet has it: some clients show the last one.
  return [...pressures, ...problems, ...leaving, ready];
}

/** The condition types that facts add besides the kubelet's own. */
export function problemTypesOf(facts: Pick<NodeFacts, "problems" | "isLeaving">): readonly string[] {
  return [...new Set(facts.problems.map((problem) => problem.type)), ...(facts.isLeaving ? ["NodeLeaving"] : [])].sort();
}

function sentenceOf(problem: NodeProblem): string {
  return sentenceWithFix(problem.message, problem.fix);
}

/** Fifty at most, as in the kubelet; the scheduler prefers nodes that have a Pod's image. */
function largestImages(images: readonly ContainerImage[]): readonly ContainerImage[] {
  return [...images]
    .sort((a, b) => (b.sizeBytes ?? 0) - (a.sizeBytes ?? 0) || (a.names?.[0] ?? "").localeCompare(b.names?.[0] ?? ""))
    .slice(0, 50)
    .map((image) => ({ names: (image.names ?? []).slice(0, 5), sizeBytes: image.sizeBytes ?? 0 }));
}

/** The canonical spelling, so that what the server returns compares equal. */
function toQuantities(amounts: Readonly<Record<string, number>>): Readonly<Record<string, string>> {
  const spell = (name: string, amount: number): string => {
    if (name === "cpu") return amount % 1000 === 0 ? String(amount / 1000) : `${amount}m`;
    if ((name === "memory" || name === "ephemeral-storage") && amount >= 1024) return `${Math.floor(amount / 1024)}Ki`;
    return String(amount);
  };
  return Object.fromEntries(Object.entries(amounts).map(([name, amount]) => [name, spell(name, amount)]));
}

export function toSeconds(date: Date): string {
  return `${date.toISOString().slice(0, 19)}Z`;
}

export function isDeepEqual(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null || Array.isArray(a) !== Array.isArray(b)) return false;
  const [left, right] = [a as Readonly<Record<string, unknown>>, b as Readonly<Record<string, unknown>>];
  const keys = new Set([...Object.keys(left), ...Object.keys(right)].filter((key) => left[key] !== undefined || right[key] !== undefined));
  return [...keys].every((key) => isDeepEqual(left[key], right[key]));
}

/** Whether every field of `wanted` is so in `actual`; the server adds defaults. */
function isSubset(wanted: unknown, actual: unknown): boolean {
  if (typeof wanted !== "object" || wanted === null || Array.isArray(wanted)) return isDeepEqual(wanted, actual);
  if (typeof actual !== "object" || actual === null) return false;
  const fields = actual as Readonly<Record<string, unknown>>;
  return Object.entries(wanted).every(([key, value]) => isSubset(value, fields[key]));
}
