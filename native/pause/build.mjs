/**
 * Builds podyard-init for the architectures a Docker engine may have: static, reproducible (the hash of the binary is
 * the tag of the image made from it). Output: build/podyard-init-linux-{amd64,arm64}. Needs Go; nothing is downloaded.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const output = join(here, "build");
mkdirSync(output, { recursive: true });

for (const architecture of ["amd64", "arm64"]) {
  const file = join(output, `podyard-init-linux-${architecture}`);
  execFileSync("go", ["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", file, "."], {
    cwd: here,
    stdio: "inherit",
    env: { ...process.env, CGO_ENABLED: "0", GOOS: "linux", GOARCH: architecture, GOFLAGS: "-mod=mod", GOTOOLCHAIN: "local" },
  });
  console.log(`${file} ${statSync(file).size} bytes`);
}
