/**
 * What a Pod may learn about itself: `fieldRef` and `resourceFieldRef`, for environment variables and downwardAPI volumes.
 * Pure. https://kubernetes.io/docs/concepts/workloads/pods/downward-api/
 */
import { isIPv6 } from "node:net";
import { PodyardError } from "../contract/errors.ts";
import type { Container, ObjectFieldSelector, Pod, ResourceFieldSelector } from "../contract/kubernetes-api.generated.ts";
import { parseQuantity, quantityMilliValue, quantityValue } from "./resources.ts";

/** What only the node knows when a field is read. */
export interface RuntimeFacts {
  readonly hostIPs: readonly string[];
  readonly podIPs: readonly string[];
}

/** The value of a field for an environment variable. Errors: InvalidArgument (unknown field, or one only volumes may read). */
export function environmentField(selector: ObjectFieldSelector, pod: Pod, facts: RuntimeFacts): string {
  if (selector.apiVersion !== undefined && selector.apiVersion !== "" && selector.apiVersion !== "v1")
    throw new PodyardError("InvalidArgument", `unsupported pod version: ${selector.apiVersion}`);
  switch (selector.fieldPath) {
    case "spec.nodeName":
    case "spec.host":
      return pod.spec?.nodeName ?? "";
    case "spec.serviceAccountName":
      return pod.spec?.serviceAccountName ?? "";
    case "status.hostIP":
      return facts.hostIPs[0] ?? "";
    case "status.hostIPs":
      return onePerFamily(facts.hostIPs).join(",");
    case "status.podIP":
      return facts.podIPs[0] ?? "";
    case "status.podIPs":
      return facts.podIPs.join(",");
    default:
      return metadataField(selector.fieldPath, pod);
  }
}

/** The first address of each IP family: all that hostIPs and podIPs may hold. */
export function onePerFamily(addresses: readonly string[]): readonly string[] {
  return addresses.filter((address, index) => addresses.findIndex((other) => isIPv6(other) === isIPv6(address)) === index);
}

/** The value of a `metadata.*` field, all a volume may read. Errors: InvalidArgument. */
export function metadataField(fieldPath: string, pod: Pod): string {
  const subscripted = /^(.+?)\['(.*)'\]$/s.exec(fieldPath);
  if (subscripted !== null) {
    const [, path, key = ""] = subscripted;
    if (path === "metadata.labels") return pod.metadata?.labels?.[key] ?? "";
    if (path === "metadata.annotations") return pod.metadata?.annotations?.[key] ?? "";
    throw new PodyardError("InvalidArgument", `fieldPath "${fieldPath}" does not support subscript`);
  }
  switch (fieldPath) {
    case "metadata.name":
      return pod.metadata?.name ?? "";
    case "metadata.namespace":
      return pod.metadata?.namespace ?? "";
    case "metadata.uid":
      return pod.metadata?.uid ?? "";
    case "metadata.labels":
      return formatMap(pod.metadata?.labels ?? {});
    case "metadata.annotations":
      return formatMap(pod.metadata?.annotations ?? {});
    default:
      throw new PodyardError("InvalidArgument", `unsupported fieldPath: ${fieldPath}`);
  }
}

/**
 * The value of a container's request or limit in units of the divisor, rounded up. A limit that is not set is the Pod's,
 * else what the node can allocate (`allocatable`: cpu in millicores, the rest in base units). Errors: InvalidArgument.
 */
export function resourceField(
  selector: ResourceFieldSelector,
  pod: Pod,
  container: Pick<Container, "name" | "resources"> | undefined,
  allocatable: Readonly<Record<string, number>>,
): string {
  const name = selector.containerName;
  const containers = [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])];
  const target = name === undefined || name === "" ? container : containers.find((candidate) => candidate.name === name);
  if (target === undefined) throw new PodyardError("InvalidArgument", `container ${name ?? ""} not found`);
  const match = /^(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-.+)$/.exec(selector.resource);
  const [, kind, resource] = match ?? [];
  if ((kind !== "limits" && kind !== "requests") || resource === undefined)
    throw new PodyardError("InvalidArgument", `unsupported container resource : ${selector.resource}`);
  const isCpu = resource === "cpu";
  const inUnits = isCpu ? quantityMilliValue : quantityValue;
  const quantity = target.resources?.[kind]?.[resource];
  let value = quantity === undefined ? 0 : inUnits(quantity);
  if (value === 0 && kind === "limits" && !resource.startsWith("hugepages-")) {
    const shared = pod.spec?.resources?.limits?.[resource];
    value = shared === undefined ? 0 : inUnits(shared);
    if (value === 0) value = allocatable[resource] ?? 0;
  }
  const divisor = selector.divisor === undefined || parseQuantity(selector.divisor) === 0n ? "1" : selector.divisor;
  return String(Math.ceil(value / inUnits(divisor)));
}

/** `key="value"` lines in the order of the keys, as the kubelet writes labels and annotations into a file. */
function formatMap(map: Readonly<Record<string, string>>): string {
  return Object.keys(map)
    .sort((left, right) => (left < right ? -1 : 1))
    .map((key) => `${key}=${quote(map[key] ?? "")}`)
    .join("\n");
}

/** Go's strconv.Quote, whose escapes are those of a Go string literal. */
function quote(text: string): string {
  const short: Readonly<Record<string, string>> = {
    "\u0007": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
  };
  let result = "";
  for (const character of text) {
    const code = character.codePointAt(0) ?? 0;
    const known = short[character];
    if (known !== undefined) result += known;
    else if (code < 0x20 || code === 0x7f) result += `\\x${code.toString(16).padStart(2, "0")}`;
    else if (character === " " || /[\p{L}\p{M}\p{N}\p{P}\p{S}]/u.test(character)) result += character;
    else result += code > 0xffff ? `\\U${code.toString(16).padStart(8, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
  }
  return `"${result}"`;
}
