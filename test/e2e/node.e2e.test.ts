/**
 * The node against a real control plane: joins, is Ready, keeps its lease, may do a node's things and nothing else, gets
 * and renews its certificates, survives a restart of the API server, and leaves in good order. There are no VMs here: a
 * few lines stand for the Pod runtime where Pods must run and end.
 */
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, stat, readFile } from "node:fs/promises";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Pod, PodStatus, ResourceAttributes } from "../../main/contract/kubernetes-api.generated.ts";
import { hasCode } from "../../main/contract/errors.ts";
import { silentLogger } from "../../main/contract/logger.ts";
import { NodeCertificates } from "../../main/kubernetes/certificates.ts";
import type { NodeCertificatesOptions, ServingCertificate } from "../../main/kubernetes/certificates.ts";
import { KubernetesClient } from "../../main/kubernetes/client.ts";
import { EventRecorder } from "../../main/kubernetes/events.ts";
import { joinWithContext, joinWithToken } from "../../main/kubernetes/join.ts";
import { loadNodeCredentials } from "../../main/kubernetes/kubeconfig.ts";
import { NodeLease } from "../../main/kubernetes/lease.ts";
import { leave } from "../../main/kubernetes/leave.ts";
import { KubernetesNode } from "../../main/kubernetes/node.ts";
import { currentAddresses } from "../../main/kubernetes/node-addresses.ts";
import type { NodeProblem } from "../../main/kubernetes/node-status.ts";
import { ApiPodObjects } from "../../main/kubernetes/pod-objects.ts";
import { ApiPodReporter } from "../../main/kubernetes/pod-reporter.ts";
import { ApiPodSource } from "../../main/kubernetes/pod-source.ts";
import * as resources from "../../main/kubernetes/resources.ts";
import { NodeAccessReviewer, TokenReviewer } from "../../main/kubernetes/review.ts";
import { startControlPlane, waitFor } from "../control-plane/control-plane.ts";
import type { ControlPlane } from "../control-plane/control-plane.ts";

const manifests = join(import.meta.dirname, "../../resources/rbac");
const userAgent = "podyard/test";
const nodeName = "host-1.example";
let cluster: ControlPlane;
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "podyard-node-"));
  cluster = await startControlPlane();
}, 420_000);

afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
  await rm(directory, { recursive: true, force: true });
}, 30_000);

afterEach(async ({ task }) => {
  if (task.result?.state === "fail") console.error(await cluster.logs());
});

const never = new AbortController().signal;
const nodeDirectory = (): string => join(directory, "node");
const run = async (args: readonly string[], options: Parameters<ControlPlane["kubectl"]>[1] = {}): Promise<string> => {
  const result = await cluster.kubectl(args, options);
  if (result.exitCode !== 0) throw new Error(`kubectl ${args.join(" ")}: ${result.stderr}`);
  return result.stdout.trim();
};
const conditionOf = async (type: string, name = nodeName): Promise<string | undefined> =>
  (await cluster.client.get(resources.nodes, { name })).status?.conditions?.find((condition) => condition.type === type)?.status;

/** RBAC takes effect a moment after it was written. */
const may = async (user: string, resourceAttributes: ResourceAttributes): Promise<boolean> =>
  (await cluster.client.create(resources.subjectAccessReviews, {}, { spec: { user, resourceAttributes } })).status?.allowed === true;

interface Running extends AsyncDisposable {
  readonly client: KubernetesClient;
  readonly node: KubernetesNode;
  readonly lease: NodeLease;
  readonly recorder: EventRecorder;
  readonly certificates: NodeCertificates;
  readonly pods: ApiPodSource;
  readonly problems: NodeProblem[];
  readonly served: ServingCertificate[];
}

