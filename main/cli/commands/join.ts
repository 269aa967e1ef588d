/** `podyard join`: makes this host a node of a cluster; writes the node's credential and nothing of the admin's. */
import { homedir, hostname } from "node:os";
import { join } from "node:path";
import { Command } from "commander";
import { PodyardError } from "../../contract/errors.ts";
import { dataDirectory } from "../../settings/directories.ts";
import { withInterrupt } from "../connection.ts";
import type { Terminal } from "../terminal.ts";

interface JoinOptions {
  readonly token?: string;
  readonly caHash?: readonly string[];
  readonly context?: string;
  readonly kubeconfig?: string;
  readonly nodeName?: string;
  readonly dataDir?: string;
}

const userAgent = "podyard join";

/** An administrator's: the one kubectl would use. Only `join --context` ever looks there. */
function defaultKubeconfig(): string {
  const [first] = (process.env["KUBECONFIG"] ?? "").split(":").filter(Boolean);
  return first ?? join(homedir(), ".kube/config");
}

export function joinCommand(terminal: Terminal): Command {
  return new Command("join")
    .description("make this host a node of a cluster")
    .argument("[server]", "https://host:port of the API server (with --token)")
    .option("--token <token>", "bootstrap token: kubeadm token create")
    .option("--ca-hash <hash...>", "sha256:… of the cluster CA's public key, as kubeadm prints it")
    .option("--context <name>", "an admin's kubeconfig context instead, used once and not kept")
    .option("--kubeconfig <file>", "the kubeconfig that holds the context (default: $KUBECONFIG or ~/.kube/config)")
    .option("--node-name <name>", "name of the node (default: the host's name)")
    .action(async (server: string | undefined, options: JoinOptions) => {
      const nodeName = (options.nodeName ?? hostname()).toLowerCase();
      const directory = join(dataDirectory(options.dataDir, process.env), "node");
      const { joinWithContext, joinWithToken } = await import("../../kubernetes/join.ts");
      await withInterrupt(async (signal) => {
        if (options.context !== undefined || (server === undefined && options.kubeconfig !== undefined)) {
          await joinWithContext({ kubeconfig: options.kubeconfig ?? defaultKubeconfig(), nodeName, directory, userAgent, signal, ...(options.context !== undefined && { context: options.context }) });
        } else {
          if (server === undefined) throw new PodyardError("InvalidArgument", "join: needs SERVER with --token and --ca-hash, or --context", { fix: "podyard join --help" });
          if (options.token === undefined) throw new PodyardError("InvalidArgument", "join: --token is missing", { fix: "kubeadm token create --print-join-command" });
          if (options.caHash === undefined) throw new PodyardError("InvalidArgument", "join: --ca-hash is missing: without it the server could be anybody", { fix: "kubeadm token create --print-join-command" });
          await joinWithToken({ server, token: options.token, caHashes: options.caHash, nodeName, directory, userAgent, signal });
        }
      });
      terminal.out(`Joined as node ${nodeName}. Start it with: podyard run\n`);
    });
}
