/**
 * The kubelet server behind a real API server, driven by the real kubectl: exec, attach, cp, logs and port-forward, over
 * WebSockets (which the API server turns into SPDY) and over SPDY all the way. The node's Pods are processes of this machine.
 */
import { spawn } from "node:child_process";
import { createHash, createPrivateKey, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import type { AddressInfo, Server } from "node:net";
import { connect } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { WebSocket } from "ws";
import type { Pod } from "../../main/contract/kubernetes-api.generated.ts";
import { silentLogger } from "../../main/contract/logger.ts";
import { createKubeletServer } from "../../main/kubelet/kubelet-server.ts";
import type { KubeletListener } from "../../main/kubelet/kubelet-server.ts";
import { createHostUsage } from "../../main/kubelet/metrics/node-usage.ts";
import { ProcessPodRuntime } from "../support/kubelet/process-pod-runtime.ts";
import { generateKey, issueCertificate, keyToPem } from "../../main/kubernetes/x509.ts";
import { startControlPlane, waitFor } from "../control-plane/control-plane.ts";
import type { ControlPlane } from "../control-plane/control-plane.ts";

const nodeName = "streaming-node";
const spdy = { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: "false", KUBECTL_PORT_FORWARD_WEBSOCKETS: "false" };
const webSocket = { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: "true", KUBECTL_PORT_FORWARD_WEBSOCKETS: "true" };
const carriers = [
  { name: "WebSocket", env: webSocket },
  { name: "SPDY", env: spdy },
];
const pod: Pod = {
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: "shell", namespace: "default" },
  spec: {
    nodeName,
    automountServiceAccountToken: false,
    containers: [
      { name: "main", image: "machine", stdin: true },
      { name: "terminal", image: "machine", stdin: true, tty: true },
    ],
  },
};

let cluster: ControlPlane;
let listener: KubeletListener;
let directory: string;
const runtime = new ProcessPodRuntime([pod]);

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "podyard-streaming-"));
  cluster = await startControlPlane();
  const address = Object.values(networkInterfaces()).flat().find((entry) => entry?.family === "IPv4" && !entry.internal)?.address ?? "127.0.0.1";
  const key = generateKey();
  const cert = issueCertificate({
    subject: { commonName: `system:node:${nodeName}`, organizations: ["system:nodes"] },
    key,
    issuer: { subject: { commonName: "kubernetes" }, key: createPrivateKey(await readFile(cluster.certificates.path("ca.key"))) },
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + 3_600_000),
    usages: ["serverAuth"],
    alternativeNames: [address],
  });
  const server = createKubeletServer({
    pods: runtime,
    node: { name: nodeName, kubernetesVersion: "v1.35.4" },
    authenticator: { reviewToken: async () => undefined },
    authorizer: { authorize: async ({ user }) => user === "kube-apiserver-kubelet-client" },
    clientCertificateAuthorities: [cluster.certificates.certificateAuthority],
    tls: { current: () => ({ key: keyToPem(key), cert }), subscribe: () => () => undefined },
    address,
    port: 0,
    metrics: { nodeUsage: createHostUsage({ state: directory, images: directory }), certificateExpiry: () => ({ client: undefined, serving: undefined }) },
    health: { syncLoop: () => undefined, configuration: () => ({}) },
    logger: silentLogger,
  });
  listener = await server.listen();
  await cluster.apply({ apiVersion: "v1", kind: "Node", metadata: { name: nodeName } });
  const nodeStatus = { addresses: [{ type: "InternalIP", address }], daemonEndpoints: { kubeletEndpoint: { Port: listener.port } } };
  await kubectl(["patch", "node", nodeName, "--subresource=status", "--type=merge", "-p", JSON.stringify({ status: nodeStatus })]);
  await cluster.apply(pod);
  const startedAt = new Date().toISOString();
  const status = {
    phase: "Running",
    conditions: [{ type: "Ready", status: "True" }],
    containerStatuses: ["main", "terminal"].map((name) => ({ name, ready: true, started: true, restartCount: 0, image: "machine", imageID: "machine", state: { running: { startedAt } } })),
  };
  await kubectl(["patch", "pod", "shell", "--subresource=status", "--type=merge", "-p", JSON.stringify({ status })]);
});

afterAll(async () => {
  await listener?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
  if (directory !== undefined) await rm(directory, { recursive: true, force: true });
});

interface Outcome {
  readonly stdout: Buffer;
  readonly stderr: string;
  readonly exitCode: number | null;
}

