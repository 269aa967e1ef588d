/** Compiles the host's sources once into `build/code`, so that its first start is as small and quick as the next ones. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const program = 'const { prepareProcess } = await import("./main/cli/start-up.mjs"); prepareProcess(process.cwd()); await Promise.all(["main/cli/program.ts", "main/host/host.ts", "main/host/sample.ts", "main/host/logger.ts", "main/gateway/client.ts", "main/kubernetes/join.ts"].map((path) => import(`${process.cwd()}/${path}`)));';
// From another process: V8 writes what it compiled when a process ends.
const { status, stderr } = spawnSync(process.execPath, ["--input-type=module", "--eval", program], { cwd: root, encoding: "utf8" });
if (status !== 0) process.stderr.write(stderr);
process.exitCode = status ?? 1;
