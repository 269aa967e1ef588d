/** `podyard image …`: virtual machine images in the local cache and in registries. */
import { resolve } from "node:path";
import { Command, Option } from "commander";
import type { ImageReport } from "../../contract/host-api.ts";
import type { PullProgress } from "../../contract/image.ts";
import { withHost } from "../connection.ts";
import { registryCredentials } from "../credentials.ts";
import { type Column, formatAge, formatBytes, formatList, formatObject, type OutputFormat } from "../output.ts";
import { outputOption } from "../options.ts";
import { progressLine } from "../progress.ts";
import type { Terminal } from "../terminal.ts";

export function imageCommand(terminal: Terminal): Command {
  const image = new Command("image").description("pull, push and look after virtual machine images");
  image
    .command("pull")
    .description("pull an image into the cache; credentials come from ~/.docker/config.json")
    .argument("<reference>", "registry/repository[:tag|@digest]")
    .addOption(new Option("--policy <policy>", "when to ask the registry").choices(["Always", "IfNotPresent"]).default("Always"))
    .option("-q, --quiet", "print only the digest")
    .action(async (reference: string, options: { policy: "Always" | "IfNotPresent"; quiet?: true; dataDir?: string }) => {
      await withHost(options, async (host, signal) => {
        await using line = progressLine(options.quiet === true);
        await using _events = await host.subscribe((event) => {
          if (event.kind === "image" && sameImage(event.progress.reference, reference)) line.update(describe(event.progress));
        });
        const credentials = await registryCredentials(reference);
        const result = await host.call("image.pull", { reference, policy: options.policy, credentials }, { signal });
        line.clear();
        const how = result.downloaded ? `pulled in ${(result.milliseconds / 1000).toFixed(1)} s` : "is up to date";
        terminal.out(options.quiet === true ? `${result.image.digest}\n` : `${reference} ${how}\n${result.image.digest}\n`);
      });
    });
  image
    .command("push")
    .description("push a cached image, or a disk image file, to a registry")
    .argument("<reference>", "registry/repository:tag")
    .option("--from <reference>", "a cached image (default: the one named like the target)")
    .option("--disk <file>", "a raw disk image instead of a cached image")
    .option("--auxiliary <file>", "macOS auxiliary storage (with --disk)")
    .option("--hardware-model <base64>", "VZMacHardwareModel's data (with --disk, macOS)")
    .option("--machine-identifier <base64>", "VZMacMachineIdentifier's data (with --disk, macOS)")
    .addOption(new Option("--os <os>", "operating system of the disk").choices(["darwin", "linux"]).default("linux"))
    .addOption(new Option("--arch <architecture>", "architecture of the disk").choices(["arm64", "amd64"]))
    .option("--guest-user <name>", "user to log in as over SSH, kept in the image")
    .option("--guest-password <password>", "its password; anybody who may pull the image can read it")
    .action(async (reference: string, options: PushOptions) => {
      await withHost(options, async (host, signal) => {
        const credentials = await registryCredentials(reference);
        const { digest } = await host.call("image.push", { reference, credentials, source: pushSource(reference, options) }, { signal });
        terminal.out(`${reference}\n${digest}\n`);
      });
    });
  image
    .command("list")
    .alias("ls")
    .description("list cached images")
    .addOption(outputOption())
    .action(async (options: { output: OutputFormat; dataDir?: string }) => {
      await withHost(options, async (host) => {
        const { items } = await host.call("image.list", {});
        terminal.out(formatList(items, columns, options.output, "No images. Pull one with: podyard image pull REFERENCE"));
      });
    });
  image
    .command("inspect")
    .description("show everything known of a cached image")
    .argument("<reference>")
    .addOption(outputOption("json"))
    .action(async (reference: string, options: { output: OutputFormat; dataDir?: string }) => {
      await withHost(options, async (host) => {
        const found = await host.call("image.inspect", { reference });
        terminal.out(formatObject(found, Object.entries(found).map(([key, value]) => [key, Array.isArray(value) ? value.join("\n") : String(value)] as const), options.output));
      });
    });
  image
    .command("remove")
    .alias("rm")
    .description("remove images from the cache; one in use or pinned is refused")
    .argument("<reference...>")
    .action(async (references: readonly string[], options: { dataDir?: string }) => {
      await withHost(options, async (host) => {
        for (const reference of references) {
          await host.call("image.remove", { reference });
          terminal.out(`removed ${reference}\n`);
        }
      });
    });
  return image;
}

interface PushOptions {
  readonly from?: string;
  readonly disk?: string;
  readonly auxiliary?: string;
  readonly hardwareModel?: string;
  readonly machineIdentifier?: string;
  readonly os: "darwin" | "linux";
  readonly arch?: "arm64" | "amd64";
  readonly guestUser?: string;
  readonly guestPassword?: string;
  readonly dataDir?: string;
}

function pushSource(reference: string, options: PushOptions) {
  if (options.disk === undefined) return { image: options.from ?? reference };
  return {
    diskPath: resolve(options.disk),
    auxiliaryPath: options.auxiliary === undefined ? undefined : resolve(options.auxiliary),
    operatingSystem: options.os,
    architecture: options.arch,
    hardwareModel: options.hardwareModel,
    machineIdentifier: options.machineIdentifier,
    guest: options.guestUser === undefined ? undefined : { user: options.guestUser, password: options.guestPassword },
  };
}

const columns: readonly Column<ImageReport>[] = [
  { title: "IMAGE", value: (image) => image.references[0] ?? "<none>" },
  { title: "DIGEST", value: (image) => image.digest.slice(7, 19) },
  { title: "OS/ARCH", value: (image) => `${image.operatingSystem}/${image.architecture ?? "?"}` },
  { title: "DISK", value: (image) => formatBytes(image.diskSize), alignRight: true },
  { title: "ON DISK", value: (image) => formatBytes(image.sizeOnDisk), alignRight: true },
  { title: "IN USE", value: (image) => String(image.usedBy.length), alignRight: true },
  { title: "PULLED", value: (image) => formatAge(image.pulledAt), alignRight: true },
];

function describe(progress: PullProgress): string {
  if (progress.bytesTotal === 0) return `${progress.phase}…`;
  const percent = Math.floor((100 * progress.bytesDone) / progress.bytesTotal);
  return `${progress.phase} ${percent} % of ${formatBytes(progress.bytesTotal)}, ${formatBytes(progress.speed)}/s`;
}

function sameImage(left: string, right: string): boolean {
  return left === right || left.endsWith(right) || left.endsWith(`${right}:latest`);
}
