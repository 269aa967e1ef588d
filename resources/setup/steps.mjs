/**
 * What must be on the machine before the product runs (`start`) or is tested (`test`): each step says whether it is
 * needed, what it will do, and does it. Nothing but Node's own modules: this runs before `npm ci`. A step costs
 * milliseconds when there is nothing to do.
 */
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
export const bundledNode = join(root, "node_modules/node/bin/node");

const debianPackages = {
  start: [
    "qemu-system-x86", "qemu-system-common", "qemu-utils", "docker.io", "iptables", "iproute2", "dnsmasq-base", "busybox-static", "util-linux",
    "cpio", "xz-utils", "e2fsprogs", "kmod", "ca-certificates",
  ],
  test: ["docker-registry", "apache2-utils", "chromium", "fish", "openssh-server", "openssh-client", "procps", "python3", "sudo", "openssl"],
};
const brewPackages = { start: ["go"], test: [] };

/** @typedef {{ title: string, needed: () => boolean | string, run: () => Promise<void> }} Step */

/** The steps of a goal in order. @param {"start" | "test"} goal @returns {Step[]} */
export function stepsFor(goal) {
  const isLinux = process.platform === "linux";
  const programs = [built("guest supervisor", "native/supervisor/build.mjs", ["native/supervisor"])];
  if (isLinux) programs.push(built("side-cars' pause container", "native/pause/build.mjs", ["native/pause"]));
  if (goal === "test") programs.push(built("Kubernetes control plane (about 5 minutes the first time)", "test/control-plane/build.mjs", ["test/control-plane"]));
  const steps = [systemPackages(goal), nodeModules(), goToolchain(programs), ...programs];
  if (isLinux) steps.push(built("small Linux guest", "test/guest/build.ts", ["test/guest"]));
  steps.push(built("status page", "node_modules/vite/bin/vite.js", ["renderer", "vite.config.ts", "main/contract"], ["build", "--logLevel", "warn"]));
  steps.push(built("compiled sources", "resources/setup/compile.mjs", ["main", "package-lock.json"]));
  return steps;
}

/** @param {"start" | "test"} goal @returns {Step} */
function systemPackages(goal) {
  if (process.platform === "darwin") {
    const wanted = [...brewPackages.start, ...(goal === "test" ? brewPackages.test : [])];
    const missing = () => wanted.filter((name) => spawnSync("which", [name]).status !== 0);
    return {
      title: `install with Homebrew: ${wanted.join(" ")}`,
      needed: () => (missing().length > 0 ? `brew install ${missing().join(" ")}` : false),
      run: () => execute("brew", ["install", ...missing()]),
    };
  }
  const wanted = [...debianPackages.start, ...(goal === "test" ? debianPackages.test : [])];
  const missing = () => {
    const result = spawnSync("dpkg-query", ["-W", "-f", "${Package} ${db:Status-Status}\\n", ...wanted], { encoding: "utf8" });
    if (result.error) throw new Error(`this set-up knows Debian, Ubuntu and macOS; here dpkg-query cannot be run (${result.error.message}). Install by hand: ${wanted.join(" ")}`);
    const installed = new Set(result.stdout.split("\n").flatMap((line) => (line.endsWith(" installed") ? [line.split(" ")[0]] : [])));
    return wanted.filter((name) => !installed.has(name));
  };
  return {
    title: "system packages",
    needed: () => {
      const names = missing();
      return names.length > 0 ? `apt-get install ${names.join(" ")}` : false;
    },
    run: async () => {
      const prefix = process.getuid() === 0 ? [] : ["sudo"];
      if (prefix.length > 0 && spawnSync("sudo", ["-v"], { stdio: "inherit" }).status !== 0) throw new Error(`needs root: run "sudo apt-get install ${missing().join(" ")}" and start again`);
      const environment = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
      // A package must not start its daemons: Podyard runs its own Docker engine where none runs, and tests their own servers.
      const policy = "/usr/sbin/policy-rc.d";
      const guard = process.getuid() === 0 && !existsSync(policy) && !existsSync("/run/systemd/system");
      if (guard) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
      try {
        await execute([...prefix, "apt-get"][0], [...[...prefix, "apt-get"].slice(1), "update", "-qq"], { env: environment });
        const words = [...prefix, "apt-get", "install", "-y", "-qq", "--no-install-recommends", ...missing()];
        await execute(words[0], words.slice(1), { env: environment });
      } finally {
        if (guard) spawnSync("rm", ["-f", policy]);
      }
    },
  };
}

