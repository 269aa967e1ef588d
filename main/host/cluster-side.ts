/** The host as a node of a cluster: everything that talks to the API server, and the kubelet API that it talks to. */
import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import type { NodeStatusReport, Problem } from "../contract/host-api.ts";
import type { Taint } from "../contract/kubernetes-api.generated.ts";
import type { Logger } from "../contract/logger.ts";
import { createKubeletServer, type ServingCertificate } from "../kubelet/kubelet-server.ts";
import { createHostUsage } from "../kubelet/metrics/node-usage.ts";
import { NodeCertificates } from "../kubernetes/certificates.ts";
import { type Connection, KubernetesClient } from "../kubernetes/client.ts";
import { EventRecorder } from "../kubernetes/events.ts";
import { loadNodeCredentials } from "../kubernetes/kubeconfig.ts";
import { NodeLease } from "../kubernetes/lease.ts";
import { leave } from "../kubernetes/leave.ts";
import { KubernetesNode, kubernetesVersion } from "../kubernetes/node.ts";
import { ApiPodObjects } from "../kubernetes/pod-objects.ts";
import { ApiPodReporter } from "../kubernetes/pod-reporter.ts";
import { ApiPodSource } from "../kubernetes/pod-source.ts";
import { NodeAccessReviewer, TokenReviewer } from "../kubernetes/review.ts";
import { generateKey, issueCertificate, keyToPem } from "../kubernetes/x509.ts";
import type { PodRuntime } from "../pods/pod-runtime.ts";
import { quantityMilliValue, quantityValue } from "../pods/resources.ts";
import type { Settings } from "../settings/settings.ts";
import type { HostProblem, NodeImage, Side } from "./side.ts";

export interface ClusterSideOptions {
  readonly kubeconfig: string;
  readonly dataDirectory: string;
  readonly cacheDirectory: string;
  readonly settings: Settings;
  readonly version: string;
  readonly maximumMachines: number;
  readonly logger: Logger;
  images(): readonly NodeImage[];
  problems(): readonly HostProblem[];
}

/** Errors: NotFound, InvalidArgument, Forbidden (the kubeconfig is not this node's). */
export async function createClusterSide(options: ClusterSideOptions): Promise<Side> {
  const { settings, logger, dataDirectory } = options;
  const directory = join(dataDirectory, "node");
  const credentials = await loadNodeCredentials({ kubeconfig: options.kubeconfig, directory, ...(settings.nodeName !== undefined && { nodeName: settings.nodeName }) });
  const { nodeName, connection } = credentials;
  const resources = new AsyncDisposableStack();
  const userAgent = `podyard/${options.version}`;
  const client = resources.use(new KubernetesClient({ connection, userAgent }));
  const leaseClient = resources.use(new KubernetesClient({ connection, userAgent, timeoutMilliseconds: 10_000, connections: 1 }));
  const recorder = resources.use(new EventRecorder({ client, nodeName, logger }));
  const source = new ApiPodSource({ client, nodeName, logger });
  const objects = new ApiPodObjects({ client, logger });
  const reporter = new ApiPodReporter({ client, recorder });
  const serving = servingCertificates(nodeName);
  let kubeletPort = 0;
  let certificates: NodeCertificates | undefined;
  const addresses = publishedAddress(settings.kubeletAddress);
  const node = new KubernetesNode({
    client,
    nodeName,
    settings: {
      labels: settings.nodeLabels,
      taints: taintsOf(settings.taint),
      reserve: { cpuMillicores: quantityMilliValue(settings.hostReserve.cpu), memoryBytes: quantityValue(settings.hostReserve.memory), diskBytes: 0 },
      maximumPods: process.platform === "darwin" ? options.maximumMachines : options.maximumMachines + 20,
      virtualMachineSlots: options.maximumMachines,
      // Known only when the server listens, which is before the Node is written.
      get kubeletPort() {
        return kubeletPort;
      },
      ...(addresses !== undefined && { addresses }),
      ...(settings.clusterDNS !== undefined && { clusterDNS: settings.clusterDNS }),
    },
    version: options.version,
    storageDirectory: dataDirectory,
    imageDirectory: options.cacheDirectory,
    recorder,
    logger,
    images: () => options.images().map((image) => ({ names: [...image.names], sizeBytes: image.sizeBytes })),
    problems: () => [...options.problems(), ...(certificates?.problems() ?? [])],
  });

  return {
    mode: "cluster",
    nodeName,
    source,
    reporter,
    objects,
    node,
    ready: node.ready,
    async start(runtime: PodRuntime, isSyncLoopAlive: () => void) {
      await using stack = new AsyncDisposableStack();
      stack.use(resources);
      const server = createKubeletServer({
        pods: runtime,
        node: { name: nodeName, kubernetesVersion },
        authenticator: new TokenReviewer({ client }),
        authorizer: new NodeAccessReviewer({ client, nodeName }),
        clientCertificateAuthorities: [settings.clientCertificateAuthority ?? connection.certificateAuthority],
        tls: serving,
        address: settings.kubeletAddress,
        port: settings.kubeletPort,
        metrics: {
          nodeUsage: createHostUsage({ state: dataDirectory, images: options.cacheDirectory }),
          certificateExpiry: () => ({ client: expiryOf(client.connection.certificate ?? ""), serving: expiryOf(serving.current().cert) }),
        },
        health: { syncLoop: isSyncLoopAlive, configuration: () => ({ nodeName, port: kubeletPort, address: settings.kubeletAddress, clusterDNS: settings.clusterDNS?.servers, clusterDomain: settings.clusterDNS?.domain }) },
        logger,
      });
      const listener = stack.use(await server.listen());
      kubeletPort = listener.port;
      stack.use(await node.start());
      stack.use(source.start());
      stack.use(objects.start());
      const lease = new NodeLease({ client: leaseClient, nodeName, nodeUid: () => node.current()?.metadata?.uid, logger });
      stack.use(lease.start());
      certificates = new NodeCertificates({
        credentials,
        client,
        recorder,
        logger,
        addresses: () => node.addresses(),
        onAddressesChanged: (listen) => node.onAddressesChanged(listen),
        onClientCertificate: (renewed) => leaseClient.use(renewed),
        onServingCertificate: (certificate) => serving.replace({ key: certificate.key, cert: certificate.certificate }),
        onProblem: () => node.refresh(),
      });
      stack.use(await certificates.start());
      return stack.move();
    },
    status: async () => statusOf(node, client.connection, serving.current(), [...options.problems(), ...(certificates?.problems() ?? [])]),
    kubeletPort: () => kubeletPort,
    async leave(signal) {
      const { deleteCommand } = await leave({ client, node, pods: source, logger, signal });
      return { message: `Node ${nodeName} is cordoned and runs no Pods. Delete it from the cluster with:`, command: deleteCommand };
    },
    problemsChanged: () => node.refresh(),
    standalone: undefined,
  };
}

