/**
 * The sample of `npm start`: a Linux guest built by the set-up and a busybox web server, run as an ordinary standalone Pod
 * with images that are imported instead of pulled.
 */
import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pack } from "tar-stream";
import { PodyardError, messageOf } from "../contract/errors.ts";
import type { Pod } from "../contract/kubernetes-api.generated.ts";
import type { Host } from "./host.ts";

export interface SampleOptions {
  readonly disk: string | undefined;
  readonly report: (line: string) => void;
}

const root = join(import.meta.dirname, "../..");
const key = { namespace: "default", name: "sample" };

/** Resolves when the sample Pod is Ready. Errors: Unsupported (the host is a node of a cluster), MissingPrerequisite, Timeout. */
export async function installSample(host: Host, options: SampleOptions): Promise<void> {
  const { standalone } = host.side;
  if (standalone === undefined) throw new PodyardError("Unsupported", "the sample is for a host without a cluster, and this one joined one", { fix: "use podyard run, or another --data-dir" });
  // Known already, so not after minutes of waiting for a Pod that cannot become ready.
  const [problem] = (await host.side.status()).problems;
  if (problem !== undefined) throw new PodyardError("MissingPrerequisite", problem.message, { fix: problem.fix });
  options.report("Importing the sample's images…");
  await installSampleImages(host, options.disk);
  // One of an earlier run that has ended, or was refused, would stay as it is.
  if (["Failed", "Succeeded"].includes(samplePod(host)?.status?.phase ?? "")) await removeSample(host);
  await standalone.apply(await readFile(join(root, "resources/sample/pod.yaml"), "utf8"), "sample");
  options.report("Starting the sample Pod…");
  await becameReady(host, 300_000);
}

/** Puts the sample's two images where pulled ones would be; ones that are there are kept. Errors: MissingPrerequisite. */
export async function installSampleImages(host: Host, diskPath: string | undefined): Promise<void> {
  const disk = diskPath ?? join(root, "build/guest/disk.raw");
  await access(disk).catch((error: unknown) => {
    throw new PodyardError("MissingPrerequisite", `the sample's guest ${disk} is missing`, { fix: "npm run setup builds it", cause: error });
  });
  await host.images.import("podyard.dev/sample-guest:latest", { diskPath: disk, operatingSystem: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64", guest: { user: "root", password: "podyard" } });
  await host.importContainerImage("podyard.dev/sample-web:latest", await webServer());
}

/** Ends the sample Pod; resolves when nothing of it is left. */
export async function removeSample(host: Host): Promise<void> {
  const gone = new Promise<void>((resolve) => {
    const look = (): void => {
      if (samplePod(host) === undefined) {
        unsubscribe();
        resolve();
      }
    };
    const unsubscribe = host.pods.onChange(look);
  });
  if (samplePod(host) === undefined) return;
  await host.side.standalone?.deletePod(key);
  await gone;
}

function samplePod(host: Host): Pod | undefined {
  return host.pods.runtime.list().find((pod) => pod.metadata?.namespace === key.namespace && pod.metadata?.name === key.name);
}

async function becameReady(host: Host, milliseconds: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const look = (): void => {
    if (samplePod(host)?.status?.conditions?.some((condition) => condition.type === "Ready" && condition.status === "True") === true) resolve();
  };
  const unsubscribe = host.pods.onChange(look);
  const timer = setTimeout(() => {
    const states = samplePod(host)?.status?.containerStatuses?.map((status) => `${status.name}: ${JSON.stringify(status.state)}`).join("; ");
    reject(new PodyardError("Timeout", `the sample Pod is not ready after ${milliseconds / 1000} s (${states ?? "no status"})`));
  }, milliseconds);
  look();
  try {
    await promise;
  } finally {
    clearTimeout(timer);
    unsubscribe();
  }
}

/** A root file system with busybox and links for the programs one tries first. */
async function webServer(): Promise<Readable> {
  const busybox = await readFile("/bin/busybox").catch((error: unknown) => {
    throw new PodyardError("MissingPrerequisite", `the sample's side-car needs /bin/busybox: ${messageOf(error)}`, { fix: "apt-get install busybox-static" });
  });
  const archive = pack();
  for (const name of ["bin", "etc", "tmp", "www", "proc", "sys", "dev"]) archive.entry({ name: `${name}/`, type: "directory", mode: name === "tmp" ? 0o1777 : 0o755 });
  archive.entry({ name: "bin/busybox", mode: 0o755 }, busybox);
  for (const name of ["sh", "httpd", "ls", "cat", "echo", "wget", "ps", "hostname", "id", "env", "sleep"]) archive.entry({ name: `bin/${name}`, type: "symlink", linkname: "busybox" });
  archive.finalize();
  return Readable.from(archive);
}
