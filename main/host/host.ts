/**
 * Composition root of the host: builds every part, starts them in order and stops them in reverse. Nothing here decides
 * anything; it says who knows whom. The same for `podyard run`, the sample and (later) the app.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import type { Readable } from "node:stream";
import { hasCode, messageOf, PodyardError } from "../contract/errors.ts";
import { hostApi, type HostEvent } from "../contract/host-api.ts";
import type { Logger } from "../contract/logger.ts";
import type { ContainerEngine } from "../containers/container-engine.ts";
import { createDockerEngine } from "../containers/docker-engine.ts";
import type { EngineAddress } from "../containers/engine-connection.ts";
import { importImage } from "../containers/import-image.ts";
import { type RunningEngine, startOwnEngine, usualSockets } from "../containers/own-engine.ts";
import { refuseSecondHost } from "../gateway/discovery.ts";
import { createEventLog } from "../gateway/event-log.ts";
import { startGateway } from "../gateway/server.ts";
import { createImageStore, type LocalImageStore } from "../images/store.ts";
import { createPodManager, type PodManager } from "../pods/pod-manager.ts";
import { quantityMilliValue, quantityValue } from "../pods/resources.ts";
import { createDirectories, type Directories } from "../settings/directories.ts";
import { loadSettings } from "../settings/load-settings.ts";
import type { Settings } from "../settings/settings.ts";
import { createQemuDriver } from "../virtual-machines/drivers/qemu/driver.ts";
import { createGuests } from "../virtual-machines/guest/guests.ts";
import { createPodNetworks } from "../virtual-machines/network/pod-networks.ts";
import type { VirtualMachineDriver } from "../virtual-machines/virtual-machine.ts";
import { createCalls } from "./calls.ts";
import { createClusterSide } from "./cluster-side.ts";
import { pullCredentials } from "./pull-credentials.ts";
import { nameOf } from "./reports.ts";
import type { HostProblem, NodeImage, Side } from "./side.ts";
import { createStandaloneSide } from "./standalone-side.ts";
import { createStreams } from "./streams.ts";

export interface HostOptions {
  readonly directories: Directories;
  readonly configFile: string | undefined;
  readonly kubeconfig: string | undefined;
  readonly flags: Readonly<Record<string, unknown>>;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly logger: Logger;
}

export interface Host {
  readonly nodeName: string;
  /** The page's address with a one-time token, if TCP was asked for. */
  readonly url: string | undefined;
  readonly side: Side;
  readonly pods: PodManager;
  readonly images: LocalImageStore;
  readonly engine: ContainerEngine;
  /** Makes a container image `name:tag` from a root file system, unless it is there. */
  importContainerImage(reference: string, rootFileSystem: Readable): Promise<void>;
  /** Resolves when the host was asked to stop over its API. */
  readonly stopRequested: Promise<{ readonly stopPods: boolean }>;
  /** Virtual machines and side-cars keep running unless `stopPods`. */
  stop(options: { readonly stopPods: boolean }): Promise<void>;
}

const root = join(import.meta.dirname, "../..");

