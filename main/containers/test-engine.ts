/**
 * For the tests of this folder: a Docker engine of our own in temporary directories and a busybox image. Everything is
 * removed again; a leftover process or mount fails the test.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import Docker from "dockerode";
import tar from "tar-stream";
import { silentLogger } from "../contract/logger.ts";
import type { ContainerSpecification } from "./container-engine.ts";
import { startOwnEngine, type OwnEngineOptions, type RunningEngine } from "./own-engine.ts";

export const helperDirectory = fileURLToPath(new URL("../../native/pause/build", import.meta.url));
export const busybox = "podyard.test/busybox:1";

export interface TestEngine {
  readonly engine: RunningEngine;
  readonly options: OwnEngineOptions;
  readonly docker: Docker;
  readonly directory: string;
  /** Removes containers, stops the engine, and checks that nothing is left. */
  close(): Promise<void>;
}

export async function startTestEngine(): Promise<TestEngine> {
  execFileSync(process.execPath, [fileURLToPath(new URL("../../native/pause/build.mjs", import.meta.url))], { stdio: "ignore" });
  const directory = await mkdtemp(join(tmpdir(), "pyd-"));
  const options: OwnEngineOptions = { dataDirectory: join(directory, "state"), runtimeDirectory: join(directory, "run"), logger: silentLogger, candidates: [] };
  const engine = await startOwnEngine(options);
  const docker = new Docker({ socketPath: engine.socketPath });
  await importBusybox(docker);
  return {
    engine,
    options,
    docker,
    directory,
    async close() {
      for (const { Id } of await docker.listContainers({ all: true })) await docker.getContainer(Id).remove({ force: true, v: true });
      await engine[Symbol.asyncDispose]();
      const left = leftovers(directory);
      if (left.length > 0) throw new Error(`left behind: ${left.join("; ")}`);
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** Processes and mounts that mention the directory. */
export function leftovers(directory: string): string[] {
  const processes = execFileSync("ps", ["-eo", "pid,args"], { encoding: "utf8" }).split("\n");
  const mounts = readFileSync("/proc/self/mounts", "utf8").split("\n");
  return [...processes, ...mounts].filter((line) => line.includes(directory));
}

async function importBusybox(docker: Docker): Promise<void> {
  const pack = tar.pack();
  const file = await readFile("/bin/busybox");
  pack.entry({ name: "bin/busybox", mode: 0o755 }, file);
  const applets = [
    "sh",
    "cat",
    "echo",
    "sleep",
    "env",
    "id",
    "true",
    "false",
    "kill",
    "ls",
    "head",
    "dd",
    "printf",
    "wc",
    "stty",
    "seq",
    "hostname",
    "ps",
    "od",
    "sha256sum",
    "touch",
    "ln",
    "tail",
    "tr",
    "mkdir",
    "test",
    "pwd",
    "yes",
    "grep",
    "setsid",
    "trap",
    "mount",
    "expr",
  ];
  for (const applet of applets) pack.entry({ name: `bin/${applet}`, type: "symlink", linkname: "busybox" });
  for (const name of ["etc", "tmp", "proc", "sys", "dev", "root"]) pack.entry({ name: `${name}/`, type: "directory" });
  pack.entry({ name: "etc/passwd" }, "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n");
  pack.entry({ name: "etc/group" }, "root:x:0:\nuser:x:1000:\n");
  pack.finalize();
  const [repo, tag] = busybox.split(":");
  const stream = asReadable(await docker.importImage(Readable.from(pack), { repo, tag, changes: ['CMD ["sh", "-c", "exit 0"]'] }));
  for await (const _ of stream);
}

/** dockerode types its streams by less than what they are. */
export function asReadable(stream: object): Readable {
  return stream as Readable;
}

let counter = 0;

/** A new UID per call. */
export function newPod(): { readonly podUid: string; readonly namespace: string; readonly podName: string } {
  counter += 1;
  return { podUid: crypto.randomUUID(), namespace: "default", podName: `pod-${counter}` };
}

export function container(
  pod: { readonly podUid: string; readonly namespace: string; readonly podName: string },
  script: string,
  more: Partial<ContainerSpecification> = {},
): ContainerSpecification {
  return {
    ...pod,
    name: "main",
    restartCount: 0,
    image: busybox,
    command: ["sh", "-c", script],
    environment: [],
    stdin: false,
    stdinOnce: false,
    terminal: false,
    mounts: [],
    labels: {},
    ...more,
  };
}

export async function textOf(stream: Readable | undefined): Promise<string> {
  const chunks: Buffer[] = [];
  if (stream !== undefined) for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

/** Tries a condition until it holds; the last failure is thrown after ten seconds. */
export async function eventually(condition: () => void | Promise<void>): Promise<void> {
  for (const deadline = performance.now() + 10_000; ;) {
    try {
      await condition();
      return;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await delay(50);
    }
  }
}
