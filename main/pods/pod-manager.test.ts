/** Order and resumption of the sync loop over an in-memory world; the real parts are tested end to end under test/e2e. */
import { cpSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MemoryWorld, type Faults, type MemoryHost } from "../../test/support/in-memory-pods.ts";
import { PodyardError } from "../contract/errors.ts";
import type { Pod, PodSpec } from "../contract/kubernetes-api.generated.ts";
import { createPodManager, type PodManager } from "./pod-manager.ts";
import { withDefaults } from "./standalone-manifests.ts";

const UID = "11111111-2222-4333-8444-555555555555";
const ID = UID.replaceAll("-", "");

function makePod(spec: Partial<PodSpec> = {}, uid = UID, name = "pod"): Pod {
  return withDefaults({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "default", uid, generation: 1 },
    spec: { containers: [{ name: "vm", image: "registry.example/vm:1", command: ["/bin/run"] }], ...spec },
  });
}

const wholePod: Partial<PodSpec> = {
  initContainers: [
    { name: "init-once", image: "busybox:1" },
    { name: "native", image: "busybox:1", restartPolicy: "Always" },
  ],
  containers: [
    { name: "vm", image: "registry.example/vm:1", command: ["/bin/run"], volumeMounts: [{ name: "data", mountPath: "/data" }] },
    { name: "side", image: "busybox:1", volumeMounts: [{ name: "data", mountPath: "/data" }] },
  ],
  volumes: [{ name: "data", emptyDir: {} }],
};

let root = "";
let directories = 0;
let stops: (() => Promise<void>)[] = [];

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "podyard-pods-"));
});
afterEach(async () => {
  for (const stop of stops) await stop();
  stops = [];
  await rm(root, { recursive: true, force: true, maxRetries: 5 });
});

async function newDirectory(): Promise<string> {
  const directory = join(root, String(++directories));
  await mkdir(directory);
  return directory;
}

async function startHost(host: MemoryHost): Promise<PodManager> {
  const manager = createPodManager(host.options);
  const starting = manager.start();
  const running = await Promise.race([starting, new Promise<undefined>((resolve) => host.onDeath(() => resolve(undefined)))]);
  stops.push(async () => {
    if (!host.isDead) await running?.[Symbol.asyncDispose]();
  });
  return manager;
}

async function newHost(world: MemoryWorld, settings: Parameters<MemoryWorld["host"]>[1] = {}): Promise<{ readonly host: MemoryHost; readonly manager: PodManager }> {
  const host = world.host(await newDirectory(), settings);
  return { host, manager: await startHost(host) };
}

/** What was on disk at the instant of the kill: all that the next host gets. A file renamed while it is copied makes it try again. */
function snapshotOf(directory: string): string {
  for (let attempt = 0; ; attempt++) {
    const copy = join(root, String(++directories));
    try {
      cpSync(directory, copy, { recursive: true });
      return copy;
    } catch (error) {
      if (attempt === 10) throw error;
    }
  }
}

const isRunning = (world: MemoryWorld, uid = UID) => () => world.status(uid)?.phase === "Running" && (world.status(uid)?.containerStatuses ?? []).every(({ ready }) => ready);
const isClean = (world: MemoryWorld) => () => world.pods.size === 0 && world.machines.size === 0 && world.networks.size === 0 && world.containers.size === 0 && world.sandboxes.size === 0 && world.retained.size === 0;