/** Resolves when the node is Ready. Errors: InvalidArgument (settings), Forbidden, Conflict (a host runs already), Unavailable. */
export async function startHost(options: HostOptions): Promise<Host> {
  const { logger, environment } = options;
  const startedAt = new Date();
  const dataDirectory = options.directories.data;
  const hostId = createHash("sha256").update(dataDirectory).digest("hex").slice(0, 8);
  const runtimeDirectory = join(options.directories.runtime, hostId);
  createDirectories(options.directories);
  createDirectories({ ...options.directories, runtime: runtimeDirectory });
  const settings = await loadSettings({ flags: options.flags, environment, configFile: options.configFile, dataDirectory, logger });
  const version = readVersion();
  // Before anything is adopted that belongs to the other one.
  await refuseSecondHost(dataDirectory);

  const resources = new AsyncDisposableStack();
  try {
    const images = resources.use(await createImageStore({ cacheDirectory: options.directories.cache, host: hostId, logger, registry: registryOptions(settings) }));
    const driver = createDriver(settings, dataDirectory, runtimeDirectory, logger);
    const facts = await driver.facts();
    const engineSide = await startEngine(settings, environment, { dataDirectory, runtimeDirectory, hostId, logger });
    resources.defer(() => engineSide.running?.[Symbol.asyncDispose]());
    const { engine } = engineSide;
    const maximumMachines = settings.maximumMachines ?? (process.platform === "darwin" ? 2 : 4);
    const problems = (): readonly HostProblem[] => [
      ...facts.problems.map((problem) => ({ type: "VirtualMachinesUnavailable", reason: "MissingPrerequisite", isBlocking: true, ...problem })),
      ...(engineSide.problem === undefined ? [] : [{ type: "ContainersUnavailable", reason: "MissingPrerequisite", isBlocking: false, ...engineSide.problem }]),
    ];
    for (const problem of problems()) logger.warn(problem.message, { fix: problem.fix });
    if (facts.acceleratorNote !== undefined) logger.info(facts.acceleratorNote);

    let nodeImages: readonly NodeImage[] = [];
    const refreshImages = async (): Promise<void> => {
      const [machines, containers] = await Promise.all([images.list(), engine.listImages().catch(() => [])]);
      nodeImages = [
        ...machines.map((image) => ({ names: image.references, sizeBytes: image.sizeOnDisk })),
        ...containers.map((image) => ({ names: [...image.repositoryDigests, ...image.references], sizeBytes: image.sizeBytes })),
      ].filter((image) => image.names.length > 0);
    };
    await refreshImages();
    let imagesTimer: NodeJS.Timeout | undefined;
    resources.defer(() => clearTimeout(imagesTimer));
    // Pods change in bursts, and a node tells its images every few minutes: one look some seconds after the first change.
    const refreshImagesSoon = (): void => {
      imagesTimer ??= setTimeout(() => {
        imagesTimer = undefined;
        void refreshImages().catch((error: unknown) => logger.debug("images could not be listed", { error: messageOf(error) }));
      }, 5000).unref();
    };

    const kubeconfig = options.kubeconfig === undefined ? join(dataDirectory, "node/kubeconfig") : resolve(options.kubeconfig);
    if (options.kubeconfig !== undefined && !existsSync(kubeconfig)) throw new PodyardError("InvalidArgument", `--kubeconfig: ${kubeconfig} does not exist`, { fix: "podyard join writes one" });
    const isNode = options.kubeconfig !== undefined || existsSync(kubeconfig);
    if (isNode && settings.manifests !== undefined) throw new PodyardError("InvalidArgument", "--manifests is for a host without a cluster, and this one joined one", { fix: "leave --manifests out, or choose another --data-dir" });
    const side = isNode
      ? await createClusterSide({
          kubeconfig,
          dataDirectory,
          cacheDirectory: options.directories.cache,
          settings,
          version,
          maximumMachines,
          logger,
          images: () => nodeImages,
          problems,
        })
      : await createStandaloneSide({ dataDirectory, cacheDirectory: options.directories.cache, settings, maximumMachines, logger, problems });

    const events = createEventLog<HostEvent>({ startedAt });
    const pods = createPodManager({
      source: side.source,
      reporter: side.reporter,
      objects: side.objects,
      node: side.node,
      images,
      pullCredentials: (pod, reference) => pullCredentials(pod, reference, side.objects, side.mode === "standalone"),
      machines: driver,
      networks: createPodNetworks({ dataDirectory, logger, subnet: settings.podSubnet }),
      guests: createGuests({ supervisorDirectory: join(root, "build/supervisor"), logger, emulated: facts.accelerator === "tcg" }),
      engine,
      dataDirectory,
      settings: {
        maximumMachines,
        defaultMachineSize: machineSizeOf(settings, facts.operatingSystem),
        guestLogin: await guestLoginOf(settings),
        guestReadinessTimeoutSeconds: settings.guest.readinessTimeoutSeconds,
        postStartTimeoutSeconds: settings.guest.postStartTimeoutSeconds,
      },
      logger,
    });
    pods.onChange(({ uid, pod, deleted }) => events.publish({ kind: "pod", uid, name: nameOf(pod), phase: pod.status?.phase ?? "Pending", deleted }));
    pods.onChange(refreshImagesSoon);
    side.standalone?.onEvent((event) => events.publish({ kind: "log", type: event.type, name: event.pod, reason: event.reason, message: event.message, time: event.time.toISOString() }));

    const { promise: stopRequested, resolve: requestStop } = Promise.withResolvers<{ stopPods: boolean }>();
    let gatewayUrl: string | undefined;
    const gateway = resources.use(
      await startGateway({
        api: hostApi,
        calls: createCalls({
          version,
          startedAt,
          dataDirectory,
          cacheDirectory: options.directories.cache,
          facts,
          maximumMachines,
          side,
          pods,
          images,
          engine,
          engineSocket: engineSide.running?.socketPath,
          problems,
          onProgress: (progress) => events.publish({ kind: "image", progress }),
          imagesChanged: () => events.publish({ kind: "images-changed" }),
          gatewayUrl: () => gatewayUrl,
          stop: (stopPods) => requestStop({ stopPods }),
        }),
        streams: createStreams(pods),
        events,
        dataDirectory,
        runtimeDirectory,
        pageDirectory: join(root, "dist/renderer"),
        logger,
        ...(settings.gatewayPort !== undefined && { port: settings.gatewayPort }),
      }),
    );
    gatewayUrl = gateway.origin;
    resources.use(await side.start(pods.runtime, () => pods.checkHealth()));
    resources.use(await pods.start());
    await side.ready;
    events.publish({ kind: "node", ready: true, message: `node ${side.nodeName} is ready` });
    return {
      nodeName: side.nodeName,
      url: gateway.createPageUrl(),
      side,
      pods,
      images,
      engine,
      importContainerImage: (reference, rootFileSystem) => importImage(engineSide.address, reference, rootFileSystem),
      stopRequested,
      async stop({ stopPods }) {
        if (stopPods) await drain(side, pods, logger);
        await resources.disposeAsync();
      },
    };
  } catch (error) {
    await resources.disposeAsync();
    throw error;
  }
}

