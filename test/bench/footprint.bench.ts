/**
 * What the host costs when nothing happens: memory and processor of `podyard run` with two Pods (each a machine and a
 * side-car), against a Node process that does nothing. Budget: 120 MB and 1 % of a core. Linux only (reads /proc).
 *
 *   npm run bench -- footprint [seconds]
 */
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { runPods, startSampleHost } from "./support/sample-host.ts";
import { printTable } from "./support/table.ts";

const seconds = Number(process.argv[2] ?? 60);
const ticksPerSecond = 100;

const peer = spawn(process.execPath, ["-e", "setInterval(() => undefined, 1 << 30)"], { stdio: "ignore" });
try {
  await using host = await startSampleHost();
  await runPods(host, ["first", "second"]);
  // V8 gives memory back some seconds after the last burst of work.
  await delay(20_000);
  const before = await processorSeconds(host.processId);
  await delay(seconds * 1000);
  const share = (100 * ((await processorSeconds(host.processId)) - before)) / seconds;
  const ours = await memory(host.processId);
  const floor = await memory(peer.pid ?? 0);
  printTable(`Footprint of the host, two Pods, idle for ${seconds} s`, ["", "podyard", "idle Node", "ratio", "budget"], [
    ["resident memory (MB)", ours.resident, floor.resident, ours.resident / floor.resident, "120"],
    ["of it private (MB)", ours.private, floor.private, ours.private / floor.private, ""],
    ["processor (% of a core)", share, 0, undefined, "1"],
  ]);
} finally {
  peer.kill();
}

async function processorSeconds(processId: number): Promise<number> {
  const text = await readFile(`/proc/${processId}/stat`, "utf8");
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

/** In MB (1e6 bytes). */
async function memory(processId: number): Promise<{ readonly resident: number; readonly private: number }> {
  const text = await readFile(`/proc/${processId}/smaps_rollup`, "utf8");
  const field = (name: string): number => (Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)?.[1] ?? 0) * 1024) / 1e6;
  return { resident: field("Rss"), private: field("Private_Dirty") + field("Private_Clean") };
}
