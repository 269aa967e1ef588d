// Builds the control plane of the tests into build/control-plane, once per state of its sources (about five minutes on
// two cores, then never again). No dependencies, Node 18: the setup runs it before anything is installed.
// With KUBEBUILDER_ASSETS=DIR nothing is built: the five programs are taken from there.
//   node test/control-plane/build.mjs     prints the directory that holds the programs
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

export const components = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];

const sources = dirname(fileURLToPath(import.meta.url));
const output = join(sources, "..", "..", "build", "control-plane");
const program = join(output, "podyard-control-plane");

/** The directory with the five programs; builds them if needed. Throws with a sentence that says what is missing. */
export function buildControlPlane() {
  const assets = process.env.KUBEBUILDER_ASSETS;
  if (assets !== undefined && assets !== "") {
    const missing = components.filter((name) => !existsSync(join(assets, name)));
    if (missing.length === 0) return assets;
    throw new Error(`KUBEBUILDER_ASSETS=${assets} lacks ${missing.join(", ")}: add what is missing, or unset it to have all built from source`);
  }
  const files = readdirSync(sources).filter((name) => name.endsWith(".go") || name === "go.mod" || name === "go.sum").sort();
  const hash = createHash("sha256").update(`${process.platform} ${process.arch}\n`);
  for (const name of files) hash.update(`${name}\n`).update(readFileSync(join(sources, name)));
  const digest = hash.digest("hex");
  const stamp = join(output, "sources.sha256");
  if (existsSync(program) && existsSync(stamp) && readFileSync(stamp, "utf8").trim() === digest) return output;

  const go = readFileSync(join(sources, "go.mod"), "utf8");
  const version = /k8s\.io\/kubernetes (v1\.(\d+)\.\d+)/.exec(go);
  if (version === null) throw new Error("go.mod does not require k8s.io/kubernetes");
  const flags = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"].flatMap((name) => [
    `-X ${name}.gitVersion=${version[1]}`,
    `-X ${name}.gitMajor=1`,
    `-X ${name}.gitMinor=${version[2]}`,
    `-X ${name}.gitTreeState=clean`,
  ]);
  mkdirSync(output, { recursive: true });
  // Under another name until it is complete, so that an interrupted or concurrent build never leaves half a program.
  const temporary = `${program}.${process.pid}`;
  process.stderr.write(`building Kubernetes ${version[1]} from source, once: about five minutes\n`);
  const result = spawnSync("go", ["build", "-p", String(Math.max(1, Math.min(availableParallelism(), 8))), "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", ["-s", "-w", ...flags].join(" "), "-o", temporary, "."], {
    cwd: sources,
    stdio: ["ignore", process.stderr, process.stderr],
  });
  if (result.error !== undefined || result.status !== 0) {
    rmSync(temporary, { force: true });
    if (result.error?.code === "ENOENT") throw new Error("Go is needed to build the control plane of the tests: install Go 1.25 or later (https://go.dev/dl)");
    throw new Error(`go build failed with ${result.error?.message ?? `exit code ${result.status}`}`);
  }
  renameSync(temporary, program);
  for (const name of components) {
    rmSync(join(output, name), { force: true });
    symlinkSync("podyard-control-plane", join(output, name));
  }
  writeFileSync(stamp, `${digest}\n`);
  return output;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    process.stdout.write(`${buildControlPlane()}\n`);
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  }
}
