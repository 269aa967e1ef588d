/**
 * The engine of a host that has none: a running Docker is used as it is; otherwise, on Linux as root, we run `dockerd`
 * with everything in our directories and without networks of its own (we plumb the Pods' ourselves). It is detached and
 * keeps containers over its own restart (`--live-restore`), so that neither a crash of ours nor of the engine ends a
 * side-car; the next start adopts it. Who is ours is told by the command line, which a recycled PID cannot have.
 */
import { execFile, spawn } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import { access, constants, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { askVersion, connectEngine, defaultSocketPath, type EngineAddress } from "./engine-connection.ts";

export interface OwnEngineOptions extends EngineAddress {
  /** The host's state directory; images and containers live below `engine/`. */
  readonly dataDirectory: string;
  /** Short, 0700; holds the socket. */
  readonly runtimeDirectory: string;
  readonly logger: Logger;
  /** Where `dockerd` is looked for, as the variable PATH. Absent: the usual system directories. */
  readonly searchPath?: string;
  /** Sockets tried when no address is given; absent: Docker's default one. */
  readonly candidates?: readonly string[];
}

export interface RunningEngine extends AsyncDisposable {
  readonly address: EngineAddress;
  /** Path of the socket, if it has one: for messages. */
  readonly socketPath: string | undefined;
  /** True if we run it. Disposing then stops it, unless a container still runs; another's engine is never stopped. */
  readonly isOwn: boolean;
}

/** Where Docker engines usually listen: the system's, Docker Desktop, OrbStack, Colima, Rancher Desktop. */
export function usualSockets(homeDirectory: string): readonly string[] {
  return [
    defaultSocketPath,
    ...[".docker/run/docker.sock", ".orbstack/run/docker.sock", ".colima/default/docker.sock", ".rd/docker.sock"].map((path) => join(homeDirectory, path)),
  ];
}

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const startTimeout = 60_000;
const largestLog = 10 * 1024 * 1024;

/**
 * Errors: Unavailable (a given address does not answer, or our engine does not come up), MissingPrerequisite (there is no
 * Docker and none can be started).
 */
export async function startOwnEngine(options: OwnEngineOptions): Promise<RunningEngine> {
  if (options.socketPath !== undefined || options.dockerHost !== undefined) {
    const address: EngineAddress = options.socketPath !== undefined ? { socketPath: options.socketPath } : { dockerHost: options.dockerHost ?? "" };
    if (await answers(address)) return usedAsItIs(address);
    throw new PodyardError("Unavailable", `The Docker engine at ${options.socketPath ?? options.dockerHost} does not answer`, {
      fix: "Start Docker, or correct the engine's address in the settings.",
    });
  }
  for (const socketPath of options.candidates ?? [defaultSocketPath]) {
    if (await answers({ socketPath })) return usedAsItIs({ socketPath });
  }
  return await runOwn(options);
}

function usedAsItIs(address: EngineAddress): RunningEngine {
  return { address, socketPath: address.socketPath, isOwn: false, [Symbol.asyncDispose]: () => Promise.resolve() };
}

interface Layout {
  readonly dataRoot: string;
  readonly execRoot: string;
  readonly socketPath: string;
  readonly pidFile: string;
  readonly logFile: string;
}

async function runOwn(options: OwnEngineOptions): Promise<RunningEngine> {
  const { logger } = options;
  const layout: Layout = {
    dataRoot: join(options.dataDirectory, "engine"),
    execRoot: join(options.runtimeDirectory, "engine"),
    socketPath: join(options.runtimeDirectory, "docker.sock"),
    pidFile: join(options.runtimeDirectory, "docker.pid"),
    logFile: join(options.dataDirectory, "engine.log"),
  };
  const program = await findProgram("dockerd", options.searchPath ?? systemPath);
  if (program === undefined || process.platform !== "linux" || process.getuid?.() !== 0) {
    throw new PodyardError("MissingPrerequisite", "No Docker engine is running, and none can be started here", {
      fix:
        process.platform === "linux"
          ? "Install Docker (Debian: apt-get install docker.io) and start it, or run as root."
          : "Install and start Docker Desktop, OrbStack, Colima or Rancher Desktop.",
    });
  }
  await mkdir(layout.dataRoot, { recursive: true, mode: 0o700 });
  await mkdir(layout.execRoot, { recursive: true, mode: 0o700 });
  const running = findDaemon(layout);
  if (running !== undefined) {
    if (await waitUntilAnswering(layout, running, 20_000)) {
      logger.info("adopted the running Docker engine", { processId: running });
      return ownEngine(layout, logger);
    }
    logger.warn("the Docker engine of the last run does not answer, starting it anew", { processId: running });
    await endDaemon(layout, running);
  }
  await removeStaleFiles(layout);
  const processId = await spawnDaemon(program, layout, options.searchPath ?? systemPath);
  if (!(await waitUntilAnswering(layout, processId, startTimeout))) {
    await endDaemon(layout, processId);
    throw new PodyardError("Unavailable", `The Docker engine did not come up: ${await lastLines(layout.logFile)}`, { fix: `See ${layout.logFile}` });
  }
  logger.info("started a Docker engine", { processId, socket: layout.socketPath });
  return ownEngine(layout, logger);
}

function ownEngine(layout: Layout, logger: Logger): RunningEngine {
  return {
    address: { socketPath: layout.socketPath },
    socketPath: layout.socketPath,
    isOwn: true,
    async [Symbol.asyncDispose]() {
      const processId = findDaemon(layout);
      if (processId === undefined) return;
      const containers = await connectEngine({ socketPath: layout.socketPath })
        .ask({ method: "GET", path: "/containers/json" })
        .catch(() => []);
      if (Array.isArray(containers) && containers.length > 0) {
        logger.info("the Docker engine goes on, since containers run", { processId, containers: containers.length });
        return;
      }
      await endDaemon(layout, processId);
      await releaseMounts(layout);
    },
  };
}

/**
 * dockerd mounts its data root on itself and undoes that only if it is the one that did it: a daemon that was killed
 * leaves the mount for ever. The deepest mount first.
 */
async function releaseMounts(layout: Layout): Promise<void> {
  const mounts = await readFile("/proc/self/mounts", "utf8");
  const targets = mounts
    .split("\n")
    .map((line) => (line.split(" ")[1] ?? "").replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))));
  const ours = targets.filter((target) => [layout.dataRoot, layout.execRoot].some((root) => target === root || target.startsWith(`${root}/`)));
  for (const target of ours.toReversed()) await promisify(execFile)("umount", [target]).catch(() => undefined);
}