/** What the composition root does, without VMs. The kubelet server answers `ok` to everything. */
async function startNode(options: Partial<Pick<NodeCertificatesOptions, "now" | "announceMilliseconds" | "checkMilliseconds">> & { readonly extraAddresses?: string[]; readonly kubeletPort?: number } = {}): Promise<Running> {
  const { extraAddresses = [], kubeletPort = 0, ...certificateOptions } = options;
  await using stack = new AsyncDisposableStack();
  const credentials = await loadNodeCredentials({ kubeconfig: join(nodeDirectory(), "kubeconfig"), directory: nodeDirectory() });
  const client = stack.use(new KubernetesClient({ connection: credentials.connection, userAgent }));
  const leaseClient = stack.use(new KubernetesClient({ connection: credentials.connection, userAgent, timeoutMilliseconds: 10_000, connections: 1 }));
  const recorder = stack.use(new EventRecorder({ client, nodeName: credentials.nodeName, logger: silentLogger }));
  const server = createServer((_, response) => void response.end("ok"));
  const { promise: listening, resolve } = Promise.withResolvers<void>();
  server.listen(kubeletPort, resolve);
  await listening;
  stack.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const hostAddresses = await currentAddresses(cluster.server);
  const problems: NodeProblem[] = [];
  let certificates: NodeCertificates | undefined;
  const node = new KubernetesNode({
    client,
    nodeName: credentials.nodeName,
    settings: {
      labels: { "example.com/rack": "7" },
      taints: [{ key: "virtual-kubelet.io/provider", value: "macos-vz", effect: "NoSchedule" }],
      reserve: { cpuMillicores: 500, memoryBytes: 1024 ** 3, diskBytes: 0 },
      maximumPods: 22,
      virtualMachineSlots: 2,
      kubeletPort: (server.address() as AddressInfo).port,
      get addresses() {
        return [...hostAddresses, ...extraAddresses];
      },
    },
    version: "0.1.0",
    storageDirectory: directory,
    recorder,
    logger: silentLogger,
    problems: () => [...problems, ...(certificates?.problems() ?? [])],
    intervalMilliseconds: 500,
  });
  stack.use(await node.start());
  const served: ServingCertificate[] = [];
  certificates = new NodeCertificates({
    credentials,
    client,
    recorder,
    logger: silentLogger,
    addresses: () => node.addresses(),
    onAddressesChanged: (listener) => node.onAddressesChanged(listener),
    onClientCertificate: (connection) => leaseClient.use(connection),
    onServingCertificate: (serving) => {
      served.push(serving);
      server.setSecureContext({ cert: serving.certificate, key: serving.key });
    },
    onProblem: () => node.refresh(),
    ...certificateOptions,
  });
  stack.use(await certificates.start());
  const lease = new NodeLease({ client: leaseClient, nodeName: credentials.nodeName, nodeUid: () => node.current()?.metadata?.uid, logger: silentLogger, intervalMilliseconds: 500 });
  stack.use(lease.start());
  const pods = new ApiPodSource({ client, nodeName: credentials.nodeName, logger: silentLogger });
  stack.use(pods.start());
  const owned = stack.move();
  return { client, node, lease, recorder, certificates, pods, problems, served, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0);
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

/** Reports Pods as Running at once and removes them when asked to. */
function runPods(running: Running): () => void {
  const reporter = new ApiPodReporter({ client: running.client, recorder: running.recorder });
  const failures: unknown[] = [];
  const handle = async (uid: string): Promise<void> => {
    const pod = running.pods.current().get(uid);
    if (pod === undefined) return;
    if (pod.metadata?.deletionTimestamp !== undefined) return reporter.remove(pod);
    await reporter.writeStatus(pod, runningStatus(pod));
  };
  const unsubscribe = running.pods.subscribe((uid) => void handle(uid).catch((error: unknown) => failures.push(error)));
  for (const uid of running.pods.current().keys()) void handle(uid).catch((error: unknown) => failures.push(error));
  return () => {
    unsubscribe();
    expect(failures).toEqual([]);
  };
}

const startedAt = "2026-01-01T00:00:00Z";
const runningStatus = (pod: Pod): PodStatus => ({
  phase: "Running",
  startTime: startedAt,
  podIP: "10.88.0.7",
  podIPs: [{ ip: "10.88.0.7" }],
  conditions: ["Initialized", "ContainersReady", "Ready"].map((type) => ({ type, status: "True", lastTransitionTime: startedAt })),
  containerStatuses: (pod.spec?.containers ?? []).map(({ name, image }) => ({
    name,
    image: image ?? "",
    imageID: "",
    ready: true,
    restartCount: 0,
    started: true,
    state: { running: { startedAt } },
  })),
});

const podManifest = (name: string, spec: object = {}): object => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default" },
  spec: { terminationGracePeriodSeconds: 1, tolerations: [{ operator: "Exists" }], nodeName, containers: [{ name: "main", image: "none" }], ...spec },
});

