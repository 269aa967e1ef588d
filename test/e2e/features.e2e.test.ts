/**
 * What happens to a Pod after it began: its images are changed, it is resized, its probes fail, its init containers fail,
 * its guest goes down. Few machines boot for it: one Pod lives through most of the file, others never get to a machine.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ContainerStatus, Pod } from "../../main/contract/kubernetes-api.generated.ts";
import { applyPod, deletePod, podManifest, readPod, untilPod } from "./manifests.ts";
import { eventually, startWorld, type World } from "./world.ts";

let world: World;
let namespace: string;
beforeAll(async () => {
  world = await startWorld();
  namespace = await world.namespace();
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

const statusOf = (pod: Pod, name: string): ContainerStatus | undefined =>
  [...(pod.status?.containerStatuses ?? []), ...(pod.status?.initContainerStatuses ?? [])].find((status) => status.name === name);
const inside = async (pod: string, container: string, script: string): Promise<string> =>
  (await world.kubectlOk(["-n", namespace, "exec", pod, "-c", container, "--", "sh", "-c", script])).trim();
const setImage = (pod: string, container: string, image: string): Promise<string> => world.kubectlOk(["-n", namespace, "set", "image", `pod/${pod}`, `${container}=${image}`]);

const until = (name: string, seconds: number, holds: (pod: Pod) => boolean): Promise<Pod> => untilPod(world, namespace, name, seconds, holds);

describe("a Pod that changes while it runs", () => {
  test("a corrected image is pulled at once, for the machine and for the side-car", async () => {
    await applyPod(
      world,
      podManifest(world, namespace, "changing", {
        machine: {
          // A container's image, which the node refuses as long as it stands there.
          image: world.sidecarImage,
          volumeMounts: [{ name: "kept", mountPath: "/kept" }],
          lifecycle: { postStart: { exec: { command: ["sh", "-c", "mkdir -p /kept/www; echo well > /kept/www/index.html; busybox httpd -p 8000 -h /kept/www </dev/null >/dev/null 2>&1"] } } },
          livenessProbe: { httpGet: { port: 8000, path: "/index.html" }, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5 },
        },
        sidecar: {
          image: `${world.registry.host}/tools/misspelt:1`,
          command: ["sh", "-c", "trap 'exit 0' TERM; while :; do if test -f /kept/hungry; then rm /kept/hungry; exec tail /dev/zero; fi; sleep 1 & wait; done"],
          volumeMounts: [{ name: "kept", mountPath: "/kept" }],
          resources: { limits: { memory: "32Mi" } },
        },
        spec: { volumes: [{ name: "kept", emptyDir: {} }] },
      }),
    );
    await until("changing", 60, (pod) => pod.metadata?.uid !== undefined && pod.status?.containerStatuses !== undefined);
    await eventually(60_000, async () => (await world.kubectlOk(["-n", namespace, "get", "events"])).includes("NotAVirtualMachineImage"));
    await setImage("changing", "vm", world.machineImage);
    await until("changing", 60, (pod) => statusOf(pod, "side")?.state?.waiting?.reason === "ImagePullBackOff");
    await setImage("changing", "side", world.sidecarImage);
    const pod = await until("changing", 120, (candidate) => ["vm", "side"].every((name) => statusOf(candidate, name)?.ready === true));
    expect([statusOf(pod, "vm")?.restartCount, statusOf(pod, "side")?.restartCount]).toEqual([0, 0]);
  });

  test("a resize in place is answered with Infeasible", async () => {
    const patch = { spec: { containers: [{ name: "vm", resources: { requests: { cpu: "400m" } } }] } };
    await world.kubectlOk(["-n", namespace, "patch", "pod", "changing", "--subresource=resize", "-p", JSON.stringify(patch)]);
    const pod = await until("changing", 30, ({ status }) => status?.conditions?.some(({ type }) => type === "PodResizePending") === true);
    expect(pod.status?.conditions?.find(({ type }) => type === "PodResizePending")).toMatchObject({ status: "True", reason: "Infeasible" });
    expect(statusOf(pod, "vm")?.restartCount).toBe(0);
  });

  test("a side-car over its memory limit is OOMKilled and starts again; the machine runs on", async () => {
    await inside("changing", "side", "echo kept > /kept/note; touch /kept/hungry");
    const pod = await until("changing", 60, (candidate) => statusOf(candidate, "side")?.restartCount === 1 && statusOf(candidate, "side")?.ready === true);
    expect(statusOf(pod, "side")?.lastState?.terminated).toMatchObject({ reason: "OOMKilled", exitCode: 137 });
    expect(statusOf(pod, "vm")).toMatchObject({ restartCount: 0, ready: true });
  });

  test("a machine that fails its liveness probe is replaced, with the same address and volumes", async () => {
    const before = await readPod(world, namespace, "changing");
    await inside("changing", "side", "rm /kept/www/index.html");
    const pod = await until("changing", 120, (candidate) => statusOf(candidate, "vm")?.restartCount === 1 && statusOf(candidate, "vm")?.ready === true);
    expect(pod.status?.podIP).toBe(before.status?.podIP);
    expect(await inside("changing", "vm", "cat /kept/note")).toBe("kept");
    expect(await world.kubectlOk(["-n", namespace, "get", "events"])).toContain("Container vm failed liveness probe, will be restarted");
  });

  test("a new image restarts its container alone, machine or side-car", async () => {
    for (const [name, other, count] of [["side", "vm", 2], ["vm", "side", 2]] as const) {
      const before = await readPod(world, namespace, "changing");
      const image = statusOf(before, name)?.imageID ?? "";
      expect(image).toContain("@sha256:");
      await setImage("changing", name, image);
      const after = await until("changing", 120, (pod) => statusOf(pod, name)?.restartCount === count && statusOf(pod, name)?.ready === true);
      expect(statusOf(after, name)?.image).toBe(image);
      expect(statusOf(after, other)).toEqual(statusOf(before, other));
      expect(after.status?.podIP).toBe(before.status?.podIP);
    }
    expect(await inside("changing", "vm", "cat /kept/note")).toBe("kept");
  });

  test("a guest that powers itself off has exited with 0", async () => {
    await world.kubectl(["-n", namespace, "exec", "changing", "-c", "vm", "--", "poweroff"]);
    const pod = await until("changing", 60, (candidate) => statusOf(candidate, "vm")?.restartCount === 3 || statusOf(candidate, "vm")?.state?.terminated !== undefined);
    const vm = statusOf(pod, "vm");
    expect(vm?.state?.terminated ?? vm?.lastState?.terminated).toMatchObject({ exitCode: 0, reason: "Completed" });
    await deletePod(world, namespace, "changing");
  });
});

describe("a Pod that never gets to its machine", () => {
  test("an init container that fails for good fails the Pod, and no machine is made", async () => {
    const initContainers = [{ name: "first", image: world.sidecarImage, command: ["sh", "-c", "echo no way; exit 5"], terminationMessagePolicy: "FallbackToLogsOnError" }];
    await applyPod(world, podManifest(world, namespace, "stuck", { spec: { restartPolicy: "Never", initContainers } }));
    const pod = await until("stuck", 60, (candidate) => candidate.status?.phase === "Failed");
    expect(statusOf(pod, "first")?.state?.terminated).toMatchObject({ exitCode: 5, message: "no way\n" });
    expect(statusOf(pod, "vm")).toMatchObject({ state: { waiting: { reason: "PodInitializing" } }, restartCount: 0 });
    expect(JSON.parse((await world.podyard(["vm", "list", "-o", "json"])).stdout.toString())).toEqual({ items: [] });
    await deletePod(world, namespace, "stuck");
  });
});
