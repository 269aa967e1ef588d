/**
 * Fields of a Pod that pods.e2e.test.ts and controllers.e2e.test.ts do not show: each test is a promise of
 * docs/pod-support.md, which links here by title. One Pod with nearly everything set serves most of them.
 */
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ContainerStatus, Pod, PodSpec } from "../../main/contract/kubernetes-api.generated.ts";
import { applyPod, deletePod, podManifest, readPod, untilPod } from "./manifests.ts";
import { startWorld, type World } from "./world.ts";

let world: World;
let namespace: string;
let shared: string;
const hostPort = 20_000 + Math.floor(Math.random() * 10_000);

/** A machine that serves TCP 7000, tells who it is, and writes down when it is asked to stop. */
const machineScript = [
  "echo who $(id -u):$(id -g):$(pwd)",
  "echo init $(cat /shared/init) native $(cat /shared/native)",
  "trap 'echo machine >> /host/order; exit 0' TERM",
  "(while :; do echo hello | nc -l -p 7000; done) &",
  "while :; do sleep 1; done",
].join("\n");
const nativeScript = "echo started > /shared/native; trap 'echo native >> /host/order; exit 0' TERM; while :; do sleep 1 & wait; done";
const sideScript = "mkdir -p /memory/www; echo ok > /memory/www/index.html; httpd -p 8080 -h /memory/www; while :; do sleep 1 & wait; done";

beforeAll(async () => {
  world = await startWorld();
  namespace = await world.namespace();
  shared = mkdtempSync(join(tmpdir(), "podyard-fields-"));
  mkdirSync(join(shared, "made"));
  writeFileSync(join(shared, "order"), "");
  // For the users of the containers, whatever this process's umask is.
  for (const path of ["", "made", "order"]) chmodSync(join(shared, path), 0o777);
  await world.kubectlOk(["-n", namespace, "create", "configmap", "settings", "--from-literal=one.txt=first"]);
  const common = [
    { name: "shared", mountPath: "/shared" },
    { name: "shared", mountPath: "/part", subPathExpr: "parts/$(POD_NAME)" },
    { name: "settings", mountPath: "/single/one.txt", subPath: "one.txt" },
    { name: "shared", mountPath: "/frozen", readOnly: true },
    { name: "both", mountPath: "/both" },
    { name: "host", mountPath: "/host" },
    { name: "memory", mountPath: "/memory" },
  ];
  const env = [{ name: "POD_NAME", valueFrom: { fieldRef: { fieldPath: "metadata.name" } } }];
  await applyPod(
    world,
    podManifest(world, namespace, "full", {
      machine: {
        command: ["sh", "-c"],
        args: [machineScript],
        workingDir: "/tmp",
        securityContext: { runAsUser: 1000, runAsGroup: 1000 },
        env,
        volumeMounts: common,
        resources: { limits: { cpu: "1", memory: "300Mi" } },
        ports: [{ containerPort: 7000, hostPort }],
        startupProbe: { tcpSocket: { port: 7000 }, periodSeconds: 1, failureThreshold: 60 },
        readinessProbe: { exec: { command: ["test", "-f", "/shared/init"] }, periodSeconds: 1 },
        lifecycle: {
          postStart: { exec: { command: ["sh", "-c", "echo post >> /host/order"] } },
          preStop: { exec: { command: ["sh", "-c", "echo pre >> /host/order"] } },
        },
      },
      sidecar: {
        command: ["sh", "-c", sideScript],
        env,
        volumeMounts: common,
        securityContext: { runAsUser: 2000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } },
        resources: { limits: { cpu: "500m", memory: "64Mi" } },
        ports: [{ containerPort: 8080 }],
        readinessProbe: { httpGet: { port: 8080, path: "/index.html" }, periodSeconds: 1 },
        livenessProbe: { exec: { command: ["sh", "-c", "! test -f /shared/ill || { rm /shared/ill; false; }"] }, periodSeconds: 1, failureThreshold: 1 },
      },
      spec: {
        hostname: "given",
        subdomain: "sub",
        hostAliases: [{ ip: "203.0.113.7", hostnames: ["alias.test"] }],
        dnsPolicy: "None",
        dnsConfig: { nameservers: ["203.0.113.53"], searches: ["search.test"], options: [{ name: "ndots", value: "3" }] },
        readinessGates: [{ conditionType: "example.com/gate" }],
        shareProcessNamespace: true,
        securityContext: { fsGroup: 3000, supplementalGroups: [4000], sysctls: [{ name: "net.ipv4.ip_unprivileged_port_start", value: "81" }] },
        initContainers: [
          { name: "first", image: world.sidecarImage, command: ["sh", "-c", "echo done > /shared/init"], volumeMounts: common.slice(0, 1) },
          {
            name: "native",
            image: world.sidecarImage,
            restartPolicy: "Always",
            command: ["sh", "-c", nativeScript],
            volumeMounts: [common[0], common[5]].filter((mount) => mount !== undefined),
          },
        ],
        volumes: [
          { name: "shared", emptyDir: {} },
          { name: "memory", emptyDir: { medium: "Memory", sizeLimit: "1Mi" } },
          { name: "settings", configMap: { name: "settings" } },
          { name: "host", hostPath: { path: shared, type: "Directory" } },
          {
            name: "both",
            projected: {
              sources: [{ configMap: { name: "settings" } }, { downwardAPI: { items: [{ path: "name", fieldRef: { fieldPath: "metadata.name" } }] } }],
            },
          },
        ],
      },
    }),
  );
  await until("full", 240, (pod) => conditionOf(pod, "ContainersReady") === "True");
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  rmSync(shared, { recursive: true, force: true });
});