describe("a Pod's life", () => {
  it("goes from init containers over machine and side-cars to running, and leaves nothing behind", async () => {
    const world = new MemoryWorld();
    const { manager, host } = await newHost(world);
    world.addPod(makePod(wholePod));
    await world.until("Running", isRunning(world));
    expect(world.status(UID)).toMatchObject({ podIP: "10.0.0.2", hostIP: "192.0.2.1" });
    expect(world.containerStatus(UID, "vm")).toMatchObject({ restartCount: 0, containerID: `qemu://${ID}`, imageID: `registry.example/vm@sha256:${"a".repeat(64)}` });
    const order = ["start container init-once 0", "start container native 0", "start machine", "start main 0"].map((step) => world.journal.indexOf(step));
    expect(order).toEqual(order.toSorted((one, other) => one - other));
    expect(order).not.toContain(-1);
    expect(await manager.runtime.running()).toHaveLength(1);
    world.deletePod(UID);
    await world.until("clean", isClean(world));
    await world.until("record gone", () => manager.overview().length === 0);
    expect(await readdir(join(host.options.dataDirectory, "pods"))).toEqual([]);
    // Native side-cars outlive the main containers.
    expect(world.journal.indexOf("stop container native")).toBeGreaterThan(world.journal.indexOf("main exited 143"));
    expect(world.journal.indexOf("stop container native")).toBeGreaterThan(world.journal.indexOf("stop container side"));
    expect(world.events.map(({ reason }) => reason)).toEqual(expect.arrayContaining(["Pulled", "Created", "Started", "Killing"]));
  });

  it("restarts container 0 as a new machine in the same network, and keeps the state before", async () => {
    const world = new MemoryWorld();
    await newHost(world);
    world.addPod(makePod());
    await world.until("Running", isRunning(world));
    const network = world.networks.get(ID);
    world.exitMain(ID, 3);
    await world.until("a second attempt", () => world.containerStatus(UID, "vm")?.restartCount === 1 && isRunning(world)());
    expect(world.containerStatus(UID, "vm")?.lastState?.terminated).toMatchObject({ exitCode: 3, reason: "Error" });
    expect(world.machines.get(ID)?.specification.network).toEqual(network);
    expect(world.journal.filter((entry) => entry.startsWith("create machine"))).toEqual(["create machine 0", "create machine 1"]);
    world.exitMain(ID, 3);
    await world.until("CrashLoopBackOff", () => world.containerStatus(UID, "vm")?.state?.waiting?.reason === "CrashLoopBackOff");
    expect(world.containerStatus(UID, "vm")?.state?.waiting?.message).toBe(`back-off 10s restarting failed container=vm pod=pod_default(${UID})`);
    expect(world.status(UID)?.phase).toBe("Running");
  });

  const endings: [string, PodSpec["restartPolicy"], number, string][] = [
    ["Never, exit 0", "Never", 0, "Succeeded"],
    ["Never, exit 4", "Never", 4, "Failed"],
    ["OnFailure, exit 0", "OnFailure", 0, "Succeeded"],
  ];
  it.each(endings)("ends for good and frees its machine: %s", async (_name, restartPolicy, exitCode, phase) => {
    const world = new MemoryWorld();
    const { manager } = await newHost(world);
    world.addPod(makePod(restartPolicy === undefined ? {} : { restartPolicy }));
    await world.until("Running", isRunning(world));
    world.exitMain(ID, exitCode);
    await world.until(phase, () => world.status(UID)?.phase === phase && world.machines.size === 0);
    expect(world.containerStatus(UID, "vm")?.state?.terminated).toMatchObject({ exitCode });
    await world.until("the slot is free", () => manager.slots().used === 0);
    expect(world.networks.size).toBe(0);
  });

  it("does with a side-car's exit what its restart policy says and nothing else", async () => {
    const world = new MemoryWorld();
    await newHost(world);
    world.addPod(makePod({ containers: wholePod.containers ?? [], volumes: wholePod.volumes ?? [] }));
    await world.until("Running", isRunning(world));
    world.exitContainer(UID, "side", 1);
    await world.until("restart", () => world.containerStatus(UID, "side")?.restartCount === 1 && isRunning(world)());
    expect(world.journal.filter((entry) => entry === "start machine")).toHaveLength(1);
  });

  it("takes a machine without a command for the container: power-off is exit 0", async () => {
    const world = new MemoryWorld();
    await newHost(world);
    world.addPod(makePod({ restartPolicy: "Never", containers: [{ name: "vm", image: "registry.example/vm:1" }] }));
    await world.until("Running", isRunning(world));
    world.stopMachine(ID, "guest-power-off", 0);
    await world.until("Succeeded", () => world.status(UID)?.phase === "Succeeded");
  });
});