async function kubectl(args: readonly string[], options: { readonly env?: Readonly<Record<string, string>>; readonly input?: Buffer | Readable } = {}): Promise<Outcome> {
  const child = spawn(join(cluster.programs, "kubectl"), ["--kubeconfig", cluster.kubeconfig, ...args], { env: { ...process.env, HOME: directory, ...options.env } });
  child.stdin.on("error", () => undefined);
  if (options.input instanceof Readable) options.input.pipe(child.stdin);
  else child.stdin.end(options.input);
  const stdout: Buffer[] = [];
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  const [exitCode] = (await once(child, "close")) as [number | null];
  return { stdout: Buffer.concat(stdout), stderr, exitCode };
}

function digest(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

async function echoServer(): Promise<{ readonly port: number; readonly server: Server }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => undefined);
    socket.pipe(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, port: (server.address() as AddressInfo).port };
}

/** kubectl under a terminal of its own, which can be resized. */
async function kubectlInTerminal(args: readonly string[], env: Readonly<Record<string, string>>) {
  const deviceFile = join(directory, `tty-${randomBytes(4).toString("hex")}`);
  const command = `stty cols 91 rows 31; tty > ${deviceFile}; exec ${join(cluster.programs, "kubectl")} --kubeconfig ${cluster.kubeconfig} ${args.join(" ")}`;
  const child = spawn("script", ["-qfec", command, "/dev/null"], { env: { ...process.env, SHELL: "/bin/sh", HOME: directory, ...env } });
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  const exit = once(child, "close") as Promise<[number | null]>;
  return {
    exit: exit.then(([code]) => code),
    write: (text: string) => child.stdin.write(text),
    until: (pattern: RegExp) =>
      waitFor(`${String(pattern)} in the terminal`, 20_000, async () => pattern.test(output)).catch((error: unknown) => {
        throw new Error(`${String(error)}; it showed ${JSON.stringify(output)}`);
      }),
    resize: async (columns: number, rows: number) => {
      const device = (await readFile(deviceFile, "utf8")).trim();
      await once(spawn("stty", ["-F", device, "cols", String(columns), "rows", String(rows)]), "close");
    },
  };
}

