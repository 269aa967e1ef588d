/**
 * Our part of a Pod's start with a cached image: from the Pod's arrival at the host (bound) until its machine's process
 * answers on its control socket, so QEMU's own start is in it. The limit is the same QEMU's start to that point with
 * nothing around it. Budget: p95 300 ms.
 *
 *   npm run bench -- pod-start [pods]
 */
import { spawn } from "node:child_process";
import { existsSync, watch } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { samplePod, startSampleHost, until } from "./support/sample-host.ts";
import { percentile, printTable } from "./support/table.ts";

const pods = Number(process.argv[2] ?? 20);

await using host = await startSampleHost();
const { socket } = JSON.parse(await readFile(join(host.dataDirectory, "gateway.json"), "utf8")) as { socket: string };
const ours: number[] = [];
const limit: number[] = [];
for (let index = -1; index < pods; index += 1) {
  const manifest = await samplePod(`pod-${index + 1}`, { lone: true });
  const appeared = newFile(dirname(socket), /-qmp\.sock$/);
  const start = performance.now();
  const applied = host.client.call("pod.apply", { manifest, source: "bench" });
  const milliseconds = (await appeared) - start;
  await applied;
  await host.client.call("pod.delete", { name: `default/pod-${index + 1}`, graceSeconds: 0 });
  await until(() => "the Pod's end", async () => (await host.client.call("pod.list", {})).items.length === 0);
  const bare = await bareStart();
  // The first one also finds out which accelerator works.
  if (index < 0) continue;
  ours.push(milliseconds);
  limit.push(bare);
}
printTable(`Pod bound to control socket of its machine, ${pods} Pods (ms)`, ["", "median", "p95", "ratio of medians", "budget"], [
  ["QEMU alone", percentile(limit, 0.5), percentile(limit, 0.95), 1, ""],
  ["podyard", percentile(ours, 0.5), percentile(ours, 0.95), percentile(ours, 0.5) / percentile(limit, 0.5), "p95 300"],
]);

async function bareStart(): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), "podyard-bench-qemu-"));
  const path = join(directory, "qmp.sock");
  const appeared = newFile(directory, /^qmp\.sock$/);
  const program = process.arch === "arm64" ? "qemu-system-aarch64" : "qemu-system-x86_64";
  const start = performance.now();
  const child = spawn(program, ["-nodefaults", "-display", "none", "-machine", process.arch === "arm64" ? "virt" : "q35", "-m", "256", "-qmp", `unix:${path},server=on,wait=off`], { stdio: "ignore" });
  try {
    return (await appeared) - start;
  } finally {
    child.kill("SIGKILL");
    await rm(directory, { recursive: true, force: true });
  }
}

/** When a file of that name is created in the directory. Errors: after a minute. */
function newFile(directory: string, name: RegExp): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const watcher = watch(directory, (_, file) => {
    if (file !== null && name.test(file) && existsSync(join(directory, file))) resolve(performance.now());
  });
  const timer = setTimeout(() => reject(new Error(`no ${String(name)} in ${directory}`)), 60_000);
  return promise.finally(() => {
    clearTimeout(timer);
    watcher.close();
  });
}
