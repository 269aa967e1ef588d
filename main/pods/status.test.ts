/** A Pod's status: the golden table of status.golden.ts, and what a row cannot show. */
import { describe, expect, test } from "vitest";
import type { ContainerStatus, PodSpec, PodStatus } from "../contract/kubernetes-api.generated.ts";
import type { PodSnapshot } from "./pod-state.ts";
import { container, deleted, earlier, exit, never, now, one, over, rows, running, side, two, vm, type Situation } from "./status.golden.ts";
import { computeStatus } from "./status.ts";

function snapshotOf(row: Situation): PodSnapshot {
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
  const what =
    state?.running !== undefined
      ? "running"
      : state?.terminated !== undefined
        ? `exit:${state.terminated.exitCode}`
        : `waiting:${state?.waiting?.reason ?? ""}`;
  return `${what}/${started === true ? "S" : "."}/${ready ? "R" : "."}${lastState?.terminated === undefined ? "" : ` was ${lastState.terminated.exitCode}`}${restartCount === 0 ? "" : ` #${restartCount}`}`;
}

function conditionsOf(status: PodStatus): string {
  const letters = [
    ["PodReadyToStartContainers", "P"],
    ["Initialized", "I"],
    ["PodScheduled", "S"],
    ["ContainersReady", "C"],
    ["Ready", "R"],
  ] as const;
  return letters.map(([type, letter]) => (status.conditions?.find((condition) => condition.type === type)?.status === "True" ? letter : ".")).join("");
}

const conditionOf = (status: PodStatus, type: string) => status.conditions?.find((condition) => condition.type === type);

describe("status", () => {
  test.each(rows)("%s", (_, containers, situation, verdict, shown) => {
    const status = computeStatus(snapshotOf({ ...situation, containers }), situation.previous);
    const [, , reason] = verdict.split(" ");
    expect([status.phase, conditionsOf(status), ...(reason === undefined ? [] : [conditionOf(status, "Ready")?.reason])].join(" ")).toBe(verdict);
    expect(
      [...(status.initContainerStatuses ?? []).map((container) => `init ${show(container)}`), ...(status.containerStatuses ?? []).map(show)].join("; "),
    ).toBe(shown);
  });

  test.each(rows)("computed twice is the same, so that nothing is patched: %s", (_, containers, situation) => {
    const first = computeStatus(snapshotOf({ ...situation, containers }), situation.previous);
    const later = { ...situation.snapshot, now: new Date(now.getTime() + 60_000) };
    expect(computeStatus(snapshotOf({ ...situation, containers, snapshot: later }), first)).toEqual(first);
  });

  test("in full", () => {
    const spec: Partial<PodSpec> = {
      containers: [
        {
          name: "vm",
          image: "a",
          resources: { requests: { cpu: "1" }, limits: { cpu: "1" } },
          volumeMounts: [
            { name: "v", mountPath: "/v", readOnly: true },
            { name: "w", mountPath: "/w" },
          ],
        },
      ],
    };
    const snapshot = snapshotOf({
      spec,
      containers: [vm(running, { resources: { limits: { cpu: "1" } } })],
      snapshot: { hostIPs: ["192.168.1.2", "10.9.9.9", "fd00::2", "fd00::3"], podIPs: ["10.1.0.5", "fd00::5"] },
    });
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
          volumeMounts: [
            { name: "v", mountPath: "/v", readOnly: true, recursiveReadOnly: "Disabled" },
            { name: "w", mountPath: "/w" },
          ],
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
    const before: PodStatus = {
      phase: "Running",
      conditions: [
        { type: "Ready", status: "True", lastTransitionTime: earlier },
        { type: "Initialized", status: "True", lastTransitionTime: earlier },
      ],
    };
    const status = computeStatus(snapshotOf({ containers: [vm(running, { ready: false })] }), before);
    expect([conditionOf(status, "Initialized")?.lastTransitionTime, conditionOf(status, "Ready")?.lastTransitionTime]).toEqual([
      earlier,
      "2026-05-01T12:00:00Z",
    ]);
  });

  test.each<[string, PodStatus["conditions"], string, string | undefined]>([
    ["missing", [], "False", 'corresponding condition of pod readiness gate "x/y" does not exist.'],
    ["false", [{ type: "x/y", status: "False" }], "False", 'the status of pod readiness gate "x/y" is not "True", but False'],
    ["true", [{ type: "x/y", status: "True" }], "True", undefined],
  ])("of a readiness gate that is %s", (_, conditions, ready, message) => {
    const status = computeStatus(
      snapshotOf({ spec: { ...one, readinessGates: [{ conditionType: "x/y" }] }, pod: { status: { conditions } }, containers: [vm(running)] }),
      undefined,
    );
    expect(conditionOf(status, "ContainersReady")?.status).toBe("True");
    expect(conditionOf(status, "Ready")).toMatchObject({ status: ready, ...(message !== undefined && { reason: "ReadinessGatesNotReady", message }) });
    expect(status.conditions?.filter(({ type }) => type === "x/y")).toEqual(conditions);
  });

  test("of others stay as the API has them, ours are not doubled", () => {
    const foreign = { type: "DisruptionTarget", status: "True", reason: "EvictionByEvictionAPI", lastTransitionTime: earlier };
    const status = computeStatus(
      snapshotOf({ pod: { status: { conditions: [foreign, { type: "Ready", status: "True" }] } }, containers: [vm(running)] }),
      undefined,
    );
    expect(status.conditions?.map(({ type }) => type)).toEqual([
      "DisruptionTarget",
      "PodReadyToStartContainers",
      "Initialized",
      "Ready",
      "ContainersReady",
      "PodScheduled",
    ]);
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
    expect(conditionOf(after, "PodResizePending")).toMatchObject({
      status: "True",
      reason: "Infeasible",
      message: "In-place pod resize is not supported on this node",
    });
    expect(after.containerStatuses?.[0]?.allocatedResources).toEqual({ cpu: "1" });
  });
});

