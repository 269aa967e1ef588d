import { describe, expect, it } from "vitest";
import type { ContainerSpecification } from "./container-engine.ts";
import { containerName, finishedContainerName, uniqueContainerName } from "./container-labels.ts";
import { containerOptions, sandboxOptions } from "./container-options.ts";
import { containerStatistics } from "./container-statistics.ts";
import { imageParameters } from "./engine-images.ts";
import { isMemoryKill } from "./kernel-log.ts";
import { pullError } from "./pull-progress.ts";

const pod = { podUid: "0b9c1c5e-7d6f-4d2a-9a53-1f2e3d4c5b6a", namespace: "team", podName: "web" };
const plain: ContainerSpecification = {
  ...pod,
  name: "main",
  restartCount: 2,
  image: "i",
  environment: [],
  stdin: false,
  stdinOnce: false,
  terminal: false,
  mounts: [],
  labels: {},
};
const context = { hostId: "host", image: "pause", helperVolume: "volume", sandboxId: "sandbox" };
const options = (more: Partial<ContainerSpecification>) => containerOptions({ ...plain, ...more }, context);

describe("container options", () => {
  it("join the sandbox and leave the image's entrypoint, cmd, user and directory alone", () => {
    const { HostConfig, ...rest } = options({});
    expect(rest).toEqual({
      Image: "i",
      Labels: {
        "dev.podyard.host": "host",
        "dev.podyard.pod-uid": pod.podUid,
        "dev.podyard.namespace": "team",
        "dev.podyard.pod-name": "web",
        "dev.podyard.role": "side-car",
        "dev.podyard.container": "main",
        "dev.podyard.restart-count": "2",
      },
      Env: [],
      OpenStdin: false,
      StdinOnce: false,
      Tty: false,
      Healthcheck: { Test: ["NONE"] },
    });
    expect(HostConfig).toMatchObject({
      NetworkMode: "container:sandbox",
      IpcMode: "container:sandbox",
      Privileged: false,
      ReadonlyRootfs: false,
      CapAdd: [],
      CapDrop: [],
      SecurityOpt: [],
      RestartPolicy: { Name: "" },
    });
    expect(HostConfig).not.toHaveProperty("PidMode");
    expect(HostConfig).not.toHaveProperty("Memory");
    expect(HostConfig?.Mounts).toEqual([{ Type: "volume", Source: "volume", Target: "/.podyard", ReadOnly: true }]);
  });

  it.each<[string, Partial<ContainerSpecification>, object]>([
    ["command", { command: ["a", ""] }, { Entrypoint: ["a", ""] }],
    ["args", { args: ["b"] }, { Cmd: ["b"] }],
    ["no arguments", { command: ["a"], args: [] }, { Entrypoint: ["a"], Cmd: [] }],
    ["environment", { environment: [{ name: "A", value: "=b" }] }, { Env: ["A==b"] }],
    ["CPU", { cpuLimit: 5e8, cpuShares: 512 }, { HostConfig: { NanoCpus: 5e8, CpuShares: 512 } }],
    ["memory without swap", { memoryLimit: 1024 }, { HostConfig: { Memory: 1024, MemorySwap: 1024 } }],
    ["shared processes", { shareProcessNamespace: true }, { HostConfig: { PidMode: "container:sandbox" } }],
    ["the host's processes", { shareProcessNamespace: true, hostProcessNamespace: true }, { HostConfig: { PidMode: "host" } }],
    [
      "privileges",
      { noNewPrivileges: true, seccompProfile: "Unconfined", capabilitiesDrop: ["ALL"], capabilitiesAdd: ["NET_BIND_SERVICE"] },
      { HostConfig: { SecurityOpt: ["no-new-privileges", "seccomp=unconfined"], CapDrop: ["ALL"], CapAdd: ["NET_BIND_SERVICE"] } },
    ],
    ["the engine's own seccomp profile", { seccompProfile: "RuntimeDefault" }, { HostConfig: { SecurityOpt: [] } }],
    [
      "identity",
      { user: "1:2", groups: ["3"], workingDirectory: "/w", stopSignal: "SIGINT" },
      { User: "1:2", WorkingDir: "/w", StopSignal: "SIGINT", HostConfig: { GroupAdd: ["3"] } },
    ],
  ])("carry %s", (_, specification, expected) => {
    expect(options(specification)).toMatchObject(expected);
  });

  it("do not let free labels take ours", () => {
    expect(options({ labels: { mine: "1", "dev.podyard.pod-uid": "other" } }).Labels).toMatchObject({ mine: "1", "dev.podyard.pod-uid": pod.podUid });
  });

  it.each([
    [undefined, "rprivate"],
    ["None", "rprivate"],
    ["HostToContainer", "rslave"],
    ["Bidirectional", "rshared"],
  ] as const)("mount with propagation %s as %s", (propagation, expected) => {
    const [mount] =
      options({ mounts: [{ hostPath: "/h", containerPath: "/c", readOnly: true, ...(propagation === undefined ? {} : { propagation }) }] }).HostConfig
        ?.Mounts ?? [];
    expect(mount).toEqual({ Type: "bind", Source: "/h", Target: "/c", ReadOnly: true, BindOptions: { Propagation: expected } });
  });

  it("give the sandbox nothing but its namespaces", () => {
    expect(sandboxOptions({ ...pod, hostname: "web", sysctls: { a: "1" } }, context)).toMatchObject({
      Hostname: "web",
      HostConfig: { NetworkMode: "none", IpcMode: "shareable", Sysctls: { a: "1" }, CapDrop: ["ALL"], ReadonlyRootfs: true, RestartPolicy: { Name: "" } },
    });
  });
});