describe("what cannot be", () => {
  it("refuses a Pod whose first image is a container's, without using anything", async () => {
    const world = new MemoryWorld();
    const { manager } = await newHost(world);
    world.containerImages.add("registry.example/vm:1");
    world.addPod(makePod(wholePod));
    await world.until("refusal", () => world.containerStatus(UID, "vm")?.state?.waiting?.reason === "CreateContainerConfigError");
    expect(world.containerStatus(UID, "side")?.state?.waiting?.reason).toBe("CreateContainerConfigError");
    expect(world.status(UID)?.phase).toBe("Pending");
    expect(world.events.filter(({ type }) => type === "Warning").map(({ reason }) => reason)).toEqual(["NotAVirtualMachineImage"]);
    expect([world.machines.size, world.networks.size, world.containers.size, manager.slots().used]).toEqual([0, 0, 0, 0]);
    world.deletePod(UID);
    await world.until("gone", () => manager.overview().length === 0 && world.pods.size === 0);
  });

  it("reports a failing pull as ErrImagePull, then ImagePullBackOff, and starts once it works", async () => {
    const world = new MemoryWorld();
    await newHost(world, { backoff: { initial: 1500, maximum: 3000 } });
    world.brokenImages.set("registry.example/vm:1", new PodyardError("NotFound", "manifest unknown"));
    world.addPod(makePod());
    await world.until("BackOff", () => world.events.some(({ reason }) => reason === "BackOff"));
    expect(world.statusWrites.map(({ containerStatuses }) => containerStatuses?.[0]?.state?.waiting?.reason)).toContain("ErrImagePull");
    expect(world.events).toContainEqual(expect.objectContaining({ reason: "Failed", message: 'Failed to pull image "registry.example/vm:1": manifest unknown' }));
    world.brokenImages.clear();
    await world.until("Running", isRunning(world));
  });

  it("starts a container with a new image again, whatever the restart policy says, and leaves the others alone", async () => {
    const world = new MemoryWorld();
    await newHost(world);
    const pod = makePod({ ...wholePod, initContainers: [], restartPolicy: "Never" });
    world.addPod(pod);
    await world.until("Running", isRunning(world));
    const setImage = (name: string, image: string, generation: number) => {
      const now = world.pods.get(UID) ?? pod;
      const containers = (now.spec?.containers ?? []).map((container) => (container.name === name ? { ...container, image } : container));
      world.setPod(UID, { ...now, metadata: { ...now.metadata, generation }, spec: { ...now.spec, containers } });
    };
    for (const [name, other, image] of [["side", "vm", "busybox:2"], ["vm", "side", "registry.example/vm:2"]] as const) {
      const before = world.containerStatus(UID, other);
      setImage(name, image, name === "side" ? 2 : 3);
      await world.until(`${name} restarted`, () => world.containerStatus(UID, name)?.restartCount === 1 && world.containerStatus(UID, name)?.ready === true);
      expect(world.containerStatus(UID, name)).toMatchObject({ image, lastState: { terminated: { exitCode: 143 } } });
      expect(world.containerStatus(UID, other)).toEqual(before);
    }
    expect(world.statusWrites.map(({ phase }) => phase).filter((phase) => phase !== "Pending" && phase !== "Running")).toEqual([]);
  });

  it("pulls a corrected image at once, without the back-off of the wrong one", async () => {
    const world = new MemoryWorld();
    world.brokenImages.set("registry.example/typo:1", new PodyardError("NotFound", "not found"));
    await newHost(world, { backoff: { initial: 60_000, maximum: 60_000 } });
    const pod = makePod({ containers: [{ name: "vm", image: "registry.example/typo:1", command: ["/bin/run"] }] });
    world.addPod(pod);
    await world.until("ErrImagePull", () => world.containerStatus(UID, "vm")?.state?.waiting?.reason === "ErrImagePull");
    const now = world.pods.get(UID) ?? pod;
    world.setPod(UID, { ...now, metadata: { ...now.metadata, generation: 2 }, spec: { ...now.spec, containers: [{ name: "vm", image: "registry.example/vm:1", command: ["/bin/run"] }] } });
    await world.until("Running", isRunning(world));
    expect(world.containerStatus(UID, "vm")).toMatchObject({ image: "registry.example/vm:1", restartCount: 0 });
  });

  it("never makes more machines than there are slots; the next Pod starts when one is free", async () => {
    const world = new MemoryWorld();
    await newHost(world, { maximumMachines: 1 });
    const second = "99999999-2222-4333-8444-555555555555";
    world.addPod(makePod());
    await world.until("Running", isRunning(world));
    world.addPod(makePod({}, second, "second"));
    await world.until("a visible wait", () => world.events.some(({ reason }) => reason === "WaitingForVirtualMachineSlot"));
    expect(world.machines.size).toBe(1);
    world.deletePod(UID);
    await world.until("the second runs", isRunning(world, second));
  });

  it("begins with a Pod of the same name only when nothing of its predecessor is left", async () => {
    const world = new MemoryWorld();
    const { manager } = await newHost(world);
    const successor = UID.replace(/^1/, "2");
    world.stopDelay = 50;
    world.addPod(makePod());
    await world.until("Running", isRunning(world));
    world.addPod(makePod({}, successor));
    expect(manager.overview().map(({ pod }) => pod.metadata?.uid)).toEqual([UID]);
    world.deletePod(UID);
    await world.until("the successor runs", isRunning(world, successor));
    expect(manager.overview().map(({ pod }) => pod.metadata?.uid)).toEqual([successor]);
  });

  it("kills at once what vanished from the API", async () => {
    const world = new MemoryWorld();
    const { manager } = await newHost(world);
    world.stopDelay = Number.POSITIVE_INFINITY;
    world.addPod(makePod());
    await world.until("Running", isRunning(world));
    world.setPod(UID, undefined);
    await world.until("clean", isClean(world));
    await world.until("forgotten", () => manager.overview().length === 0);
  });

  it("stops a container that came to run in the moment the Pod was deleted", async () => {
    const world = new MemoryWorld();
    const host = world.host(await newDirectory());
    const { engine } = host.options;
    const start = async (id: string) => {
      await world.until("machine running", () => world.containerStatus(UID, "vm")?.ready === true);
      await engine.start(id);
      world.deletePod(UID);
      await world.until("stop under way", () => world.journal.includes("signal main"));
    };
    const manager = createPodManager({ ...host.options, engine: { ...engine, start } });
    const running = await manager.start();
    stops.push(async () => running[Symbol.asyncDispose]());
    world.addPod(makePod({ ...wholePod, initContainers: [] }));
    await world.until("clean", isClean(world));
    expect(world.journal).toContain("stop container side");
  });

  it("kills a main process that ignores its grace, and takes a shortened one", async () => {
    const world = new MemoryWorld();
    await newHost(world);
    world.stopDelay = Number.POSITIVE_INFINITY;
    world.addPod(makePod());
    await world.until("Running", isRunning(world));
    world.deletePod(UID, 60);
    await world.until("the signal", () => world.journal.includes("signal main"));
    world.deletePod(UID, 0);
    await world.until("clean", isClean(world));
    expect(world.journal).toContain("machine stopped killed");
  });

  it("fails a Pod that is past its deadline", async () => {
    const world = new MemoryWorld();
    await newHost(world);
    world.addPod(makePod({ activeDeadlineSeconds: 1 }));
    await world.until("Running", isRunning(world));
    await world.until("Failed", () => world.status(UID)?.phase === "Failed");
    expect(world.status(UID)).toMatchObject({ reason: "DeadlineExceeded" });
    await world.until("freed", () => world.machines.size === 0);
  });
});

