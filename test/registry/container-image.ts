/** Pushes an ordinary container image made of busybox to a registry: no public registry is needed to test side-cars. */
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { buffer } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import { pack } from "tar-stream";

export interface ContainerImageOptions {
  readonly user?: string;
  readonly password?: string;
  readonly command?: readonly string[];
  readonly workingDirectory?: string;
}

const commands = ["sh", "cat", "ls", "echo", "printf", "sleep", "true", "false", "tar", "wc", "sha256sum", "httpd", "wget", "nc", "id", "env", "pwd", "stty", "tty", "dd", "head", "tail", "grep", "seq", "kill", "ps", "hostname", "nslookup", "mkdir", "rm", "touch", "stat", "date", "test", "trap", "timeout", "yes", "od", "md5sum"];

/** The root file system of the image as a tar archive: /bin/busybox with links, /tmp, /etc/passwd. */
export async function busyboxArchive(): Promise<Buffer> {
  const busybox = await readFile("/bin/busybox");
  const archive = pack();
  const collected = buffer(archive);
  for (const name of ["bin", "etc", "root", "proc", "sys", "dev", "var"]) archive.entry({ name, type: "directory", mode: 0o755 });
  archive.entry({ name: "tmp", type: "directory", mode: 0o1777 });
  archive.entry({ name: "bin/busybox", mode: 0o755 }, busybox);
  for (const name of commands) archive.entry({ name: `bin/${name}`, type: "symlink", linkname: "busybox" });
  archive.entry({ name: "etc/passwd", mode: 0o644 }, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
  archive.entry({ name: "etc/group", mode: 0o644 }, "root:x:0:\nnobody:x:65534:\n");
  archive.finalize();
  return collected;
}

/** `host/repository:tag` of a registry on loopback (plain HTTP). */
export async function pushContainerImage(reference: string, options: ContainerImageOptions = {}): Promise<void> {
  const match = /^(?<host>[^/]+)\/(?<repository>.+):(?<tag>[^:]+)$/.exec(reference);
  if (match?.groups === undefined) throw new Error(`not host/repository:tag: ${reference}`);
  const { host, repository, tag } = match.groups;
  const headers: Record<string, string> = options.user === undefined ? {} : { authorization: `Basic ${Buffer.from(`${options.user}:${options.password ?? ""}`).toString("base64")}` };
  const upload = async (content: Buffer): Promise<string> => {
    const digest = `sha256:${createHash("sha256").update(content).digest("hex")}`;
    const started = await fetch(`http://${host}/v2/${repository}/blobs/uploads/`, { method: "POST", headers });
    const location = new URL(started.headers.get("location") ?? "", `http://${host}`);
    if (started.status !== 202) throw new Error(`upload of ${reference}: ${started.status} ${await started.text()}`);
    location.searchParams.set("digest", digest);
    const done = await fetch(location, { method: "PUT", headers: { ...headers, "content-type": "application/octet-stream" }, body: new Uint8Array(content) });
    if (done.status !== 201) throw new Error(`upload of ${reference}: ${done.status} ${await done.text()}`);
    return digest;
  };
  const layer = await busyboxArchive();
  const compressed = gzipSync(layer, { level: 1 });
  const configuration = Buffer.from(
    JSON.stringify({
      architecture: process.arch === "arm64" ? "arm64" : "amd64",
      os: "linux",
      config: { Env: ["PATH=/bin"], Cmd: options.command ?? ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"], WorkingDir: options.workingDirectory ?? "/" },
      rootfs: { type: "layers", diff_ids: [`sha256:${createHash("sha256").update(layer).digest("hex")}`] },
    }),
  );
  const manifest = {
    schemaVersion: 2,
    mediaType: "application/vnd.docker.distribution.manifest.v2+json",
    config: { mediaType: "application/vnd.docker.container.image.v1+json", size: configuration.length, digest: await upload(configuration) },
    layers: [{ mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", size: compressed.length, digest: await upload(compressed) }],
  };
  const answer = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, { method: "PUT", headers: { ...headers, "content-type": manifest.mediaType }, body: JSON.stringify(manifest) });
  if (answer.status !== 201) throw new Error(`manifest of ${reference}: ${answer.status} ${await answer.text()}`);
}
