/**
 * Reads the end of a file of a container through the archive API: works for stopped containers and volumes. The archive of
 * a symbolic link is the link itself, so links are followed first; the engine resolves them inside the container's root.
 */
import type { IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import tar from "tar-stream";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { EngineClient } from "./engine-client.ts";
import { containerPath } from "./containers-of-host.ts";
import { engineError, requestUnlessGone } from "./engine-connection.ts";

const pathStatSchema = z.object({ size: z.number(), mode: z.number(), linkTarget: z.string() });

/** Go's os.FileMode bits. */
const modeSymbolicLink = 0x0800_0000;
const modeNotRegular = 0x8f28_0000;

/** A container may write a sparse file of any size; more than this is not read through. */
const largestFile = 64 * 1024 * 1024;

/** Undefined if there is no such regular file. Errors: Unsupported for a file above 64 MiB. */
export async function readContainerFile(docker: EngineClient, id: string, path: string, limit: number): Promise<Buffer | undefined> {
  const action = `read ${path} of container ${id.slice(0, 12)}`;
  const archivePath = `${containerPath(id)}/archive`;
  let target = path;
  for (let links = 0; ; links += 1) {
    const head = await requestUnlessGone(action, () => docker.open({ method: "HEAD", path: archivePath, query: { path: target } }), 400);
    if (head === undefined) return undefined;
    const stat = pathStat(head);
    if (stat === undefined) return undefined;
    if ((stat.mode & modeSymbolicLink) !== 0 && stat.linkTarget !== "" && links < 8) {
      target = stat.linkTarget;
      continue;
    }
    if ((stat.mode & modeNotRegular) !== 0) return undefined;
    if (stat.size > largestFile) throw new PodyardError("Unsupported", `Cannot ${action}: it has ${stat.size} bytes, at most ${largestFile} are read`);
    break;
  }
  const archive = await requestUnlessGone(action, () => docker.open({ method: "GET", path: archivePath, query: { path: target } }), 400);
  return archive === undefined ? undefined : await tailOfFirstFile(archive, limit, action);
}

function pathStat(response: IncomingMessage): z.infer<typeof pathStatSchema> | undefined {
  response.resume();
  const header = response.headers["x-docker-container-path-stat"];
  if (typeof header !== "string") return undefined;
  const parsed = pathStatSchema.safeParse(JSON.parse(Buffer.from(header, "base64").toString()));
  return parsed.success ? parsed.data : undefined;
}

async function tailOfFirstFile(archive: Readable, limit: number, action: string): Promise<Buffer | undefined> {
  const extract = tar.extract();
  archive.on("error", (error) => extract.destroy(error));
  archive.pipe(extract);
  try {
    for await (const entry of extract) {
      if (entry.header.type !== "file") return undefined;
      let tail = Buffer.alloc(0);
      for await (const value of entry) {
        const chunk = value as Buffer;
        tail = Buffer.concat([tail, chunk]);
        if (tail.length > limit) tail = tail.subarray(tail.length - limit);
      }
      return tail;
    }
    return undefined;
  } catch (error) {
    throw engineError(error, action);
  } finally {
    extract.destroy();
    archive.destroy();
  }
}
