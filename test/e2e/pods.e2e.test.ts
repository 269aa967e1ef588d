/**
 * One Pod with both halves, driven by kubectl against a real control plane: pulled from a password-protected registry,
 * volumes shared, logs, exec, attach, cp and port-forward over WebSocket and over SPDY, for the machine and the side-car.
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { spawn } from "node:child_process";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openTerminal } from "../support/terminal.ts";
import { applyPod, deletePod, podManifest, readPod, waitReady } from "./manifests.ts";
import { rawExec } from "./raw-exec.ts";
import { eventually, startWorld, type World } from "./world.ts";

let world: World;
let namespace: string;
const spdy = { KUBECTL_REMOTE_COMMAND_WEBSOCKETS: "false", KUBECTL_PORT_FORWARD_WEBSOCKETS: "false" };
const transports = [
  ["WebSocket", {}],
  ["SPDY", spdy],
] as const;
const containers = ["vm", "side"] as const;

beforeAll(async () => {
  world = await startWorld();
  namespace = await world.namespace();
  await world.kubectlOk(["-n", namespace, "create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=file.txt=from the map"]);
  await world.kubectlOk(["-n", namespace, "create", "secret", "generic", "keys", "--from-literal=password=s3cret"]);
  const mounts = [
    { name: "shared", mountPath: "/shared" },
    { name: "settings", mountPath: "/etc/settings" },
    { name: "keys", mountPath: "/etc/keys", readOnly: true },
    { name: "info", mountPath: "/etc/info" },
  ];
  const env = [
    { name: "PLAIN", value: "plain $(COLOR)" },
    { name: "COLOR", valueFrom: { configMapKeyRef: { name: "settings", key: "color" } } },
    { name: "PASSWORD", valueFrom: { secretKeyRef: { name: "keys", key: "password" } } },
    { name: "POD_IP", valueFrom: { fieldRef: { fieldPath: "status.podIP" } } },
    { name: "NODE", valueFrom: { fieldRef: { fieldPath: "spec.nodeName" } } },
  ];
  await applyPod(
    world,
    podManifest(world, namespace, "pair", {
      metadata: { labels: { app: "pair" }, annotations: { note: "first" } },
      machine: { command: ["sh", "-c", "echo machine started; echo a problem >&2; while :; do echo tick; sleep 1; done"], volumeMounts: mounts, env, ports: [{ containerPort: 7000 }] },
      sidecar: {
        command: ["sh", "-c", "echo side-car started; echo a problem >&2; trap 'exit 0' TERM; while :; do echo tick; sleep 1 & wait; done"],
        volumeMounts: mounts,
        env,
        ports: [{ containerPort: 8080 }],
      },
      spec: {
        volumes: [
          { name: "shared", emptyDir: {} },
          { name: "settings", configMap: { name: "settings" } },
          { name: "keys", secret: { secretName: "keys" } },
          { name: "info", downwardAPI: { items: [{ path: "labels", fieldRef: { fieldPath: "metadata.labels" } }] } },
        ],
      },
    }),
  );
  await waitReady(world, namespace, "pair", 200);
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

const exec = (container: string, argv: readonly string[], options: { env?: Record<string, string>; input?: Buffer } = {}) =>
  world.kubectlRaw(["-n", namespace, "exec", ...(options.input === undefined ? [] : ["-i"]), "pair", "-c", container, "--", ...argv], options);

describe("a two-container Pod", () => {
  test("both images are pulled with the Pod's pull secret and the Pod becomes Ready", async () => {
    const pod = await readPod(world, namespace, "pair");
    expect(pod.status?.phase).toBe("Running");
    expect(pod.status?.containerStatuses?.map((status) => [status.name, status.ready, status.restartCount])).toEqual([
      ["side", true, 0],
      ["vm", true, 0],
    ]);
    expect(pod.status?.containerStatuses?.every((status) => /@sha256:[0-9a-f]{64}$/.test(status.imageID))).toBe(true);
    const events = await world.kubectlOk(["-n", namespace, "get", "events", "-o", "jsonpath={range .items[*]}{.reason}{'\\n'}{end}"]);
    for (const reason of ["Scheduled", "Pulling", "Pulled", "Created", "Started"]) expect(events).toContain(reason);
  });

  test("get -o wide and describe show address, node, containers and events", async () => {
    const wide = await world.kubectlOk(["-n", namespace, "get", "pod", "pair", "-o", "wide"]);
    const pod = await readPod(world, namespace, "pair");
    expect(wide).toContain("2/2");
    expect(wide).toContain(pod.status?.podIP);
    expect(wide).toContain(world.node);
    const described = await world.kubectlOk(["-n", namespace, "describe", "pod", "pair"]);
    expect(described).toMatch(/Container ID:\s+qemu:\/\/[0-9a-f]{8}/);
    expect(described).toMatch(/Container ID:\s+docker:\/\/[0-9a-f]{12}/);
  });

  test("a change of labels or annotations does not disturb the Pod", async () => {
    const before = await readPod(world, namespace, "pair");
    await world.kubectlOk(["-n", namespace, "label", "pod", "pair", "added=label"]);
    await world.kubectlOk(["-n", namespace, "annotate", "pod", "pair", "note=second", "--overwrite"]);
    await eventually(90_000, async () => (await exec("vm", ["cat", "/etc/info/labels"])).stdout.toString().includes('added="label"'), () => "the downward API file to show the new label");
    const after = await readPod(world, namespace, "pair");
    expect(after.status?.containerStatuses?.map((status) => [status.containerID, status.restartCount])).toEqual(before.status?.containerStatuses?.map((status) => [status.containerID, status.restartCount]));
  });
});

describe.each(containers)("in %s", (container) => {
  test("environment comes from ConfigMap, Secret and the downward API", async () => {
    const { stdout } = await exec(container, ["sh", "-c", 'printf "%s|%s|%s|%s" "$COLOR" "$PASSWORD" "$POD_IP" "$NODE"']);
    const pod = await readPod(world, namespace, "pair");
    expect(stdout.toString()).toBe(`blue|s3cret|${pod.status?.podIP}|${world.node}`);
  });

  test("ConfigMap, Secret and emptyDir are mounted, and the emptyDir is shared", async () => {
    expect((await exec(container, ["cat", "/etc/settings/file.txt"])).stdout.toString()).toBe("from the map");
    expect((await exec(container, ["cat", "/etc/keys/password"])).stdout.toString()).toBe("s3cret");
    const other = container === "vm" ? "side" : "vm";
    const text = randomBytes(8).toString("hex");
    expect((await exec(container, ["sh", "-c", `echo ${text} > /shared/from-${container}`])).exitCode).toBe(0);
    expect((await exec(other, ["cat", `/shared/from-${container}`])).stdout.toString()).toBe(`${text}\n`);
    expect((await exec(container, ["sh", "-c", "echo x > /etc/keys/new"])).exitCode).not.toBe(0);
  });

  test("logs show both streams; --tail, --since, --timestamps and -f work", async () => {
    const started = container === "vm" ? "machine started" : "side-car started";
    const all = await world.kubectlOk(["-n", namespace, "logs", "pair", "-c", container]);
    expect(all).toContain(started);
    expect(all).toContain("a problem");
    expect((await world.kubectlOk(["-n", namespace, "logs", "pair", "-c", container, "--tail=1"])).trim().split("\n")).toHaveLength(1);
    expect(await world.kubectlOk(["-n", namespace, "logs", "pair", "-c", container, "--timestamps"])).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z /m);
    expect(await world.kubectlOk(["-n", namespace, "logs", "pair", "-c", container, "--since=1s"])).not.toContain(started);
    const missing = await world.kubectl(["-n", namespace, "logs", "pair", "-c", container, "--previous"]);
    expect(missing.stderr).toContain(`previous terminated container "${container}" in pod "pair" not found`);
  });

  test.each(transports)("attach over %s and logs -f show what it prints from now on", async (_transport, env) => {
    for (const args of [["attach", "pair", "-c", container], ["logs", "-f", "pair", "-c", container, "--tail=0"]]) {
      const child = spawn(join(world.cluster.programs, "kubectl"), ["-n", namespace, ...args], { env: { ...process.env, KUBECONFIG: world.cluster.kubeconfig, ...env } });
      try {
        let output = "";
        for await (const chunk of child.stdout) {
          output += String(chunk);
          if (output.split("tick\n").length > 3) break;
        }
        expect(output).toMatch(/(tick\n){3}/);
        expect(output).not.toContain("started");
      } finally {
        child.kill();
      }
    }
  });

  test.each(transports)("exec over %s passes arguments exactly and returns the exit code", async (_transport, env) => {
    const words = ["a  b", 'c"d', "e'f", "$HOME", "\\n", "", "two\nlines"];
    expect((await exec(container, ["printf", "%s|", ...words], { env })).stdout.toString()).toBe(words.map((word) => `${word}|`).join(""));
    const long = "x".repeat(100 * 1024);
    expect((await exec(container, ["sh", "-c", 'printf %s "$1" | wc -c', "sh", long], { env })).stdout.toString().trim()).toBe(String(long.length));
    for (const [script, code] of [["exit 0", 0], ["exit 1", 1], ["exit 42", 42], ["exit 137", 137], ["kill -9 $$", 137]] as const) {
      expect((await exec(container, ["sh", "-c", script], { env })).exitCode, script).toBe(code);
    }
    const split = await exec(container, ["sh", "-c", "echo out; echo problem >&2; exit 3"], { env });
    expect([split.stdout.toString(), split.stderr.split("\n")[0], split.exitCode]).toEqual(["out\n", "problem", 3]);
    const echoed = await exec(container, ["cat"], { env, input: Buffer.from("half-closed") });
    expect(echoed.stdout.toString()).toBe("half-closed");
  });

  test("exec passes a byte that is not UTF-8", async () => {
    // kubectl cannot: its argv is made of strings. The API takes bytes, percent-encoded.
    const path = `/api/v1/namespaces/${namespace}/pods/pair/exec?container=${container}&stdout=true&stderr=true&command=printf&command=%25s&command=%FF%FE`;
    expect([...(await rawExec(world.cluster, path))]).toEqual([0xff, 0xfe]);
  });

  test.each(transports)("exec -it over %s has a terminal that follows resizes", async (_transport, env) => {
    await using terminal = openTerminal([join(world.cluster.programs, "kubectl"), "-n", namespace, "exec", "-it", "pair", "-c", container, "--", "sh"], {
      env: { KUBECONFIG: world.cluster.kubeconfig, ...env },
      rows: 31,
      columns: 101,
    });
    await terminal.expect(/[#$] /);
    terminal.type("stty size\n");
    await terminal.expect(/31 101/);
    for (const [rows, columns] of [[40, 120], [25, 90]] as const) {
      terminal.resize(rows, columns);
      await eventually(20_000, async () => {
        terminal.type("stty size\n");
        return terminal.expect(new RegExp(`${rows} ${columns}`), 2000).then(
          () => true,
          () => false,
        );
      });
    }
    terminal.type("exit 7\n");
    expect(await terminal.exit).toBe(7);
  });

  test("cp carries 100 MB over WebSocket and 10 MB over SPDY both ways with equal checksums", async () => {
    const directory = mkdtempSync(join(tmpdir(), "podyard-cp-"));
    try {
      for (const [megabytes, env] of [[100, {}], [10, spdy]] as const) {
        const content = Buffer.alloc(megabytes * 1_000_000, randomBytes(997));
        const source = join(directory, "source");
        writeFileSync(source, content);
        const target = container === "vm" ? "/root/copy" : "/tmp/copy";
        await world.kubectlOk(["-n", namespace, "cp", source, `pair:${target}`, "-c", container], { env });
        await world.kubectlOk(["-n", namespace, "cp", `pair:${target}`, join(directory, "back"), "-c", container], { env });
        const digest = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");
        expect(digest(readFileSync(join(directory, "back")))).toBe(digest(content));
        await exec(container, ["rm", target]);
      }
    } finally {
      rmSync(directory, { recursive: true });
    }
  }, 400_000);

  test.each(transports)("port-forward over %s reaches a server in it", async (_transport, env) => {
    const port = container === "vm" ? 7000 : 8080;
    await exec(container, ["sh", "-c", `mkdir -p /tmp/www && echo hello from ${container} > /tmp/www/index.html && { (httpd -p ${port} -h /tmp/www || busybox httpd -p ${port} -h /tmp/www) >/dev/null 2>&1 </dev/null || true; }`]);
    const forward = spawn(join(world.cluster.programs, "kubectl"), ["-n", namespace, "port-forward", "pod/pair", `:${port}`], { env: { ...process.env, KUBECONFIG: world.cluster.kubeconfig, ...env } });
    try {
      const local = await new Promise<number>((resolve, reject) => {
        let out = "";
        forward.stdout.on("data", (chunk) => {
          out += String(chunk);
          const match = /127\.0\.0\.1:(\d+) ->/.exec(out);
          if (match !== null) resolve(Number(match[1]));
        });
        forward.on("exit", (code) => reject(new Error(`port-forward ended with ${code}: ${out}`)));
      });
      const pages = await Promise.all(Array.from({ length: 5 }, () => get("127.0.0.1", local)));
      for (const page of pages) expect(page).toContain(`hello from ${container}`);
    } finally {
      forward.kill();
    }
  });
});

describe("the halves of a Pod", () => {
  test("reach each other by name and answer on the Pod's address from the host", async () => {
    const fetchFrom = async (container: string, url: string) => (await exec(container, ["wget", "-qO-", url])).stdout.toString();
    expect(await fetchFrom("vm", "http://sidecars.pod.internal:8080/")).toContain("hello from side");
    expect(await fetchFrom("side", "http://vm.pod.internal:7000/")).toContain("hello from vm");
    const pod = await readPod(world, namespace, "pair");
    expect(await get(pod.status?.podIP ?? "", 7000)).toContain("hello from vm");
    expect(await get(pod.status?.podIP ?? "", 8080)).toContain("hello from side");
  });

  test("a second Pod has another address", async () => {
    await applyPod(world, podManifest(world, namespace, "second", { sidecar: false }));
    const [first, second] = [await readPod(world, namespace, "pair"), await waitReady(world, namespace, "second")];
    expect(second.status?.podIP).not.toBe(first.status?.podIP);
    expect((await world.kubectlRaw(["-n", namespace, "exec", "second", "--", "wget", "-qO-", `http://${first.status?.podIP}:8080/`])).stdout.toString()).toContain("hello from side");
    await deletePod(world, namespace, "second");
  });
});

describe("credentials and deletion", () => {
  test("a wrong password gives ErrImagePull, then ImagePullBackOff", async () => {
    const other = await world.namespace();
    await world.kubectlOk(["-n", other, "delete", "secret", "registry"]);
    await world.kubectlOk(["-n", other, "create", "secret", "docker-registry", "registry", `--docker-server=${world.registry.host}`, "--docker-username=ci", "--docker-password=wrong"]);
    await applyPod(world, podManifest(world, other, "denied", { machine: { imagePullPolicy: "Always" }, sidecar: { imagePullPolicy: "Always" } }));
    const seen = new Set<string>();
    await eventually(90_000, async () => {
      for (const status of (await readPod(world, other, "denied")).status?.containerStatuses ?? []) seen.add(`${status.name} ${status.state?.waiting?.reason}`);
      return ["vm", "side"].every((name) => seen.has(`${name} ErrImagePull`) && seen.has(`${name} ImagePullBackOff`));
    }, () => [...seen].join(", "));
    await deletePod(world, other, "denied");
  });

  test("deletion stops machine and side-car within the grace period and leaves nothing", async () => {
    const pod = await readPod(world, namespace, "pair");
    const start = Date.now();
    await deletePod(world, namespace, "pair");
    expect(Date.now() - start).toBeLessThan(((pod.spec?.terminationGracePeriodSeconds ?? 30) + 20) * 1000);
    const { stdout } = await world.podyard(["vm", "list", "--output", "json"]);
    expect(JSON.parse(stdout.toString())).toEqual({ items: [] });
  });
});

async function get(host: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    const socket = connect(port, host, () => socket.write("GET / HTTP/1.0\r\n\r\n"));
    socket.setTimeout(20_000, () => socket.destroy(new Error("timeout")));
    socket.on("data", (chunk) => (text += String(chunk)));
    socket.on("end", () => resolve(text));
    socket.on("error", reject);
  });
}