describe("joining", () => {
  it("needs no more of the cluster than the manifest that ships with it", async () => {
    // The same bindings under other names are taken away, so that the shipped ones must do for all that follows.
    await run(["apply", "-f", join(manifests, "node-bootstrap.yaml")]);
    await run(["delete", "clusterrolebinding", "kubelet-bootstrap", "node-autoapprove-bootstrap", "node-autoapprove-certificate-rotation"]);
  });

  it("refuses a wrong authority hash, a wrong token and a malformed one, and writes nothing", async () => {
    const token = await cluster.createBootstrapToken();
    const options = { server: cluster.server, token, caHashes: [cluster.caHash], nodeName: "wrong", directory: join(directory, "wrong"), userAgent, signal: never };
    const refused = (change: Partial<typeof options>): Promise<unknown> => joinWithToken({ ...options, ...change }).catch((error: unknown) => error);
    const wrongHash = await refused({ caHashes: [`sha256:${"0".repeat(64)}`] });
    expect(hasCode(wrongHash, "Forbidden") && wrongHash.message).toContain(cluster.caHash);
    const other = `${token.slice(0, 7)}0000000000000000`;
    expect(hasCode(await refused({ token: other }), "Forbidden")).toBe(true);
    const unknown = await refused({ token: "zzzzzz.0000000000000000" });
    expect(hasCode(unknown, "Forbidden") && unknown.message).toContain("does not know the token");
    const malformed = await refused({ token: "not-a-token" });
    expect(hasCode(malformed, "InvalidArgument") && malformed.message).not.toContain("not-a-token");
    expect(hasCode(await refused({ caHashes: [] }), "InvalidArgument")).toBe(true);
    expect(hasCode(await refused({ nodeName: "Upper_Case" }), "InvalidArgument")).toBe(true);
    await expect(stat(join(directory, "wrong"))).rejects.toThrow("ENOENT");
    expect(await run(["get", "csr", "-o", "name"])).toBe("");
  });

  it("with a bootstrap token gives a credential of the node alone, readable by its owner alone", async () => {
    const token = await cluster.createBootstrapToken();
    const result = await joinWithToken({ server: cluster.server, token, caHashes: [cluster.caHash], nodeName, directory: nodeDirectory(), userAgent, signal: never });
    expect(result.kubeconfig).toBe(join(nodeDirectory(), "kubeconfig"));
    for (const file of ["kubeconfig", "client.pem"]) expect((await stat(join(nodeDirectory(), file))).mode & 0o777).toBe(0o600);
    expect((await stat(nodeDirectory())).mode & 0o777).toBe(0o700);
    expect(await readFile(result.kubeconfig, "utf8")).not.toContain(token.slice(7));
    const whoAmI = await run(["auth", "whoami", "-o", "json"], { kubeconfig: result.kubeconfig });
    expect(JSON.parse(whoAmI).status.userInfo).toMatchObject({ username: `system:node:${nodeName}`, groups: ["system:nodes", "system:authenticated"] });
  });

  it("with an administrator's context approves its own request and keeps nothing of the administrator", async () => {
    const result = await joinWithContext({ kubeconfig: cluster.kubeconfig, context: "admin", nodeName: "by-context", directory: join(directory, "by-context"), userAgent, signal: never });
    const credentials = await loadNodeCredentials({ kubeconfig: result.kubeconfig, directory: join(directory, "by-context"), nodeName: "by-context" });
    expect(credentials.nodeName).toBe("by-context");
    const administrator = await readFile(cluster.kubeconfig, "utf8");
    const adminKey = JSON.parse(administrator).users[0].user["client-key-data"];
    expect(await readFile(result.kubeconfig, "utf8")).not.toContain(adminKey);
    const missing = await joinWithContext({ kubeconfig: cluster.kubeconfig, context: "nope", nodeName: "x", directory: join(directory, "x"), userAgent, signal: never }).catch((error: unknown) => error);
    expect(hasCode(missing, "InvalidArgument") && missing.message).toContain('no context "nope", only admin');
  });

  it("is refused to run as administrator or as another node", async () => {
    const asAdmin = await loadNodeCredentials({ kubeconfig: cluster.kubeconfig, directory: join(directory, "none") }).catch((error: unknown) => error);
    expect(hasCode(asAdmin, "Forbidden") && asAdmin.message).toContain('the user is "kubernetes-admin" (group system:masters), but a node must be "system:node:NAME"');
    const asOther = await loadNodeCredentials({ kubeconfig: join(nodeDirectory(), "kubeconfig"), directory: nodeDirectory(), nodeName: "other" }).catch((error: unknown) => error);
    expect(hasCode(asOther, "Forbidden") && asOther.message).toContain(`belongs to node "${nodeName}"`);
  });
});

