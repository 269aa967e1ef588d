/** Pods as controllers make them: Jobs, Deployments, ReplicaSets, and a node whose machine slots are full. */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { applyPod, deletePod, podManifest, readPod } from "./manifests.ts";
import { eventually, startWorld, type World } from "./world.ts";

let world: World;
let namespace: string;
beforeAll(async () => {
  world = await startWorld({ maximumMachines: 2 });
  namespace = await world.namespace();
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

const template = (app: string, options: Parameters<typeof podManifest>[3]) => {
  const { spec } = podManifest(world, namespace, app, options);
  return { metadata: { labels: { app } }, spec };
};
const json = async <T>(args: readonly string[]): Promise<T> => JSON.parse(await world.kubectlOk(["-n", namespace, ...args, "-o", "json"])) as T;

// At most two machines run at a time, as many as the node has slots.
describe.concurrent("Pods that end or are refused", () => {
  test("a Job whose machine runs a command completes with its log and exit code", async () => {
    await applyPod(world, {
      apiVersion: "batch/v1",
      kind: "Job",
      metadata: { name: "build", namespace },
      spec: { template: template("build", { sidecar: false, machine: { command: ["sh", "-c"], args: ["echo built by $(uname -s); exit 0"] }, spec: { restartPolicy: "Never" } }) },
    });
    await world.kubectlOk(["-n", namespace, "wait", "--for=condition=Complete", "job/build", "--timeout=150s"]);
    expect(await world.kubectlOk(["-n", namespace, "logs", "job/build"])).toBe("built by Linux\n");
    const { items } = await json<{ items: { status: { phase: string; containerStatuses: { state: { terminated?: { exitCode: number; reason: string } } }[] } }[] }>(["get", "pods", "-l", "app=build"]);
    expect(items[0]?.status.phase).toBe("Succeeded");
    expect(items[0]?.status.containerStatuses[0]?.state.terminated).toMatchObject({ exitCode: 0, reason: "Completed" });
    await world.kubectlOk(["-n", namespace, "delete", "job", "build", "--wait=true", "--timeout=60s"]);
  });

  test("a failing command is restarted by restartPolicy with back-off, and --previous shows the last attempt", async () => {
    await applyPod(
      world,
      podManifest(world, namespace, "failing", {
        machine: { command: ["sh", "-c", "echo attempt; exit 42"] },
        sidecar: { command: ["sh", "-c", "echo side attempt; exit 3"] },
        spec: { restartPolicy: "OnFailure" },
      }),
    );
    await eventually(240_000, async () => {
      const statuses = (await readPod(world, namespace, "failing")).status?.containerStatuses ?? [];
      return ["vm", "side"].every((name) => statuses.some((status) => status.name === name && status.restartCount >= 1 && status.lastState?.terminated !== undefined));
    }, async () => JSON.stringify((await readPod(world, namespace, "failing")).status?.containerStatuses));
    const pod = await readPod(world, namespace, "failing");
    const exits = Object.fromEntries((pod.status?.containerStatuses ?? []).map((status) => [status.name, status.lastState?.terminated?.exitCode]));
    expect(exits).toEqual({ vm: 42, side: 3 });
    expect(await world.kubectlOk(["-n", namespace, "logs", "failing", "-c", "vm", "--previous"])).toBe("attempt\n");
    expect(await world.kubectlOk(["-n", namespace, "logs", "failing", "-c", "side", "--previous"])).toBe("side attempt\n");
    const waiting = new Set<string>();
    await eventually(120_000, async () => {
      for (const status of (await readPod(world, namespace, "failing")).status?.containerStatuses ?? []) if (status.state?.waiting?.reason === "CrashLoopBackOff") waiting.add(status.name);
      return waiting.size === 2;
    }, () => [...waiting].join());
    await deletePod(world, namespace, "failing");
  });

  test("a ReplicaSet whose Pod is refused creates exactly one Pod in 30 s", async () => {
    await applyPod(world, {
      apiVersion: "apps/v1",
      kind: "ReplicaSet",
      metadata: { name: "refused", namespace },
      spec: { replicas: 1, selector: { matchLabels: { app: "refused" } }, template: template("refused", { spec: { hostNetwork: true } }) },
    });
    await delay(30_000);
    const { items } = await json<{ items: { status: { phase: string; containerStatuses?: { state: { waiting?: { reason: string; message: string } } }[] } }[] }>(["get", "pods", "-l", "app=refused"]);
    expect(items).toHaveLength(1);
    expect(items[0]?.status.phase).toBe("Pending");
    expect(items[0]?.status.containerStatuses?.map((status) => status.state.waiting?.reason)).toEqual(["CreateContainerConfigError", "CreateContainerConfigError"]);
    expect(items[0]?.status.containerStatuses?.[0]?.state.waiting?.message).toContain("hostNetwork");
    await world.kubectlOk(["-n", namespace, "delete", "replicaset", "refused", "--wait=true"]);
  });
});

test("a side-car that exits with 0 under OnFailure stays completed and disturbs nothing", async () => {
  await applyPod(world, podManifest(world, namespace, "finished", { sidecar: { command: ["sh", "-c", "exit 0"] }, spec: { restartPolicy: "OnFailure" } }));
  await eventually(150_000, async () => {
    const statuses = (await readPod(world, namespace, "finished")).status?.containerStatuses ?? [];
    return statuses.some((status) => status.name === "side" && status.state?.terminated?.reason === "Completed") && statuses.some((status) => status.name === "vm" && status.state?.running !== undefined && status.restartCount === 0);
  }, async () => JSON.stringify((await readPod(world, namespace, "finished")).status?.containerStatuses));
  await deletePod(world, namespace, "finished");
});

test("kubectl run --rm -it gives a shell in a fresh machine", async () => {
  const { openTerminal } = await import("../support/terminal.ts");
  await using terminal = openTerminal(
    [`${world.cluster.programs}/kubectl`, "-n", namespace, "run", "fresh", "--rm", "-it", "--restart=Never", `--image=${world.machineImage}`, "--pod-running-timeout=3m", "--overrides", JSON.stringify({ spec: { imagePullSecrets: [{ name: "registry" }], terminationGracePeriodSeconds: 2 } }), "--", "sh"],
    { env: { KUBECONFIG: world.cluster.kubeconfig } },
  );
  await terminal.expect(/[#$] |If you don't see a command prompt/, 150_000);
  terminal.type("\necho answer-$((6*7))\n");
  await terminal.expect(/answer-42/, 30_000);
  terminal.type("exit 3\n");
  // kubectl run ends with the code of the container.
  expect(await terminal.exit).toBe(3);
  await eventually(60_000, async () => (await world.kubectl(["-n", namespace, "get", "pod", "fresh"])).exitCode !== 0);
});

test("a one-replica Deployment rolls with the default strategy", async () => {
  const deployment = (mark: string) => ({
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "one", namespace },
    spec: { replicas: 1, selector: { matchLabels: { app: "one" } }, template: template("one", { sidecar: false, machine: { env: [{ name: "MARK", value: mark }] } }) },
  });
  await applyPod(world, deployment("first"));
  await world.kubectlOk(["-n", namespace, "rollout", "status", "deployment/one", "--timeout=150s"]);
  await applyPod(world, deployment("second"));
  await world.kubectlOk(["-n", namespace, "rollout", "status", "deployment/one", "--timeout=150s"]);
  await world.kubectlOk(["-n", namespace, "delete", "deployment", "one", "--wait=true"]);
  await eventually(60_000, async () => (await json<{ items: unknown[] }>(["get", "pods", "-l", "app=one"])).items.length === 0);
});

test("a two-replica Deployment on two slots rolls with maxSurge 0", async () => {
  const deployment = (mark: string) => ({
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "two", namespace },
    spec: {
      replicas: 2,
      strategy: { rollingUpdate: { maxSurge: 0, maxUnavailable: 1 } },
      selector: { matchLabels: { app: "two" } },
      template: template("two", { sidecar: false, machine: { env: [{ name: "MARK", value: mark }], resources: { requests: { cpu: "100m", memory: "256Mi" }, limits: { "podyard.dev/vm": "1" } } } }),
    },
  });
  await applyPod(world, deployment("first"));
  await world.kubectlOk(["-n", namespace, "rollout", "status", "deployment/two", "--timeout=200s"]);
  await applyPod(world, deployment("second"));
  await world.kubectlOk(["-n", namespace, "rollout", "status", "deployment/two", "--timeout=300s"]);

  // Both slots are taken: a third machine waits for the scheduler.
  await applyPod(world, podManifest(world, namespace, "third", { sidecar: false, machine: { resources: { requests: { cpu: "100m", memory: "256Mi" }, limits: { "podyard.dev/vm": "1" } } } }));
  await eventually(30_000, async () => {
    const condition = (await readPod(world, namespace, "third")).status?.conditions?.find((candidate) => candidate.type === "PodScheduled");
    return condition?.reason === "Unschedulable" && condition.message?.includes("Insufficient podyard.dev/vm") === true;
  });
  await deletePod(world, namespace, "third");
  await world.kubectlOk(["-n", namespace, "delete", "deployment", "two", "--wait=true"]);
  await eventually(60_000, async () => (await json<{ items: unknown[] }>(["get", "pods", "-l", "app=two"])).items.length === 0);
}, 600_000);

test("a Pod whose first image is no machine image is refused without taking a slot", async () => {
  await applyPod(world, podManifest(world, namespace, "daemon", { machine: { image: world.sidecarImage }, sidecar: false }));
  await eventually(60_000, async () => (await readPod(world, namespace, "daemon")).status?.containerStatuses?.[0]?.state?.waiting?.message?.includes("NotAVirtualMachineImage") === true || (await world.kubectlOk(["-n", namespace, "get", "events"])).includes("NotAVirtualMachineImage"));
  expect(JSON.parse((await world.podyard(["vm", "list", "-o", "json"])).stdout.toString())).toEqual({ items: [] });
  await deletePod(world, namespace, "daemon");
});
