/**
 * A host of its own for a benchmark: `podyard run` as users start it, in a process and directories of its own, with the
 * sample's images. Needs what `npm start` needs: QEMU, Docker's packages, root.
 */
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { hostApi, type HostApi } from "../../../main/contract/host-api.ts";
import { silentLogger } from "../../../main/contract/logger.ts";
import { connectGateway, type GatewayClient } from "../../../main/gateway/client.ts";
import { startHost } from "../../../main/host/host.ts";
import { installSampleImages } from "../../../main/host/sample.ts";
import { runtimeDirectory } from "../../../main/settings/directories.ts";

const root = join(import.meta.dirname, "../../..");

export interface SampleHost extends AsyncDisposable {
  readonly processId: number;
  readonly client: GatewayClient<HostApi>;
  /** The host's state, sockets of its machines included. */
  readonly dataDirectory: string;
  readonly cacheDirectory: string;
}

/** Errors: whatever the host says on its standard error. */
export async function startSampleHost(): Promise<SampleHost> {
  const directory = await mkdtemp(join(tmpdir(), "podyard-bench-"));
  const data = join(directory, "state");
  const cache = join(directory, "cache");
  await using undo = new AsyncDisposableStack();
  undo.defer(() => rm(directory, { recursive: true, force: true }));

  await promisify(execFile)(process.execPath, [join(root, "resources/setup/compile.mjs")]);
  const preparing = await startHost({ directories: { data, cache, runtime: runtimeDirectory(process.env) }, configFile: undefined, kubeconfig: undefined, flags: {}, environment: {}, logger: silentLogger });
  await installSampleImages(preparing, undefined);
  await preparing.stop({ stopPods: true });

  const logPath = join(directory, "host.log");
  const child = await startProcess(["main/cli/podyard.mjs", "run", "--stop-pods-on-exit", "--max-vms", "8", "--data-dir", data, "--cache-dir", cache], logPath);
  undo.defer(() => stopProcess(child));
  const client = undo.use(await connectWhenReady(child, data, logPath));
  const kept = undo.move();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void kept.disposeAsync().finally(() => process.exit(130)));
  return { processId: child.pid ?? 0, client, dataDirectory: data, cacheDirectory: cache, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

/** The sample's Pod under another name; `lone`: only its virtual machine, without side-car and volume. */
export async function samplePod(name: string, options: { readonly lone?: boolean } = {}): Promise<string> {
  const text = await readFile(join(root, "resources/sample/pod.yaml"), "utf8");
  if (options.lone !== true) return text.replace("name: sample", `name: ${name}`).replace('cpu: "1", memory: 512Mi', "cpu: 500m, memory: 256Mi");
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "default" },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [{ name: "linux", image: "podyard.dev/sample-guest:latest", imagePullPolicy: "Never", resources: { requests: { cpu: "500m", memory: "256Mi" } } }],
    },
  });
}

/** Applies Pods and waits until their machines are Ready. */
export async function runPods(host: SampleHost, names: readonly string[], options: { readonly lone?: boolean } = {}): Promise<void> {
  for (const name of names) await host.client.call("pod.apply", { manifest: await samplePod(name, options), source: "bench" });
  let seen: unknown;
  await until(() => `${names.join(", ")} Ready; seen ${JSON.stringify(seen)}`, async () => {
    seen = (await host.client.call("pod.list", {})).items;
    const { items } = await host.client.call("vm.list", {});
    return names.every((name) => items.some((machine) => machine.name === `default/${name}` && machine.ready));
  });
}

/** Errors: an Error after four minutes. */
export async function until(what: () => string, condition: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 240_000;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`waited in vain for: ${what()}`);
    await delay(250);
  }
}

async function startProcess(args: readonly string[], logPath: string): Promise<ChildProcess> {
  const log = await open(logPath, "a");
  try {
    const child = spawn(process.execPath, args, { cwd: root, stdio: ["ignore", log.fd, log.fd] });
    await once(child, "spawn");
    return child;
  } finally {
    await log.close();
  }
}

async function connectWhenReady(child: ChildProcess, dataDirectory: string, logPath: string): Promise<GatewayClient<HostApi>> {
  await until(() => "the host", async () => {
    const text = await readFile(logPath, "utf8");
    if (child.exitCode !== null) throw new Error(`the host ended: ${text}`);
    return /^node .* ready$/m.test(text);
  });
  return connectGateway(hostApi, { dataDirectory });
}

async function stopProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return;
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  await exit;
}
