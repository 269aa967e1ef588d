/** `podyard node …`: this host as a node of its cluster. */
import { Command } from "commander";
import { withHost } from "../connection.ts";
import type { NodeStatusReport } from "../../contract/host-api.ts";
import { outputOption } from "../options.ts";
import { formatObject, type OutputFormat } from "../output.ts";
import { ExitCode, type Terminal } from "../terminal.ts";

export function nodeCommand(terminal: Terminal): Command {
  const node = new Command("node").description("see this node and take it out of its cluster");
  node
    .command("status")
    .description("conditions, capacity, certificates and problems; exit code 1 if not ready")
    .addOption(outputOption())
    .action(async (options: { output: OutputFormat; dataDir?: string }) => {
      await withHost(options, async (host) => {
        const status = await host.call("node.status", {});
        terminal.out(
          formatObject(
            status,
            fieldsOf(status),
            options.output,
          ),
        );
        if (!status.ready) throw new ExitCode(1);
      });
    });
  node
    .command("leave")
    .description("cordon the node, evict its Pods, and print how to delete it")
    .action(async (options: { dataDir?: string }) => {
      await withHost(options, async (host, signal) => {
        const { message, command } = await host.call("node.leave", {}, { signal });
        terminal.out(`${message}\n${command}\n`);
      });
    });
  return node;
}

function fieldsOf(status: NodeStatusReport): readonly (readonly [string, string])[] {
  return [
    ["Name", status.name],
    ["Mode", status.mode],
    ["Ready", `${status.ready ? "yes" : "no"}${status.message === "" ? "" : ` (${status.message})`}`],
    ["Server", status.server ?? "-"],
    ["Addresses", status.addresses.join(", ") || "-"],
    ["Schedulable", status.unschedulable ? "no (cordoned)" : "yes"],
    ["Conditions", status.conditions.map((condition) => `${condition.type}=${condition.status} ${condition.reason}: ${condition.message}`).join("\n") || "-"],
    ["Allocatable", Object.entries(status.allocatable).map(([name, value]) => `${name}: ${value} of ${status.capacity[name] ?? "?"}`).join("\n")],
    ["Certificates", status.certificates.map((certificate) => `${certificate.name}: ${certificate.expiresAt === undefined ? "none yet" : `until ${certificate.expiresAt}`}${certificate.note === undefined ? "" : ` (${certificate.note})`}`).join("\n") || "-"],
    ["Problems", status.problems.map((problem) => `${problem.message}\n  ${problem.fix}`).join("\n") || "none"],
  ];
}
