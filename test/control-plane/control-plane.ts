/**
 * A real Kubernetes control plane for tests: etcd, API server, controller manager and scheduler with the admission of a
 * production cluster (Node,RBAC authorization, NodeRestriction, verified kubelet certificates, bootstrap tokens). About
 * 650 MB of memory, ready within some seconds. Nothing listens beyond loopback unless asked. When the tests are killed, the
 * processes end with them and the next start removes their files.
 *
 *   await using cluster = await startControlPlane();
 *   await cluster.kubectl(["get", "nodes"]);
 */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { KubernetesClient } from "../../main/kubernetes/client.ts";
import { loadKubeconfigFile } from "../../main/kubernetes/kubeconfig.ts";
import { configMaps, namespaces, serviceAccounts } from "../../main/kubernetes/resources.ts";
import { bootstrapObjects, bootstrapTokenSecret } from "./bootstrap-objects.ts";
import { buildControlPlane } from "./build.mjs";
import { writeCertificates } from "./certificates.ts";
import type { ClusterCertificates } from "./certificates.ts";
import { Component } from "./component.ts";

export interface ControlPlaneOptions {
  /** The API server's address; 127.0.0.1. Kubelets are reached at their own addresses. */
  readonly address?: string;
  /** More flags, by component: `{ "kube-apiserver": ["--v=4"] }`. */
  readonly flags?: Readonly<Partial<Record<"etcd" | "kube-apiserver" | "kube-controller-manager" | "kube-scheduler", readonly string[]>>>;
}

export interface KubectlOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: string | Buffer;
  /** Default is the administrator's. */
  readonly kubeconfig?: string;
  readonly signal?: AbortSignal;
}

export interface KubectlResult {
  readonly stdout: string;
  readonly stderr: string;
  readonly exitCode: number;
}

export interface ControlPlane extends AsyncDisposable {
  /** `https://127.0.0.1:port`. */
  readonly server: string;
  /** Path of the administrator's kubeconfig; its context is `admin`. */
  readonly kubeconfig: string;
  readonly caHash: string;
  readonly certificates: ClusterCertificates;
  /** Directory with `kubectl`, for a PATH. */
  readonly programs: string;
  /** As administrator. */
  readonly client: KubernetesClient;
  kubectl(args: readonly string[], options?: KubectlOptions): Promise<KubectlResult>;
  /** Creates or updates objects; rejects with kubectl's words. */
  apply(manifest: string | object): Promise<void>;
  /** A new token `id.secret`, already published for discovery. */
  createBootstrapToken(): Promise<string>;
  stopApiServer(signal?: "SIGTERM" | "SIGKILL"): Promise<void>;
  /** Resolves when it is ready. */
  startApiServer(): Promise<void>;
  /** The last lines of every component, for a failure's report. */
  logs(): Promise<string>;
}

const prefix = "podyard-cluster-";

