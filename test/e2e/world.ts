/**
 * The world of the end-to-end tests: a real control plane, a password-protected registry with a VM image and a side-car
 * image, and `podyard run` as a process of its own that joined the cluster. Tests talk to it by kubectl and the CLI only.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type ControlPlane, type KubectlOptions, type KubectlResult, startControlPlane } from "../control-plane/control-plane.ts";
import { guestLogins } from "../guest/build.ts";
import { pushContainerImage } from "../registry/container-image.ts";
import { startRegistry, type TestRegistry } from "../registry/registry.ts";

const root = join(import.meta.dirname, "../..");
const command = join(root, "main/cli/podyard.mjs");

export interface CommandResult {
  readonly stdout: Buffer;
  readonly stderr: string;
  readonly exitCode: number;
}

export interface World extends AsyncDisposable {
  readonly cluster: ControlPlane;
  readonly registry: TestRegistry;
  readonly registryLogin: { readonly user: string; readonly password: string };
  readonly node: string;
  readonly directory: string;
  readonly dataDirectory: string;
  /** References in the registry. */
  readonly machineImage: string;
  readonly sidecarImage: string;
  kubectl(args: readonly string[], options?: KubectlOptions): Promise<KubectlResult>;
  /** As kubectl, but fails the test on a non-zero exit code; returns stdout. */
  kubectlOk(args: readonly string[], options?: KubectlOptions): Promise<string>;
  /** kubectl's raw output bytes, streamed input allowed. */
  kubectlRaw(args: readonly string[], options?: { readonly env?: Readonly<Record<string, string>>; readonly input?: Buffer }): Promise<CommandResult>;
  podyard(args: readonly string[], options?: { readonly input?: Buffer }): Promise<CommandResult>;
  startHost(extra?: readonly string[]): Promise<void>;
  /** SIGTERM; waits for the end. */
  stopHost(): Promise<void>;
  killHost(): Promise<void>;
  /** What the host logged since it was started first. */
  hostLog(): string;
  /** A namespace of its own with the pull secret `registry`; deleted with the world. */
  namespace(): Promise<string>;
}

export interface WorldOptions {
  readonly maximumMachines?: number;
  readonly settings?: Readonly<Record<string, unknown>>;
}