describe("the node", () => {
  it("is Ready with labels, taint, resources and version, renews its lease and reports problems", async () => {
    await using running = await startNode();
    await running.node.ready;
    const node = await cluster.client.get(resources.nodes, { name: nodeName });
    expect(node.metadata?.labels).toMatchObject({
      "kubernetes.io/hostname": nodeName,
      "kubernetes.io/os": process.platform,
      type: "virtual-kubelet",
      "node.kubernetes.io/exclude-from-external-load-balancers": "true",
      "example.com/rack": "7",
    });
    expect(node.spec?.taints).toContainEqual({ key: "virtual-kubelet.io/provider", value: "macos-vz", effect: "NoSchedule" });
    expect(node.status?.capacity).toMatchObject({ "podyard.dev/vm": "2", pods: "22" });
    expect(node.status?.nodeInfo?.kubeletVersion).toBe("v1.35.4-podyard.0.1.0");
    expect(node.status?.addresses).toEqual(running.node.addresses().map((address) => ({ type: "InternalIP", address })));
    expect(node.status?.conditions?.at(-1)?.type).toBe("Ready");
    expect(running.node.allocatable()["podyard.dev/vm"]).toBe(2);
    expect(running.node.labels()).toEqual(node.metadata?.labels);

    const lease = () => cluster.client.get(resources.leases, { namespace: "kube-node-lease", name: nodeName });
    await waitFor("the owner of the lease", 10_000, async () => (await lease()).metadata?.ownerReferences?.[0]?.uid === node.metadata?.uid);
    const first = (await lease()).spec?.renewTime;
    await waitFor("the lease to be renewed", 10_000, async () => (await lease()).spec?.renewTime !== first);
    expect((await lease()).spec).toMatchObject({ holderIdentity: nodeName, leaseDurationSeconds: 40 });

    running.problems.push({ type: "DockerUnavailable", reason: "NotRunning", message: "Docker does not answer", fix: "start Docker" });
    running.node.refresh();
    await waitFor("the problem as condition", 10_000, async () => (await conditionOf("DockerUnavailable")) === "True");
    expect(await conditionOf("Ready")).toBe("True");
    running.problems[0] = { type: "DriverMissing", reason: "NotInstalled", message: "QEMU is not installed", isBlocking: true };
    await waitFor("the node not to be Ready", 10_000, async () => (await conditionOf("Ready")) === "False");
    expect(await conditionOf("DockerUnavailable")).toBeUndefined();
    running.problems.length = 0;
    await waitFor("the node to be Ready again", 10_000, async () => (await conditionOf("Ready")) === "True");
    expect(await conditionOf("DriverMissing")).toBeUndefined();
    await running.recorder.flush();
    expect(await run(["describe", "node", nodeName])).toMatch(/Normal +NodeReady .* podyard +Node \S+ status is now: NodeReady/);
  }, 60_000);

  it("is Ready again after a restart of the host that changed nothing", async () => {
    const port = await freePort();
    for (let times = 0; times < 2; times += 1) {
      await using running = await startNode({ kubeletPort: port });
      await running.node.ready;
    }
  }, 30_000);

  it("is made again when deleted, with its labels and taint", async () => {
    await using running = await startNode();
    await running.node.ready;
    const before = (await cluster.client.get(resources.nodes, { name: nodeName })).metadata?.uid;
    await run(["delete", "node", nodeName]);
    await waitFor("the node to come back", 20_000, async () => {
      const node = await cluster.client.get(resources.nodes, { name: nodeName }).catch(() => undefined);
      return node !== undefined && node.metadata?.uid !== before && node.spec?.taints?.some(({ key }) => key === "virtual-kubelet.io/provider") === true;
    });
  }, 60_000);

  it("survives a restart of the API server: watches go on, the lease is renewed", async () => {
    await using running = await startNode();
    await running.node.ready;
    await running.pods.synced;
    await cluster.stopApiServer("SIGKILL");
    const before = running.lease.renewedAt;
    await cluster.startApiServer();
    await waitFor("the lease after the restart", 20_000, async () => running.lease.renewedAt !== before);
    await cluster.apply(podManifest("after-restart"));
    await waitFor("the Pod to be seen", 40_000, async () => [...running.pods.current().values()].some((pod) => pod.metadata?.name === "after-restart"));
    const stop = runPods(running);
    await run(["delete", "pod", "after-restart", "--wait=true", "--timeout=20s"]);
    await waitFor("the Pod to be gone", 10_000, async () => running.pods.current().size === 0);
    stop();
  }, 120_000);
});

