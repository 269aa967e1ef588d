/**
 * The golden table of Pod status. A row: what was observed, and in short form what the API shows. "PISCR" are the conditions
 * PodReadyToStartContainers, Initialized, PodScheduled, ContainersReady, Ready: a letter for True, a dot for False.
 * A container reads `state/started/ready`, e.g. `running/S/R`, `waiting:CrashLoopBackOff/./.`, `exit:1/./.`.
 */
import { describe, expect, test } from "vitest";
import type { ContainerState, ContainerStatus, Pod, PodSpec, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { ContainerSnapshot, PodSnapshot } from "./pod-state.ts";
import { computeStatus } from "./status.ts";

const now = new Date("2026-05-01T12:00:00.987Z");
const earlier = "2026-05-01T11:00:00Z";

const running: ContainerState = { running: { startedAt: "2026-05-01T11:59:00.123Z" } };
const waiting = (reason: string, message?: string): ContainerState => ({ waiting: { reason, ...(message !== undefined && { message }) } });
const exit = (exitCode: number, reason = exitCode === 0 ? "Completed" : "Error"): ContainerState => ({ terminated: { exitCode, reason, startedAt: "2026-05-01T11:50:00.5Z", finishedAt: "2026-05-01T11:55:00.5Z" } });

function container(name: string, state: ContainerState | undefined, changes: Partial<ContainerSnapshot> = {}): ContainerSnapshot {
  const alive = state?.running !== undefined;
  return { name, kind: "main", state, lastState: undefined, restartCount: 0, started: alive, ready: alive, image: `registry/${name}:1`, imageId: `registry/${name}@sha256:0`, containerId: state === undefined ? "" : `docker://${name}`, ...changes };
}
const vm = (state: ContainerState | undefined, changes?: Partial<ContainerSnapshot>): ContainerSnapshot => container("vm", state, changes);
const side = (state: ContainerState | undefined, changes?: Partial<ContainerSnapshot>): ContainerSnapshot => container("side", state, changes);
const init = (state: ContainerState | undefined, changes?: Partial<ContainerSnapshot>): ContainerSnapshot => container("init", state, { kind: "init", ...changes });

interface Row {
  readonly title: string;
  readonly containers: readonly ContainerSnapshot[];
  readonly spec?: Partial<PodSpec>;
  readonly pod?: Pod;
  readonly snapshot?: Partial<PodSnapshot>;
  readonly previous?: PodStatus;
  readonly phase: string;
  readonly conditions: string;
  /** Reason of Ready, if any. */
  readonly reason?: string;
  readonly shows: readonly string[];
}

const one: Partial<PodSpec> = { containers: [{ name: "vm" }] };
const two: Partial<PodSpec> = { containers: [{ name: "vm" }, { name: "side" }] };
const withInit: Partial<PodSpec> = { ...one, initContainers: [{ name: "init" }] };
const withNative: Partial<PodSpec> = { ...one, initContainers: [{ name: "init", restartPolicy: "Always" }] };
const never: Partial<PodSpec> = { restartPolicy: "Never" };
const onFailure: Partial<PodSpec> = { restartPolicy: "OnFailure" };
const deleted: Pod = { metadata: { deletionTimestamp: earlier } };
const over: Partial<PodSnapshot> = { mayRun: false };
const statusOf = (name: string, state: ContainerState, changes: Partial<ContainerStatus> = {}): ContainerStatus => ({ name, state, ready: false, restartCount: 0, image: name, imageID: "", ...changes });

const rows: readonly Row[] = [
  // Container 0 alone: preparing, starting, running.
  { title: "nothing observed yet", containers: [], snapshot: { sandboxReady: false, mayRun: false }, phase: "Pending", conditions: ".IS..", reason: "ContainersNotReady", shows: ["waiting:ContainerCreating/./."] },
  { title: "the machine's image is being pulled", containers: [vm(waiting("ContainerCreating"))], phase: "Pending", conditions: "PIS..", reason: "ContainersNotReady", shows: ["waiting:ContainerCreating/./."] },
  { title: "the pull failed", containers: [vm(waiting("ErrImagePull", "no such host"))], phase: "Pending", conditions: "PIS..", reason: "ContainersNotReady", shows: ["waiting:ErrImagePull/./."] },
  { title: "the pull backs off", containers: [vm(waiting("ImagePullBackOff"))], phase: "Pending", conditions: "PIS..", shows: ["waiting:ImagePullBackOff/./."] },
  { title: "the machine runs without probes", containers: [vm(running)], phase: "Running", conditions: "PISCR", shows: ["running/S/R"] },
  { title: "the guest does not answer yet", containers: [vm(undefined)], phase: "Pending", conditions: "PIS..", shows: ["waiting:ContainerCreating/./."] },
  { title: "postStart runs: not started, not ready", containers: [vm(running, { started: false, ready: true })], phase: "Running", conditions: "PIS..", reason: "ContainersNotReady", shows: ["running/./."] },
  { title: "the startup probe has not succeeded", containers: [vm(running, { started: false, ready: false })], phase: "Running", conditions: "PIS..", shows: ["running/./."] },
  { title: "the readiness probe fails", containers: [vm(running, { ready: false })], phase: "Running", conditions: "PIS..", reason: "ContainersNotReady", shows: ["running/S/."] },
  { title: "postStart failed and the machine is to be restarted", containers: [vm(waiting("PostStartHookError"), { lastState: exit(137), restartCount: 1 })], phase: "Running", conditions: "PIS..", shows: ["waiting:PostStartHookError/./. was 137 #1"] },

  // Machine and side-car, each half in turn.
  { title: "the side-car runs while the machine is prepared", spec: two, containers: [vm(waiting("ContainerCreating")), side(running)], phase: "Pending", conditions: "PIS..", shows: ["running/S/R", "waiting:ContainerCreating/./."] },
  { title: "both run", spec: two, containers: [vm(running), side(running)], phase: "Running", conditions: "PISCR", shows: ["running/S/R", "running/S/R"] },
  { title: "the side-car is not created yet: Pending and not ready", spec: two, containers: [vm(running)], phase: "Pending", conditions: "PIS..", reason: "ContainersNotReady", shows: ["waiting:ContainerCreating/./.", "running/S/R"] },
  { title: "the side-car cannot be created", spec: two, containers: [vm(running), side(waiting("CreateContainerError", "no"))], phase: "Pending", conditions: "PIS..", shows: ["waiting:CreateContainerError/./.", "running/S/R"] },
  { title: "the side-car was created but not started", spec: two, containers: [vm(running), side(waiting("ContainerCreating"))], phase: "Pending", conditions: "PIS..", shows: ["waiting:ContainerCreating/./.", "running/S/R"] },
  { title: "the side-car crashes and backs off", spec: two, containers: [vm(running), side(waiting("CrashLoopBackOff"), { lastState: exit(2), restartCount: 3 })], phase: "Running", conditions: "PIS..", shows: ["waiting:CrashLoopBackOff/./. was 2 #3", "running/S/R"] },
  { title: "the side-car ran out of memory: the Pod goes on", spec: two, containers: [vm(running), side(exit(137, "OOMKilled"))], phase: "Running", conditions: "PIS..", shows: ["exit:137/./.", "running/S/R"] },
  { title: "the side-car finished under OnFailure: the Pod goes on", spec: { ...two, ...onFailure }, containers: [vm(running), side(exit(0))], phase: "Running", conditions: "PIS..", shows: ["exit:0/./.", "running/S/R"] },
  { title: "the machine finished under Never while the side-car runs", spec: { ...two, ...never }, containers: [vm(exit(0)), side(running)], phase: "Running", conditions: "PIS..", shows: ["running/S/R", "exit:0/./."] },

  // Endings by restart policy.
  { title: "the machine powered off under Never", spec: { ...one, ...never }, containers: [vm(exit(0))], snapshot: over, phase: "Succeeded", conditions: "PIS..", reason: "PodCompleted", shows: ["exit:0/./."] },
  { title: "the machine failed under Never", spec: { ...one, ...never }, containers: [vm(exit(3))], snapshot: over, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:3/./."] },
  { title: "the machine panicked under OnFailure and restarts", spec: { ...one, ...onFailure }, containers: [vm(exit(1))], snapshot: over, phase: "Running", conditions: "PIS..", shows: ["exit:1/./."] },
  { title: "the machine finished under OnFailure", spec: { ...one, ...onFailure }, containers: [vm(exit(0))], snapshot: over, phase: "Succeeded", conditions: "PIS..", reason: "PodCompleted", shows: ["exit:0/./."] },
  { title: "the machine powered off under Always and restarts", containers: [vm(exit(0))], snapshot: over, phase: "Running", conditions: "PIS..", shows: ["exit:0/./."] },
  { title: "the machine's process was killed under Always and backs off", containers: [vm(waiting("CrashLoopBackOff"), { lastState: exit(137), restartCount: 1 })], phase: "Running", conditions: "PIS..", shows: ["waiting:CrashLoopBackOff/./. was 137 #1"] },
  { title: "one of two failed under Never", spec: { ...two, ...never }, containers: [vm(exit(0)), side(exit(1))], snapshot: over, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:1/./.", "exit:0/./."] },
  { title: "the end is not told while something may still run", spec: { ...one, ...never }, containers: [vm(exit(0))], previous: { phase: "Running" }, phase: "Running", conditions: "PIS..", reason: "PodCompleted", shows: ["exit:0/./."] },

  // Init containers.
  { title: "init containers wait", spec: withInit, containers: [], phase: "Pending", conditions: "P.S..", reason: "ContainersNotReady", shows: ["init waiting:PodInitializing/./.", "waiting:PodInitializing/./."] },
  { title: "an init container runs", spec: withInit, containers: [init(running)], phase: "Pending", conditions: "P.S..", shows: ["init running/S/.", "waiting:PodInitializing/./."] },
  { title: "an init container failed and is retried", spec: withInit, containers: [init(waiting("CrashLoopBackOff"), { lastState: exit(1), restartCount: 1 })], phase: "Pending", conditions: "P.S..", shows: ["init waiting:CrashLoopBackOff/./. was 1 #1", "waiting:PodInitializing/./."] },
  { title: "an init container failed under Never", spec: { ...withInit, ...never }, containers: [init(exit(1))], snapshot: over, phase: "Failed", conditions: "P.S..", reason: "PodFailed", shows: ["init exit:1/./.", "waiting:PodInitializing/./."] },
  { title: "init is done, the machine starts", spec: withInit, containers: [init(exit(0))], phase: "Pending", conditions: "PIS..", shows: ["init exit:0/./R", "waiting:PodInitializing/./."] },
  { title: "init is done, the machine runs", spec: withInit, containers: [init(exit(0)), vm(running)], phase: "Running", conditions: "PISCR", shows: ["init exit:0/./R", "running/S/R"] },
  { title: "a native side-car has not started", spec: withNative, containers: [init(running, { started: false, ready: false })], phase: "Pending", conditions: "P.S..", shows: ["init running/./.", "waiting:PodInitializing/./."] },
  { title: "a native side-car started, the machine not", spec: withNative, containers: [init(running)], phase: "Pending", conditions: "PIS..", shows: ["init running/S/R", "waiting:PodInitializing/./."] },
  { title: "a native side-car and the machine run", spec: withNative, containers: [init(running), vm(running)], phase: "Running", conditions: "PISCR", shows: ["init running/S/R", "running/S/R"] },
  { title: "a native side-car restarts: initialised, but not ready", spec: withNative, containers: [init(waiting("CrashLoopBackOff"), { lastState: exit(1), restartCount: 1 }), vm(running)], phase: "Running", conditions: "PIS..", reason: "ContainersNotReady", shows: ["init waiting:CrashLoopBackOff/./. was 1 #1", "running/S/R"] },
  { title: "a native side-car's exit code does not count", spec: { ...withNative, ...never }, containers: [init(exit(137)), vm(exit(0))], snapshot: over, phase: "Succeeded", conditions: "PIS..", reason: "PodCompleted", shows: ["init exit:137/./.", "exit:0/./."] },

  // Refusal, failure of the Pod as a whole, deletion.
  { title: "refused: Pending, every container says why", spec: two, containers: [], snapshot: { refusal: "spec.hostPID: true cannot be honoured", sandboxReady: false, mayRun: false }, phase: "Pending", conditions: ".IS..", shows: ["waiting:CreateContainerConfigError/./.", "waiting:CreateContainerConfigError/./."] },
  { title: "rejected at the door: no containers to tell about", spec: two, containers: [], snapshot: { failure: { reason: "OutOfcpu", message: "Pod was rejected: no" }, sandboxReady: false, mayRun: false }, phase: "Failed", conditions: ".IS..", reason: "PodFailed", shows: [] },
  { title: "past its deadline while it runs: not ready, phase not yet", containers: [vm(running)], snapshot: { failure: { reason: "DeadlineExceeded", message: "too long" } }, previous: { phase: "Running" }, phase: "Running", conditions: "PIS..", reason: "PodFailed", shows: ["running/S/R"] },
  { title: "past its deadline and stopped", containers: [vm(exit(143))], snapshot: { failure: { reason: "DeadlineExceeded", message: "too long" }, mayRun: false }, previous: { phase: "Running" }, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:143/./."] },
  { title: "evicted before its machine ever ran", containers: [vm(waiting("ContainerCreating"))], snapshot: { failure: { reason: "Evicted", message: "disk" }, mayRun: false }, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:137/./."] },
  { title: "deleted while it runs: as before", pod: deleted, containers: [vm(running)], phase: "Running", conditions: "PISCR", shows: ["running/S/R"] },
  { title: "deleted, stopped with 0 under Always", pod: deleted, containers: [vm(exit(0))], snapshot: over, phase: "Succeeded", conditions: "PIS..", reason: "PodCompleted", shows: ["exit:0/./."] },
  { title: "deleted, killed", pod: deleted, containers: [vm(exit(137))], snapshot: over, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:137/./."] },
  { title: "deleted before anything started", pod: deleted, containers: [], snapshot: { sandboxReady: false, mayRun: false }, phase: "Failed", conditions: ".IS..", reason: "PodFailed", shows: ["exit:137/./."] },
  { title: "deleted during back-off: the last exit is the final one", pod: deleted, containers: [vm(waiting("CrashLoopBackOff"), { lastState: exit(2), restartCount: 4 })], snapshot: over, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:2/./. #4"] },
  { title: "deleted while initialising: the machine never ran and has no exit", pod: deleted, spec: withInit, containers: [init(exit(1))], snapshot: over, phase: "Failed", conditions: "P.S..", reason: "PodFailed", shows: ["init exit:1/./.", "waiting:PodInitializing/./."] },
  { title: "deleted though refused", pod: deleted, containers: [], snapshot: { refusal: "no", sandboxReady: false, mayRun: false }, phase: "Failed", conditions: ".IS..", reason: "PodFailed", shows: ["exit:137/./."] },

  // Memory: what the API knew before counts.
  { title: "a terminal phase is for ever", containers: [vm(running)], previous: { phase: "Succeeded", reason: "Why" }, phase: "Succeeded", conditions: "PIS..", reason: "PodCompleted", shows: ["running/S/R"] },
  { title: "a terminal phase of the API is for ever too", pod: { status: { phase: "Failed" } }, containers: [], previous: {}, snapshot: over, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["waiting:ContainerCreating/./."] },
  { title: "what ran and is gone is restarted, not back to Pending", containers: [], previous: { phase: "Running", containerStatuses: [statusOf("vm", running)] }, phase: "Running", conditions: "PIS..", shows: ["waiting:ContainerCreating/./. was 137 #1"] },
  { title: "what ran and is gone must not run twice under Never", spec: { ...one, ...never }, containers: [], snapshot: over, previous: { phase: "Running", containerStatuses: [statusOf("vm", running)] }, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:137/./."] },
  { title: "an exit seen once stays, when the container was removed", spec: { ...one, ...never }, containers: [], snapshot: over, previous: { phase: "Running", containerStatuses: [statusOf("vm", exit(4))] }, phase: "Failed", conditions: "PIS..", reason: "PodFailed", shows: ["exit:4/./."] },
  { title: "a restart begins: the exit becomes the last state", containers: [vm(undefined, { restartCount: 1 })], previous: { phase: "Running", containerStatuses: [statusOf("vm", exit(4))] }, phase: "Running", conditions: "PIS..", shows: ["waiting:ContainerCreating/./. was 4 #1"] },
  { title: "a restart count never falls", containers: [vm(running, { restartCount: 1 })], previous: { phase: "Running", containerStatuses: [statusOf("vm", running, { restartCount: 5 })] }, phase: "Running", conditions: "PISCR", shows: ["running/S/R #5"] },
];

function snapshotOf(row: Partial<Row>): PodSnapshot {
  return {
    pod: { ...row.pod, metadata: { name: "p", namespace: "ns", uid: "u", generation: 7, ...row.pod?.metadata }, spec: { containers: [], ...one, ...row.spec } },
    containers: row.containers ?? [],
    hostIPs: ["192.168.1.2"],
    podIPs: ["10.1.0.5"],
    startTime: new Date("2026-05-01T11:30:00.4Z"),
    sandboxReady: true,
    mayRun: true,
    now,
    ...row.snapshot,
  };
}

function show({ state, lastState, started, ready, restartCount }: ContainerStatus): string {
  const what = state?.running !== undefined ? "running" : state?.terminated !== undefined ? `exit:${state.terminated.exitCode}` : `waiting:${state?.waiting?.reason ?? ""}`;
  return `${what}/${started === true ? "S" : "."}/${ready ? "R" : "."}${lastState?.terminated === undefined ? "" : ` was ${lastState.terminated.exitCode}`}${restartCount === 0 ? "" : ` #${restartCount}`}`;
}

function conditionsOf(status: PodStatus): string {
  const letters = [["PodReadyToStartContainers", "P"], ["Initialized", "I"], ["PodScheduled", "S"], ["ContainersReady", "C"], ["Ready", "R"]] as const;
  return letters.map(([type, letter]) => (status.conditions?.find((condition) => condition.type === type)?.status === "True" ? letter : ".")).join("");
}

const conditionOf = (status: PodStatus, type: string) => status.conditions?.find((condition) => condition.type === type);

describe("status", () => {
  test.each(rows)("$title", (row) => {
    const status = computeStatus(snapshotOf(row), row.previous);
    expect({
      phase: status.phase,
      conditions: conditionsOf(status),
      shows: [...(status.initContainerStatuses ?? []).map((container) => `init ${show(container)}`), ...(status.containerStatuses ?? []).map(show)],
      ...(row.reason !== undefined && { reason: conditionOf(status, "Ready")?.reason }),
    }).toEqual({ phase: row.phase, conditions: row.conditions, shows: row.shows, ...(row.reason !== undefined && { reason: row.reason }) });
  });

  test.each(rows)("computed twice is the same, so that nothing is patched: $title", (row) => {
    const first = computeStatus(snapshotOf(row), row.previous);
    expect(computeStatus(snapshotOf({ ...row, snapshot: { ...row.snapshot, now: new Date(now.getTime() + 60_000) } }), first)).toEqual(first);
  });

  test("in full", () => {
    const spec: Partial<PodSpec> = { containers: [{ name: "vm", image: "a", resources: { requests: { cpu: "1" }, limits: { cpu: "1" } }, volumeMounts: [{ name: "v", mountPath: "/v", readOnly: true }, { name: "w", mountPath: "/w" }] }] };
    const snapshot = snapshotOf({ spec, containers: [vm(running, { resources: { limits: { cpu: "1" } } })], snapshot: { hostIPs: ["192.168.1.2", "fd00::2"], podIPs: ["10.1.0.5", "fd00::5"] } });
    const at = { lastTransitionTime: "2026-05-01T12:00:00Z", observedGeneration: 7 };
    expect(computeStatus(snapshot, undefined)).toEqual({
      phase: "Running",
      conditions: [
        { type: "PodReadyToStartContainers", status: "True", ...at },
        { type: "Initialized", status: "True", ...at },
        { type: "Ready", status: "True", ...at },
        { type: "ContainersReady", status: "True", ...at },
        { type: "PodScheduled", status: "True", ...at },
      ],
      observedGeneration: 7,
      hostIP: "192.168.1.2",
      hostIPs: [{ ip: "192.168.1.2" }, { ip: "fd00::2" }],
      podIP: "10.1.0.5",
      podIPs: [{ ip: "10.1.0.5" }, { ip: "fd00::5" }],
      startTime: "2026-05-01T11:30:00Z",
      qosClass: "Burstable",
      containerStatuses: [
        {
          name: "vm",
          state: { running: { startedAt: "2026-05-01T11:59:00Z" } },
          lastState: {},
          ready: true,
          started: true,
          restartCount: 0,
          image: "registry/vm:1",
          imageID: "registry/vm@sha256:0",
          containerID: "docker://vm",
          allocatedResources: { cpu: "1" },
          resources: { limits: { cpu: "1" } },
          volumeMounts: [{ name: "v", mountPath: "/v", readOnly: true, recursiveReadOnly: "Disabled" }, { name: "w", mountPath: "/w" }],
        },
      ],
    });
  });
});

describe("conditions", () => {
  test("say which containers are not ready or not initialised", () => {
    const status = computeStatus(snapshotOf({ spec: { ...two, initContainers: [{ name: "init" }] }, containers: [] }), undefined);
    expect(conditionOf(status, "ContainersReady")).toMatchObject({ reason: "ContainersNotReady", message: "containers with unready status: [vm side]" });
    expect(conditionOf(status, "Initialized")).toMatchObject({ reason: "ContainersNotInitialized", message: "containers with incomplete status: [init]" });
  });

  test("keep their transition time until their status changes", () => {
    const before: PodStatus = { phase: "Running", conditions: [{ type: "Ready", status: "True", lastTransitionTime: earlier }, { type: "Initialized", status: "True", lastTransitionTime: earlier }] };
    const status = computeStatus(snapshotOf({ containers: [vm(running, { ready: false })] }), before);
    expect([conditionOf(status, "Initialized")?.lastTransitionTime, conditionOf(status, "Ready")?.lastTransitionTime]).toEqual([earlier, "2026-05-01T12:00:00Z"]);
  });

  test.each<[string, PodStatus["conditions"], string, string | undefined]>([
    ["missing", [], "False", 'corresponding condition of pod readiness gate "x/y" does not exist.'],
    ["false", [{ type: "x/y", status: "False" }], "False", 'the status of pod readiness gate "x/y" is not "True", but False'],
    ["true", [{ type: "x/y", status: "True" }], "True", undefined],
  ])("of a readiness gate that is %s", (_, conditions, ready, message) => {
    const status = computeStatus(snapshotOf({ spec: { ...one, readinessGates: [{ conditionType: "x/y" }] }, pod: { status: { conditions } }, containers: [vm(running)] }), undefined);
    expect(conditionOf(status, "ContainersReady")?.status).toBe("True");
    expect(conditionOf(status, "Ready")).toMatchObject({ status: ready, ...(message !== undefined && { reason: "ReadinessGatesNotReady", message }) });
    expect(status.conditions?.filter(({ type }) => type === "x/y")).toEqual(conditions);
  });

  test("of others stay as the API has them, ours are not doubled", () => {
    const foreign = { type: "DisruptionTarget", status: "True", reason: "EvictionByEvictionAPI", lastTransitionTime: earlier };
    const status = computeStatus(snapshotOf({ pod: { status: { conditions: [foreign, { type: "Ready", status: "True" }] } }, containers: [vm(running)] }), undefined);
    expect(status.conditions?.map(({ type }) => type)).toEqual(["DisruptionTarget", "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]);
    expect(conditionOf(status, "DisruptionTarget")).toEqual(foreign);
  });

  test("tell of a disruption with the terminal phase, not before", () => {
    const disruption = { reason: "TerminationByKubelet", message: "The node was low on resource: disk." };
    const failure = { reason: "Evicted", message: disruption.message };
    const alive = computeStatus(snapshotOf({ containers: [vm(running)], snapshot: { disruption, failure } }), { phase: "Running" });
    expect([alive.phase, conditionOf(alive, "DisruptionTarget")]).toEqual(["Running", undefined]);
    const dead = computeStatus(snapshotOf({ containers: [vm(exit(137))], snapshot: { disruption, failure, mayRun: false } }), alive);
    expect([dead.phase, dead.reason, dead.message]).toEqual(["Failed", "Evicted", disruption.message]);
    expect(conditionOf(dead, "DisruptionTarget")).toMatchObject({ status: "True", ...disruption });
  });

  test("answer a resize in place with Infeasible, and go on showing what was given", () => {
    const spec = (cpu: string): Partial<PodSpec> => ({ containers: [{ name: "vm", resources: { requests: { cpu } } }] });
    const before = computeStatus(snapshotOf({ spec: spec("1"), containers: [vm(running)] }), undefined);
    const same = computeStatus(snapshotOf({ spec: spec("1000m"), containers: [vm(running)] }), before);
    const after = computeStatus(snapshotOf({ spec: spec("2"), containers: [vm(running)] }), before);
    expect(conditionOf(same, "PodResizePending")).toBeUndefined();
    expect(conditionOf(after, "PodResizePending")).toMatchObject({ status: "True", reason: "Infeasible", message: "In-place pod resize is not supported on this node" });
    expect(after.containerStatuses?.[0]?.allocatedResources).toEqual({ cpu: "1" });
  });
});

describe("details", () => {
  test("a refusal's message is in every container", () => {
    const status = computeStatus(snapshotOf({ spec: two, snapshot: { refusal: "spec.hostPID: true cannot be honoured" } }), undefined);
    expect(status.containerStatuses?.map(({ state }) => state?.waiting?.message)).toEqual(Array.from({ length: 2 }, () => "spec.hostPID: true cannot be honoured"));
  });

  test("reason and message stay with their phase, and go with it", () => {
    const kept = computeStatus(snapshotOf({ containers: [vm(running)] }), { phase: "Running", reason: "Why", message: "because" });
    expect([kept.reason, kept.message]).toEqual(["Why", "because"]);
    const gone = computeStatus(snapshotOf({ containers: [vm(running)] }), { phase: "Pending", reason: "Why", message: "because" });
    expect([gone.reason, gone.message]).toEqual([undefined, undefined]);
  });

  test("termination messages share 12 KiB and are cut between characters", () => {
    const message = "é".repeat(8000);
    const status = computeStatus(snapshotOf({ spec: { ...two, ...never }, containers: [vm({ terminated: { exitCode: 1, message } }), side({ terminated: { exitCode: 1, message } })], snapshot: over }), undefined);
    expect(status.containerStatuses?.map(({ state }) => Buffer.byteLength(state?.terminated?.message ?? ""))).toEqual([6144, 6144]);
    const odd = computeStatus(snapshotOf({ spec: { ...one, ...never }, containers: [vm({ terminated: { exitCode: 1, message: `a${message}` } })], snapshot: over }), undefined);
    expect(odd.containerStatuses?.[0]?.state?.terminated?.message).toBe(`a${"é".repeat(6143)}`);
  });

  test("statuses are sorted by name, init containers stay in order, ephemeral ones are told apart", () => {
    const spec: PodSpec = { containers: [{ name: "z" }, { name: "a" }], initContainers: [{ name: "second" }, { name: "first" }], ephemeralContainers: [{ name: "debug" }] };
    const status = computeStatus(snapshotOf({ spec, containers: [container("debug", running, { kind: "ephemeral" })] }), undefined);
    expect(status.containerStatuses?.map(({ name }) => name)).toEqual(["a", "z"]);
    expect(status.initContainerStatuses?.map(({ name }) => name)).toEqual(["second", "first"]);
    expect(status.ephemeralContainerStatuses).toMatchObject([{ name: "debug", ready: false, state: { running: {} } }]);
  });

  test("addresses and start time stay when the network is gone", () => {
    const before = computeStatus(snapshotOf({ containers: [vm(running)] }), undefined);
    const status = computeStatus(snapshotOf({ pod: deleted, containers: [vm(exit(0))], snapshot: { podIPs: [], startTime: now, mayRun: false, sandboxReady: false } }), before);
    expect([status.podIP, status.startTime]).toEqual(["10.1.0.5", "2026-05-01T11:30:00Z"]);
  });

  test("what others write into the status is kept", () => {
    const before: PodStatus = { resourceClaimStatuses: [{ name: "c" }], nominatedNodeName: "n" };
    expect(computeStatus(snapshotOf({ containers: [vm(running)] }), before)).toMatchObject(before);
  });
});