/** Starts a cluster of its own. Errors carry the last output of the components. */
export async function startControlPlane(options: ControlPlaneOptions = {}): Promise<ControlPlane> {
  const programs = buildControlPlane();
  await removeAbandoned();
  const directory = await mkdtemp(join(tmpdir(), `${prefix}${process.pid}-`));
  const components = new Map<string, Component>();
  const start = (name: string, args: readonly string[]): void => {
    components.set(name, new Component(name, join(programs, name), args, join(directory, `${name}.log`)));
  };
  const stopAll = async (): Promise<void> => {
    await Promise.all([...components.values()].reverse().map((component) => component[Symbol.asyncDispose]()));
    await rm(directory, { recursive: true, force: true });
  };
  const logs = async (): Promise<string> => (await Promise.all([...components.values()].map((component) => component.tail()))).join("");
  try {
    const address = options.address ?? "127.0.0.1";
    const [etcdPort, peerPort, port] = await freePorts(address, 3);
    const server = `https://${address}:${port}`;
    const certificates = await writeCertificates(directory, server, [...new Set(["127.0.0.1", address])]);
    const flags = flagsOf(directory, certificates, { address, port: Number(port), etcd: `http://127.0.0.1:${etcdPort}`, peer: `http://127.0.0.1:${peerPort}` });
    const startComponent = (name: keyof typeof flags): void => start(name, [...flags[name], ...(options.flags?.[name] ?? [])]);
    const kubeconfig = certificates.path("admin.kubeconfig");
    const client = new KubernetesClient({ connection: (await loadKubeconfigFile(kubeconfig)).connection, userAgent: "podyard-tests" });
    const kubectl = (args: readonly string[], more: KubectlOptions = {}): Promise<KubectlResult> => runKubectl(join(programs, "kubectl"), directory, more.kubeconfig ?? kubeconfig, args, more);
    const apply = async (manifest: string | object): Promise<void> => {
      const input = typeof manifest === "string" ? manifest : JSON.stringify(manifest);
      const result = await kubectl(["apply", "--server-side", "-f", "-"], { input });
      if (result.exitCode !== 0) throw new Error(result.stderr);
    };
    const startApiServer = async (): Promise<void> => {
      startComponent("kube-apiserver");
      await waitFor("the API server to be ready", 90_000, async () => {
        if (components.get("kube-apiserver")?.isRunning === false) throw new Error("the API server ended");
        return isReady(client);
      });
    };

    startComponent("etcd");
    await startApiServer();
    startComponent("kube-controller-manager");
    startComponent("kube-scheduler");
    await waitFor("kube-public", 30_000, () => exists(client.get(namespaces, { name: "kube-public" })));
    await apply({ apiVersion: "v1", kind: "List", items: bootstrapObjects(server, certificates.certificateAuthority) });
    // Pods need the default service account, which the controller manager makes.
    await waitFor("the default service account", 60_000, () => exists(client.get(serviceAccounts, { namespace: "default", name: "default" })));
    await waitFor("the authority's ConfigMap", 60_000, () => exists(client.get(configMaps, { namespace: "default", name: "kube-root-ca.crt" })));

    return {
      server,
      kubeconfig,
      caHash: certificates.caHash,
      certificates,
      programs,
      client,
      kubectl,
      apply,
      async createBootstrapToken() {
        const [id, secret] = [randomBytes(3).toString("hex"), randomBytes(8).toString("hex")];
        await apply(bootstrapTokenSecret(id, secret, new Date(Date.now() + 3600_000)));
        const isSigned = async (): Promise<boolean> => (await client.get(configMaps, { namespace: "kube-public", name: "cluster-info" })).data?.[`jws-kubeconfig-${id}`] !== undefined;
        await waitFor("the token's signature", 30_000, isSigned);
        return `${id}.${secret}`;
      },
      async stopApiServer(signal) {
        await components.get("kube-apiserver")?.stop(signal);
      },
      startApiServer,
      logs,
      async [Symbol.asyncDispose]() {
        client[Symbol.dispose]();
        await stopAll();
      },
    };
  } catch (error) {
    const report = await logs();
    await stopAll();
    throw new Error(`the control plane did not start: ${error instanceof Error ? error.message : String(error)}\n${report}`, { cause: error });
  }
}

/** Directories of test processes that were killed. */
async function removeAbandoned(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    const pid = Number(new RegExp(`^${prefix}(\\d+)-`).exec(name)?.[1] ?? process.pid);
    if (!isAlive(pid)) await rm(join(tmpdir(), name), { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives, and belongs to somebody else.
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** Polls `condition` until it holds. Rejects after `milliseconds`, naming `what`. */
export async function waitFor(what: string, milliseconds: number, condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + milliseconds;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`waited ${milliseconds / 1000} s for ${what}`);
    await delay(100);
  }
}

async function exists(request: Promise<unknown>): Promise<boolean> {
  return request.then(
    () => true,
    () => false,
  );
}

async function isReady(client: KubernetesClient): Promise<boolean> {
  return client.isReady().catch(() => false);
}

async function freePorts(address: string, count: number): Promise<readonly number[]> {
  // All are held until all are known, or the system might give the same one twice.
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer();
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      server.once("error", reject).listen(0, address, resolve);
      await promise;
      return server;
    }),
  );
  return Promise.all(
    servers.map(async (server) => {
      const bound = server.address();
      const { promise, resolve } = Promise.withResolvers<void>();
      server.close(() => resolve());
      await promise;
      if (bound === null || typeof bound === "string") throw new Error("no port");
      return bound.port;
    }),
  );
}

