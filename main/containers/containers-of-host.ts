/** Finding what is ours on the engine: by label only, so that two hosts on one engine never touch each other's containers. */
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import { inspectedContainer, type InspectedContainer } from "./container-info.ts";
import { labelFilter } from "./container-labels.ts";
import { pathName, type EngineClient } from "./engine-client.ts";
import { request, requestUnlessGone } from "./engine-connection.ts";

const createdSchema = z.object({ Id: z.string() });
const listSchema = z.array(z.object({ Id: z.string() }));

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

export function createContainersOfHost(docker: EngineClient, hostId: string): ContainersOfHost {
  async function find(id: string): Promise<InspectedContainer | undefined> {
    const answer = await requestUnlessGone(`inspect container ${id.slice(0, 12)}`, () => docker.ask({ method: "GET", path: `${containerPath(id)}/json` }));
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
    const answer = await request("list containers", () =>
      docker.ask({ method: "GET", path: "/containers/json", query: { all: true, filters: JSON.stringify({ label: labelFilter(hostId, podUid) }) } }),
    );
    const containers = await Promise.all(listSchema.parse(answer).map(({ Id }) => find(Id)));
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
    const path = containerPath(id);
    // 409: somebody else's removal is under way.
    await requestUnlessGone(`remove container ${id.slice(0, 12)}`, () => docker.ask({ method: "DELETE", path, query: { force: true, v: true } }), 409);
    if ((await requestUnlessGone("inspect", () => docker.ask({ method: "GET", path: `${path}/json` }))) === undefined) return;
    await requestUnlessGone(`wait for the removal of container ${id.slice(0, 12)}`, () => docker.ask({ method: "POST", path: `${path}/wait`, query: { condition: "removed" } }));
  }

  return { list, find, get, sandbox, instances, remove };
}

export function containerPath(id: string): string {
  return `/containers/${pathName(id)}`;
}

/** `name` absent: the engine invents one. Errors of the client as they are. */
export async function createContainer(docker: EngineClient, body: Readonly<Record<string, unknown>>, name?: string): Promise<{ readonly Id: string }> {
  return createdSchema.parse(await docker.ask({ method: "POST", path: "/containers/create", query: { name }, body }));
}
