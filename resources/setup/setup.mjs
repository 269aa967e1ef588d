#!/usr/bin/env node
/**
 * The door of a clone: `npm start`, `npm test`, `npm run setup|cluster|clean`. Needs Node 18 and nothing else; brings the
 * rest (steps.mjs), then continues under the Node 24 of the project.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { bundledNode, environment, root, stepsFor } from "./steps.mjs";

const [verb = "start", ...rest] = process.argv.slice(2);
const verbs = {
  start: ["start", ["resources/setup/start.ts", ...rest]],
  test: ["test", ["resources/setup/run-tests.ts", ...rest]],
  cluster: ["test", ["test/control-plane/cluster.ts", ...rest]],
  setup: [rest.includes("--test") ? "test" : "start", undefined],
};

if (verb === "clean") clean();
else if (Object.hasOwn(verbs, verb)) await enter(...verbs[verb]);
else fail(`no such verb: ${verb} (there are ${Object.keys(verbs).join(", ")}, clean)`);

async function enter(goal, program) {
  for (const step of stepsFor(goal)) {
    try {
      const needed = step.needed();
      if (needed === false) continue;
      process.stderr.write(`podyard: setting up ${step.title}: ${needed}\n`);
      const start = Date.now();
      await step.run();
      process.stderr.write(`podyard: ${step.title} done in ${Math.round((Date.now() - start) / 1000)} s\n`);
    } catch (error) {
      fail(`${step.title} could not be had: ${error.message}`);
    }
  }
  if (program === undefined) return;
  const child = spawn(bundledNode, program, { cwd: root, env: environment(), stdio: "inherit" });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => (signal === "SIGINT" && process.stdin.isTTY ? undefined : child.kill(signal)));
  child.on("exit", (code, signal) => process.exit(code ?? (signal === "SIGINT" ? 130 : 1)));
}

/** Everything but system packages: what was built and downloaded here, and the sample's state and cache. */
function clean() {
  const state = process.env.XDG_STATE_HOME || join(homedir(), ".local/state");
  const cache = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  const data = join(state, "podyard-sample");
  if (existsSync(bundledNode) && existsSync(data)) spawnSync(bundledNode, ["resources/setup/start.ts", "--remove"], { cwd: root, env: environment(), stdio: "inherit" });
  const paths = [data, join(cache, "podyard-sample"), join(tmpdir(), `podyard-${process.getuid?.() ?? 0}`), join(root, "build"), join(root, "dist"), join(root, "node_modules")];
  for (const path of paths.filter(existsSync)) {
    rmSync(path, { recursive: true, force: true });
    process.stdout.write(`removed ${path}\n`);
  }
}

function fail(sentence) {
  process.stderr.write(`podyard: ${sentence}\n`);
  process.exit(1);
}
