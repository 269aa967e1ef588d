/** The calls of the contract, on the parts of the host. */
import type { hostApi, HostInfo, Problem } from "../contract/host-api.ts";
import { hasCode, PodyardError } from "../contract/errors.ts";
import type { PullProgress } from "../contract/image.ts";
import type { ContainerEngine } from "../containers/container-engine.ts";
import type { CallHandlers } from "../gateway/protocol.ts";
import type { ImageStore, PushSource } from "../images/image-store.ts";
import type { PodManager } from "../pods/pod-manager.ts";
import type { DriverFacts } from "../virtual-machines/virtual-machine.ts";
import { findPod } from "./pod-names.ts";
import { nameOf, reportImage, reportMachine, reportPod } from "./reports.ts";
import type { Side } from "./side.ts";

export interface HostParts {
  readonly version: string;
  readonly startedAt: Date;
  readonly dataDirectory: string;
  readonly cacheDirectory: string;
  readonly facts: DriverFacts;
  readonly maximumMachines: number;
  readonly side: Side;
  readonly pods: PodManager;
  readonly images: ImageStore;
  readonly engine: ContainerEngine;
  readonly engineSocket: string | undefined;
  problems(): readonly Problem[];
  onProgress(progress: PullProgress): void;
  imagesChanged(): void;
  gatewayUrl(): string | undefined;
  /** Ends the host after the answer was sent. */
  stop(stopPods: boolean): void;
}

export function createCalls(parts: HostParts): CallHandlers<typeof hostApi> {
  const { side, pods, images } = parts;
  const standalone = () => {
    if (side.standalone === undefined) throw new PodyardError("Unsupported", `this host is node ${side.nodeName} of a cluster: its Pods come from there`, { fix: "use kubectl" });
    return side.standalone;
  };
  const keyOf = (name: string) => {
    const { metadata } = findPod(pods.runtime.list(), name);
    return { namespace: metadata?.namespace ?? "default", name: metadata?.name ?? "", ...(metadata?.uid !== undefined && { uid: metadata.uid }) };
  };
  const ownerName = (owner: string): string => {
    const pod = pods.runtime.list().find(({ metadata }) => metadata?.uid?.replaceAll("-", "") === owner);
    return pod === undefined ? "a Pod of another host" : nameOf(pod);
  };
  return {
    "host.info": async () => infoOf(parts),
    "host.stop": async ({ stopPods }) => {
      parts.stop(stopPods);
      return {};
    },
    "node.status": async () => ({ ...(await side.status()), mode: side.mode }),
    "node.leave": async (_request, { signal }) => side.leave(signal),
    "image.list": async () => ({ items: (await images.list()).map(reportImage) }),
    "image.inspect": async ({ reference }) => reportImage(await findImage(images, reference)),
    "image.pull": async ({ reference, policy, credentials }, { signal }) => {
      const { image, downloaded, milliseconds } = await images.pull(reference, { policy, credentials, signal, onProgress: parts.onProgress });
      parts.imagesChanged();
      return { image: reportImage(image), downloaded, milliseconds };
    },
    "image.push": async ({ reference, credentials, source }, { signal }) => {
      const from: PushSource = "image" in source ? sourceOf(await findImage(images, source.image)) : source;
      return { digest: await images.push(reference, from, { credentials, signal, onProgress: parts.onProgress }) };
    },
    "image.remove": async ({ reference }) => {
      await images.remove(reference).catch(async (error: unknown) => {
        const usedBy = hasCode(error, "Conflict") ? ((await images.find(reference))?.usedBy ?? []) : [];
        if (usedBy.length === 0) throw error;
        throw new PodyardError("Conflict", `The image ${JSON.stringify(reference)} is used by ${usedBy.map(ownerName).join(", ")}`, { fix: "Delete these Pods first.", cause: error });
      });
      parts.imagesChanged();
      return {};
    },
    "vm.list": async () => ({
      items: pods
        .overview()
        .filter(({ machine }) => machine !== undefined)
        .map(({ pod, machine }) => reportMachine(pod, machine?.specification)),
    }),
    "vm.stop": async ({ name }) => {
      const key = keyOf(name);
      const grace = findPod(pods.runtime.list(), name).spec?.terminationGracePeriodSeconds ?? 30;
      await pods.runtime.stopMachine(key, grace);
      return {};
    },
    "pod.apply": async ({ manifest, source }) => ({ items: [...(await standalone().apply(manifest, source))] }),
    "pod.list": async () => ({ items: pods.runtime.list().map(reportPod) }),
    "pod.delete": async ({ name, graceSeconds }) => {
      await standalone().deletePod(keyOf(name), graceSeconds);
      return {};
    },
  };
}

async function infoOf(parts: HostParts): Promise<HostInfo> {
  const { facts, side } = parts;
  const engineVersion = await parts.engine.version().catch(() => undefined);
  return {
    version: parts.version,
    processId: process.pid,
    startedAt: parts.startedAt.toISOString(),
    mode: side.mode,
    nodeName: side.nodeName,
    dataDirectory: parts.dataDirectory,
    cacheDirectory: parts.cacheDirectory,
    driver: { name: facts.name, version: facts.version, operatingSystem: facts.operatingSystem, architecture: facts.architecture, accelerator: facts.accelerator, acceleratorNote: facts.acceleratorNote },
    containerEngine: { version: engineVersion, socket: parts.engineSocket },
    maximumMachines: parts.maximumMachines,
    kubeletPort: side.kubeletPort(),
    gatewayUrl: parts.gatewayUrl(),
    problems: [...parts.problems()],
  };
}

async function findImage(images: ImageStore, reference: string) {
  const image = await images.find(reference);
  if (image === undefined) throw new PodyardError("NotFound", `the image ${JSON.stringify(reference)} is not in the cache`, { fix: "podyard image list shows those that are" });
  return image;
}

function sourceOf(image: Awaited<ReturnType<typeof findImage>>): PushSource {
  return {
    diskPath: image.diskPath,
    operatingSystem: image.operatingSystem,
    guest: image.guest,
    ...(image.auxiliaryPath !== undefined && { auxiliaryPath: image.auxiliaryPath }),
    ...(image.architecture !== undefined && { architecture: image.architecture }),
    ...(image.hardwareModel !== undefined && { hardwareModel: image.hardwareModel }),
    ...(image.machineIdentifier !== undefined && { machineIdentifier: image.machineIdentifier }),
  };
}