/** @returns {Step} */
function nodeModules() {
  const stamp = join(root, "node_modules/.podyard-lock-hash");
  const hash = () => hashOf(["package.json", "package-lock.json"]);
  return {
    title: "npm packages",
    needed: () => (!existsSync(bundledNode) || !existsSync(stamp) || readFileSync(stamp, "utf8") !== hash() ? "npm ci" : false),
    run: async () => {
      await execute("npm", ["ci", "--no-audit", "--no-fund"], { quiet: true });
      if (!existsSync(bundledNode)) throw new Error(`npm ci did not bring Node 24 for ${process.platform}-${process.arch} (package "node")`);
      writeFileSync(stamp, hash());
    },
  };
}

/** Needed only to build; Go 1.21 fetches the version that go.mod asks for by itself. @param {Step[]} programs @returns {Step} */
function goToolchain(programs) {
  return {
    title: "Go",
    needed: () => {
      if (programs.every((program) => program.needed() === false)) return false;
      const version = /go(\d+)\.(\d+)/.exec(spawnSync("go", ["version"], { encoding: "utf8" }).stdout ?? "");
      return version !== null && (Number(version[1]) > 1 || Number(version[2]) >= 21) ? false : "Go 1.21 or newer";
    },
    run: () => Promise.reject(new Error("Go 1.21 or newer is missing: install it from https://go.dev/dl (it builds the guest supervisor and the test control plane)")),
  };
}

/** A build script of ours that decides by itself whether its output is current; the hash here saves starting it. @returns {Step} */
function built(title, script, sources, args = []) {
  const stamp = join(root, "build/setup", `${script.replaceAll("/", "-")}.hash`);
  const hash = () => hashOf(sources);
  return {
    title,
    needed: () => (!existsSync(stamp) || readFileSync(stamp, "utf8") !== hash() ? `node ${script}` : false),
    run: async () => {
      await execute(bundledNode, [script, ...args], { quiet: true });
      mkdirSync(dirname(stamp), { recursive: true });
      writeFileSync(stamp, hash());
    },
  };
}

function hashOf(paths) {
  const hash = createHash("sha256");
  const visit = (path) => {
    const absolute = join(root, path);
    if (!existsSync(absolute)) return;
    if (statSync(absolute).isDirectory()) {
      for (const name of readdirSync(absolute).sort()) if (name !== "node_modules" && name !== "build") visit(join(path, name));
    } else if (!path.endsWith(".test.ts")) hash.update(`${path}\0`).update(readFileSync(absolute)).update("\0");
  };
  paths.forEach(visit);
  return hash.digest("hex");
}

/** The environment of everything we start: our Node first, its own headers for node-gyp whatever an npmrc says. */
export function environment() {
  const nodeDirectory = dirname(dirname(bundledNode));
  return { ...process.env, PATH: `${dirname(bundledNode)}:/usr/local/sbin:/usr/sbin:/sbin:${process.env.PATH}`, npm_config_nodedir: nodeDirectory, HOME: process.env.HOME ?? homedir() };
}

/** Runs a program in the repository; its output is shown, or kept and shown only when it fails (`quiet`). */
export function execute(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, env: options.env ?? environment(), stdio: options.quiet ? ["ignore", "pipe", "pipe"] : ["ignore", "inherit", "inherit"] });
    let kept = "";
    const keep = (chunk) => {
      kept = (kept + chunk).slice(-20_000);
    };
    child.stdout?.on("data", keep);
    child.stderr?.on("data", keep);
    child.on("error", (error) => reject(new Error(`${command} cannot be run: ${error.message}`)));
    child.on("exit", (code, signal) => {
      if (code === 0) resolve();
      else reject(new Error(`${[command, ...args].join(" ").slice(0, 200)} ended with ${signal ?? code}\n${kept}`));
    });
  });
}
