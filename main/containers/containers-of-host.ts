/** Finding what is ours on the engine: by label only, so that two hosts on one engine never touch each other's containers. */
import type Docker from "dockerode";
import { PodyardError } from "../contract/errors.ts";
import { inspectedContainer, type InspectedContainer } from "./container-info.ts";
import { labelFilter } from "./container-labels.ts";
import { request, requestUnlessGone } from "./engine-connection.ts";

export interface ContainersOfHost {
  /** Sandboxes included. */
  list(podUid?: string): Promise<readonly InspectedContainer[]>;
  find(id: string): Promise<InspectedContainer | undefined>;
  /** Errors: NotFound (also for a container that is not ours). */
  get(id: string): Promise<InspectedContainer>;
  sandbox(podUid: string): Promise<InspectedContainer | undefined>;
  /** All instances of a Pod's container, the newest first. */
  instances(podUid: string, name: string): Promise<readonly InspectedContainer[]>;
  /** By force, with its anonymous volumes; waits until it is gone. */
  remove(id: string): Promise<void>;
}

export function createContainersOfHost(docker: Docker, hostId: string): ContainersOfHost {
  async function find(id: string): Promise<InspectedContainer | undefined> {
    const answer = await requestUnlessGone(`inspect container ${id.slice(0, 12)}`, () => docker.getContainer(id).inspect());
    if (answer === undefined) return undefined;
    const container = inspectedContainer(answer);
    return container.hostId === hostId ? container : undefined;
  }

  async function get(id: string): Promise<InspectedContainer> {
    const container = await find(id);
    if (container === undefined) throw new PodyardError("NotFound", `No container ${id.slice(0, 12)} of this host on the engine`);
    return container;
  }

  async function list(podUid?: string): Promise<readonly InspectedContainer[]> {
    const answer = await request("list containers", () => docker.listContainers({ all: true, filters: { label: labelFilter(hostId, podUid) } }));
    const containers = await Promise.all(answer.map(({ Id }) => find(Id)));
    return containers.filter((container) => container !== undefined);
  }

  async function sandbox(podUid: string): Promise<InspectedContainer | undefined> {
    return (await list(podUid)).find(({ role }) => role === "sandbox");
  }

  async function instances(podUid: string, name: string): Promise<readonly InspectedContainer[]> {
    const all = (await list(podUid)).filter(({ role, info }) => role === "side-car" && info.name === name);
    return all.toSorted((one, other) => other.info.restartCount - one.info.restartCount || other.info.createdAt.getTime() - one.info.createdAt.getTime());
  }

  async function remove(id: string): Promise<void> {
    const container = docker.getContainer(id);
    // 409: somebody else's removal is under way.
    await requestUnlessGone(`remove container ${id.slice(0, 12)}`, () => container.remove({ force: true, v: true }), 409);
    if ((await requestUnlessGone("inspect", () => container.inspect())) === undefined) return;
    await requestUnlessGone(`wait for the removal of container ${id.slice(0, 12)}`, () => container.wait({ condition: "removed" }));
  }

  return { list, find, get, sandbox, instances, remove };
}