const until = (name: string, seconds: number, holds: (pod: Pod) => boolean): Promise<Pod> => untilPod(world, namespace, name, seconds, holds);

const conditionOf = (pod: Pod, type: string): string | undefined => pod.status?.conditions?.find((condition) => condition.type === type)?.status;
const statusOf = (pod: Pod, name: string): ContainerStatus | undefined =>
  [...(pod.status?.containerStatuses ?? []), ...(pod.status?.initContainerStatuses ?? [])].find((status) => status.name === name);
const inside = async (container: string, script: string): Promise<string> =>
  (await world.kubectlOk(["-n", namespace, "exec", "full", "-c", container, "--", "sh", "-c", script])).trim();

describe("a Pod with nearly everything set", () => {
  test("workingDir, runAsUser and runAsGroup are those of the main process, and runAsNonRoot refuses root", async () => {
    expect(await world.kubectlOk(["-n", namespace, "logs", "full", "-c", "vm"])).toContain("who 1000:1000:/tmp");
    await applyPod(world, podManifest(world, namespace, "root", { spec: { nodeName: world.node, securityContext: { runAsNonRoot: true } } }));
    const pod = await until("root", 30, (candidate) => statusOf(candidate, "vm")?.state?.waiting?.reason === "CreateContainerConfigError");
    expect(statusOf(pod, "vm")?.state?.waiting?.message).toContain("spec.securityContext.runAsNonRoot: true cannot be honoured");
    await deletePod(world, namespace, "root");
  });

  test("init containers run first, and a native side-car from before the machine until after it", async () => {
    expect(await world.kubectlOk(["-n", namespace, "logs", "full", "-c", "vm"])).toContain("init done native started");
    const pod = await readPod(world, namespace, "full");
    expect(statusOf(pod, "first")).toMatchObject({ ready: true, state: { terminated: { exitCode: 0 } } });
    expect(statusOf(pod, "native")).toMatchObject({ ready: true, started: true, state: { running: {} } });
    // That it ends last is seen when the Pod is deleted, below.
  });

  test("hostname, hostAliases, dnsPolicy and dnsConfig are seen in machine and side-car", async () => {
    for (const container of ["vm", "side"]) {
      expect([container, await inside(container, "hostname")]).toEqual([container, "given"]);
      expect(await inside(container, "cat /etc/hosts")).toMatch(/203\.0\.113\.7\s+alias\.test/);
      expect(await inside(container, "cat /etc/hosts")).toContain(`given.sub.${namespace}.svc.`);
    }
    expect(await inside("side", "cat /etc/resolv.conf")).toBe("nameserver 203.0.113.53\nsearch search.test\noptions ndots:3");
    expect(await inside("vm", "cat /etc/resolv.conf")).toContain("search.test");
  });

  test("subPath, subPathExpr, read-only, projected, hostPath and tmpfs mounts are seen in machine and side-car", async () => {
    await inside("side", "echo from side > /part/file; echo host > /host/made/file");
    expect(readFileSync(join(shared, "made/file"), "utf8")).toBe("host\n");
    for (const container of ["vm", "side"]) {
      expect(await inside(container, "cat /shared/parts/full/file /part/file")).toBe("from side\nfrom side");
      expect(await inside(container, "cat /single/one.txt /both/one.txt /both/name")).toBe("firstfirstfull");
      expect(await inside(container, "cat /memory/www/index.html /host/made/file")).toBe("ok\nhost");
      expect(await inside(container, "touch /frozen/x 2>/dev/null || echo frozen; touch /single/one.txt 2>/dev/null || echo single")).toBe("frozen\nsingle");
    }
    expect(await inside("side", "dd if=/dev/zero of=/memory/big bs=1024 count=2048 2>&1 | grep -c 'No space'; rm -f /memory/big")).toBe("1");
  });

  test("volumes belong to fsGroup", async () => {
    expect(await inside("side", "stat -c %g /shared /memory; id -G")).toBe("3000\n3000\n0 3000 4000");
    expect(await inside("side", "echo x > /shared/owned; stat -c %u:%g /shared/owned")).toBe("2000:3000");
  });

  test("the service account's token is accepted by the API server from machine and side-car", async () => {
    const pod = await readPod(world, namespace, "full");
    const volume = pod.spec?.volumes?.find(({ name }) => name.startsWith("kube-api-access-"))?.name;
    expect(volume).toBeDefined();
    for (const container of ["vm", "side"]) {
      const token = await inside(container, "cat /var/run/secrets/kubernetes.io/serviceaccount/token");
      const review = { apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec: { token } };
      const answer: unknown = JSON.parse(await world.kubectlOk(["create", "-f", "-", "-o", "json"], { input: JSON.stringify(review) }));
      expect(answer).toMatchObject({ status: { authenticated: true, user: { username: `system:serviceaccount:${namespace}:default` } } });
      expect(await inside(container, "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace")).toBe(namespace);
    }
  });

  test("limits size the machine and the side-car's cgroup", async () => {
    expect(await inside("vm", "nproc")).toBe("1");
    const kibibytes = Number(await inside("vm", "awk '/MemTotal/ { print $2 }' /proc/meminfo"));
    expect(kibibytes).toBeGreaterThan(200 * 1024);
    expect(kibibytes).toBeLessThanOrEqual(300 * 1024);
    expect(await inside("side", "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes")).toBe(String(64 * 1024 * 1024));
  });

  test("a side-car gets its security context, sysctls and the shared process namespace", async () => {
    expect(await inside("side", "id -u; touch /x 2>/dev/null || echo read-only")).toBe("2000\nread-only");
    expect(await inside("side", "awk '/^(CapEff|NoNewPrivs)/ { print $2 }' /proc/self/status | sort -u | tr -d 0")).toContain("1");
    expect(await inside("side", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")).toBe("81");
    expect(await inside("side", "cat /proc/1/comm; ps | grep -c 'echo started'")).not.toMatch(/^sh\n/);
  });

  test("a hostPort answers on the node's address", async () => {
    const { status } = await readPod(world, namespace, "full");
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connect({ host: status?.hostIP ?? "", port: hostPort, timeout: 10_000 });
      socket.once("error", reject).once("timeout", () => reject(new Error("no answer")));
      socket.once("data", (data: Buffer) => {
        socket.destroy();
        resolve(data.toString());
      });
    });
    expect(answer).toBe("hello\n");
  });

  test("a readiness gate holds back Ready", async () => {
    const pod = await readPod(world, namespace, "full");
    expect(pod.status?.conditions?.find(({ type }) => type === "Ready")).toMatchObject({ status: "False", reason: "ReadinessGatesNotReady" });
    // The gate's owner is a controller; here it is this test.
    const patch = { status: { conditions: [{ type: "example.com/gate", status: "True" }] } };
    await world.kubectlOk(["-n", namespace, "patch", "pod", "full", "--subresource=status", "--type=strategic", "-p", JSON.stringify(patch)]);
    await until("full", 30, (candidate) => conditionOf(candidate, "Ready") === "True");
  });

  test("kubectl debug adds a container to a running Pod", async () => {
    await world.kubectlOk([
      "-n",
      namespace,
      "debug",
      "full",
      `--image=${world.sidecarImage}`,
      "--container=probe",
      "--",
      "sh",
      "-c",
      "echo looking around; sleep 300",
    ]);
    await until("full", 60, (pod) => pod.status?.ephemeralContainerStatuses?.[0]?.state?.running !== undefined);
    expect(await world.kubectlOk(["-n", namespace, "logs", "full", "-c", "probe"])).toBe("looking around\n");
    expect(await inside("probe", "hostname")).toBe("given");
  });

  test("probes over exec, HTTP and TCP decide about startup, readiness and restarts", async () => {
    const before = statusOf(await readPod(world, namespace, "full"), "vm");
    expect(before).toMatchObject({ started: true, ready: true, restartCount: 0 });
    await inside("vm", "mv /shared/init /shared/away");
    await until("full", 30, (pod) => statusOf(pod, "vm")?.ready === false && conditionOf(pod, "Ready") === "False");
    await inside("vm", "mv /shared/away /shared/init");
    await inside("side", "mv /memory/www/index.html /memory/www/gone");
    await until("full", 30, (pod) => statusOf(pod, "vm")?.ready === true && statusOf(pod, "side")?.ready === false);
    await inside("side", "touch /shared/ill");
    const after = await until("full", 60, (pod) => statusOf(pod, "side")?.restartCount === 1 && statusOf(pod, "side")?.ready === true);
    expect(statusOf(after, "vm")?.restartCount).toBe(0);
  });

  test("postStart gates the machine and preStop runs within the grace period", async () => {
    expect(readFileSync(join(shared, "order"), "utf8")).toBe("post\n");
    await deletePod(world, namespace, "full");
    expect(readFileSync(join(shared, "order"), "utf8").trim().split("\n")).toEqual(["post", "pre", "machine", "native"]);
  });
});

