/** `podyard vm …`: the virtual machines of Pods on this host. */
import { Command, InvalidArgumentError } from "commander";
import { messageOf, PodyardError } from "../../contract/errors.ts";
import type { MachineReport } from "../../contract/host-api.ts";
import { withHost } from "../connection.ts";
import { outputOption, wholeNumber } from "../options.ts";
import { type Column, formatAge, formatBytes, formatList, type OutputFormat } from "../output.ts";
import { ExitCode, type Terminal } from "../terminal.ts";
import { pipeOutput, runSession, terminalOf } from "../session.ts";

interface Common {
  readonly dataDir?: string;
}

export function virtualMachineCommand(terminal: Terminal): Command {
  const vm = new Command("vm").description("list, enter and stop the virtual machines of Pods");
  vm.command("list")
    .alias("ls")
    .description("list virtual machines")
    .addOption(outputOption())
    .action(async (options: Common & { output: OutputFormat }) => {
      await withHost(options, async (host) => {
        const { items } = await host.call("vm.list", {});
        terminal.out(formatList(items, columns, options.output, "No virtual machines."));
      });
    });
  vm.command("exec")
    .description("run a command in the guest and return its exit code")
    .usage("[options] NAME -- COMMAND [ARG...]")
    .argument("<name>", "namespace/pod, or the Pod's name")
    .argument("<command...>", "command and arguments, passed on exactly")
    .option("-i, --stdin", "pass standard input on")
    .option("-t, --tty", "with a terminal")
    .option("-c, --container <name>", "a side-car instead of the virtual machine")
    .option("-w, --workdir <directory>", "working directory")
    .option("-e, --env <name=value>", "environment variable, repeatable", environmentOption, {})
    .action(async (name: string, command: readonly string[], options: ExecOptions) => {
      await withHost(options, async (host) => {
        const session = await host.stream("vm.exec", {
          name,
          container: options.container,
          argv: command.map((word) => Buffer.from(word).toString("base64")),
          stdin: options.stdin === true,
          terminal: options.tty === true ? terminalOf(process.stdout) : undefined,
          environment: options.env,
          workingDirectory: options.workdir,
        });
        throw new ExitCode(await runSession(session, { terminal: options.tty === true, stdin: options.stdin === true }));
      }).catch(ourFailure(terminal));
    });
  vm.command("console")
    .description("open the serial console (leave with Ctrl-])")
    .argument("<name>")
    .action(async (name: string, options: Common) => {
      await withHost(options, async (host) => {
        const session = await host.stream("vm.console", { name });
        if (process.stdin.isTTY) terminal.error("Connected to the serial console. Leave with Ctrl-].\r\n");
        await runSession(session, { terminal: true, stdin: true, escape: 0x1d });
      });
    });
  vm.command("logs")
    .description("print the log of a container: of the virtual machine unless another is named")
    .argument("<name>")
    .option("-f, --follow", "go on until the container ends")
    .option("-p, --previous", "of the container before its last restart")
    .option("-c, --container <name>", "a side-car instead of the virtual machine")
    .option("--timestamps", "with the time of each line")
    .option("--tail <lines>", "only the last lines", wholeNumber(0, Number.MAX_SAFE_INTEGER))
    .option("--since <seconds>", "only lines newer than this", wholeNumber(1, Number.MAX_SAFE_INTEGER))
    .action(async (name: string, options: Common & { follow?: true; previous?: true; container?: string; timestamps?: true; tail?: number; since?: number }) => {
      await withHost(options, async (host) => {
        const session = await host.stream("vm.logs", {
          name,
          container: options.container,
          follow: options.follow === true,
          previous: options.previous === true,
          timestamps: options.timestamps === true,
          tailLines: options.tail,
          sinceSeconds: options.since,
        });
        await pipeOutput(session);
      });
    });
  vm.command("stop")
    .description("power a virtual machine off; what happens then is its Pod's restartPolicy")
    .argument("<name...>")
    .action(async (names: readonly string[], options: Common) => {
      await withHost(options, async (host) => {
        for (const name of names) {
          await host.call("vm.stop", { name });
          terminal.out(`stopped ${name}\n`);
        }
      });
    });
  return vm;
}

interface ExecOptions extends Common {
  readonly stdin?: true;
  readonly tty?: true;
  readonly container?: string;
  readonly workdir?: string;
  readonly env: Record<string, string>;
}

/** Our own failures end with 125, so that they cannot be taken for the command's. */
function ourFailure(terminal: Terminal): (error: unknown) => never {
  return (error) => {
    if (error instanceof ExitCode) throw error;
    const sentence = messageOf(error);
    terminal.error(`podyard: ${sentence}\n`);
    if (error instanceof PodyardError && error.fix !== undefined) terminal.error(`  ${error.fix}\n`);
    throw new ExitCode(125);
  };
}

function environmentOption(text: string, sum: Record<string, string>): Record<string, string> {
  const at = text.indexOf("=");
  if (at <= 0) throw new InvalidArgumentError("Expected NAME=VALUE.");
  return { ...sum, [text.slice(0, at)]: text.slice(at + 1) };
}

const columns: readonly Column<MachineReport>[] = [
  { title: "NAME", value: (machine) => machine.name },
  { title: "STATE", value: (machine) => (machine.ready ? "Ready" : machine.state) },
  { title: "RESTARTS", value: (machine) => String(machine.restartCount), alignRight: true },
  { title: "AGE", value: (machine) => formatAge(machine.createdAt), alignRight: true },
  { title: "IP", value: (machine) => machine.podIP ?? "-" },
  { title: "CPU", value: (machine) => (machine.cpuCount === undefined ? "-" : String(machine.cpuCount)), alignRight: true },
  { title: "MEMORY", value: (machine) => (machine.memoryBytes === undefined ? "-" : formatBytes(machine.memoryBytes)), alignRight: true },
  { title: "IMAGE", value: (machine) => machine.image },
];
