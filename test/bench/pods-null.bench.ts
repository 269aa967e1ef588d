/**
 * 300 Pods through the sync loop with nothing behind it: how long until all are Running and how many requests to the API
 * each costs. Budget (design, section 5): all Running within 10 s, at most 2.8 requests per Pod (virtual-kubelet's mock).
 *
 *   node test/bench/pods-null.bench.ts [pods]
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createPodManager } from "../../main/pods/pod-manager.ts";
import { withDefaults } from "../../main/pods/standalone-manifests.ts";
import { MemoryWorld } from "../support/in-memory-pods.ts";

const count = Number(process.argv[2] ?? 300);
const directory = await mkdtemp(join(tmpdir(), "podyard-bench-pods-"));
try {
  const world = new MemoryWorld();
  const host = world.host(directory, { maximumMachines: count });
  let requests = 0;
  host.faults = {
    before(_call, name) {
      if (name.startsWith("reporter.")) requests++;
      return false;
    },
  };
  await using _running = await createPodManager(host.options).start();
  const uids = Array.from({ length: count }, (_, index) => `${String(index).padStart(8, "0")}-2222-4333-8444-555555555555`);
  const isEachRunning = () => uids.every((uid) => world.status(uid)?.phase === "Running" && world.status(uid)?.containerStatuses?.[0]?.ready === true);

  const started = performance.now();
  for (const [index, uid] of uids.entries()) {
    world.addPod(
      withDefaults({
        apiVersion: "v1",
        kind: "Pod",
        metadata: { name: `pod-${index}`, namespace: "default", uid, generation: 1 },
        spec: { containers: [{ name: "vm", image: "registry.example/vm:1", command: ["/bin/run"], resources: { requests: { cpu: "1m", memory: "1Mi" } } }] },
      }),
    );
  }
  await world.until("all Running", isEachRunning, 120_000);
  const milliseconds = performance.now() - started;
  const untilRunning = requests;

  const deleting = performance.now();
  for (const uid of uids) world.deletePod(uid, 1);
  await world.until("all gone", () => world.pods.size === 0 && world.machines.size === 0, 120_000);
  const gone = performance.now() - deleting;

  const result = {
    pods: count,
    allRunningSeconds: Number((milliseconds / 1000).toFixed(2)),
    requestsPerPodUntilRunning: Number((untilRunning / count).toFixed(2)),
    allGoneSeconds: Number((gone / 1000).toFixed(2)),
    requestsPerPodInAll: Number((requests / count).toFixed(2)),
    residentMegabytes: Math.round(process.memoryUsage.rss() / 1e6),
  };
  console.log(JSON.stringify(result));
  if (milliseconds > 10_000 || untilRunning / count > 2.8) process.exitCode = 1;
} finally {
  await rm(directory, { recursive: true, force: true });
}
