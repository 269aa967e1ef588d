/**
 * `npm start`: the host of this machine. Joined to a cluster (or `--kubeconfig` given) it is `podyard run`; otherwise it
 * runs the sample Pod. One that already runs is left alone.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { prepareProcess } from "../../main/cli/start-up.mjs";

prepareProcess(join(import.meta.dirname, "../.."));
const [{ main }, { findGateway }, { dataDirectory }] = await Promise.all([
  import("../../main/cli/program.ts"),
  import("../../main/gateway/discovery.ts"),
  import("../../main/settings/directories.ts"),
]);

const args = process.argv.slice(2);
const named = args.indexOf("--data-dir");
const data = dataDirectory(named >= 0 ? args[named + 1] : undefined, process.env);

const running = await findGateway(data);
if (running !== undefined) {
  process.stdout.write(`A host runs already (process ${running.pid}). Try: npx podyard vm list\n`);
} else {
  const electron = join(import.meta.dirname, "../../node_modules/electron/dist");
  if (!existsSync(electron)) process.stdout.write("Electron's binary is not here: running headless, without the menu-bar app.\n");
  const configured = existsSync(join(data, "node/kubeconfig")) || args.includes("--kubeconfig");
  const page = args.includes("--gateway-port") ? [] : ["--gateway-port", "0"];
  process.exitCode = await main([configured ? "run" : "demo", ...page, ...args]);
}
