/**
 * Quantities and what follows from them: how big a machine is, what a Pod asks of the node, its QoS class. Quantities are
 * exact integers in billionths ("nano") as in Kubernetes, so that `100m`, `1Gi` and `1e3` never pass through floating point.
 * https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
 */
import { PodyardError } from "../contract/errors.ts";
import type { OperatingSystem } from "../contract/image.ts";
import type { Container, Pod, ResourceRequirements } from "../contract/kubernetes-api.generated.ts";

type Quantity = string | number;
type QuantityMap = Readonly<Record<string, Quantity>>;

export type QosClass = "Guaranteed" | "Burstable" | "BestEffort";

export interface MachineSize {
  readonly cpuCount: number;
  readonly memoryBytes: number;
}

const nano = 1_000_000_000n;
const mebibyte = 1024 * 1024;
const binaryUnits: Readonly<Record<string, bigint>> = { Ki: 1n << 10n, Mi: 1n << 20n, Gi: 1n << 30n, Ti: 1n << 40n, Pi: 1n << 50n, Ei: 1n << 60n };
const decimalExponents: Readonly<Record<string, number>> = { n: -9, u: -6, m: -3, "": 0, k: 3, M: 6, G: 9, T: 12, P: 15, E: 18 };
const quantityPattern = /^([+-]?)(\d*)(?:\.(\d*))?(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?|[eE][+-]?\d{1,3})$/;

const unsetMachineSize: Readonly<Record<OperatingSystem, MachineSize>> = {
  darwin: { cpuCount: 4, memoryBytes: 8 * 1024 * mebibyte },
  linux: { cpuCount: 1, memoryBytes: 1024 * mebibyte },
};

/** The quantity in billionths of its base unit (cores, bytes), rounded up (away from zero) below that. Errors: InvalidArgument. */
export function parseQuantity(quantity: Quantity): bigint {
  const text = String(quantity);
  const match = quantityPattern.exec(text);
  const [, sign = "", whole = "", fraction = "", suffix = ""] = match ?? [];
  if (match === null || whole + fraction === "" || whole.length + fraction.length > 64) {
    throw new PodyardError(
      "InvalidArgument",
      `"${text.slice(0, 80)}" is not a quantity: expected a number with an optional suffix such as m, k, M, Ki, Mi or Gi`,
    );
  }
  const digits = BigInt(whole + fraction);
  const unit = binaryUnits[suffix];
  const exponent = unit === undefined ? (decimalExponents[suffix] ?? Number(suffix.slice(1))) : 0;
  const power = 9 + exponent - fraction.length;
  const scaled = digits * (unit ?? 1n);
  const magnitude = power >= 0 ? scaled * 10n ** BigInt(power) : divideRoundingUp(scaled, 10n ** BigInt(-power));
  return sign === "-" ? -magnitude : magnitude;
}

/** The quantity in whole base units (bytes, cores), rounded up. */
export function quantityValue(quantity: Quantity): number {
  return Number(divideRoundingUp(parseQuantity(quantity), nano));
}

/** The quantity in thousandths (millicores), rounded up. */
export function quantityMilliValue(quantity: Quantity): number {
  return Number(divideRoundingUp(parseQuantity(quantity), nano / 1000n));
}

/** The size of container 0's machine: limits, else requests, else the platform's default; whole CPUs, memory in whole MiB. */
export function machineSize(pod: Pod, operatingSystem: OperatingSystem, defaults: MachineSize = unsetMachineSize[operatingSystem]): MachineSize {
  const asked = (name: string): Quantity | undefined => {
    const own = pod.spec?.containers[0]?.resources;
    // Pod-level resources bound all containers together; they size the machine when it is alone and says nothing itself.
    const shared = pod.spec?.containers.length === 1 ? pod.spec.resources : undefined;
    return [own?.limits, own?.requests, shared?.limits, shared?.requests]
      .map((list) => list?.[name])
      .find((value) => value !== undefined && parseQuantity(value) > 0n);
  };
  const cpu = asked("cpu");
  const memory = asked("memory");
  return {
    cpuCount: cpu === undefined ? defaults.cpuCount : Math.max(1, quantityValue(cpu)),
    memoryBytes: memory === undefined ? defaults.memoryBytes : Math.ceil(quantityValue(memory) / mebibyte) * mebibyte,
  };
}