function daemonArguments(layout: Layout): string[] {
  return [
    `--data-root=${layout.dataRoot}`,
    `--exec-root=${layout.execRoot}`,
    `--pidfile=${layout.pidFile}`,
    `--host=unix://${layout.socketPath}`,
    "--bridge=none",
    "--iptables=false",
    "--ip-forward=false",
    "--ip-masq=false",
    "--userland-proxy=false",
    "--live-restore",
    "--log-level=warn",
  ];
}

async function spawnDaemon(program: string, layout: Layout, searchPath: string): Promise<number> {
  const size = await stat(layout.logFile).then(
    (status) => status.size,
    () => 0,
  );
  if (size > largestLog) await rename(layout.logFile, `${layout.logFile}.1`);
  const log = await open(layout.logFile, "a", 0o600);
  try {
    const child = spawn(program, daemonArguments(layout), { detached: true, stdio: ["ignore", log.fd, log.fd], cwd: "/", env: { PATH: searchPath } });
    const processId = await new Promise<number>((resolve, reject) => {
      child.once("error", (error) => reject(new PodyardError("Unavailable", `Cannot start ${program}`, { cause: error })));
      child.once("spawn", () => resolve(child.pid ?? 0));
    });
    child.unref();
    return processId;
  } finally {
    await log.close();
  }
}

/** The daemon of this layout, whoever started it. */
function findDaemon(layout: Layout): number | undefined {
  return findProcess((words) => words.includes(`--data-root=${layout.dataRoot}`) && (words[0] ?? "").endsWith("dockerd"));
}

/** containerd is the daemon's child and normally ends with it. */
function findContainerd(layout: Layout): number | undefined {
  return findProcess((words) => words.includes(join(layout.execRoot, "containerd", "containerd.toml")));
}

function findProcess(matches: (words: readonly string[]) => boolean): number | undefined {
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      if (matches(readFileSync(`/proc/${entry}/cmdline`, "utf8").split("\0")) && !isZombie(entry)) return Number(entry);
    } catch {
      // It ended while we looked.
    }
  }
  return undefined;
}

function isZombie(processId: string): boolean {
  const text = readFileSync(`/proc/${processId}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).startsWith("Z");
}

/** A PID file of an earlier boot may name a process that is something else today; dockerd would refuse to start, or wait for it. */
async function removeStaleFiles(layout: Layout): Promise<void> {
  await rm(layout.pidFile, { force: true });
  await rm(layout.socketPath, { force: true });
  if (findContainerd(layout) === undefined) await rm(join(layout.execRoot, "containerd", "containerd.pid"), { force: true });
}

async function endDaemon(layout: Layout, processId: number): Promise<void> {
  await endProcess(processId, () => findDaemon(layout) === processId);
  const containerd = findContainerd(layout);
  if (containerd !== undefined) await endProcess(containerd, () => findContainerd(layout) === containerd);
}

/** SIGTERM, and SIGKILL after 20 s. */
async function endProcess(processId: number, isAlive: () => boolean): Promise<void> {
  signalProcess(processId, "SIGTERM");
  for (let waited = 0; isAlive(); waited += 100) {
    if (waited === 20_000) signalProcess(processId, "SIGKILL");
    if (waited > 30_000) return;
    await delay(100);
  }
}

function signalProcess(processId: number, signal: NodeJS.Signals): void {
  try {
    process.kill(processId, signal);
  } catch {
    // It is gone.
  }
}

async function waitUntilAnswering(layout: Layout, processId: number, milliseconds: number): Promise<boolean> {
  const deadline = performance.now() + milliseconds;
  while (performance.now() < deadline) {
    if (await answers({ socketPath: layout.socketPath })) return true;
    if (findDaemon(layout) !== processId) return false;
    await delay(100);
  }
  return false;
}

async function answers(address: EngineAddress): Promise<boolean> {
  try {
    await askVersion(connectEngine(address), AbortSignal.timeout(3000));
    return true;
  } catch {
    return false;
  }
}

async function findProgram(name: string, searchPath: string): Promise<string | undefined> {
  for (const directory of searchPath.split(delimiter)) {
    const path = join(directory, name);
    if (
      await access(path, constants.X_OK).then(
        () => true,
        () => false,
      )
    )
      return path;
  }
  return undefined;
}

async function lastLines(path: string): Promise<string> {
  const text = await readFile(path, "utf8").catch(() => "");
  return text.trim().split("\n").slice(-3).join(" ");
}