function createDriver(settings: Settings, dataDirectory: string, runtimeDirectory: string, logger: Logger): VirtualMachineDriver {
  const wanted = settings.driver === "auto" ? (process.platform === "darwin" ? "virtualization" : "qemu") : settings.driver;
  if (wanted === "virtualization") {
    throw new PodyardError("Unsupported", process.platform === "darwin" ? "this version has no driver for Virtualization.framework" : "--driver virtualization: Virtualization.framework exists on macOS only", { fix: "use --driver qemu on Linux" });
  }
  return createQemuDriver({ dataDirectory, runtimeDirectory, logger });
}

interface EngineSide {
  readonly engine: ContainerEngine;
  readonly address: EngineAddress;
  readonly running: RunningEngine | undefined;
  readonly problem: { readonly message: string; readonly fix: string } | undefined;
}

/** Without an engine the host runs Pods that need none, and says what is missing. */
async function startEngine(settings: Settings, environment: Readonly<Record<string, string | undefined>>, context: { readonly dataDirectory: string; readonly runtimeDirectory: string; readonly hostId: string; readonly logger: Logger }): Promise<EngineSide> {
  const { hostId, logger } = context;
  const named = settings.dockerHost ?? (environment["DOCKER_HOST"] || undefined);
  const address = named === undefined ? {} : named.includes("://") ? { dockerHost: named } : { socketPath: named };
  const helperDirectory = join(root, "native/pause/build");
  try {
    const running = await startOwnEngine({ ...address, candidates: usualSockets(homedir()), dataDirectory: context.dataDirectory, runtimeDirectory: context.runtimeDirectory, logger });
    return { address: running.address, engine: createDockerEngine({ ...running.address, hostId, helperDirectory, logger }), running, problem: undefined };
  } catch (error) {
    if (!hasCode(error, "Unavailable", "MissingPrerequisite")) throw error;
    const problem = { message: messageOf(error), fix: error.fix ?? "Install Docker." };
    const missing = { ...address, missing: problem };
    return { address: missing, engine: createDockerEngine({ ...missing, hostId, helperDirectory, logger }), running: undefined, problem };
  }
}

/** Ends every Pod: evicted in a cluster, deleted when standalone. */
async function drain(side: Side, pods: PodManager, logger: Logger): Promise<void> {
  const gone = Promise.withResolvers<void>();
  const look = (): void => {
    if (pods.overview().length === 0) gone.resolve();
  };
  const unsubscribe = pods.onChange(look);
  try {
    if (side.standalone === undefined) {
      await side.leave(AbortSignal.timeout(300_000));
    } else {
      for (const { pod } of pods.overview()) {
        const { namespace = "default", name = "" } = pod.metadata ?? {};
        await side.standalone.deletePod({ namespace, name }).catch((error: unknown) => logger.warn("a Pod cannot be stopped", { pod: nameOf(pod), error: messageOf(error) }));
      }
    }
    look();
    const timer = setTimeout(gone.resolve, 120_000);
    await gone.promise;
    clearTimeout(timer);
  } finally {
    unsubscribe();
  }
}

function machineSizeOf(settings: Settings, operatingSystem: "darwin" | "linux") {
  const { cpu, memory } = settings.defaultSize[operatingSystem];
  return { cpuCount: Math.max(1, Math.ceil(quantityMilliValue(cpu) / 1000)), memoryBytes: quantityValue(memory) };
}

async function guestLoginOf(settings: Settings) {
  const { user, password, privateKeyPath, passphrase, port, keyExchangeAlgorithms } = settings.guest;
  let privateKey: string | undefined;
  if (privateKeyPath !== undefined) {
    try {
      privateKey = await readFile(privateKeyPath, "utf8");
    } catch (error) {
      throw new PodyardError("InvalidArgument", `guest.privateKeyPath: ${privateKeyPath} cannot be read`, { cause: error });
    }
  }
  return {
    ...(user !== undefined && { user }),
    ...(password !== undefined && { password }),
    ...(privateKey !== undefined && { privateKey }),
    ...(passphrase !== undefined && { passphrase }),
    ...(port !== undefined && { port }),
    ...(keyExchangeAlgorithms !== undefined && { keyExchangeAlgorithms }),
  };
}

function registryOptions(settings: Settings) {
  const entries = Object.entries(settings.registries);
  const read = (path: string): string => {
    try {
      return readFileSync(path, "utf8");
    } catch (error) {
      throw new PodyardError("InvalidArgument", `registries: certificateAuthority ${path} cannot be read`, { cause: error });
    }
  };
  return {
    insecureHosts: entries.flatMap(([host, { insecure }]) => (insecure === true ? [host] : [])),
    mirrors: Object.fromEntries(entries.flatMap(([host, { mirrors }]) => (mirrors === undefined ? [] : [[host, mirrors]]))),
    certificateAuthorities: entries.flatMap(([, { certificateAuthority }]) => (certificateAuthority === undefined ? [] : [read(certificateAuthority)])),
  };
}

function readVersion(): string {
  return (JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string }).version;
}
