/** `podyard run` and `podyard demo`: the host itself, in the foreground. */
import { readFile } from "node:fs/promises";
import { Command, InvalidArgumentError, Option } from "commander";
import type { Host } from "../../host/host.ts";
import type { LogFormat } from "../../host/logger.ts";
import { cacheDirectory, dataDirectory, runtimeDirectory } from "../../settings/directories.ts";
import { wholeNumber } from "../options.ts";
import type { Terminal } from "../terminal.ts";

interface RunOptions {
  readonly config?: string;
  readonly kubeconfig?: string;
  readonly nodeName?: string;
  readonly dataDir?: string;
  readonly cacheDir?: string;
  readonly driver?: string;
  readonly kubeletPort?: number;
  readonly kubeletAddress?: string;
  readonly gatewayPort?: number;
  readonly manifests?: string;
  readonly maxVms?: number;
  readonly nodeLabels?: Readonly<Record<string, string>>;
  readonly taint?: string;
  readonly stopPodsOnExit?: true;
  readonly logFormat: LogFormat;
  readonly verbose?: true;
}

export function runCommand(terminal: Terminal): Command {
  return hostOptions(new Command("run").description("run the host: a node of the cluster it joined, or standalone"))
    .option("--kubeconfig <file>", "the node's kubeconfig (default: the one `podyard join` wrote); its user must be system:node:NAME")
    .option("--stop-pods-on-exit", "drain on SIGTERM and SIGINT; otherwise virtual machines keep running")
    .action(async (options: RunOptions) => {
      const host = await start(options);
      terminal.out(`node ${host.nodeName} ready\n`);
      if (host.url !== undefined) terminal.out(`${host.url}\n`);
      const asked = await Promise.race([ended(), host.stopRequested]);
      await host.stop({ stopPods: options.stopPodsOnExit === true || asked?.stopPods === true });
    });
}

export function demoCommand(terminal: Terminal): Command {
  return hostOptions(new Command("demo").description("run a sample Pod without a cluster until Ctrl-C: a Linux virtual machine with a side-car"))
    .option("--disk <file>", "raw disk image of the sample's guest (default: the one the set-up built)")
    .action(async (options: RunOptions & { disk?: string }) => {
      const { installSample, removeSample } = await import("../../host/sample.ts");
      const interrupted = ended();
      const host = await start(options);
      try {
        terminal.out(`node ${host.nodeName} ready\n`);
        const installed = installSample(host, { disk: options.disk, report: (line) => terminal.out(`${line}\n`) });
        // Ctrl-C may come before the sample is up: what there is of it is stopped all the same.
        const isUp = await Promise.race([installed.then(() => true), interrupted]);
        installed.catch(() => undefined);
        if (isUp === true) {
          terminal.out(await readFile(new URL("../../../resources/sample/next-steps.txt", import.meta.url), "utf8"));
          if (host.url !== undefined) terminal.out(`\nIts page: ${host.url}\n`);
          await Promise.race([interrupted, host.stopRequested]);
        }
        terminal.out("\nStopping the sample…\n");
        await removeSample(host);
      } finally {
        await host.stop({ stopPods: true });
      }
      terminal.out("The sample and all that it started are stopped.\n");
    });
}

function hostOptions(command: Command): Command {
  return command
    .option("--config <file>", "settings as YAML or JSON")
    .option("--node-name <name>", "name of the node")
    .option("--cache-dir <directory>", "where images are cached")
    .addOption(new Option("--driver <driver>", "how virtual machines run").choices(["auto", "virtualization", "qemu"]))
    .option("--kubelet-port <port>", "port of the kubelet API (default: 10250)", wholeNumber(0, 65_535))
    .option("--kubelet-address <address>", "address it listens on (default: all)")
    .option("--gateway-port <port>", "serve the page on this loopback port too; 0 = any free one", wholeNumber(0, 65_535))
    .option("--manifests <directory>", "run the Pods of these manifests (standalone)")
    .option("--max-vms <number>", "virtual machines at once", wholeNumber(1, 100))
    .option("--node-labels <k=v,...>", "labels of the node", labels)
    .option("--taint <k=v:Effect>", "taint the node is created with, or none")
    .addOption(new Option("--log-format <format>", "format of the log on stderr").choices(["text", "json"]).default("text"))
    .option("-v, --verbose", "log what is done in detail");
}

/** The host is loaded only here: every other command starts without its weight. */
async function start(options: RunOptions): Promise<Host> {
  const [{ startHost }, { createLogger }] = await Promise.all([import("../../host/host.ts"), import("../../host/logger.ts")]);
  return startHost({
    directories: {
      data: dataDirectory(options.dataDir, process.env),
      cache: cacheDirectory(options.cacheDir, process.env),
      runtime: runtimeDirectory(process.env),
    },
    configFile: options.config,
    kubeconfig: options.kubeconfig,
    flags: {
      nodeName: options.nodeName,
      driver: options.driver,
      kubeletPort: options.kubeletPort,
      kubeletAddress: options.kubeletAddress,
      gatewayPort: options.gatewayPort,
      manifests: options.manifests,
      maximumMachines: options.maxVms,
      nodeLabels: options.nodeLabels,
      taint: options.taint,
    },
    environment: process.env,
    logger: createLogger(options.logFormat, options.verbose === true ? "debug" : "info"),
  });
}

/**
 * Resolves at the first SIGINT or SIGTERM; a later one ends the process at once, virtual machines and all else staying. Ctrl-C
 * reaches us several times when npm passes on what the terminal has sent to all: what comes within a second is the same one.
 */
function ended(): Promise<undefined> {
  return new Promise((resolve) => {
    let firstAt: number | undefined;
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      process.on(signal, () => {
        if (firstAt !== undefined && Date.now() - firstAt > 1000) process.exit(130);
        firstAt ??= Date.now();
        resolve(undefined);
      });
    }
  });
}

function labels(text: string): Readonly<Record<string, string>> {
  return Object.fromEntries(
    text.split(",").map((pair) => {
      const at = pair.indexOf("=");
      if (at <= 0) throw new InvalidArgumentError(`Expected key=value, found ${JSON.stringify(pair)}.`);
      return [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
    }),
  );
}
