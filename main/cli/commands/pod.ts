/** `podyard pod …`: Pods of a host without a cluster, and a view of all Pods of this host. */
import { readFile } from "node:fs/promises";
import { Command } from "commander";
import type { PodReport } from "../../contract/host-api.ts";
import { PodyardError } from "../../contract/errors.ts";
import { withHost } from "../connection.ts";
import { outputOption, wholeNumber } from "../options.ts";
import { type Column, formatAge, formatList, type OutputFormat } from "../output.ts";
import type { Terminal } from "../terminal.ts";

export function podCommand(terminal: Terminal): Command {
  const pod = new Command("pod").description("run Pods without a cluster, and see all Pods of this host");
  pod
    .command("apply")
    .description("create or change Pods from manifests; kept over restarts of the host (standalone only)")
    .requiredOption("-f, --filename <file...>", "YAML or JSON with Pods, Secrets and ConfigMaps; - reads standard input")
    .action(async (options: { filename: readonly string[]; dataDir?: string }) => {
      await withHost(options, async (host) => {
        for (const filename of options.filename) {
          const manifest = await readManifest(filename);
          const { items } = await host.call("pod.apply", { manifest, source: filename === "-" ? "standard input" : filename });
          if (items.length === 0) throw new PodyardError("InvalidArgument", `--filename ${filename}: there is no object in it, expected Pods, Secrets or ConfigMaps`);
          for (const item of items) terminal.out(`${item.kind.toLowerCase()}/${item.name} ${item.action}\n`);
        }
      });
    });
  pod
    .command("list")
    .alias("ls")
    .description("list Pods")
    .addOption(outputOption())
    .action(async (options: { output: OutputFormat; dataDir?: string }) => {
      await withHost(options, async (host) => {
        const { items } = await host.call("pod.list", {});
        terminal.out(formatList(items, columns, options.output, "No Pods."));
      });
    });
  pod
    .command("delete")
    .description("delete Pods that were applied here, within their grace period (standalone only)")
    .argument("<name...>", "namespace/pod, or the Pod's name")
    .option("--grace-period <seconds>", "instead of the Pod's own", wholeNumber(0, 86_400))
    .action(async (names: readonly string[], options: { gracePeriod?: number; dataDir?: string }) => {
      await withHost(options, async (host) => {
        for (const name of names) {
          await host.call("pod.delete", { name, graceSeconds: options.gracePeriod });
          terminal.out(`pod/${name} deleted\n`);
        }
      });
    });
  return pod;
}

async function readManifest(filename: string): Promise<string> {
  if (filename === "-") {
    const chunks: Buffer[] = [];
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
    return Buffer.concat(chunks).toString("utf8");
  }
  try {
    return await readFile(filename, "utf8");
  } catch (error) {
    throw new PodyardError("InvalidArgument", `--filename ${filename} cannot be read`, { cause: error });
  }
}

const columns: readonly Column<PodReport>[] = [
  { title: "NAME", value: (pod) => pod.name },
  { title: "READY", value: (pod) => pod.ready },
  { title: "STATUS", value: (pod) => pod.reason ?? pod.phase },
  { title: "RESTARTS", value: (pod) => String(pod.restarts), alignRight: true },
  { title: "AGE", value: (pod) => formatAge(pod.createdAt), alignRight: true },
  { title: "IP", value: (pod) => pod.podIP ?? "-" },
  { title: "ORIGIN", value: (pod) => pod.origin },
];