export async function startWorld(options: WorldOptions = {}): Promise<World> {
  const stack = new AsyncDisposableStack();
  try {
    const directory = mkdtempSync(join(tmpdir(), "podyard-world-"));
    stack.defer(() => rmSync(directory, { recursive: true, force: true }));
    const login = { user: "ci", password: randomBytes(9).toString("hex") };
    const cluster = stack.use(await startControlPlane());
    const registry = stack.use(await startRegistry({ htpasswd: login }));
    const node = `node-${randomBytes(3).toString("hex")}`;
    const dataDirectory = join(directory, "data");
    const environment: Record<string, string> = {
      ...(process.env as Record<string, string>),
      PODYARD_DATA_DIR: dataDirectory,
      XDG_CACHE_HOME: join(directory, "cache"),
      DOCKER_CONFIG: join(directory, "docker"),
      DOCKER_HOST: "",
    };
    writeFileSync(join(directory, "settings.yaml"), JSON.stringify({ guest: { readinessTimeoutSeconds: 300 }, ...options.settings }));
    const run = (program: string, args: readonly string[], input: Buffer | undefined, extra: Readonly<Record<string, string>> = {}): Promise<CommandResult> =>
      new Promise((resolve, reject) => {
        const child = spawn(program, args, { env: { ...environment, ...extra }, stdio: ["pipe", "pipe", "pipe"] });
        const stdout: Buffer[] = [];
        let stderr = "";
        child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
        child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
        child.stdin.on("error", () => {});
        child.stdin.end(input);
        child.on("error", reject);
        child.on("close", (code) => resolve({ stdout: Buffer.concat(stdout), stderr, exitCode: code ?? 255 }));
      });
    const podyard: World["podyard"] = (args, { input } = {}) => run(process.execPath, [command, ...args], input);

    let host: ChildProcess | undefined;
    let log = "";
    const startHost: World["startHost"] = async (extra = []) => {
      const child = spawn(
        process.execPath,
        [command, "run", "--kubelet-port", "0", "--kubelet-address", hostAddress(), "--max-vms", String(options.maximumMachines ?? 2), "--config", join(directory, "settings.yaml"), "--taint", "none", "-v", ...extra],
        { env: environment, stdio: ["ignore", "pipe", "pipe"] },
      );
      host = child;
      child.stderr.setEncoding("utf8").on("data", (text: string) => (log += text));
      await new Promise<void>((resolve, reject) => {
        let out = "";
        child.stdout.setEncoding("utf8").on("data", (text: string) => {
          out += text;
          if (out.includes(`node ${node} ready`)) resolve();
        });
        child.on("exit", (code, signal) => reject(new Error(`podyard run ended with ${signal ?? code} before it was ready:\n${log.slice(-8000)}`)));
      });
    };
    const endHost = async (signal: "SIGTERM" | "SIGKILL"): Promise<void> => {
      const child = host;
      host = undefined;
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill(signal);
      await ended;
    };
    stack.defer(() => endHost("SIGKILL"));

    const machineImage = `${registry.host}/images/guest:1`;
    const sidecarImage = `${registry.host}/tools/busybox:1`;
    await pushContainerImage(sidecarImage, login);
    await pushMachineImage(machineImage, login);
    const joined = await podyard(["join", "--context", "admin", "--kubeconfig", cluster.kubeconfig, "--node-name", node]);
    if (joined.exitCode !== 0) throw new Error(`join: ${joined.stderr}`);
    await startHost();
    await approveServingCertificate(cluster);

    const kubectl: World["kubectl"] = (args, kubectlOptions) => cluster.kubectl(args, kubectlOptions);
    const kubectlOk: World["kubectlOk"] = async (args, kubectlOptions) => {
      const result = await kubectl(args, kubectlOptions);
      if (result.exitCode !== 0) throw new Error(`kubectl ${args.join(" ").slice(0, 300)} ended with ${result.exitCode}: ${result.stderr}${result.stdout}\nhost log:\n${log.slice(-4000)}`);
      return result.stdout;
    };
    stack.defer(async () => {
      // Everything is deleted by the host that runs it, so that the machine is left as it was found.
      if (host === undefined) await startHost().catch(() => {});
      await kubectl(["delete", "pods,jobs,deployments,replicasets", "--all", "--all-namespaces", "--wait=true", "--grace-period=1", "--timeout=60s"]);
      await endHost("SIGTERM");
    });
    const owned = stack.move();
    return {
      cluster,
      registry,
      registryLogin: login,
      node,
      directory,
      dataDirectory,
      machineImage,
      sidecarImage,
      kubectl,
      kubectlOk,
      kubectlRaw: (args, { env, input } = {}) => run(join(cluster.programs, "kubectl"), args, input, { KUBECONFIG: cluster.kubeconfig, ...env }),
      podyard,
      startHost,
      stopHost: () => endHost("SIGTERM"),
      killHost: () => endHost("SIGKILL"),
      hostLog: () => log,
      async namespace() {
        const name = `test-${randomBytes(4).toString("hex")}`;
        await kubectlOk(["create", "namespace", name]);
        await kubectlOk(["-n", name, "create", "secret", "docker-registry", "registry", `--docker-server=${registry.host}`, `--docker-username=${login.user}`, `--docker-password=${login.password}`]);
        await eventually(30_000, async () => (await kubectl(["-n", name, "get", "serviceaccount", "default"])).exitCode === 0);
        return name;
      },
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

/** Polls until the condition holds. Rejects at the deadline with `describe`'s text. */
export async function eventually(milliseconds: number, condition: () => Promise<boolean>, describe: () => Promise<string> | string = () => "the condition"): Promise<void> {
  const deadline = Date.now() + milliseconds;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${milliseconds} ms: ${await describe()}`);
    await delay(250);
  }
}

/** This machine's own address: what a cluster would reach the kubelet API at. */
function hostAddress(): string {
  const addresses = Object.entries(networkInterfaces()).flatMap(([name, list]) => (/^(en|eth)/.test(name) ? (list ?? []) : []));
  return addresses.find((address) => address.family === "IPv4" && !address.internal)?.address ?? "127.0.0.1";
}

async function pushMachineImage(reference: string, login: { readonly user: string; readonly password: string }): Promise<void> {
  const { createImageStore } = await import("../../main/images/store.ts");
  const { silentLogger } = await import("../../main/contract/logger.ts");
  const directory = mkdtempSync(join(tmpdir(), "podyard-push-"));
  try {
    const store = await createImageStore({ cacheDirectory: directory, logger: silentLogger });
    const [root0] = guestLogins;
    await store.push(
      reference,
      { diskPath: join(root, "build/guest/disk.raw"), operatingSystem: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64", guest: { user: root0.user, password: root0.password } },
      { credentials: [{ username: login.user, password: login.password }] },
    );
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function approveServingCertificate(cluster: ControlPlane): Promise<void> {
  await eventually(30_000, async () => {
    const { stdout } = await cluster.kubectl(["get", "csr", "-o", "jsonpath={range .items[?(@.spec.signerName=='kubernetes.io/kubelet-serving')]}{.metadata.name}{' '}{end}"]);
    const names = stdout.trim().split(" ").filter(Boolean);
    if (names.length === 0) return false;
    await cluster.kubectl(["certificate", "approve", ...names]);
    return true;
  });
}

