/** Makes a container image from a root file system, as `docker import` does: for images that are built on this machine. */
import type { Readable } from "node:stream";
import { connectEngine, type EngineAddress, request, requestUnlessGone } from "./engine-connection.ts";
import { readProgress } from "./pull-progress.ts";

/** `reference` is `name:tag`; an image of that name is left as it is. Errors: Unavailable, Internal. */
export async function importImage(address: EngineAddress, reference: string, rootFileSystem: Readable): Promise<void> {
  const docker = connectEngine(address);
  const known = await requestUnlessGone("look for an image", () => docker.getImage(reference).inspect());
  if (known !== undefined) return;
  const at = reference.lastIndexOf(":");
  const answer = await request("import an image", () => docker.importImage(rootFileSystem, { repo: reference.slice(0, at), tag: reference.slice(at + 1) }));
  await readProgress(answer as Readable, "import an image", () => undefined);
}