describe("the credential", () => {
  it("is allowed a node's things and nothing else", async () => {
    const kubeconfig = join(nodeDirectory(), "kubeconfig");
    await using running = await startNode();
    await running.node.ready;
    const can = async (...args: readonly string[]): Promise<boolean> => (await cluster.kubectl(["auth", "can-i", ...args], { kubeconfig })).stdout.trim() === "yes";
    await cluster.apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "not-referenced", namespace: "default" }, stringData: { a: "b" } });
    const allowed = await Promise.all([can("create", "tokenreviews"), can("create", "events", "-n", "default"), can("list", "services", "-A")]);
    expect(allowed).toEqual([true, true, true]);
    const denied: readonly (readonly string[])[] = [
      ["get", "secret", "not-referenced", "-n", "default"],
      ["get", "secrets", "-A"],
      ["get", "pods", "-A"],
      ["get", "nodes"],
      ["delete", "node", nodeName],
      ["label", "node", nodeName, "node-role.kubernetes.io/control-plane=", "--overwrite"],
      ["label", "node", "by-context", "a=b"],
      ["taint", "node", nodeName, "virtual-kubelet.io/provider-"],
      ["create", "deployment", "x", "--image=x"],
      ["create", "token", "default", "-n", "default"],
      ["create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", `--user=system:node:${nodeName}`],
    ];
    for (const args of denied) {
      const result = await cluster.kubectl(args, { kubeconfig });
      expect(`${args.join(" ")}: ${result.exitCode} ${result.stderr}`).toMatch(/: 1 .*[Ff]orbidden|is not allowed|cannot/s);
    }
  }, 60_000);

  it("reads what its Pods refer to, follows changes, gets bound tokens, writes status without touching others' conditions", async () => {
    await using running = await startNode();
    await running.node.ready;
    const objects = new ApiPodObjects({ client: running.client, logger: silentLogger });
    await using _ = objects.start();
    await cluster.apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "used", namespace: "default" }, stringData: { a: "1" } });
    await cluster.apply(podManifest("user", { containers: [{ name: "main", image: "none", envFrom: [{ secretRef: { name: "used" } }] }], readinessGates: [{ conditionType: "example.com/gate" }] }));
    await waitFor("the Pod", 20_000, async () => running.pods.current().size === 1);
    const [pod] = [...running.pods.current().values()];
    if (pod?.metadata?.uid === undefined) throw new Error("no Pod");
    const uid = pod.metadata.uid;
    const changes: (readonly string[])[] = [];
    objects.subscribe((uids) => changes.push(uids));
    objects.use(uid, [{ kind: "Secret", namespace: "default", name: "used" }]);
    expect((await objects.secret("default", "used"))?.data).toEqual({ a: "MQ==" });
    await cluster.apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "used", namespace: "default" }, stringData: { a: "2" } });
    await waitFor("the change", 20_000, async () => changes.length > 0);
    expect(changes[0]).toEqual([uid]);
    expect((await objects.secret("default", "used"))?.data).toEqual({ a: "Mg==" });
    expect(await objects.configMap("default", "kube-root-ca.crt")).toMatchObject({ data: { "ca.crt": cluster.certificates.certificateAuthority } });
    expect((await objects.services()).some((service) => service.metadata?.name === "kubernetes")).toBe(true);
    expect((await objects.serviceAccount("default", "default"))?.metadata?.name).toBe("default");
    const token = await objects.token(pod, undefined, 3607);
    const claims = JSON.parse(Buffer.from(token.token.split(".")[1] ?? "", "base64url").toString());
    expect(claims["kubernetes.io"]).toMatchObject({ pod: { name: "user", uid } });
    expect(token.expiresAt.getTime()).toBeGreaterThan(Date.now() + 3000_000);
    objects.use(uid, []);

    const reporter = new ApiPodReporter({ client: running.client, recorder: running.recorder });
    await run(["patch", "pod", "user", "--subresource=status", "--type=strategic", "-p", '{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}']);
    const written = await reporter.writeStatus(pod, runningStatus(pod));
    if (written === "gone") throw new Error("gone");
    expect(written.status?.conditions?.map(({ type }) => type)).toEqual(expect.arrayContaining(["example.com/gate", "Ready"]));
    const same = await reporter.writeStatus(pod, runningStatus(pod));
    expect(same === "gone" ? "" : same.status).toEqual(written.status);
    const { podIP: _podIP, podIPs: _podIPs, ...without } = runningStatus(pod);
    const cleared = await reporter.writeStatus(pod, { ...without, podIP: "10.88.0.8", podIPs: [{ ip: "10.88.0.8" }], reason: "Test" });
    expect(cleared === "gone" ? "" : cleared.status).toMatchObject({ podIP: "10.88.0.8", podIPs: [{ ip: "10.88.0.8" }], reason: "Test" });
    const back = await reporter.writeStatus(pod, runningStatus(pod));
    expect(back === "gone" ? "" : back.status?.reason).toBeUndefined();

    const impostor = { ...pod, metadata: { ...pod.metadata, uid: "00000000-0000-0000-0000-000000000000" } };
    expect(await reporter.writeStatus(impostor, runningStatus(pod))).toBe("gone");
    await reporter.remove(impostor);
    expect(await run(["get", "pod", "user", "-o", "name"])).toBe("pod/user");
    reporter.event(pod, "Normal", "Started", "Started container main", "main");
    reporter.event(pod, "Normal", "Started", "Started container main", "main");
    await running.recorder.flush();
    const [event] = JSON.parse(await run(["get", "events", "--field-selector", "involvedObject.name=user,reason=Started", "-o", "json"])).items;
    expect(event).toMatchObject({ count: 2, involvedObject: { fieldPath: "spec.containers{main}", uid } });
    await reporter.remove(pod);
    expect(await reporter.writeStatus(pod, { ...runningStatus(pod), reason: "Late" })).toBe("gone");
    await reporter.remove(pod);
    await waitFor("the Pod to be gone", 10_000, async () => running.pods.current().size === 0);
  }, 90_000);

  it("reviews tokens and access for the kubelet server", async () => {
    await using running = await startNode();
    await running.node.ready;
    const reviewer = new TokenReviewer({ client: running.client });
    const access = new NodeAccessReviewer({ client: running.client, nodeName });
    await cluster.apply({ apiVersion: "v1", kind: "ServiceAccount", metadata: { name: "metrics", namespace: "default" } });
    await run(["create", "clusterrole", "metrics", "--verb=get", "--resource=nodes/metrics"]);
    await run(["create", "clusterrolebinding", "metrics", "--clusterrole=metrics", "--serviceaccount=default:metrics"]);
    const attributes = { resource: "nodes", subresource: "metrics", name: nodeName, verb: "get" };
    await waitFor("the binding to take effect", 10_000, () => may("system:serviceaccount:default:metrics", attributes));
    const identity = await reviewer.reviewToken(await run(["create", "token", "metrics"]));
    expect(identity?.user).toBe("system:serviceaccount:default:metrics");
    expect(await reviewer.reviewToken("nonsense")).toBeUndefined();
    if (identity === undefined) throw new Error("no identity");
    expect(await access.authorize(identity, "get", "metrics")).toBe(true);
    expect(await access.authorize(identity, "create", "proxy")).toBe(false);
    expect(await access.authorize({ user: "kube-apiserver-kubelet-client", groups: [] }, "create", "proxy")).toBe(true);
    await cluster.stopApiServer("SIGKILL");
    try {
      expect(await access.authorize(identity, "get", "metrics")).toBe(true);
      const unasked = await access.authorize(identity, "get", "stats").catch((error: unknown) => error);
      expect(hasCode(unasked, "Unavailable")).toBe(true);
    } finally {
      await cluster.startApiServer();
    }
  }, 90_000);
});

