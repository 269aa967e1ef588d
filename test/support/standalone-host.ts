/**
 * `podyard run` or `podyard demo` without a cluster, as a process of its own with its own directories, and the CLI that
 * talks to it. Nothing of it is left when it is disposed of, virtual machines included.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

const command = join(import.meta.dirname, "../../main/cli/podyard.mjs");

export interface CommandResult {
  readonly stdout: string;
  readonly stderr: string;
  readonly exitCode: number;
}

export interface StandaloneHost extends AsyncDisposable {
  readonly directory: string;
  readonly dataDirectory: string;
  readonly cacheDirectory: string;
  readonly environment: Readonly<Record<string, string>>;
  /** Its process, while it runs. */
  readonly processId: number | undefined;
  podyard(args: readonly string[], options?: { readonly input?: string; readonly environment?: Readonly<Record<string, string>> }): Promise<CommandResult>;
  /** As {@link podyard}, but throws unless the exit code is 0; returns stdout. */
  podyardOk(args: readonly string[], options?: { readonly input?: string }): Promise<string>;
  /** Resolves when it printed that its node is ready; with `until`, when stdout matches that. */
  start(args?: readonly string[], options?: { readonly until?: RegExp }): Promise<void>;
  /** Sends the signal and resolves with the exit code (128 + n for a signal). */
  end(signal: "SIGINT" | "SIGTERM" | "SIGKILL"): Promise<number>;
  /** What it wrote to stdout and stderr since its last start. */
  output(): string;
}

export interface StandaloneHostOptions {
  /** Default: a directory of its own. */
  readonly cacheDirectory?: string;
  readonly settings?: Readonly<Record<string, unknown>>;
  /** A program and arguments before `node podyard …`, for the host alone. */
  readonly wrapper?: readonly string[];
}

export function standaloneHost(options: StandaloneHostOptions = {}): StandaloneHost {
  const directory = mkdtempSync(join(tmpdir(), "podyard-host-"));
  const dataDirectory = join(directory, "state");
  const cacheDirectory = options.cacheDirectory ?? join(directory, "cache");
  const runtimeDirectory = join(directory, "run");
  mkdirSync(runtimeDirectory, { mode: 0o700 });
  const environment: Record<string, string> = {
    ...(process.env as Record<string, string>),
    HOME: directory,
    PODYARD_DATA_DIR: dataDirectory,
    XDG_RUNTIME_DIR: runtimeDirectory,
    DOCKER_CONFIG: join(directory, "docker"),
    DOCKER_HOST: "",
  };
  const configuration = join(directory, "settings.yaml");
  writeFileSync(configuration, JSON.stringify(options.settings ?? {}));
  const [program, ...before] = [...(options.wrapper ?? []), process.execPath, command];
  let host: ChildProcess | undefined;
  let output = "";

  const podyard: StandaloneHost["podyard"] = (args, { input, environment: extra } = {}) =>
    new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [command, ...args], { env: { ...environment, ...extra }, stdio: ["pipe", "pipe", "pipe"] });
      let [stdout, stderr] = ["", ""];
      child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
      child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
      child.stdin.on("error", () => {});
      child.stdin.end(input);
      child.on("error", reject);
      child.on("close", (code) => resolve({ stdout, stderr, exitCode: code ?? 255 }));
    });

  const end: StandaloneHost["end"] = async (signal) => {
    const child = host;
    host = undefined;
    if (child === undefined) return 0;
    if (child.exitCode === null && child.signalCode === null) {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill(signal);
      const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
      await ended;
      clearTimeout(timer);
    }
    return child.exitCode ?? 255;
  };

  /** Networks and mounts go only with their Pods. */
  async function deletePods(): Promise<void> {
    const names = async (): Promise<readonly string[]> => {
      const { stdout, exitCode } = await podyard(["pod", "list", "-o", "json"]);
      return exitCode === 0 ? (JSON.parse(stdout) as { readonly items: readonly { readonly name: string }[] }).items.map(({ name }) => name) : [];
    };
    const found = await names();
    if (found.length > 0) await podyard(["pod", "delete", "--grace-period", "0", ...found]);
    const deadline = Date.now() + 30_000;
    while (Date.now() < deadline && (await names()).length > 0) await delay(100);
  }

  return {
    directory,
    dataDirectory,
    cacheDirectory,
    environment,
    get processId() {
      return host?.pid;
    },
    podyard,
    async podyardOk(args, podyardOptions) {
      const { stdout, stderr, exitCode } = await podyard(args, podyardOptions);
      if (exitCode !== 0) throw new Error(`podyard ${args.join(" ")} ended with ${exitCode}: ${stderr}${stdout}\nhost:\n${output.slice(-4000)}`);
      return stdout;
    },
    async start(args = ["run"], { until = /node \S+ ready/ } = {}) {
      output = "";
      const child = spawn(program, [...before, ...args, "--cache-dir", cacheDirectory, "--config", configuration], { env: environment, stdio: ["ignore", "pipe", "pipe"] });
      host = child;
      await new Promise<void>((resolve, reject) => {
        const take = (text: string): void => {
          output += text;
          if (until.test(output)) resolve();
        };
        child.stdout.setEncoding("utf8").on("data", take);
        child.stderr.setEncoding("utf8").on("data", take);
        child.on("error", reject);
        child.on("exit", (code, signal) => reject(new Error(`podyard ${args.join(" ")} ended with ${signal ?? code} before ${until}:\n${output.slice(-8000)}`)));
      });
    },
    end,
    output: () => output,
    async [Symbol.asyncDispose]() {
      await deletePods();
      await end("SIGTERM");
      for (const processId of processesNaming([directory])) kill(processId);
      const deadline = Date.now() + 10_000;
      while (processesNaming([directory]).length > 0 && Date.now() < deadline) await delay(50);
      for (const mount of mountsBelow(directory).toReversed()) execFileSync("umount", ["-l", mount]);
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** Processes, other than this one's children that run the CLI, whose command line has one of the texts. */
export function processesNaming(texts: readonly string[]): readonly number[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) return [];
    try {
      const line = readFileSync(`/proc/${name}/cmdline`, "utf8");
      return texts.some((text) => line.includes(text)) ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}

export function mountsBelow(directory: string): readonly string[] {
  return readFileSync("/proc/self/mounts", "utf8").split("\n").flatMap((line) => line.split(" ")[1] ?? []).filter((path) => path === directory || path.startsWith(`${directory}/`));
}

function kill(processId: number): void {
  try {
    process.kill(processId, "SIGKILL");
  } catch {
    // It ended meanwhile.
  }
}