describe("Pods that end", () => {
  test("the termination message comes from its path, or from the log", async () => {
    await applyPod(
      world,
      podManifest(world, namespace, "messages", {
        machine: { command: ["sh", "-c", "echo the machine says why > /dev/termination-log; exit 3"] },
        sidecar: { command: ["sh", "-c", "echo the log says why; exit 4"], terminationMessagePolicy: "FallbackToLogsOnError" },
        spec: { restartPolicy: "Never" },
      }),
    );
    const pod = await until("messages", 180, (candidate) => candidate.status?.phase === "Failed");
    expect(
      [statusOf(pod, "vm"), statusOf(pod, "side")].map((status) => [status?.state?.terminated?.exitCode, status?.state?.terminated?.message?.trim()]),
    ).toEqual([
      [3, "the machine says why"],
      [4, "the log says why"],
    ]);
    await deletePod(world, namespace, "messages");
  });

  test("stdinOnce closes stdin after the first attach", async () => {
    await applyPod(
      world,
      podManifest(world, namespace, "once", {
        machine: { command: ["sh", "-c", "cat; echo end of input"], stdin: true, stdinOnce: true },
        sidecar: false,
        spec: { restartPolicy: "Never" },
      }),
    );
    await until("once", 180, (pod) => statusOf(pod, "vm")?.state?.running !== undefined);
    await world.kubectlRaw(["-n", namespace, "attach", "-i", "once", "-c", "vm"], { input: Buffer.from("one line\n") });
    await until("once", 60, (pod) => pod.status?.phase === "Succeeded");
    expect(await world.kubectlOk(["-n", namespace, "logs", "once"])).toBe("one line\nend of input\n");
    await deletePod(world, namespace, "once");
  });

  test("restartPolicy and restartPolicyRules of a container override the Pod's", async () => {
    await applyPod(
      world,
      podManifest(world, namespace, "rules", {
        machine: { command: ["sh", "-c", "exit 0"] },
        sidecar: {
          command: ["sh", "-c", "if test -f /shared/again; then exit 0; fi; touch /shared/again; exit 42"],
          volumeMounts: [{ name: "shared", mountPath: "/shared" }],
          restartPolicy: "Never",
          restartPolicyRules: [{ action: "Restart", exitCodes: { operator: "In", values: [42] } }],
        },
        spec: { restartPolicy: "Never", volumes: [{ name: "shared", emptyDir: {} }] },
      }),
    );
    const pod = await until("rules", 180, (candidate) => candidate.status?.phase === "Succeeded");
    expect([statusOf(pod, "side")?.restartCount, statusOf(pod, "side")?.lastState?.terminated?.exitCode]).toEqual([1, 42]);
    await deletePod(world, namespace, "rules");
  });

  test("activeDeadlineSeconds and an emptyDir over its sizeLimit fail the Pod", async () => {
    await applyPod(world, podManifest(world, namespace, "late", { sidecar: false, spec: { activeDeadlineSeconds: 5 } }));
    const late = await until("late", 90, (pod) => pod.status?.phase === "Failed");
    expect(late.status?.reason).toBe("DeadlineExceeded");
    await deletePod(world, namespace, "late");
    const fill = {
      command: ["sh", "-c", "dd if=/dev/zero of=/small/big bs=1024 count=4096; sleep 600"],
      volumeMounts: [{ name: "small", mountPath: "/small" }],
    };
    await applyPod(world, podManifest(world, namespace, "greedy", { sidecar: fill, spec: { volumes: [{ name: "small", emptyDir: { sizeLimit: "1Mi" } }] } }));
    const greedy = await until("greedy", 120, (pod) => pod.status?.phase === "Failed");
    expect([greedy.status?.reason, greedy.status?.message]).toEqual(["Evicted", 'Usage of EmptyDir volume "small" exceeds the limit "1Mi". ']);
    expect(conditionOf(greedy, "DisruptionTarget")).toBe("True");
    await deletePod(world, namespace, "greedy");
  });
});