describe("certificates", () => {
  it("serve self-signed until an administrator approves, with the exact command, then with the cluster's", async () => {
    const proxy = ["get", "--raw", `/api/v1/nodes/${nodeName}/proxy/healthz`];
    await run(["delete", "csr", "--all"]);
    await rm(join(nodeDirectory(), "serving.key"), { force: true });
    {
      await using running = await startNode({ announceMilliseconds: 10 });
      await running.node.ready;
      expect(running.served.at(-1)?.isSelfSigned).toBe(true);
      const refused = await cluster.kubectl(proxy);
      expect(refused.stderr).toContain("x509");
      await waitFor("the problem", 20_000, async () => running.certificates.problems().length === 1);
      await waitFor("the condition", 20_000, async () => (await conditionOf("ServingCertificatePending")) === "True");
    }
    // A restart of the host does not make another request.
    await using running = await startNode({ announceMilliseconds: 10 });
    await waitFor("the problem", 20_000, async () => running.certificates.problems().length === 1);
    const requests = JSON.parse(await run(["get", "csr", "-o", "json"])).items;
    expect(requests).toHaveLength(1);
    const { fix } = running.certificates.problems()[0] ?? {};
    expect(fix).toBe(`kubectl certificate approve ${requests[0].metadata.name}`);
    // As somebody who may do this and nothing else.
    await run(["apply", "-f", join(manifests, "serving-certificates.yaml")]);
    await run(["create", "clusterrolebinding", "approvers", "--clusterrole=podyard:serving-certificate-approver", "--user=approver"]);
    const canApprove = (signer: string): Promise<boolean> => may("approver", { group: "certificates.k8s.io", resource: "signers", name: signer, verb: "approve" });
    await waitFor("the binding to take effect", 10_000, () => canApprove("kubernetes.io/kubelet-serving"));
    await run([...(fix ?? "").split(" ").slice(1), "--as=approver"]);
    expect(await canApprove("kubernetes.io/kube-apiserver-client-kubelet")).toBe(false);
    await waitFor("the issued certificate", 20_000, async () => running.served.at(-1)?.isSelfSigned === false);
    expect(await run(proxy)).toBe("ok");
    const certificate = new X509Certificate(running.served.at(-1)?.certificate ?? "");
    for (const address of running.node.addresses()) expect(certificate.checkIP(address)).toBe(address);
    await waitFor("the condition to go", 20_000, async () => (await conditionOf("ServingCertificatePending")) === undefined);
    await running.recorder.flush();
    expect(await run(["get", "events", "--field-selector", "reason=ServingCertificatePending", "-o", "jsonpath={.items[0].message}"])).toContain(fix);
  }, 90_000);

  it("are kept over a restart of the host", async () => {
    await using running = await startNode();
    expect(running.served.map(({ isSelfSigned }) => isSelfSigned)).toEqual([false]);
  }, 30_000);

  it("are ordered anew when the addresses change, and again when an order is denied", async () => {
    const extraAddresses: string[] = [];
    await using running = await startNode({ announceMilliseconds: 10, extraAddresses });
    expect(running.served.map(({ isSelfSigned }) => isSelfSigned)).toEqual([false]);
    extraAddresses.push("198.51.100.9");
    running.node.refresh();
    const command = (): readonly string[] => (running.certificates.problems()[0]?.fix ?? "").split(" ").slice(1);
    await waitFor("the order", 20_000, async () => command().length > 0);
    const [, , denied = ""] = command();
    await run(["certificate", "deny", denied]);
    await waitFor("another order", 40_000, async () => command().length > 0 && command()[2] !== denied);
    await run(command());
    await waitFor("the certificate", 20_000, async () => running.served.at(-1)?.isSelfSigned === false && running.served.length > 1);
    const certificate = new X509Certificate(running.served.at(-1)?.certificate ?? "");
    for (const address of running.node.addresses()) expect(certificate.checkIP(address)).toBe(address);
    expect(certificate.checkIP("198.51.100.9")).toBeDefined();
  }, 90_000);

  it("are renewed before they expire, without a new join", async () => {
    const serialOf = async (): Promise<string> => new X509Certificate(await readFile(join(nodeDirectory(), "client.pem"), "utf8")).serialNumber;
    const before = await serialOf();
    const expiry = new X509Certificate(await readFile(join(nodeDirectory(), "client.pem"), "utf8")).validToDate.getTime();
    let now = new Date(expiry - 3600_000);
    await using running = await startNode({ now: () => now, checkMilliseconds: 100 });
    await waitFor("the new client certificate", 30_000, async () => (await serialOf()) !== before);
    now = new Date();
    await waitFor("the client to use it", 10_000, async () => running.client.connection.certificate === (await readFile(join(nodeDirectory(), "client.pem"), "utf8")).split("-----BEGIN PRIVATE")[0]);
    expect((await running.client.get(resources.nodes, { name: nodeName })).metadata?.name).toBe(nodeName);
    const credentials = await loadNodeCredentials({ kubeconfig: join(nodeDirectory(), "kubeconfig"), directory: nodeDirectory() });
    expect(new X509Certificate(credentials.connection.certificate).serialNumber).toBe(await serialOf());
  }, 60_000);
});

