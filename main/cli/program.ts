/**
 * The command tree of `podyard` (contract: docs/architecture.md). A command that is not built is absent, never a stub.
 * Exit codes: 0 ok, 1 failed, 2 usage; `vm exec` returns the command's own code (125 = ours, 126/127 as the shell).
 */
import { readFileSync } from "node:fs";
import { Command, CommanderError, Option } from "commander";
import { PodyardError, messageOf } from "../contract/errors.ts";
import { completionCommand } from "./commands/completion.ts";
import { imageCommand } from "./commands/image.ts";
import { joinCommand } from "./commands/join.ts";
import { nodeCommand } from "./commands/node.ts";
import { podCommand } from "./commands/pod.ts";
import { demoCommand, runCommand } from "./commands/run.ts";
import { virtualMachineCommand } from "./commands/virtual-machine.ts";
import { ExitCode, standardTerminal, type Terminal } from "./terminal.ts";

export function version(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

export function createProgram(terminal: Terminal): Command {
  const program = new Command("podyard")
    .description("Turns this machine into a Kubernetes node whose Pods are virtual machines with Docker side-cars.")
    .version(version(), "--version", "print the version")
    .helpOption("-h, --help", "show this help")
    .addOption(new Option("--data-dir <directory>", "the host's state directory").env("PODYARD_DATA_DIR"))
    .configureOutput({ writeOut: terminal.out, writeErr: terminal.error })
    .showSuggestionAfterError()
    .exitOverride()
    // Commander gives an option that program and command share to the program, wherever it stands.
    .hook("preAction", (_, command) => {
      const { dataDir } = program.opts<{ dataDir?: string }>();
      if (dataDir !== undefined) command.setOptionValue("dataDir", dataDir);
    });
  const commands = [runCommand, joinCommand, nodeCommand, podCommand, virtualMachineCommand, imageCommand, demoCommand];
  for (const create of commands) program.addCommand(create(terminal));
  program.addCommand(completionCommand(terminal, program));
  for (const command of allCommands(program)) {
    command.exitOverride().configureOutput({ writeOut: terminal.out, writeErr: terminal.error }).helpOption("-h, --help", "show this help").showSuggestionAfterError();
    if (command !== program && !command.options.some((option) => option.long === "--data-dir") && command.commands.length === 0 && command.name() !== "completion") {
      command.addOption(new Option("--data-dir <directory>", "the host's state directory").env("PODYARD_DATA_DIR"));
    }
  }
  return program;
}

/** Runs a command line and returns the exit code. Never throws. */
export async function main(argv: readonly string[], terminal: Terminal = standardTerminal): Promise<number> {
  try {
    const program = createProgram(terminal);
    if (argv.length === 0) {
      terminal.out(program.helpInformation());
      return 0;
    }
    await program.parseAsync(argv, { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof ExitCode) return error.exitCode;
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    terminal.error(`podyard: ${messageOf(error)}\n`);
    if (error instanceof PodyardError && error.fix !== undefined) terminal.error(`  ${error.fix}\n`);
    if (!(error instanceof PodyardError) && process.env["PODYARD_DEBUG"] !== undefined && error instanceof Error) terminal.error(`${error.stack}\n`);
    return error instanceof PodyardError && error.code === "InvalidArgument" ? 2 : 1;
  }
}

export function allCommands(command: Command): readonly Command[] {
  return [command, ...command.commands.flatMap(allCommands)];
}
