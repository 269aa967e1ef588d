/**
 * Side-cars on a Docker engine: the ContainerEngine of this folder. Every call asks the engine for the truth (nothing is
 * cached here), so that a restarted host needs no state of its own; labels tell what is ours.
 * API: https://docs.docker.com/reference/api/engine/version/v1.41/
 */
import { PodyardError, messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { attachToContainer } from "./container-attach.ts";
import type { ContainerEngine, ContainerInfo, ContainerSpecification, SandboxSpecification } from "./container-engine.ts";
import { execInContainer } from "./container-exec.ts";
import { readContainerFile } from "./container-files.ts";
import type { InspectedContainer } from "./container-info.ts";
import { containerName, finishedContainerName, sandboxContainer, uniqueContainerName } from "./container-labels.ts";
import { containerLogs } from "./container-logs.ts";
import { containerOptions, sandboxOptions } from "./container-options.ts";
import { containerStatistics } from "./container-statistics.ts";
import { containerPath, createContainer, createContainersOfHost } from "./containers-of-host.ts";
import { askVersion, connectEngine, describeAddress, request, requestUnlessGone, statusOf, type EngineAddress } from "./engine-connection.ts";
import { watchEngine } from "./engine-events.ts";
import { createEngineImages } from "./engine-images.ts";
import { ensureHelperImage, type HelperImage } from "./helper-image.ts";

export interface DockerEngineOptions extends EngineAddress {
  /** Tells this host's containers from another's on the same engine; stays the same for the life of the data directory. */
  readonly hostId: string;
  /** Holds `podyard-init-linux-<architecture>` (built by native/pause/build.mjs). */
  readonly helperDirectory: string;
  readonly logger: Logger;
}

const oldestApi = 1.41;

/** Makes no request. Errors: InvalidArgument for an address of an unknown kind. */
export function createDockerEngine(options: DockerEngineOptions): ContainerEngine {
  const { hostId, logger } = options;
  const address = describeAddress(options);
  const docker = connectEngine(options);
  const containers = createContainersOfHost(docker, hostId);
  const images = createEngineImages(docker);
  const steps = createSerializer();

  let knownHelper: HelperImage | undefined;
  const ensureHelper = (): Promise<HelperImage> =>
    steps.run("helper", async () => {
      knownHelper = await ensureHelperImage(docker, options.helperDirectory);
      return knownHelper;
    });

  async function problem(): Promise<{ readonly message: string; readonly fix: string } | undefined> {
    try {
      const { ApiVersion } = await askVersion(docker, AbortSignal.timeout(5000));
      const [major = 0, minor = 0] = ApiVersion.split(".").map(Number);
      if (major === 1 && minor < 41) {
        return {
          message: `The Docker engine at ${address} speaks API ${ApiVersion}, side-cars need ${oldestApi}`,
          fix: "Update Docker to version 20.10 or later.",
        };
      }
      return undefined;
    } catch (error) {
      return {
        message: `The Docker engine at ${address} cannot be used: ${messageOf(error)}`,
        fix: "Start Docker, or set the engine's socket in the settings.",
      };
    }
  }

  async function version(): Promise<string> {
    return (await askVersion(docker)).Version;
  }

  async function ensureSandbox(specification: SandboxSpecification): Promise<{ readonly id: string; readonly processId: number }> {
    return steps.run(specification.podUid, async () => {
      const existing = await containers.sandbox(specification.podUid);
      const id = existing?.info.id ?? (await createSandbox(specification));
      if (existing?.info.state !== "running") await startContainer(id, `start the sandbox of Pod ${specification.namespace}/${specification.podName}`);
      const { info } = await containers.get(id);
      if (info.processId === undefined)
        throw new PodyardError(
          "Unavailable",
          `The sandbox of Pod ${specification.namespace}/${specification.podName} ended right after its start${info.error === undefined ? "" : `: ${info.error}`}`,
        );
      return { id, processId: info.processId };
    });
  }

  async function createSandbox(specification: SandboxSpecification): Promise<string> {
    // Looked at for each Pod, as somebody may have pruned the engine in between.
    const { image, volume } = await ensureHelper();
    return createNamed(specification, sandboxContainer, sandboxOptions(specification, { hostId, image, helperVolume: volume }));
  }

  /** With our usual name, or a longer one where another Pod's container holds that. */
  async function createNamed(
    owner: { readonly podUid: string; readonly namespace: string; readonly podName: string },
    name: string,
    create: Readonly<Record<string, unknown>>,
  ): Promise<string> {
    const action = `create container "${name}" of Pod ${owner.namespace}/${owner.podName}`;
    try {
      return (await createContainer(docker, create, containerName(owner, name))).Id;
    } catch (error) {
      if (statusOf(error) !== 409) return await request(action, () => Promise.reject(error));
      return (await request(action, () => createContainer(docker, create, uniqueContainerName(owner, name)))).Id;
    }
  }

  async function startContainer(id: string, action: string): Promise<void> {
    // 304: it runs already.
    await request(action, async () => {
      try {
        await docker.ask({ method: "POST", path: `${containerPath(id)}/start` });
      } catch (error) {
        if (statusOf(error) !== 304) throw error;
      }
    });
  }

  async function create(specification: ContainerSpecification): Promise<ContainerInfo> {
    return steps.run(specification.podUid, async () => {
      const sandbox = await containers.sandbox(specification.podUid);
      if (sandbox === undefined)
        throw new PodyardError(
          "Conflict",
          `Cannot create container "${specification.name}": Pod ${specification.namespace}/${specification.podName} has no sandbox`,
        );
      const current = await retireInstances(specification);
      if (current !== undefined) return current;
      const { image, volume } = knownHelper ?? (await ensureHelper());
      const create = containerOptions(specification, { hostId, image, helperVolume: volume, sandboxId: sandbox.info.id });
      return (await containers.get(await createNamed(specification, specification.name, create))).info;
    });
  }

  /**
   * Makes room for a new instance: one finished one is kept, renamed, for `logs --previous`. Returns the instance if a
   * crash came between its creation and our caller's note of it.
   */
  async function retireInstances(specification: ContainerSpecification): Promise<ContainerInfo | undefined> {
    const [newest, ...older] = await containers.instances(specification.podUid, specification.name);
    if (newest === undefined) return undefined;
    if (newest.info.restartCount === specification.restartCount) {
      if (newest.info.startedAt !== undefined) return newest.info;
      // Never started: made again, since its environment may have changed.
      await containers.remove(newest.info.id);
      return undefined;
    }
    if (newest.info.state === "running" || newest.info.state === "paused") {
      throw new PodyardError("Conflict", `Cannot create container "${specification.name}": its instance ${newest.info.restartCount} still runs`);
    }
    for (const { info } of older) await containers.remove(info.id);
    const current = [containerName(specification, specification.name), uniqueContainerName(specification, specification.name)];
    if (current.includes(newest.dockerName)) {
      const name = finishedContainerName(newest.dockerName, newest.info.restartCount);
      await requestUnlessGone(`rename container "${specification.name}"`, () => docker.ask({ method: "POST", path: `${containerPath(newest.info.id)}/rename`, query: { name } }));
    }
    return undefined;
  }

  async function stop(id: string, graceSeconds: number): Promise<void> {
    if ((await containers.find(id)) === undefined) return;
    // 304: it has ended already. The engine waits the grace period itself, so that the host's crash does not lengthen it.
    await requestUnlessGone(`stop container ${id.slice(0, 12)}`, () => docker.ask({ method: "POST", path: `${containerPath(id)}/stop`, query: { t: Math.max(0, Math.ceil(graceSeconds)) } }), 304);
  }

  async function removePod(podUid: string): Promise<void> {
    const all = await containers.list(podUid);
    await Promise.all(all.filter(({ role }) => role !== "sandbox").map(({ info }) => containers.remove(info.id)));
    // Last: the others live in its namespaces.
    await Promise.all(all.filter(({ role }) => role === "sandbox").map(({ info }) => containers.remove(info.id)));
  }

  async function previousOf(container: InspectedContainer): Promise<InspectedContainer> {
    const { podUid, name, podName, restartCount } = container.info;
    const previous = (await containers.instances(podUid, name)).find(({ info }) => info.restartCount < restartCount);
    if (previous === undefined) throw new PodyardError("NotFound", `previous terminated container "${name}" in pod "${podName}" not found`);
    return previous;
  }

  return {
    problem,
    version,
    pull: (reference, pull) => images.pull(reference, pull),
    findImage: (reference) => images.find(reference),
    listImages: () => images.list(),
    ensureSandbox,
    create,
    async start(id) {
      const { info } = await containers.get(id);
      await startContainer(id, `start container "${info.name}"`);
    },
    stop,
    async remove(id) {
      if ((await containers.find(id)) !== undefined) await containers.remove(id);
    },
    async inspect(id) {
      return (await containers.find(id))?.info;
    },
    async list(podUid) {
      return (await containers.list(podUid)).filter(({ role }) => role === "side-car").map(({ info }) => info);
    },
    removePod: (podUid) => steps.run(podUid, () => removePod(podUid)),
    async sweep(keep) {
      const unknown = new Set((await containers.list()).map(({ info }) => info.podUid).filter((podUid) => !keep.has(podUid)));
      const left = unknown.values();
      const failures: unknown[] = [];
      const work = async (): Promise<void> => {
        for (const podUid of left) {
          logger.info("removing the containers of a Pod that is gone", { podUid });
          await steps.run(podUid, () => removePod(podUid)).catch((error: unknown) => failures.push(error));
        }
      };
      // A few at a time: each removal waits for the engine, all at once would bring it to its knees.
      await Promise.all([work(), work(), work(), work()]);
      if (failures.length > 0) throw failures[0];
    },
    async logs(id, log) {
      const current = await containers.get(id);
      const container = log.previous ? await previousOf(current) : current;
      return containerLogs(docker, container.info.id, container.terminal, log);
    },
    async exec(id, exec) {
      const { info } = await containers.get(id);
      if (info.state !== "running") throw new PodyardError("Conflict", `Cannot execute in container "${info.name}": it is ${info.state}, not running`);
      return execInContainer(docker, info.id, exec, logger);
    },
    async attach(id, attach) {
      return attachToContainer(docker, await containers.get(id), attach);
    },
    async statistics(id) {
      if ((await containers.find(id)) === undefined) return undefined;
      const answer = await requestUnlessGone(
        `read the statistics of container ${id.slice(0, 12)}`,
        () => docker.ask({ method: "GET", path: `${containerPath(id)}/stats`, query: { stream: false, "one-shot": true } }),
        409,
      );
      return answer === undefined ? undefined : containerStatistics(answer);
    },
    async readFile(id, path, limit) {
      const container = await containers.find(id);
      return container === undefined ? undefined : readContainerFile(docker, container.info.id, path, limit);
    },
    watch: (onChange) => watchEngine({ docker, hostId, containers, logger }, onChange),
  };
}

/** Runs the steps of one key one after the other: two calls for one Pod must not both find no sandbox. */
function createSerializer(): { run<Result>(key: string, step: () => Promise<Result>): Promise<Result> } {
  const tails = new Map<string, Promise<unknown>>();
  return {
    async run(key, step) {
      const previous = tails.get(key) ?? Promise.resolve();
      const result = previous.then(step, step);
      const tail = result.catch(() => undefined);
      tails.set(key, tail);
      try {
        return await result;
      } finally {
        if (tails.get(key) === tail) tails.delete(key);
      }
    },
  };
}