describe.each(carriers)("over $name", ({ env }) => {
  test.each([0, 1, 42, 137])("kubectl exits with the command's code %i", async (code) => {
    const { exitCode, stdout, stderr } = await kubectl(["exec", "shell", "-c", "main", "--", "sh", "-c", `echo out; echo err >&2; exit ${code}`], { env });
    expect({ exitCode, stdout: stdout.toString() }).toEqual({ exitCode: code, stdout: "out\n" });
    expect(stderr).toContain("err\n");
  });

  test("arguments arrive exactly", async () => {
    const argv = ["printf", "%s\\0", "", " a  b ", "+&=%;", "'\"\\", "$HOME `id`", "ünïcödé 🖥", "line\nbreak", "--flag=x y"];
    const { stdout, exitCode } = await kubectl(["exec", "shell", "-c", "main", "--", ...argv], { env });
    expect(exitCode).toBe(0);
    expect(stdout.toString().split("\0").slice(0, -1)).toEqual(argv.slice(2));
  });

  test("stdin flows until its end", async () => {
    const input = randomBytes(3_000_000);
    const { stdout, exitCode } = await kubectl(["exec", "-i", "shell", "-c", "main", "--", "sha256sum"], { env, input });
    expect({ exitCode, digest: stdout.toString().split(" ")[0] }).toEqual({ exitCode: 0, digest: digest(input) });
  });

  test("a command that cannot be started is an error with its cause", async () => {
    const { exitCode, stderr } = await kubectl(["exec", "shell", "-c", "main", "--", "/does/not/exist"], { env });
    expect(exitCode).toBe(127);
    expect(stderr).toContain("/does/not/exist");
  });

  test("an unknown container is named", async () => {
    const { stderr, exitCode } = await kubectl(["exec", "shell", "-c", "ghost", "--", "true"], { env });
    expect(exitCode).toBe(1);
    expect(stderr).toContain("ghost");
  });

  test("a terminal has kubectl's size and follows it", async () => {
    const terminal = await kubectlInTerminal(["exec", "-it", "shell", "-c", "main", "--", "sh"], env);
    await terminal.until(/[#$] $/);
    terminal.write("echo first $(stty size)\n");
    await terminal.until(/first 31 91/);
    await terminal.resize(120, 45);
    // The new size takes its way through kubectl and the API server; ask until it is there.
    terminal.write('until [ "$(stty size)" = "45 120" ]; do sleep 0.05; done; echo second $(stty size)\n');
    await terminal.until(/second 45 120/);
    terminal.write("exit 42\n");
    expect(await terminal.exit).toBe(42);
  });

  test("attach reaches the main process and ends with it", async () => {
    runtime.attached = () => ({ argv: ["sh", "-c", "echo hello; read line; echo got $line"], terminal: false });
    const { stdout, exitCode } = await kubectl(["attach", "-i", "shell", "-c", "main"], { env, input: Buffer.from("text\n") });
    expect(exitCode).toBe(0);
    expect(stdout.toString()).toContain("hello\ngot text\n");
  });

  test("attach to a terminal", async () => {
    runtime.attached = () => ({ argv: ["sh"], terminal: true });
    const terminal = await kubectlInTerminal(["attach", "-it", "shell", "-c", "terminal"], env);
    terminal.write('until [ "$(stty size)" = "31 91" ]; do sleep 0.05; done; echo size $(stty size)\n');
    await terminal.until(/size 31 91/);
    terminal.write("exit\n");
    expect(await terminal.exit).toBe(0);
  });

  test("cp moves files in and out unharmed", async () => {
    const megabytes = env === webSocket ? 100 : 10;
    const bytes = randomBytes(megabytes * 1024 * 1024);
    const source = join(directory, "source.bin");
    await writeFile(source, bytes);
    const inside = join(directory, "inside.bin");
    const into = await kubectl(["cp", source, `default/shell:${inside}`, "-c", "main"], { env });
    expect(into).toMatchObject({ exitCode: 0 });
    expect(digest(await readFile(inside))).toBe(digest(bytes));
    const result = join(directory, "result.bin");
    const outOf = await kubectl(["cp", `default/shell:${inside}`, result, "-c", "main"], { env });
    expect(outOf).toMatchObject({ exitCode: 0 });
    expect(digest(await readFile(result))).toBe(digest(bytes));
  });

  test("200 MB of output pass through without staying in memory", async () => {
    const command = `${join(cluster.programs, "kubectl")} --kubeconfig ${cluster.kubeconfig} exec shell -c main -- head -c 200000000 /dev/zero | wc -c`;
    const child = spawn("sh", ["-c", command], { env: { ...process.env, HOME: directory, ...env } });
    const before = process.memoryUsage.rss();
    let peak = before;
    const timer = setInterval(() => (peak = Math.max(peak, process.memoryUsage.rss())), 20);
    const [count] = (await once(child.stdout, "data")) as [Buffer];
    clearInterval(timer);
    expect(count.toString().trim()).toBe("200000000");
    expect(peak - before).toBeLessThan(120_000_000);
  });

  test("five connections at a time through one port-forward", async () => {
    const echo = await echoServer();
    const child = spawn(join(cluster.programs, "kubectl"), ["--kubeconfig", cluster.kubeconfig, "port-forward", "pod/shell", `:${echo.port}`], { env: { ...process.env, HOME: directory, ...env } });
    try {
      let output = "";
      let errors = "";
      child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
      child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
      await waitFor(`kubectl to listen (${errors})`, 20_000, async () => /127\.0\.0\.1:(\d+)/.test(output));
      const port = Number(/127\.0\.0\.1:(\d+)/.exec(output)?.[1]);
      const rounds = await Promise.all(
        Array.from({ length: 5 }, async () => {
          const payload = randomBytes(2_000_000);
          const socket = connect({ port, host: "127.0.0.1" });
          const chunks: Buffer[] = [];
          let received = 0;
          const complete = new Promise<void>((resolve, reject) => {
            socket.on("data", (chunk: Buffer) => {
              chunks.push(chunk);
              received += chunk.length;
              if (received >= payload.length) resolve();
            });
            socket.once("error", reject);
            socket.once("close", () => reject(new Error(`closed after ${received} bytes: ${errors}`)));
          });
          socket.write(payload);
          await complete;
          socket.destroy();
          return digest(Buffer.concat(chunks)) === digest(payload);
        }),
      );
      expect(rounds).toEqual([true, true, true, true, true]);
    } finally {
      child.kill();
      await once(child, "close");
      echo.server.close();
    }
  });

  test("kubectl that is killed takes its command with it", async () => {
    const child = spawn(join(cluster.programs, "kubectl"), ["--kubeconfig", cluster.kubeconfig, "exec", "shell", "-c", "main", "--", "sh", "-c", "echo started; exec sleep 600"], {
      env: { ...process.env, HOME: directory, ...env },
    });
    await once(child.stdout, "data");
    const process_ = runtime.started.at(-1);
    child.kill("SIGKILL");
    await waitFor("the command to end", 20_000, async () => process_?.exitCode !== null || process_?.signalCode !== null);
    expect(process_?.signalCode).toBe("SIGKILL");
  });
});

describe("legacy WebSockets, which the API server passes through", () => {
  const open = async (path: string, protocol: string): Promise<{ readonly socket: WebSocket; payload(channel: number): Buffer }> => {
    const admin = cluster.certificates.issueClient({ commonName: "dashboard", organizations: ["system:masters"] });
    const url = `${cluster.server.replace("https", "wss")}/api/v1/namespaces/default/pods/shell/${path}`;
    const socket = new WebSocket(url, [protocol], { ca: cluster.certificates.certificateAuthority, cert: admin.certificate, key: admin.key });
    const messages: Buffer[] = [];
    socket.on("message", (data: Buffer) => messages.push(protocol.includes("base64") ? Buffer.concat([Buffer.from([Number(data.toString("latin1", 0, 1))]), Buffer.from(data.toString("latin1", 1), "base64")]) : data));
    await once(socket, "open");
    expect(socket.protocol).toBe(protocol);
    return { socket, payload: (channel) => Buffer.concat(messages.filter((message) => message[0] === channel).map((message) => message.subarray(1))) };
  };

  test.each(["channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io"])("exec over %s", async (protocol) => {
    const { socket, payload } = await open("exec?container=main&stdout=1&stderr=1&command=sh&command=-c&command=echo+out%3Becho+err+%3E%262%3Bexit+9", protocol);
    await once(socket, "close");
    expect([payload(1).toString(), payload(2).toString()]).toEqual(["out\n", "err\n"]);
    expect(payload(3).toString()).toContain("exit status 9");
  });

  test("port-forward", async () => {
    const echo = await echoServer();
    const { socket, payload } = await open(`portforward?ports=${echo.port}`, "v4.channel.k8s.io");
    socket.send(Buffer.from("\0hello"));
    await waitFor("the echo", 20_000, async () => payload(0).subarray(2).toString() === "hello");
    expect([payload(0).readUInt16LE(0), payload(1).readUInt16LE(0)]).toEqual([echo.port, echo.port]);
    socket.terminate();
    await new Promise((resolve) => echo.server.close(resolve)); // resolves once the Pod's connection is closed, too
  });
});

describe("logs", () => {
  test("are printed, with the options passed on", async () => {
    const { stdout, exitCode } = await kubectl(["logs", "shell", "-c", "main", "--tail=7", "--timestamps", "--limit-bytes=9000", "--since=1h"]);
    expect({ exitCode, text: stdout.toString() }).toEqual({ exitCode: 0, text: "first\nsecond\n" });
    expect(runtime.lastLogRequests.at(-1)).toMatchObject({ tailLines: 7, timestamps: true, limitBytes: 9000, follow: false, previous: false });
  });

  test("are followed line by line", async () => {
    const log = new Readable({ read: () => undefined });
    runtime.logText = () => log;
    const child = spawn(join(cluster.programs, "kubectl"), ["--kubeconfig", cluster.kubeconfig, "logs", "-f", "shell", "-c", "main"], { env: { ...process.env, HOME: directory } });
    let output = "";
    child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
    await waitFor("the request", 20_000, async () => runtime.lastLogRequests.at(-1)?.follow === true);
    log.push("one\n");
    await waitFor("the first line", 20_000, async () => output === "one\n");
    log.push("two\n");
    await waitFor("the second line", 20_000, async () => output === "one\ntwo\n");
    log.push(null);
    expect(await once(child, "close")).toEqual([0, null]);
  });
});

test("the API server relays what a node says of itself", async () => {
  const raw = async (path: string): Promise<string> => (await kubectl(["get", "--raw", `/api/v1/nodes/${nodeName}/proxy/${path}`])).stdout.toString();
  expect(JSON.parse(await raw("pods"))).toMatchObject({ kind: "PodList", apiVersion: "v1", items: [{ metadata: { name: "shell" } }] });
  expect(JSON.parse(await raw("stats/summary"))).toMatchObject({ node: { nodeName }, pods: [] });
  expect(await raw("metrics/resource")).toMatch(/^node_cpu_usage_seconds_total [0-9.]+ [0-9]{13}$/m);
  expect(await raw("healthz")).toBe("ok");
});
