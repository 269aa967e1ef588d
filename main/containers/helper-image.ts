/**
 * The image of the sandboxes, made by us: no registry is needed to start a Pod. A tar of one static binary is imported
 * once per engine under a tag that is the binary's hash; its directory is also what every side-car sees at /.podyard.
 */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import tar from "tar-stream";
import { PodyardError } from "../contract/errors.ts";
import { containerPath, createContainer } from "./containers-of-host.ts";
import { helperDirectory } from "./container-options.ts";
import { pathName, type EngineClient } from "./engine-client.ts";
import { importRootFileSystem } from "./import-image.ts";
import { askVersion, request, requestUnlessGone } from "./engine-connection.ts";

export interface HelperImage {
  readonly image: string;
  /** The volume that carries the helper into side-cars. */
  readonly volume: string;
}

/** Imports the image if the engine lacks it. Errors: MissingPrerequisite if the helper was not built. */
export async function ensureHelperImage(docker: EngineClient, binariesDirectory: string): Promise<HelperImage> {
  const version = await askVersion(docker);
  const path = join(binariesDirectory, `podyard-init-linux-${version.Arch}`);
  const binary = await readFile(path).catch((error: unknown) => {
    throw new PodyardError("MissingPrerequisite", `The helper for side-cars on ${version.Arch} is missing: ${path}`, {
      fix: "Run node native/pause/build.mjs",
      cause: error,
    });
  });
  const hash = createHash("sha256").update(binary).digest("hex").slice(0, 12);
  const image = `podyard.dev/pause:${hash}`;
  const volume = `podyard-init-${hash}`;
  const known = await requestUnlessGone("look for the sandbox image", () => docker.ask({ method: "GET", path: `/images/${pathName(image)}/json` }));
  if (known === undefined) {
    await importRootFileSystem(docker, "import the sandbox image", image, packHelper(binary), [`ENTRYPOINT ["${helperDirectory}/podyard-init"]`]);
  }
  await fillVolume(docker, { image, volume });
  return { image, volume };
}

/**
 * The engine copies the image's directory into a new volume when a container with it is created; that one is never started.
 * This way the helper reaches engines that share no directory with us.
 */
async function fillVolume(docker: EngineClient, { image, volume }: HelperImage): Promise<void> {
  if ((await requestUnlessGone("look for the helper's volume", () => docker.ask({ method: "GET", path: `/volumes/${pathName(volume)}` }))) !== undefined) return;
  const HostConfig = { NetworkMode: "none", Mounts: [{ Type: "volume" as const, Source: volume, Target: helperDirectory, ReadOnly: false }] };
  const { Id } = await request("fill the helper's volume", () => createContainer(docker, { Image: image, HostConfig }));
  await request("fill the helper's volume", () => docker.ask({ method: "DELETE", path: containerPath(Id) }));
}

/** /etc and /tmp are there for mounts; the rest is the binary. */
function packHelper(binary: Buffer): Readable {
  const pack = tar.pack();
  const time = new Date(0);
  for (const directory of [helperDirectory, "/etc", "/tmp", "/proc", "/sys", "/dev"])
    pack.entry({ name: `${directory.slice(1)}/`, type: "directory", mode: 0o755, mtime: time });
  pack.entry({ name: `${helperDirectory.slice(1)}/podyard-init`, mode: 0o755, mtime: time }, binary);
  pack.finalize();
  return Readable.from(pack);
}