describe("details", () => {
  test("a refusal's message is in every container", () => {
    const status = computeStatus(snapshotOf({ spec: two, snapshot: { refusal: "spec.hostPID: true cannot be honoured" } }), undefined);
    expect(status.containerStatuses?.map(({ state }) => state?.waiting?.message)).toEqual(
      Array.from({ length: 2 }, () => "spec.hostPID: true cannot be honoured"),
    );
  });

  test("reason and message stay with their phase, and go with it", () => {
    const kept = computeStatus(snapshotOf({ containers: [vm(running)] }), { phase: "Running", reason: "Why", message: "because" });
    expect([kept.reason, kept.message]).toEqual(["Why", "because"]);
    const gone = computeStatus(snapshotOf({ containers: [vm(running)] }), { phase: "Pending", reason: "Why", message: "because" });
    expect([gone.reason, gone.message]).toEqual([undefined, undefined]);
  });

  test("termination messages share 12 KiB and are cut between characters", () => {
    const message = "é".repeat(8000);
    const status = computeStatus(
      snapshotOf({
        spec: { ...two, ...never },
        containers: [vm({ terminated: { exitCode: 1, message } }), side({ terminated: { exitCode: 1, message } })],
        snapshot: over,
      }),
      undefined,
    );
    expect(status.containerStatuses?.map(({ state }) => Buffer.byteLength(state?.terminated?.message ?? ""))).toEqual([6144, 6144]);
    const odd = computeStatus(
      snapshotOf({ spec: { ...one, ...never }, containers: [vm({ terminated: { exitCode: 1, message: `a${message}` } })], snapshot: over }),
      undefined,
    );
    expect(odd.containerStatuses?.[0]?.state?.terminated?.message).toBe(`a${"é".repeat(6143)}`);
  });

  test("statuses are sorted by name, init containers stay in order, ephemeral ones are told apart", () => {
    const spec: PodSpec = {
      containers: [{ name: "z" }, { name: "a" }],
      initContainers: [{ name: "second" }, { name: "first" }],
      ephemeralContainers: [{ name: "debug" }],
    };
    const status = computeStatus(snapshotOf({ spec, containers: [container("debug", running, { kind: "ephemeral" })] }), undefined);
    expect(status.containerStatuses?.map(({ name }) => name)).toEqual(["a", "z"]);
    expect(status.initContainerStatuses?.map(({ name }) => name)).toEqual(["second", "first"]);
    expect(status.ephemeralContainerStatuses).toMatchObject([{ name: "debug", ready: false, state: { running: {} } }]);
  });

  test("addresses and start time stay when the network is gone", () => {
    const before = computeStatus(snapshotOf({ containers: [vm(running)] }), undefined);
    const status = computeStatus(
      snapshotOf({ pod: deleted, containers: [vm(exit(0))], snapshot: { podIPs: [], startTime: now, mayRun: false, sandboxReady: false } }),
      before,
    );
    expect([status.podIP, status.startTime]).toEqual(["10.1.0.5", "2026-05-01T11:30:00Z"]);
  });

  test("what others write into the status is kept", () => {
    const status: PodStatus = { resourceClaimStatuses: [{ name: "c" }] };
    expect(computeStatus(snapshotOf({ pod: { status }, containers: [vm(running)] }), undefined)).toMatchObject(status);
  });
});