function flagsOf(directory: string, { path }: ClusterCertificates, at: { address: string; port: number; etcd: string; peer: string }) {
  // Advertised to Pods as the `kubernetes` service; the API server refuses loopback there.
  const advertised = at.address.startsWith("127.") ? (Object.values(networkInterfaces()).flat().find((entry) => entry?.family === "IPv4" && !entry.internal)?.address ?? "192.0.2.1") : at.address;
  return {
    etcd: [
      `--data-dir=${join(directory, "etcd")}`,
      `--listen-client-urls=${at.etcd}`,
      `--advertise-client-urls=${at.etcd}`,
      `--listen-peer-urls=${at.peer}`,
      `--initial-advertise-peer-urls=${at.peer}`,
      `--initial-cluster=default=${at.peer}`,
      "--unsafe-no-fsync",
      "--log-level=warn",
    ],
    "kube-apiserver": [
      `--etcd-servers=${at.etcd}`,
      `--bind-address=${at.address}`,
      `--advertise-address=${advertised}`,
      `--secure-port=${at.port}`,
      "--endpoint-reconciler-type=none",
      "--service-cluster-ip-range=10.96.0.0/16",
      `--tls-cert-file=${path("apiserver.crt")}`,
      `--tls-private-key-file=${path("apiserver.key")}`,
      `--client-ca-file=${path("ca.crt")}`,
      `--service-account-issuer=https://kubernetes.default.svc.cluster.local`,
      `--service-account-key-file=${path("service-accounts.pub")}`,
      `--service-account-signing-key-file=${path("service-accounts.key")}`,
      "--authorization-mode=Node,RBAC",
      "--enable-admission-plugins=NodeRestriction",
      "--enable-bootstrap-token-auth=true",
      `--kubelet-certificate-authority=${path("ca.crt")}`,
      `--kubelet-client-certificate=${path("apiserver-kubelet-client.crt")}`,
      `--kubelet-client-key=${path("apiserver-kubelet-client.key")}`,
      `--requestheader-client-ca-file=${path("front-proxy-ca.crt")}`,
      "--requestheader-allowed-names=front-proxy-client",
      "--requestheader-extra-headers-prefix=X-Remote-Extra-",
      "--requestheader-group-headers=X-Remote-Group",
      "--requestheader-username-headers=X-Remote-User",
      `--proxy-client-cert-file=${path("front-proxy-client.crt")}`,
      `--proxy-client-key-file=${path("front-proxy-client.key")}`,
      "--allow-privileged=true",
      "--profiling=false",
      // Waits this long for open watches when it is stopped.
      "--shutdown-delay-duration=0s",
      "--shutdown-watch-termination-grace-period=0s",
    ],
    "kube-controller-manager": [
      `--kubeconfig=${path("controller-manager.kubeconfig")}`,
      "--secure-port=0",
      "--leader-elect=false",
      "--controllers=*,bootstrapsigner,tokencleaner",
      "--use-service-account-credentials=true",
      `--root-ca-file=${path("ca.crt")}`,
      `--cluster-signing-cert-file=${path("ca.crt")}`,
      `--cluster-signing-key-file=${path("ca.key")}`,
      `--service-account-private-key-file=${path("service-accounts.key")}`,
      "--profiling=false",
    ],
    "kube-scheduler": [`--kubeconfig=${path("scheduler.kubeconfig")}`, "--secure-port=0", "--leader-elect=false", "--profiling=false"],
  };
}

async function runKubectl(program: string, directory: string, kubeconfig: string, args: readonly string[], options: KubectlOptions): Promise<KubectlResult> {
  const child = spawn(program, args, {
    env: { PATH: process.env["PATH"] ?? "", HOME: directory, KUBECONFIG: kubeconfig, PODYARD_PARENT_PID: String(process.pid), ...options.env },
    stdio: "pipe",
    ...(options.signal !== undefined && { signal: options.signal }),
  });
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  child.once("error", reject).once("close", (code) => resolve(code ?? 128));
  const collect = (stream: NodeJS.ReadableStream): (() => string) => {
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    return () => Buffer.concat(chunks).toString("utf8");
  };
  const [stdout, stderr] = [collect(child.stdout), collect(child.stderr)];
  // kubectl may end without reading its input.
  child.stdin.on("error", () => undefined).end(options.input ?? "");
  const exitCode = await promise;
  return { stdout: stdout(), stderr: stderr(), exitCode };
}
