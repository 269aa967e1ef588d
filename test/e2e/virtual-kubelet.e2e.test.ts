/**
 * The nine end-to-end behaviours that virtual-kubelet asks of a provider (its test/e2e suite), as tests of ours: three
 * containers on one node, found by the kubelet API, gone within a second of deletion, optional and mandatory references.
 */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { PodSpec, PodList } from "../../main/contract/kubernetes-api.generated.ts";
import { applyPod, deletePod, podManifest, readPod, waitReady } from "./manifests.ts";
import { eventually, startWorld, type World } from "./world.ts";

let world: World;
let namespace: string;
beforeAll(async () => {
  world = await startWorld({ maximumMachines: 4 });
  namespace = await world.namespace();
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

const proxy = (path: string): Promise<string> => world.kubectlOk(["get", "--raw", `/api/v1/nodes/${world.node}/proxy/${path}`]);
const runs = async (uid: string): Promise<boolean> => ((JSON.parse(await proxy("runningpods/")) as PodList).items ?? []).some((pod) => pod.metadata?.uid === uid);
const apply = async (name: string, spec: Partial<PodSpec>, machine = {}): Promise<void> => {
  await applyPod(world, podManifest(world, namespace, name, { machine, spec: { nodeName: world.node, enableServiceLinks: false, ...spec } }));
};

test("the kubelet API lists the node's Pods, and only them", async () => {
  const manifest = podManifest(world, namespace, "listed");
  await applyPod(world, { ...manifest, spec: { ...manifest.spec, nodeName: world.node, containers: [...(manifest.spec?.containers ?? []), { name: "third", image: world.sidecarImage }] } });
  const pod = await waitReady(world, namespace, "listed");
  const list = JSON.parse(await proxy("pods")) as PodList & { kind: string; apiVersion: string };
  expect([list.kind, list.apiVersion]).toEqual(["PodList", "v1"]);
  expect(list.items.map((item) => item.metadata?.uid)).toContain(pod.metadata?.uid);
  expect(list.items.every((item) => item.spec?.nodeName === world.node)).toBe(true);
});

test("/stats/summary has exactly the Pod's three containers", async () => {
  const summary = JSON.parse(await proxy("stats/summary")) as { node: { nodeName: string }; pods: { podRef: { name: string; namespace: string; uid: string }; containers: { name: string }[] }[] };
  expect(summary.node.nodeName).toBe(world.node);
  const pod = await readPod(world, namespace, "listed");
  const stats = summary.pods.find((candidate) => candidate.podRef.uid === pod.metadata?.uid);
  expect(stats?.podRef).toMatchObject({ name: "listed", namespace });
  expect(stats?.containers.map((container) => container.name).sort()).toEqual(["side", "third", "vm"]);
});

test("/metrics/resource has the Pod and its three containers, the Pod's name as second label", async () => {
  const metrics = await proxy("metrics/resource");
  const lines = (name: string) => metrics.split("\n").filter((line) => line.startsWith(`${name}{`) && line.includes('pod="listed"'));
  expect(lines("pod_cpu_usage_seconds_total")).toHaveLength(1);
  expect(lines("container_cpu_usage_seconds_total")).toHaveLength(3);
  for (const line of [...lines("pod_cpu_usage_seconds_total"), ...lines("container_cpu_usage_seconds_total")]) {
    expect(/\{[^,]+,pod="listed"/.test(line), line).toBe(true);
    expect(Number(/\} (\S+)/.exec(line)?.[1])).toBeGreaterThan(0);
  }
  await deletePod(world, namespace, "listed");
});

test.each([
  ["gracefully", []],
  ["by force", ["--grace-period=0", "--force"]],
] as const)("a Pod deleted %s is gone from /runningpods/ within a second", async (_how, flags) => {
  await apply("short", {}, {});
  const pod = await waitReady(world, namespace, "short");
  const uid = pod.metadata?.uid ?? "";
  expect(await runs(uid)).toBe(true);
  await world.kubectlOk(["-n", namespace, "delete", "pod", "short", "--wait=false", ...flags]);
  await delay(1000);
  expect(await runs(uid)).toBe(false);
  await eventually(60_000, async () => (await world.kubectl(["-n", namespace, "get", "pod", "short"])).exitCode !== 0);
});

const reference = (kind: "secretKeyRef" | "configMapKeyRef", optional: boolean) => ({ env: [{ name: "VALUE", valueFrom: { [kind]: { name: "missing", key: "key", optional } } }] });
const hasEvent = async (uid: string | undefined, reason: string): Promise<boolean> =>
  (await world.kubectlOk(["-n", namespace, "get", "events", "--field-selector", `involvedObject.uid=${uid},reason=${reason}`, "-o", "name"])).trim() !== "";

test.concurrent.each([
  ["Secret", "secretKeyRef", "OptionalSecretNotFound"],
  ["ConfigMap", "configMapKeyRef", "OptionalConfigMapNotFound"],
] as const)("a missing optional %s is reported and the Pod runs", async (kind, field, reason) => {
  const name = `optional-${kind.toLowerCase()}`;
  await apply(name, {}, reference(field, true));
  const pod = await waitReady(world, namespace, name);
  await eventually(20_000, () => hasEvent(pod.metadata?.uid, reason));
  expect(await runs(pod.metadata?.uid ?? "")).toBe(true);
  await deletePod(world, namespace, name);
});

test.each([
  ["Secret", "secretKeyRef", "MandatorySecretNotFound"],
  ["ConfigMap", "configMapKeyRef", "MandatoryConfigMapNotFound"],
] as const)("a missing mandatory %s is reported and nothing runs", async (_kind, field, reason) => {
  await apply("mandatory", {}, reference(field, false));
  const pod = await readPod(world, namespace, "mandatory");
  await eventually(60_000, () => hasEvent(pod.metadata?.uid, reason));
  const { items } = JSON.parse(await proxy("runningpods/")) as PodList;
  expect((items ?? []).find((item) => item.metadata?.uid === pod.metadata?.uid)?.spec?.containers.map((container) => container.name) ?? []).not.toContain("vm");
  await deletePod(world, namespace, "mandatory");
});
