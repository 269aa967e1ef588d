/**
 * The host killed without warning: machines and side-cars live on, the next host adopts them with everything that
 * identifies them, shells continue, logs lose and double nothing, and in the end nothing is left behind.
 */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type MachineState, machineState } from "../support/machine-state.ts";
import { openTerminal } from "../support/terminal.ts";
import { applyPod, deletePod, podManifest, readPod, waitReady } from "./manifests.ts";
import { eventually, startWorld, type World } from "./world.ts";

let world: World | undefined;
let before: MachineState;
beforeAll(async () => {
  before = machineState();
  world = await startWorld();
});
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
});

function theWorld(): World {
  if (world === undefined) throw new Error("the world is gone");
  return world;
}

test("attach, SIGKILL of the host, restart, attach again: the same shell with the same variables", async () => {
  const { kubectlOk, cluster, killHost, startHost, namespace } = theWorld();
  const name = await namespace();
  await applyPod(theWorld(), podManifest(theWorld(), name, "shell", { sidecar: false, machine: { command: ["sh"], stdin: true, tty: true } }));
  await waitReady(theWorld(), name, "shell");
  const attach = () => openTerminal([`${cluster.programs}/kubectl`, "-n", name, "attach", "-it", "shell"], { env: { KUBECONFIG: cluster.kubeconfig } });
  {
    await using terminal = attach();
    await terminal.expect(/command prompt|[#$] /);
    terminal.type("\nMARK=kept-$((20+22)); echo mark is $MARK\n");
    await terminal.expect(/mark is kept-42/);
  }
  const pod = await readPod(theWorld(), name, "shell");
  await killHost();
  await startHost();
  {
    await using terminal = attach();
    await terminal.expect(/command prompt|[#$] /);
    terminal.type("\necho still $MARK\n");
    await terminal.expect(/still kept-42/);
  }
  const after = await readPod(theWorld(), name, "shell");
  expect(after.metadata?.uid).toBe(pod.metadata?.uid);
  expect(after.status?.podIP).toBe(pod.status?.podIP);
  expect(after.status?.containerStatuses?.[0]).toMatchObject({ restartCount: 0, containerID: pod.status?.containerStatuses?.[0]?.containerID, state: pod.status?.containerStatuses?.[0]?.state });
  await deletePod(theWorld(), name, "shell");
  await kubectlOk(["delete", "namespace", name, "--wait=false"]);
});

test("five kills during start, run and delete: every Pod converges, no log line is lost or doubled, nothing is left", async () => {
  const { killHost, startHost, namespace, kubectlOk } = theWorld();
  const name = await namespace();
  const count = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2 2>/dev/null || sleep 1; done"];
  await applyPod(theWorld(), podManifest(theWorld(), name, "counter", { machine: { command: count }, sidecar: { command: count } }));
  // Two kills while it starts, wherever it is then.
  for (const seconds of [2, 6]) {
    await delay(seconds * 1000);
    await killHost();
    await startHost();
  }
  const ready = await waitReady(theWorld(), name, "counter", 200);
  const identity = (pod: typeof ready) => [pod.metadata?.uid, pod.status?.podIP, pod.status?.startTime, pod.status?.containerStatuses?.map((status) => [status.restartCount, status.containerID, status.state])];
  // Two kills while it runs.
  for (const seconds of [1, 3]) {
    await delay(seconds * 1000);
    await killHost();
    await startHost();
  }
  const adopted = await waitReady(theWorld(), name, "counter");
  expect(identity(adopted)).toEqual(identity(ready));
  for (const container of ["vm", "side"]) {
    let lines: string[] = [];
    await eventually(60_000, async () => {
      lines = (await kubectlOk(["-n", name, "logs", "counter", "-c", container])).trim().split("\n");
      return lines.length > 30;
    });
    expect(lines).toEqual(lines.map((_, index) => `line ${index + 1}`));
  }
  // One while it is deleted.
  await kubectlOk(["-n", name, "delete", "pod", "counter", "--wait=false"]);
  await delay(500);
  await killHost();
  await startHost();
  await eventually(90_000, async () => (await theWorld().kubectl(["-n", name, "get", "pod", "counter"])).exitCode !== 0);
});

test("after all that the machine is as it was found", async () => {
  await theWorld()[Symbol.asyncDispose]();
  world = undefined;
  await eventually(30_000, async () => JSON.stringify(machineState()) === JSON.stringify(before), () => JSON.stringify({ before, after: machineState() }, undefined, 1));
  expect(machineState()).toEqual(before);
});
