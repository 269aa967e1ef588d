/** Pods as the tests apply them: container 0 a virtual machine, container 1 a side-car. */
import type { Container, Pod, PodSpec } from "../../main/contract/kubernetes-api.generated.ts";
import { eventually, type World } from "./world.ts";

export interface PodOptions {
  readonly spec?: Partial<PodSpec>;
  readonly machine?: Partial<Container>;
  /** `false` = no side-car. */
  readonly sidecar?: Partial<Container> | false;
  readonly metadata?: Pod["metadata"];
}

/** A Pod of small size with a pull secret; no service links, a short grace period. */
export function podManifest(world: World, namespace: string, name: string, options: PodOptions = {}): Pod & { readonly apiVersion: string; readonly kind: string } {
  const machine: Container = { name: "vm", image: world.machineImage, resources: { requests: { cpu: "500m", memory: "256Mi" } }, ...options.machine };
  const sidecar: Container | undefined = options.sidecar === false ? undefined : { name: "side", image: world.sidecarImage, ...options.sidecar };
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace, ...options.metadata },
    spec: {
      nodeName: undefined,
      imagePullSecrets: [{ name: "registry" }],
      terminationGracePeriodSeconds: 5,
      containers: sidecar === undefined ? [machine] : [machine, sidecar],
      ...options.spec,
    },
  };
}

export async function applyPod(world: World, pod: object): Promise<void> {
  await world.kubectlOk(["apply", "-f", "-"], { input: JSON.stringify(pod) });
}

export async function readPod(world: World, namespace: string, name: string): Promise<Pod> {
  return JSON.parse(await world.kubectlOk(["-n", namespace, "get", "pod", name, "-o", "json"])) as Pod;
}

export async function waitReady(world: World, namespace: string, name: string, seconds = 150): Promise<Pod> {
  const result = await world.kubectl(["-n", namespace, "wait", "--for=condition=Ready", `pod/${name}`, `--timeout=${seconds}s`]);
  if (result.exitCode !== 0) {
    const { stdout } = await world.kubectl(["-n", namespace, "describe", "pod", name]);
    throw new Error(`${result.stderr}\n${stdout}\n${world.hostLog().slice(-6000)}`);
  }
  return readPod(world, namespace, name);
}

/** Resolves with the Pod once the condition holds; at the deadline rejects with its description and the host's log. */
export async function untilPod(world: World, namespace: string, name: string, seconds: number, holds: (pod: Pod) => boolean): Promise<Pod> {
  let pod: Pod = {};
  await eventually(
    seconds * 1000,
    async () => holds((pod = await readPod(world, namespace, name))),
    async () => `${(await world.kubectl(["-n", namespace, "describe", "pod", name])).stdout}\n${world.hostLog().slice(-4000)}`,
  );
  return pod;
}

export async function deletePod(world: World, namespace: string, name: string): Promise<void> {
  await world.kubectlOk(["-n", namespace, "delete", "pod", name, "--ignore-not-found", "--wait=true", "--timeout=60s"]);
}