it("names are those of macOS-vz-kubelet", () => {
  expect(containerName(pod, "main")).toBe("macos-vz_team_web_main");
  expect(finishedContainerName(containerName(pod, "main"), 3)).toBe("macos-vz_team_web_main_3");
  expect(uniqueContainerName(pod, "main")).toBe("macos-vz_team_web_main_0b9c1c5e");
});

it.each([
  ["busybox", { fromImage: "busybox", tag: "latest" }],
  ["busybox:1", { fromImage: "busybox", tag: "1" }],
  ["localhost:5000/a/b", { fromImage: "localhost:5000/a/b", tag: "latest" }],
  ["localhost:5000/a/b:2", { fromImage: "localhost:5000/a/b", tag: "2" }],
  ["a/b:2@sha256:00", { fromImage: "a/b:2@sha256:00" }],
])("%s is asked for as exactly one image", (reference, parameters) => {
  expect(imageParameters(reference)).toEqual(parameters);
});

it.each([
  ["unauthorized: incorrect username or password", "Unauthorized"],
  ['Get "https://r.example/v2/": no basic auth credentials', "Unauthorized"],
  ["error parsing HTTP 403 response body: ...", "Unauthorized"],
  ["pull access denied for a/b, repository does not exist or may require 'docker login': denied: requested access", "NotFound"],
  ["manifest for a/b:c not found: manifest unknown: manifest unknown", "NotFound"],
  ["no matching manifest for linux/arm64/v8 in the manifest list entries", "NotFound"],
  ['Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused', "Unavailable"],
  ['Get "https://r.example/v2/": dial tcp: lookup r.example: no such host', "Unavailable"],
  ["toomanyrequests: You have reached your pull rate limit", "Unavailable"],
  ["received unexpected HTTP status: 503 Service Unavailable", "Unavailable"],
  ["invalid reference format: repository name must be lowercase", "InvalidArgument"],
  ["write /var/lib/docker/tmp/x: no space left on device", "NoSpace"],
  ["filesystem layer verification failed for digest sha256:00", "Corrupt"],
  ["something new", "Internal"],
])("the engine's %j is %s", (sentence, code) => {
  expect(pullError(sentence, 'pull image "x"')).toMatchObject({ code, message: expect.stringContaining(sentence) });
});

it("the kernel's line tells which container ran out of memory", () => {
  const record =
    "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=abc,mems_allowed=0,oom_memcg=/docker/abc,task_memcg=/docker/abc,task=dd,pid=5,uid=0\n";
  expect(isMemoryKill(record, "abc")).toBe(true);
  expect(isMemoryKill(record, "def")).toBe(false);
  expect(isMemoryKill(record.replace("MEMCG", "NONE"), "abc")).toBe(false);
});

describe("statistics", () => {
  const answer = (memory: object): object => ({ read: "2026-01-01T00:00:00Z", cpu_stats: { cpu_usage: { total_usage: 5 } }, memory_stats: memory });
  it.each([
    ["cgroup v1", { usage: 100, stats: { total_inactive_file: 30, inactive_file: 10 } }, 70],
    ["cgroup v2", { usage: 100, stats: { inactive_file: 40 } }, 60],
    ["a cache above the usage", { usage: 100, stats: { inactive_file: 140 } }, 0],
  ])("subtract the inactive file cache (%s)", (_, memory, workingSet) => {
    expect(containerStatistics(answer(memory))).toEqual({
      time: new Date("2026-01-01T00:00:00Z"),
      cpuNanoseconds: 5,
      memoryUsageBytes: 100,
      memoryWorkingSetBytes: workingSet,
    });
  });
  it("are absent for a container that does not run", () => {
    expect(containerStatistics({ ...answer({}), read: "0001-01-01T00:00:00Z" })).toBeUndefined();
  });
});
