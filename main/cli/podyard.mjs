#!/usr/bin/env node
/**
 * The `podyard` command. Plain JavaScript that any Node from 18 on can run; it continues under the Node that the project
 * brings (npm package `node`), because the host needs 24.
 */
import { spawn } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(realpathSync(fileURLToPath(import.meta.url))), "../..");
const [major] = process.versions.node.split(".").map(Number);
if (major >= 24) {
  const { prepareProcess } = await import("./start-up.mjs");
  prepareProcess(root);
  const { main } = await import("./program.ts");
  process.exitCode = await main(process.argv.slice(2));
} else {
  const bundled = join(root, "node_modules/node/bin/node");
  if (!existsSync(bundled)) {
    process.stderr.write(`podyard: needs Node 24, this is ${process.version}, and ${bundled} is missing. Run "npm start" (or "npm ci") in ${root} once.\n`);
    process.exit(1);
  }
  const child = spawn(bundled, [fileURLToPath(import.meta.url), ...process.argv.slice(2)], { stdio: "inherit" });
  const terminal = process.stdin.isTTY ?? false;
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    // The terminal sends SIGINT to the whole process group: passing it on would deliver it twice.
    process.on(signal, () => (signal === "SIGINT" && terminal ? undefined : child.kill(signal)));
  }
  child.on("error", (error) => {
    process.stderr.write(`podyard: ${error.message}\n`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => {
    if (signal === null) process.exit(code ?? 1);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}