/**
 * What a Pod takes from the node, as the scheduler counts it: cpu in millicores, everything else in base units. Containers
 * and native side-cars add up, plain init containers count at their peak, Pod-level requests replace the sum.
 * https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers
 */
export function effectiveRequests(pod: Pod): Readonly<Record<string, number>> {
  const total = new Map<string, number>();
  for (const container of pod.spec?.containers ?? []) addTo(total, requestsOf(container));
  const sideCars = new Map<string, number>();
  const peak = new Map<string, number>();
  for (const container of pod.spec?.initContainers ?? []) {
    const requests = requestsOf(container);
    if (container.restartPolicy === "Always") {
      addTo(total, requests);
      addTo(sideCars, requests);
      raiseTo(peak, sideCars);
    } else {
      const together = new Map(sideCars);
      addTo(together, requests);
      raiseTo(peak, together);
    }
  }
  raiseTo(total, peak);
  for (const [name, value] of requestsOf({ resources: pod.spec?.resources })) total.set(name, value);
  for (const [name, quantity] of Object.entries(pod.spec?.overhead ?? {})) total.set(name, (total.get(name) ?? 0) + inUnits(name, quantity));
  return Object.fromEntries(total);
}

/** https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/ */
export function qosClass(pod: Pod): QosClass {
  const podLevel = pod.spec?.resources;
  const parts: readonly { readonly resources?: ResourceRequirements | undefined }[] =
    Object.keys({ ...podLevel?.requests, ...podLevel?.limits }).length > 0
      ? [{ resources: podLevel }]
      : [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])];
  const computed = ["cpu", "memory"];
  const positive = (list: QuantityMap | undefined, name: string): bigint => (list?.[name] === undefined ? 0n : parseQuantity(list[name]));
  let asks = false;
  let guaranteed = parts.length > 0;
  for (const { resources } of parts) {
    for (const name of computed) {
      const request = positive(resources?.requests, name);
      const limit = positive(resources?.limits, name);
      if (request > 0n || limit > 0n) asks = true;
      // The API server copies an absent request from the limit; a manifest read from a file is treated alike.
      if (limit === 0n || (request !== 0n && request !== limit)) guaranteed = false;
    }
  }
  if (!asks) return "BestEffort";
  return guaranteed ? "Guaranteed" : "Burstable";
}

/** cpu counts in millicores, everything else in base units, as NodeView.allocatable does. */
function inUnits(name: string, quantity: Quantity): number {
  return name === "cpu" ? quantityMilliValue(quantity) : quantityValue(quantity);
}

function requestsOf(container: Pick<Container, "resources">): ReadonlyMap<string, number> {
  const result = new Map<string, number>();
  for (const [name, quantity] of Object.entries({ ...container.resources?.limits, ...container.resources?.requests }))
    result.set(name, inUnits(name, quantity));
  return result;
}

function addTo(target: Map<string, number>, values: ReadonlyMap<string, number>): void {
  for (const [name, value] of values) target.set(name, (target.get(name) ?? 0) + value);
}

function raiseTo(target: Map<string, number>, values: ReadonlyMap<string, number>): void {
  for (const [name, value] of values) target.set(name, Math.max(target.get(name) ?? 0, value));
}

function divideRoundingUp(dividend: bigint, divisor: bigint): bigint {
  const quotient = dividend / divisor;
  return dividend > 0n && dividend % divisor !== 0n ? quotient + 1n : quotient;
}
