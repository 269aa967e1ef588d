/** The host without a cluster: Pods from a folder of manifests and from `podyard pod apply`. */
import { arch, cpus, hostname, totalmem } from "node:os";
import { PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { NodeView } from "../kubernetes/cluster.ts";
import { currentAddresses } from "../kubernetes/node-addresses.ts";
import { measureHost } from "../kubernetes/node-measure.ts";
import { conditionsOf, pressuresOf } from "../kubernetes/node-status.ts";
import { quantityMilliValue, quantityValue } from "../pods/resources.ts";
import { createStandalone } from "../pods/standalone.ts";
import type { Settings } from "../settings/settings.ts";
import type { HostProblem, Side } from "./side.ts";

export interface StandaloneSideOptions {
  readonly dataDirectory: string;
  readonly cacheDirectory: string;
  readonly settings: Settings;
  readonly maximumMachines: number;
  readonly logger: Logger;
  problems(): readonly HostProblem[];
}

export async function createStandaloneSide(options: StandaloneSideOptions): Promise<Side> {
  const { settings, dataDirectory, logger } = options;
  const nodeName = settings.nodeName ?? hostname().toLowerCase();
  const [measurement, addresses] = await Promise.all([measureHost(dataDirectory), currentAddresses("https://192.0.2.1").catch(() => [])]);
  const allocatable = {
    cpu: Math.max(0, cpus().length * 1000 - quantityMilliValue(settings.hostReserve.cpu)),
    memory: Math.max(0, totalmem() - quantityValue(settings.hostReserve.memory)),
    "ephemeral-storage": measurement.diskBytes,
    pods: options.maximumMachines + 20,
    "podyard.dev/vm": options.maximumMachines,
  };
  const node: NodeView = {
    name: nodeName,
    addresses: () => addresses,
    labels: () => ({ "kubernetes.io/hostname": nodeName, "kubernetes.io/os": process.platform, "kubernetes.io/arch": arch() === "x64" ? "amd64" : arch(), type: "virtual-kubelet", ...settings.nodeLabels }),
    allocatable: () => allocatable,
    accepting: () => true,
    clusterDNS: () => settings.clusterDNS,
  };
  const standalone = createStandalone({ dataDirectory, node, logger, ...(settings.manifests !== undefined && { manifestsDirectory: settings.manifests }) });
  const quantities = { cpu: `${allocatable.cpu}m`, memory: String(allocatable.memory), "podyard.dev/vm": String(options.maximumMachines) };
  const conditions = async () => {
    const now = new Date();
    const pressures = pressuresOf(await measureHost(dataDirectory, options.cacheDirectory));
    const pressureSeenAt = Object.fromEntries([...pressures].map((pressure) => [pressure, now]));
    return conditionsOf({ now, pressureSeenAt, problems: options.problems(), isLeaving: false, addresses: ["a host of its own needs none"] }, []).map(({ type, status, reason = "", message = "" }) => ({ type, status, reason, message }));
  };
  return {
    mode: "standalone",
    nodeName,
    source: standalone.source,
    reporter: standalone.reporter,
    objects: standalone.objects,
    node,
    ready: Promise.resolve(),
    start: () => standalone.start(),
    status: async () => ({
      name: nodeName,
      ready: !options.problems().some(({ isBlocking }) => isBlocking),
      reason: "Standalone",
      message: "runs Pods without a cluster",
      addresses: [...addresses],
      conditions: await conditions(),
      capacity: { cpu: String(cpus().length), memory: String(totalmem()), "podyard.dev/vm": String(options.maximumMachines) },
      allocatable: quantities,
      unschedulable: false,
      certificates: [],
      problems: options.problems().map(({ type, reason, message, fix }) => ({ type, reason, message, fix })),
    }),
    kubeletPort: () => undefined,
    leave: () => Promise.reject(new PodyardError("Unsupported", "this host is not part of a cluster", { fix: "podyard join makes it a node" })),
    problemsChanged: () => {},
    standalone,
  };
}