function servingCertificates(nodeName: string) {
  const listeners = new Set<() => void>();
  const key = generateKey();
  const subject = { commonName: nodeName };
  // Stands in until the first one of the cluster, so that the port answers from the start.
  const cert = issueCertificate({ subject, key, issuer: { subject, key }, notBefore: new Date(Date.now() - 300_000), notAfter: new Date(Date.now() + 86_400_000), usages: ["serverAuth"], alternativeNames: [nodeName] });
  let current: ServingCertificate = { key: keyToPem(key), cert };
  return {
    current: () => current,
    subscribe(listener: () => void) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    replace(certificate: ServingCertificate) {
      current = certificate;
      for (const listener of listeners) listener();
    },
  };
}

/** `key=value:Effect`, or `none`; the settings' schema has checked the form. */
export function taintsOf(text: string): readonly Taint[] {
  const match = /^(?<key>[^=:]+)(=(?<value>[^:]*))?:(?<effect>\w+)$/.exec(text);
  if (match?.groups === undefined) return [];
  const { key = "", value, effect = "" } = match.groups;
  return [{ key, effect, ...(value !== undefined && value !== "" && { value }) }];
}

/** Listening on one address, that is where the node is reached. */
function publishedAddress(listen: string): readonly string[] | undefined {
  return listen === "0.0.0.0" || listen === "::" || listen === "" ? undefined : [listen];
}

function expiryOf(pem: string): Date | undefined {
  const [first] = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/) ?? [];
  return first === undefined ? undefined : new X509Certificate(first).validToDate;
}

function statusOf(node: KubernetesNode, connection: Connection, serving: ServingCertificate, problems: readonly (Omit<Problem, "fix"> & { readonly fix?: string })[]): Omit<NodeStatusReport, "mode"> {
  const current = node.current();
  const conditions = (current?.status?.conditions ?? []).map(({ type, status, reason = "", message = "" }) => ({ type, status, reason, message }));
  const ready = conditions.find((condition) => condition.type === "Ready");
  const text = (quantities: Readonly<Record<string, string | number>> | undefined) => Object.fromEntries(Object.entries(quantities ?? {}).map(([name, value]) => [name, String(value)]));
  return {
    name: node.name,
    ready: ready?.status === "True",
    reason: ready?.reason ?? "NotRegistered",
    message: ready?.message ?? "the cluster does not have this node yet",
    server: connection.server,
    addresses: [...node.addresses()],
    conditions,
    capacity: text(current?.status?.capacity),
    allocatable: text(current?.status?.allocatable),
    unschedulable: current?.spec?.unschedulable === true,
    certificates: [
      { name: "client", expiresAt: expiryOf(connection.certificate ?? "")?.toISOString() },
      { name: "serving", expiresAt: expiryOf(serving.cert)?.toISOString() },
    ],
    problems: problems.map((problem) => ({ type: problem.type, reason: problem.reason, message: problem.message, fix: problem.fix ?? "" })),
  };
}