describe("going away", () => {
  it("works with cordon and drain", async () => {
    await using running = await startNode();
    await running.node.ready;
    await run(["delete", "pod", "--all", "--wait=false"]);
    const stop = runPods(running);
    await cluster.apply({
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: { name: "web", namespace: "default" },
      spec: { replicas: 2, selector: { matchLabels: { app: "web" } }, template: { metadata: { labels: { app: "web" } }, spec: { tolerations: [{ key: "virtual-kubelet.io/provider", operator: "Exists" }], terminationGracePeriodSeconds: 1, containers: [{ name: "main", image: "none" }] } } },
    });
    await run(["rollout", "status", "deployment/web", "--timeout=40s"]);
    await run(["drain", nodeName, "--ignore-daemonsets", "--timeout=40s"]);
    await waitFor("the drained Pods to be gone", 10_000, async () => running.pods.current().size === 0);
    await waitFor("replacements to wait", 20_000, async () => (await run(["get", "pods", "--field-selector", "status.phase=Pending", "-o", "name"])).split("\n").length === 2);
    await run(["uncordon", nodeName]);
    await run(["rollout", "status", "deployment/web", "--timeout=40s"]);
    stop();
  }, 120_000);

  it("leaves: no Pod is left, the Node says so and stays deleted", async () => {
    await using running = await startNode();
    await running.node.ready;
    const stop = runPods(running);
    await waitFor("the Pods", 20_000, async () => running.pods.current().size === 2);
    const { deleteCommand } = await leave({ client: running.client, node: running.node, pods: running.pods, logger: silentLogger, signal: AbortSignal.timeout(40_000) });
    expect(running.pods.current().size).toBe(0);
    expect(running.node.accepting()).toBe(false);
    await waitFor("the condition", 10_000, async () => (await conditionOf("NodeLeaving")) === "True");
    expect(deleteCommand).toBe(`kubectl delete node ${nodeName}`);
    await run(deleteCommand.split(" ").slice(1));
    await waitFor("the deletion to be seen", 10_000, async () => running.node.current() === undefined);
    running.node.refresh();
    const seen = await cluster.client.get(resources.nodes, { name: nodeName }).catch((error: unknown) => error);
    expect(hasCode(seen, "NotFound")).toBe(true);
    stop();
  }, 90_000);
});
