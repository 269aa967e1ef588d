/**
 * `npm run bench -- NAME [arguments]`: runs one benchmark of this folder, or lists them. Numbers of one machine say little,
 * so each prints ratios to a peer or a limit measured in the same run. Nothing here is asserted by a test.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { join } from "node:path";

const suffix = ".bench.ts";
const names = (await readdir(import.meta.dirname)).filter((name) => name.endsWith(suffix)).map((name) => name.slice(0, -suffix.length));
const [name, ...rest] = process.argv.slice(2);
if (name === undefined || !names.includes(name)) {
  process.stderr.write(`${name === undefined ? "" : `no such benchmark: ${name}\n`}usage: npm run bench -- NAME [arguments]\n  ${names.join("\n  ")}\n`);
  process.exit(2);
}
const child = spawn(process.execPath, [join(import.meta.dirname, `${name}${suffix}`), ...rest], { stdio: "inherit" });
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
const [code]: unknown[] = await once(child, "exit");
process.exitCode = typeof code === "number" ? code : 1;
