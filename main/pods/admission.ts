/**
 * Whether this node takes a Pod: pure. Three answers: `admit`; `refuse` (a field we cannot honour: the Pod stays Pending,
 * every container waiting with CreateContainerConfigError, nothing is used); `reject` (phase Failed) only where the kubelet
 * itself fails a Pod, since controllers replace a failed Pod at once and without end.
 */
import type { OperatingSystem } from "../contract/image.ts";
import type { Container, EphemeralContainer, NodeSelectorTerm, Pod } from "../contract/kubernetes-api.generated.ts";
import type { NodeView } from "../kubernetes/cluster.ts";
import { findContainerRow, findFieldRow, roleOf, type ContainerList, type FieldContext, type Support } from "./field-support.ts";
import { effectiveRequests } from "./resources.ts";

export interface RefusedField {
  /** As in the manifest: `spec.containers[1].securityContext.procMount`. */
  readonly path: string;
  readonly message: string;
}

export type AdmissionVerdict =
  | { readonly verdict: "admit" }
  /** `message` names the first field, `fields` all of them. */
  | { readonly verdict: "refuse"; readonly message: string; readonly fields: readonly RefusedField[] }
  /** Event and status.reason; status.message is `Pod was rejected: ` + message. */
  | { readonly verdict: "reject"; readonly reason: string; readonly message: string };

export interface AdmissionContext {
  readonly node: Pick<NodeView, "name" | "labels" | "allocatable" | "accepting">;
  /** Of the host, which is that of its guests. */
  readonly operatingSystem: OperatingSystem;
  /** Admitted Pods of this node that are not finished; refused ones count for nothing and are left out, as is the Pod itself. */
  readonly otherPods: readonly Pod[];
}