describe("Pods that never start", () => {
  test.each<[string, string, Partial<PodSpec>]>([
    ["selector", "NodeAffinity", { nodeSelector: { nowhere: "really" } }],
    ["system", "PodOSNotSupported", { os: { name: "windows" } }],
  ])("%s: %s", async (name, reason, spec) => {
    await rejected(name, reason, spec);
  });

  test("a Pod that does not fit the node is rejected", async () => {
    await rejected("huge", "OutOfmemory", { containers: [{ name: "vm", image: world.machineImage, resources: { requests: { memory: "9000Gi" } } }] });
  });

  test("imagePullPolicy Always, IfNotPresent and Never are followed", async () => {
    const image = `${world.registry.host}/images/absent:1`;
    await applyPod(world, podManifest(world, namespace, "never", { machine: { image: world.machineImage }, sidecar: { image, imagePullPolicy: "Never" } }));
    const pod = await until("never", 120, (candidate) => statusOf(candidate, "side")?.state?.waiting?.reason === "ErrImageNeverPull");
    expect(statusOf(pod, "side")?.state?.waiting?.message).toContain("is not present with pull policy of Never");
    const messages = await world.kubectlOk(["-n", namespace, "get", "events", "-o", "jsonpath={range .items[*]}{.message}{'\\n'}{end}"]);
    expect(messages).toContain(`Successfully pulled image "${world.machineImage}"`);
    expect(messages).toContain(`Container image "${world.machineImage}" already present on machine`);
    await deletePod(world, namespace, "never");
  });
});

/** Bound to the node without the scheduler, as a race between scheduler and node would. */
async function rejected(name: string, reason: string, spec: Partial<PodSpec>): Promise<void> {
  await applyPod(world, podManifest(world, namespace, name, { sidecar: false, spec: { ...spec, nodeName: world.node } }));
  const pod = await until(name, 30, (candidate) => candidate.status?.phase === "Failed");
  expect([pod.status?.reason, pod.status?.message?.startsWith("Pod was rejected: ")]).toEqual([reason, true]);
  await deletePod(world, namespace, name);
}