describe("a host that is killed", () => {
  it("ends unknown machines, but only once the source has told which Pods there are", async () => {
    const world = new MemoryWorld();
    const first = await newHost(world);
    world.addPod(makePod());
    await world.until("Running", isRunning(world));
    first.host.kill();
    world.pods.clear();
    const host = world.host(await newDirectory());
    const synced = Promise.withResolvers<void>();
    const manager = createPodManager({ ...host.options, source: { ...host.options.source, synced: synced.promise } });
    await using _running = await manager.start();
    expect(world.machines.size).toBe(1);
    synced.resolve();
    await world.until("the machine is gone", () => world.machines.size === 0);
  });

  /** Runs a Pod to Running and away again, killing the host by the faults; a new host goes on each time. */
  async function live(faults: Faults): Promise<{ readonly world: MemoryWorld; readonly calls: number; readonly killed: string }> {
    const world = new MemoryWorld();
    let directory = await newDirectory();
    let host = world.host(directory);
    host.faults = faults;
    let killed = "";
    const first = host;
    const replaced = new Promise<void>((resolve, reject) => {
      first.onDeath(() => {
        directory = snapshotOf(directory);
        host = world.host(directory);
        startHost(host).then(() => resolve(), reject);
      });
    });
    const describe: Faults = {
      before: (call, name) => faults.before?.(call, name) === true && ((killed = `before ${name}`), true),
      after: (call, name) => faults.after?.(call, name) === true && ((killed = `after ${name}`), true),
    };
    first.faults = describe;
    world.addPod(makePod(wholePod));
    await startHost(first);
    await world.until("Running", isRunning(world));
    world.deletePod(UID);
    await world.until("clean", isClean(world));
    if (first.isDead) await replaced;
    await world.until("records gone", () => !first.isDead || host.calls >= 0);
    return { world, calls: first.calls, killed };
  }

  it("goes on from any call, before or after it took effect, and starts nothing twice", async () => {
    const { calls } = await live({});
    expect(calls).toBeGreaterThan(40);
    const goOn = async (call: number, when: "before" | "after") => {
      const { world, killed } = await live({ [when]: (now: number) => now === call });
      const counts = new Map<string, number>();
      for (const entry of world.journal) counts.set(entry, (counts.get(entry) ?? 0) + 1);
      for (const once of ["create machine 0", "start machine", "start main 0", "start container side 0", "start container native 0", "start container init-once 0", "remove pod"]) {
        expect(counts.get(once), `${once}, killed ${killed} (call ${call})\n${world.journal.join("\n")}`).toBe(1);
      }
      expect(counts.get("create machine 1"), killed).toBeUndefined();
    };
    // They wait more than they work, so several go at a time.
    for (let call = 1; call <= calls; call += 8) {
      const some = Array.from({ length: Math.min(8, calls - call + 1) }, (_, index) => call + index);
      await Promise.all(some.flatMap((each) => [goOn(each, "before"), goOn(each, "after")]));
    }
  }, 120_000);
});