/** Decides by the Pod's spec, the node and its other Pods. Repeat it only for Pods that were not admitted yet. */
export function admitPod(pod: Pod, context: AdmissionContext): AdmissionVerdict {
  if (!context.node.accepting()) return reject("NodeShutdown", "Pod was rejected as the node is shutting down.");
  const labels = { ...context.node.labels(), "kubernetes.io/os": context.operatingSystem };
  const wantedOs = pod.metadata?.labels?.["kubernetes.io/os"];
  if (wantedOs !== undefined && wantedOs !== context.operatingSystem)
    return reject("PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label");
  if (pod.spec?.os !== undefined && pod.spec.os.name !== context.operatingSystem)
    return reject("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");

  const fields = refusedFields(pod, context.operatingSystem);
  if (fields[0] !== undefined)
    return {
      verdict: "refuse",
      message: fields
        .map(({ message }) => message)
        .slice(0, 5)
        .join("; "),
      fields,
    };

  if (!matchesNode(pod, labels, context.node.name))
    return reject("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
  return takenHostPort(pod, context.otherPods)
    ? reject("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
    : fit(pod, context);
}

/** Fields of a Pod that this host cannot honour, in the order of the spec. Ephemeral containers are left to {@link refusedEphemeralFields}. */
export function refusedFields(pod: Pod, operatingSystem: OperatingSystem): readonly RefusedField[] {
  const refusals: RefusedField[] = [];
  const { containers, initContainers = [], ephemeralContainers: _, ...rest } = pod.spec ?? { containers: [] };
  for (const leaf of leavesOf(rest, "", "spec")) {
    const row = findFieldRow(leaf.pattern);
    const context: FieldContext = { pod, container: undefined, operatingSystem, key: leaf.key };
    // A field of the Pod acts on container 0 in any case, and on side-cars where there are any.
    judge(refusals, leaf, row?.machine, context);
    if (row !== undefined && row.sideCar !== row.machine && containers.length + initContainers.length > 1) judge(refusals, leaf, row.sideCar, context);
  }
  for (const [list, members] of [
    ["initContainers", initContainers],
    ["containers", containers],
  ] as const) {
    for (const [index, container] of members.entries()) refusals.push(...refusedContainerFields(pod, list, container, index, operatingSystem));
  }
  return refusals.filter(({ path }, index) => refusals.findIndex((other) => other.path === path) === index);
}

/** An ephemeral container comes into a running Pod: it alone waits with CreateContainerConfigError and this message. */
export function refusedEphemeralFields(pod: Pod, container: EphemeralContainer, operatingSystem: OperatingSystem): readonly RefusedField[] {
  const index = pod.spec?.ephemeralContainers?.findIndex(({ name }) => name === container.name) ?? 0;
  return refusedContainerFields(pod, "ephemeralContainers", container, Math.max(0, index), operatingSystem);
}

function refusedContainerFields(
  pod: Pod,
  list: ContainerList,
  container: Container | EphemeralContainer,
  index: number,
  operatingSystem: OperatingSystem,
): readonly RefusedField[] {
  const refusals: RefusedField[] = [];
  for (const leaf of leavesOf(container, "", `spec.${list}[${index}]`)) {
    judge(refusals, leaf, findContainerRow(list, leaf.pattern)?.[roleOf(list, index)], { pod, container, operatingSystem, key: leaf.key });
  }
  return refusals;
}

interface Leaf {
  /** `volumes[].nfs.path` */
  readonly pattern: string;
  /** `spec.volumes[2].nfs.path` */
  readonly path: string;
  readonly key: string;
  readonly value: unknown;
}

function judge(refusals: RefusedField[], leaf: Leaf, support: Support | undefined, context: FieldContext): void {
  const refuse = (why: string): void => {
    const shown =
      typeof leaf.value === "string" || typeof leaf.value === "number" || typeof leaf.value === "boolean" ? `: ${String(leaf.value).slice(0, 100)}` : "";
    refusals.push({ path: leaf.path, message: `${leaf.path}${shown} cannot be honoured: ${why}` });
  };
  if (support === undefined) refuse("this version of Podyard does not know the field");
  else if (support.kind === "refused" && support.accepts?.(leaf.value, context) !== true) refuse(support.message);
  else if (support.kind === "honoured" && support.accepts?.(leaf.value, context) === false) refuse(support.message ?? "the value is not supported");
}

const mapFields: ReadonlySet<string> = new Set([
  "nodeSelector",
  "overhead",
  "limits",
  "requests",
  "matchLabels",
  "volumeAttributes",
  "options",
  "labels",
  "annotations",
  "userAnnotations",
]);

/** The values that are set, with their place: empty objects and lists say nothing and are skipped. */
function* leavesOf(value: unknown, pattern: string, path: string, key = ""): Generator<Leaf> {
  if (value === undefined || value === null) return;
  if (Array.isArray(value)) {
    for (const [index, item] of value.entries()) yield* leavesOf(item, `${pattern}[]`, `${path}[${index}]`, key);
  } else if (typeof value === "object") {
    // Only flexVolume.options is a map; dnsConfig.options is a list and never gets here.
    const isMap = mapFields.has(key);
    for (const [name, item] of Object.entries(value)) {
      if (isMap) yield* leavesOf(item, `${pattern}{}`, `${path}[${name}]`, name);
      else yield* leavesOf(item, pattern === "" ? name : `${pattern}.${name}`, `${path}.${name}`, name);
    }
  } else yield { pattern, path, key, value };
}

/** nodeSelector and required node affinity against the node's labels and name. */
export function matchesNode(pod: Pod, labels: Readonly<Record<string, string>>, nodeName: string): boolean {
  for (const [key, value] of Object.entries(pod.spec?.nodeSelector ?? {})) if (labels[key] !== value) return false;
  const required = pod.spec?.affinity?.nodeAffinity?.requiredDuringSchedulingIgnoredDuringExecution;
  return required === undefined || required.nodeSelectorTerms.some((term) => matchesTerm(term, labels, nodeName));
}

function matchesTerm({ matchExpressions = [], matchFields = [] }: NodeSelectorTerm, labels: Readonly<Record<string, string>>, nodeName: string): boolean {
  // An empty term matches no node.
  if (matchExpressions.length + matchFields.length === 0) return false;
  const fields: Readonly<Record<string, string>> = { "metadata.name": nodeName };
  return (
    matchExpressions.every((expression) => matchesExpression(expression, labels)) && matchFields.every((expression) => matchesExpression(expression, fields))
  );
}

function matchesExpression(
  { key, operator, values = [] }: { readonly key: string; readonly operator: string; readonly values?: readonly string[] },
  labels: Readonly<Record<string, string>>,
): boolean {
  const value = labels[key];
  const number = Number(value);
  const bound = Number(values[0]);
  switch (operator) {
    case "In":
      return value !== undefined && values.includes(value);
    case "NotIn":
      return value === undefined || !values.includes(value);
    case "Exists":
      return value !== undefined;
    case "DoesNotExist":
      return value === undefined;
    case "Gt":
      return value !== undefined && Number.isInteger(number) && Number.isInteger(bound) && number > bound;
    case "Lt":
      return value !== undefined && Number.isInteger(number) && Number.isInteger(bound) && number < bound;
    default:
      return false;
  }
}

/**
 * Only what a Pod asks for, as the scheduler counts it. A Pod that does not ask for a machine's slot waits for a free one:
 * rejected here, its ReplicaSet would make the next one at once, and so on without end.
 */
function requestsOf(pod: Pod): Readonly<Record<string, number>> {
  return { ...effectiveRequests(pod), pods: 1 };
}

function fit(pod: Pod, { node, otherPods }: AdmissionContext): AdmissionVerdict {
  const allocatable = node.allocatable();
  const used = new Map<string, number>();
  for (const other of otherPods) {
    if (other.status?.phase === "Succeeded" || other.status?.phase === "Failed") continue;
    for (const [name, value] of Object.entries(requestsOf(other))) used.set(name, (used.get(name) ?? 0) + value);
  }
  const requests = requestsOf(pod);
  for (const name of ["pods", "cpu", "memory", "ephemeral-storage", ...Object.keys(requests)]) {
    const requested = requests[name] ?? 0;
    // Extended resources that the node does not have belong to the cluster, not to us.
    const capacity = allocatable[name];
    if (capacity === undefined || requested === 0) continue;
    const taken = used.get(name) ?? 0;
    if (requested + taken > capacity)
      return reject(`OutOf${name}`, `Node didn't have enough resource: ${name}, requested: ${requested}, used: ${taken}, capacity: ${capacity}`);
  }
  return { verdict: "admit" };
}

function takenHostPort(pod: Pod, otherPods: readonly Pod[]): boolean {
  const taken = otherPods.filter((other) => other.status?.phase !== "Succeeded" && other.status?.phase !== "Failed").flatMap(hostPortsOf);
  const anywhere = (address: string): boolean => address === "" || address === "0.0.0.0" || address === "::";
  return hostPortsOf(pod).some((port) =>
    taken.some(
      (other) =>
        other.hostPort === port.hostPort &&
        other.protocol === port.protocol &&
        (other.hostIP === port.hostIP || anywhere(other.hostIP) || anywhere(port.hostIP)),
    ),
  );
}

function hostPortsOf(pod: Pod): readonly { readonly hostPort: number; readonly protocol: string; readonly hostIP: string }[] {
  return [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === "Always")]
    .flatMap(({ ports = [] }) => ports)
    .flatMap(({ hostPort, protocol = "TCP", hostIP = "" }) => (hostPort === undefined || hostPort === 0 ? [] : [{ hostPort, protocol, hostIP }]));
}

function reject(reason: string, message: string): AdmissionVerdict {
  return { verdict: "reject", reason, message };
}
