/** Makes a container image from a root file system, as `docker import` does: for images that are built on this machine. */
import type { Readable } from "node:stream";
import { pathName, type EngineClient } from "./engine-client.ts";
import { connectEngine, type EngineAddress, request, requestUnlessGone } from "./engine-connection.ts";
import { readProgress } from "./pull-progress.ts";

/** `reference` is `name:tag`; an image of that name is left as it is. Errors: Unavailable, Internal. */
export async function importImage(address: EngineAddress, reference: string, rootFileSystem: Readable): Promise<void> {
  const docker = connectEngine(address);
  const known = await requestUnlessGone("look for an image", () => docker.ask({ method: "GET", path: `/images/${pathName(reference)}/json` }));
  if (known === undefined) await importRootFileSystem(docker, "import an image", reference, rootFileSystem, []);
}

/** `changes` are lines of a Dockerfile. */
export async function importRootFileSystem(docker: EngineClient, action: string, reference: string, rootFileSystem: Readable, changes: readonly string[]): Promise<void> {
  const at = reference.lastIndexOf(":");
  const query = { fromSrc: "-", repo: reference.slice(0, at), tag: reference.slice(at + 1), changes };
  const answer = await request(action, () => docker.open({ method: "POST", path: "/images/create", query, body: rootFileSystem }));
  await readProgress(answer, action, () => undefined);
}
