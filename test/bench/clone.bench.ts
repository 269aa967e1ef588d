/**
 * The next machine from a cached image: what the driver does before anything runs (overlay and record), against copying the
 * image's data with cp. Budget: 50 ms, no data copied.
 *
 *   npm run bench -- clone [rounds]
 */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLogger } from "../../main/contract/logger.ts";
import { createQemuDriver } from "../../main/virtual-machines/drivers/qemu/driver.ts";
import { percentile, printTable } from "./support/table.ts";

const rounds = Number(process.argv[2] ?? 30);
const diskPath = join(import.meta.dirname, "../../build/guest/disk.raw");
if (!existsSync(diskPath)) throw new Error(`${diskPath} is missing: npm run setup`);
const directory = await mkdtemp(join(tmpdir(), "podyard-bench-"));
try {
  const driver = createQemuDriver({ dataDirectory: join(directory, "data"), runtimeDirectory: join(directory, "run"), logger: silentLogger });
  const disk = await stat(diskPath);
  const ours: number[] = [];
  const copies: number[] = [];
  let written = 0;
  for (let round = -1; round < rounds; round += 1) {
    const id = (round + 1).toString(16).padStart(8, "0").repeat(4);
    const start = performance.now();
    const machine = await driver.create({
      id,
      name: `default/clone-${round}`,
      labels: {},
      cpuCount: 1,
      memoryBytes: 256 * 1024 * 1024,
      image: { digest: `sha256:${"0".repeat(64)}`, diskPath, diskSize: disk.size, operatingSystem: "linux" },
      network: { id, podIP: "10.0.0.2", sidecarIP: "10.0.0.3", gatewayIP: "10.0.0.1", macAddress: "02:00:00:00:00:01", interfaceName: "bench0" },
      sharedPaths: [],
    });
    const milliseconds = performance.now() - start;
    written = (await stat(join(directory, "data/machines", id, "overlay.qcow2"))).blocks * 512;
    await machine.delete();
    const copying = performance.now();
    execFileSync("cp", ["--reflink=never", "--sparse=always", diskPath, join(directory, "copy.raw")]);
    const copy = performance.now() - copying;
    await rm(join(directory, "copy.raw"));
    if (round < 0) continue;
    ours.push(milliseconds);
    copies.push(copy);
  }
  printTable(`Clone of a cached image, ${rounds} rounds`, ["", "median (ms)", "p95 (ms)", "ratio of medians", "KiB written", "budget"], [
    ["cp", percentile(copies, 0.5), percentile(copies, 0.95), 1, (disk.blocks * 512) / 1024, ""],
    ["podyard", percentile(ours, 0.5), percentile(ours, 0.95), percentile(ours, 0.5) / percentile(copies, 0.5), written / 1024, "50 ms"],
  ]);
} finally {
  await rm(directory, { recursive: true, force: true });
}
