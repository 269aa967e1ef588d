#!/usr/bin/env node
// Builds the guest supervisor for every system a guest may have, into build/supervisor/podyard-supervisor-<os>-<arch>.
// Nothing is done while the sources, the flags and the compiler are those of the last build. Needs Go and no dependency.
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const sources = dirname(fileURLToPath(import.meta.url));
const output = resolve(process.argv[2] ?? join(sources, "../../build/supervisor"));
const targets = [
  ["linux", "amd64"],
  ["linux", "arm64"],
  ["darwin", "arm64"],
];
const flags = ["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w"];

const hash = createHash("sha256").update(JSON.stringify([targets, flags])).update(execFileSync("go", ["env", "GOVERSION"], { cwd: sources }));
for (const name of readdirSync(sources).sort()) {
  if (/\.go$|^go\.(mod|sum)$/.test(name)) hash.update(name).update(readFileSync(join(sources, name)));
}
const stamp = hash.digest("hex");
const stampFile = join(output, "stamp");
const fileOf = ([os, architecture]) => join(output, `podyard-supervisor-${os}-${architecture}`);

if (existsSync(stampFile) && readFileSync(stampFile, "utf8") === stamp && targets.every((target) => existsSync(fileOf(target)))) process.exit(0);
mkdirSync(output, { recursive: true });
for (const target of targets) {
  const [GOOS, GOARCH] = target;
  const file = fileOf(target);
  const result = spawnSync("go", [...flags, "-o", `${file}.new`, "."], { cwd: sources, stdio: "inherit", env: { ...process.env, CGO_ENABLED: "0", GOOS, GOARCH } });
  if (result.status !== 0) process.exit(result.status ?? 1);
  renameSync(`${file}.new`, file);
}
writeFileSync(stampFile, stamp);
