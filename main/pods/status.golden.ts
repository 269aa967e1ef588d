/**
 * The golden table of Pod status. A row: what was observed, and in short form what the API shows. "PISCR" are the conditions
 * PodReadyToStartContainers, Initialized, PodScheduled, ContainersReady, Ready: a letter for True, a dot for False.
 * A container reads `state/started/ready`, e.g. `running/S/R`, `waiting:CrashLoopBackOff/./.`, `exit:1/./.`.
 */
import type { ContainerState, ContainerStatus, Pod, PodSpec, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { ContainerSnapshot, PodSnapshot } from "./pod-state.ts";

export const now = new Date("2026-05-01T12:00:00.987Z");
export const earlier = "2026-05-01T11:00:00Z";

export const running: ContainerState = { running: { startedAt: "2026-05-01T11:59:00.123Z" } };
export const waiting = (reason: string, message?: string): ContainerState => ({ waiting: { reason, ...(message !== undefined && { message }) } });
export const exit = (exitCode: number, reason = exitCode === 0 ? "Completed" : "Error"): ContainerState => ({
  terminated: { exitCode, reason, startedAt: "2026-05-01T11:50:00.5Z", finishedAt: "2026-05-01T11:55:00.5Z" },
});

export function container(name: string, state: ContainerState | undefined, changes: Partial<ContainerSnapshot> = {}): ContainerSnapshot {
  const alive = state?.running !== undefined;
  return {
    name,
    kind: "main",
    state,
    lastState: undefined,
    restartCount: 0,
    started: alive,
    ready: alive,
    image: `registry/${name}:1`,
    imageId: `registry/${name}@sha256:0`,
    containerId: state === undefined ? "" : `docker://${name}`,
    ...changes,
  };
}
export const vm = (state: ContainerState | undefined, changes?: Partial<ContainerSnapshot>): ContainerSnapshot => container("vm", state, changes);
export const side = (state: ContainerState | undefined, changes?: Partial<ContainerSnapshot>): ContainerSnapshot => container("side", state, changes);
export const init = (state: ContainerState | undefined, changes?: Partial<ContainerSnapshot>): ContainerSnapshot =>
  container("init", state, { kind: "init", ...changes });

/** What a row adds to the ordinary Pod: container 0 alone, sandbox up, first status. */
export interface Situation {
  readonly spec?: Partial<PodSpec>;
  readonly pod?: Pod;
  readonly snapshot?: Partial<PodSnapshot>;
  readonly previous?: PodStatus;
  readonly containers?: readonly ContainerSnapshot[];
}

/** Title; containers; situation; phase, conditions and perhaps Ready's reason; containers as shown. */
export type Row = readonly [string, readonly ContainerSnapshot[], Situation, string, string];

export const one: Partial<PodSpec> = { containers: [{ name: "vm" }] };
export const two: Partial<PodSpec> = { containers: [{ name: "vm" }, { name: "side" }] };
export const withInit: Partial<PodSpec> = { ...one, initContainers: [{ name: "init" }] };
export const withNative: Partial<PodSpec> = { ...one, initContainers: [{ name: "init", restartPolicy: "Always" }] };
export const never: Partial<PodSpec> = { restartPolicy: "Never" };
export const onFailure: Partial<PodSpec> = { restartPolicy: "OnFailure" };
export const deleted: Pod = { metadata: { deletionTimestamp: earlier } };
export const over: Partial<PodSnapshot> = { mayRun: false };
export const statusOf = (name: string, state: ContainerState, changes: Partial<ContainerStatus> = {}): ContainerStatus => ({
  name,
  state,
  ready: false,
  restartCount: 0,
  image: name,
  imageID: "",
  ...changes,
});

export const rows: readonly Row[] = [
  // Container 0 alone: preparing, starting, running.
  ["nothing observed yet", [], { snapshot: { sandboxReady: false, mayRun: false } }, "Pending .IS.. ContainersNotReady", "waiting:ContainerCreating/./."],
  ["the machine's image is being pulled", [vm(waiting("ContainerCreating"))], {}, "Pending PIS.. ContainersNotReady", "waiting:ContainerCreating/./."],
  ["the pull failed", [vm(waiting("ErrImagePull", "no such host"))], {}, "Pending PIS.. ContainersNotReady", "waiting:ErrImagePull/./."],
  ["the pull backs off", [vm(waiting("ImagePullBackOff"))], {}, "Pending PIS..", "waiting:ImagePullBackOff/./."],
  ["the machine runs without probes", [vm(running)], {}, "Running PISCR", "running/S/R"],
  ["the guest does not answer yet", [vm(undefined)], {}, "Pending PIS..", "waiting:ContainerCreating/./."],
  ["postStart runs: not started, not ready", [vm(running, { started: false, ready: true })], {}, "Running PIS.. ContainersNotReady", "running/./."],
  ["the startup probe has not succeeded", [vm(running, { started: false, ready: false })], {}, "Running PIS..", "running/./."],
  ["the readiness probe fails", [vm(running, { ready: false })], {}, "Running PIS.. ContainersNotReady", "running/S/."],
  [
    "postStart failed and the machine is to be restarted",
    [vm(waiting("PostStartHookError"), { lastState: exit(137), restartCount: 1 })],
    {},
    "Running PIS..",
    "waiting:PostStartHookError/./. was 137 #1",
  ],

  // Machine and side-car, each half in turn.
  [
    "the side-car runs while the machine is prepared",
    [vm(waiting("ContainerCreating")), side(running)],
    { spec: two },
    "Pending PIS..",
    "running/S/R; waiting:ContainerCreating/./.",
  ],
  ["both run", [vm(running), side(running)], { spec: two }, "Running PISCR", "running/S/R; running/S/R"],
  [
    "the side-car is not created yet: Pending and not ready",
    [vm(running)],
    { spec: two },
    "Pending PIS.. ContainersNotReady",
    "waiting:ContainerCreating/./.; running/S/R",
  ],
  [
    "the side-car cannot be created",
    [vm(running), side(waiting("CreateContainerError", "no"))],
    { spec: two },
    "Pending PIS..",
    "waiting:CreateContainerError/./.; running/S/R",
  ],
  [
    "the side-car was created but not started",
    [vm(running), side(waiting("ContainerCreating"))],
    { spec: two },
    "Pending PIS..",
    "waiting:ContainerCreating/./.; running/S/R",
  ],
  [
    "the side-car crashes and backs off",
    [vm(running), side(waiting("CrashLoopBackOff"), { lastState: exit(2), restartCount: 3 })],
    { spec: two },
    "Running PIS..",
    "waiting:CrashLoopBackOff/./. was 2 #3; running/S/R",
  ],
  ["the side-car ran out of memory: the Pod goes on", [vm(running), side(exit(137, "OOMKilled"))], { spec: two }, "Running PIS..", "exit:137/./.; running/S/R"],
  [
    "the side-car finished under OnFailure: the Pod goes on",
    [vm(running), side(exit(0))],
    { spec: { ...two, ...onFailure } },
    "Running PIS..",
    "exit:0/./.; running/S/R",
  ],
  [
    "the machine finished under Never while the side-car runs",
    [vm(exit(0)), side(running)],
    { spec: { ...two, ...never } },
    "Running PIS..",
    "running/S/R; exit:0/./.",
  ],

  // Endings by restart policy.
  ["the machine powered off under Never", [vm(exit(0))], { spec: { ...one, ...never }, snapshot: over }, "Succeeded PIS.. PodCompleted", "exit:0/./."],
  ["the machine failed under Never", [vm(exit(3))], { spec: { ...one, ...never }, snapshot: over }, "Failed PIS.. PodFailed", "exit:3/./."],
  ["the machine panicked under OnFailure and restarts", [vm(exit(1))], { spec: { ...one, ...onFailure }, snapshot: over }, "Running PIS..", "exit:1/./."],
  ["the machine finished under OnFailure", [vm(exit(0))], { spec: { ...one, ...onFailure }, snapshot: over }, "Succeeded PIS.. PodCompleted", "exit:0/./."],
  ["the machine powered off under Always and restarts", [vm(exit(0))], { snapshot: over }, "Running PIS..", "exit:0/./."],
  [
    "the machine's process was killed under Always and backs off",
    [vm(waiting("CrashLoopBackOff"), { lastState: exit(137), restartCount: 1 })],
    {},
    "Running PIS..",
    "waiting:CrashLoopBackOff/./. was 137 #1",
  ],
  [
    "one of two failed under Never",
    [vm(exit(0)), side(exit(1))],
    { spec: { ...two, ...never }, snapshot: over },
    "Failed PIS.. PodFailed",
    "exit:1/./.; exit:0/./.",
  ],
  [
    "the end is not told while something may still run",
    [vm(exit(0))],
    { spec: { ...one, ...never }, previous: { phase: "Running" } },
    "Running PIS.. PodCompleted",
    "exit:0/./.",
  ],

  [
    "the machine's own restartPolicy counts before the Pod's",
    [vm(exit(1))],
    { spec: { containers: [{ name: "vm", restartPolicy: "Never" }] }, snapshot: over },
    "Failed PIS.. PodFailed",
    "exit:1/./.",
  ],
  [
    "a rule restarts the machine by its exit code",
    [vm(exit(42))],
    {
      spec: {
        ...never,
        containers: [{ name: "vm", restartPolicy: "Never", restartPolicyRules: [{ action: "Restart", exitCodes: { operator: "In", values: [42] } }] }],
      },
      snapshot: over,
    },
    "Running PIS..",
    "exit:42/./.",
  ],

  // Init containers.
  ["init containers wait", [], { spec: withInit }, "Pending P.S.. ContainersNotReady", "init waiting:PodInitializing/./.; waiting:PodInitializing/./."],
  ["an init container runs", [init(running)], { spec: withInit }, "Pending P.S..", "init running/S/.; waiting:PodInitializing/./."],
  [
    "an init container failed and is retried",
    [init(waiting("CrashLoopBackOff"), { lastState: exit(1), restartCount: 1 })],
    { spec: withInit },
    "Pending P.S..",
    "init waiting:CrashLoopBackOff/./. was 1 #1; waiting:PodInitializing/./.",
  ],
  [
    "an init container failed under Never",
    [init(exit(1))],
    { spec: { ...withInit, ...never }, snapshot: over },
    "Failed P.S.. PodFailed",
    "init exit:1/./.; waiting:PodInitializing/./.",
  ],
  ["init is done, the machine starts", [init(exit(0))], { spec: withInit }, "Pending PIS..", "init exit:0/./R; waiting:PodInitializing/./."],
  ["init is done, the machine runs", [init(exit(0)), vm(running)], { spec: withInit }, "Running PISCR", "init exit:0/./R; running/S/R"],
  [
    "a native side-car has not started",
    [init(running, { started: false, ready: false })],
    { spec: withNative },
    "Pending P.S..",
    "init running/./.; waiting:PodInitializing/./.",
  ],
  ["a native side-car started, the machine not", [init(running)], { spec: withNative }, "Pending PIS..", "init running/S/R; waiting:PodInitializing/./."],
  ["a native side-car and the machine run", [init(running), vm(running)], { spec: withNative }, "Running PISCR", "init running/S/R; running/S/R"],
  [
    "a native side-car restarts: initialised, but not ready",
    [init(waiting("CrashLoopBackOff"), { lastState: exit(1), restartCount: 1 }), vm(running)],
    { spec: withNative },
    "Running PIS.. ContainersNotReady",
    "init waiting:CrashLoopBackOff/./. was 1 #1; running/S/R",
  ],
  [
    "a native side-car's exit code does not count",
    [init(exit(137)), vm(exit(0))],
    { spec: { ...withNative, ...never }, snapshot: over },
    "Succeeded PIS.. PodCompleted",
    "init exit:137/./.; exit:0/./.",
  ],

  // Refusal, failure of the Pod as a whole, deletion.
  [
    "refused: Pending, every container says why",
    [],
    { spec: two, snapshot: { refusal: "spec.hostPID: true cannot be honoured", sandboxReady: false, mayRun: false } },
    "Pending .IS..",
    "waiting:CreateContainerConfigError/./.; waiting:CreateContainerConfigError/./.",
  ],
  [
    "rejected at the door: no containers to tell about",
    [],
    { spec: two, snapshot: { failure: { reason: "OutOfcpu", message: "Pod was rejected: no" }, sandboxReady: false, mayRun: false } },
    "Failed .IS.. PodFailed",
    "",
  ],
  [
    "past its deadline while it runs: not ready, phase not yet",
    [vm(running)],
    { snapshot: { failure: { reason: "DeadlineExceeded", message: "too long" } }, previous: { phase: "Running" } },
    "Running PIS.. PodFailed",
    "running/S/R",
  ],
  [
    "past its deadline and stopped",
    [vm(exit(143))],
    { snapshot: { failure: { reason: "DeadlineExceeded", message: "too long" }, mayRun: false }, previous: { phase: "Running" } },
    "Failed PIS.. PodFailed",
    "exit:143/./.",
  ],
  [
    "evicted before its machine ever ran",
    [vm(waiting("ContainerCreating"))],
    { snapshot: { failure: { reason: "Evicted", message: "disk" }, mayRun: false } },
    "Failed PIS.. PodFailed",
    "exit:137/./.",
  ],
  ["deleted while it runs: as before", [vm(running)], { pod: deleted }, "Running PISCR", "running/S/R"],
  ["deleted, stopped with 0 under Always", [vm(exit(0))], { pod: deleted, snapshot: over }, "Succeeded PIS.. PodCompleted", "exit:0/./."],
  ["deleted, killed", [vm(exit(137))], { pod: deleted, snapshot: over }, "Failed PIS.. PodFailed", "exit:137/./."],
  ["deleted before anything started", [], { pod: deleted, snapshot: { sandboxReady: false, mayRun: false } }, "Failed .IS.. PodFailed", "exit:137/./."],
  [
    "deleted during back-off: the last exit is the final one",
    [vm(waiting("CrashLoopBackOff"), { lastState: exit(2), restartCount: 4 })],
    { pod: deleted, snapshot: over },
    "Failed PIS.. PodFailed",
    "exit:2/./. #4",
  ],
  [
    "deleted while initialising: the machine never ran and has no exit",
    [init(exit(1))],
    { pod: deleted, spec: withInit, snapshot: over },
    "Failed P.S.. PodFailed",
    "init exit:1/./.; waiting:PodInitializing/./.",
  ],
  ["deleted though refused", [], { pod: deleted, snapshot: { refusal: "no", sandboxReady: false, mayRun: false } }, "Failed .IS.. PodFailed", "exit:137/./."],

  // Memory: what the API knew before counts.
  ["a terminal phase is for ever", [vm(running)], { previous: { phase: "Succeeded", reason: "Why" } }, "Succeeded PIS.. PodCompleted", "running/S/R"],
  [
    "a terminal phase of the API is for ever too",
    [],
    { pod: { status: { phase: "Failed" } }, previous: {}, snapshot: over },
    "Failed PIS.. PodFailed",
    "waiting:ContainerCreating/./.",
  ],
  [
    "what ran and is gone is restarted, not back to Pending",
    [],
    { previous: { phase: "Running", containerStatuses: [statusOf("vm", running)] } },
    "Running PIS..",
    "waiting:ContainerCreating/./. was 137 #1",
  ],
  [
    "what ran and is gone must not run twice under Never",
    [],
    { spec: { ...one, ...never }, snapshot: over, previous: { phase: "Running", containerStatuses: [statusOf("vm", running)] } },
    "Failed PIS.. PodFailed",
    "exit:137/./.",
  ],
  [
    "an exit seen once stays, when the container was removed",
    [],
    { spec: { ...one, ...never }, snapshot: over, previous: { phase: "Running", containerStatuses: [statusOf("vm", exit(4))] } },
    "Failed PIS.. PodFailed",
    "exit:4/./.",
  ],
  [
    "what must not run again stays terminated, whatever is observed",
    [vm(waiting("ContainerCreating"))],
    { spec: { ...one, ...never }, previous: { phase: "Running", containerStatuses: [statusOf("vm", exit(4))] } },
    "Running PIS.. PodFailed",
    "exit:4/./.",
  ],
  [
    "a restart begins: the exit becomes the last state",
    [vm(undefined, { restartCount: 1 })],
    { previous: { phase: "Running", containerStatuses: [statusOf("vm", exit(4))] } },
    "Running PIS..",
    "waiting:ContainerCreating/./. was 4 #1",
  ],
  [
    "a restart count never falls",
    [vm(running, { restartCount: 1 })],
    { previous: { phase: "Running", containerStatuses: [statusOf("vm", running, { restartCount: 5 })] } },
    "Running PISCR",
    "running/S/R #5",
  ],
];
