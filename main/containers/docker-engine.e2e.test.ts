/** The life of side-cars on a real engine. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import type { LogRequest } from "../contract/streams.ts";
import type { ContainerEngine, ContainerInfo, ContainerSpecification } from "./container-engine.ts";
import { createDockerEngine } from "./docker-engine.ts";
import { busybox, container, eventually, helperDirectory, newPod, startTestEngine, textOf, type TestEngine } from "./test-engine.ts";

let test: TestEngine;
let engine: ContainerEngine;

type Pod = ReturnType<typeof newPod>;

async function podWithSandbox(): Promise<Pod> {
  const pod = newPod();
  await engine.ensureSandbox({ ...pod, hostname: pod.podName, sysctls: {} });
  return pod;
}

async function started(pod: Pod, script: string, more: Partial<ContainerSpecification> = {}): Promise<ContainerInfo> {
  const info = await engine.create(container(pod, script, more));
  await engine.start(info.id);
  return info;
}

async function exited(id: string): Promise<ContainerInfo> {
  let found: ContainerInfo | undefined;
  await eventually(async () => {
    found = await engine.inspect(id);
    expect(found?.state).toBe("exited");
  });
  if (found === undefined) throw new Error("no container");
  return found;
}

async function log(id: string, request: Partial<LogRequest> = {}): Promise<string> {
  return textOf(await engine.logs(id, { follow: false, previous: false, timestamps: false, ...request }));
}

beforeAll(async () => {
  test = await startTestEngine();
  engine = createDockerEngine({ ...test.engine.address, hostId: "one", helperDirectory, logger: silentLogger });
});

afterAll(() => test.close());

describe("sandbox", () => {
  it("is made once, by concurrent callers too, and started again after it died", async () => {
    const pod = newPod();
    const specification = { ...pod, hostname: "the-host", sysctls: { "net.ipv4.ip_unprivileged_port_start": "80" } };
    const [first, second] = await Promise.all([engine.ensureSandbox(specification), engine.ensureSandbox(specification)]);
    expect(second).toEqual(first);
    await test.docker.getContainer(first.id).kill();
    const again = await engine.ensureSandbox(specification);
    expect(again.id).toBe(first.id);
    expect(again.processId).not.toBe(first.processId);
    expect(await engine.list(pod.podUid)).toEqual([]);
  });

  it("ends at once on SIGTERM", async () => {
    const pod = newPod();
    const { id } = await engine.ensureSandbox({ ...pod, hostname: "x", sysctls: {} });
    const before = performance.now();
    await test.docker.getContainer(id).stop({ t: 10 });
    expect(performance.now() - before).toBeLessThan(3000);
  });
});

describe("container", () => {
  it("runs in the sandbox's namespaces, with its host name, and tells how it ended", async () => {
    const pod = await podWithSandbox();
    const info = await started(pod, "hostname; ls /sys/class/net | tr '\\n' ' '; exit 3");
    const ended = await exited(info.id);
    expect(ended).toMatchObject({ ...pod, name: "main", restartCount: 0, exitCode: 3, outOfMemoryKilled: false, image: busybox });
    expect(ended.finishedAt?.getTime()).toBeGreaterThanOrEqual(ended.startedAt?.getTime() ?? Number.POSITIVE_INFINITY);
    const text = await log(info.id);
    expect(text).toContain(`${pod.podName}\nlo`);
    expect(text).not.toContain("eth0");
  });

  it("needs a sandbox", async () => {
    await expect(engine.create(container(newPod(), "true"))).rejects.toMatchObject({ code: "Conflict" });
  });

  it("says what is missing when it cannot start", async () => {
    const pod = await podWithSandbox();
    const info = await engine.create(container(pod, "", { command: ["/no/such"] }));
    await expect(engine.start(info.id)).rejects.toThrow(/\/no\/such.*no such file or directory/);
    expect(await engine.inspect(info.id)).toMatchObject({ state: "created", exitCode: 127 });
    await expect(engine.create(container(pod, "true", { name: "other", image: "podyard.test/none:1" }))).rejects.toMatchObject({ code: "NotFound" });
  });

  it("keeps the last instance for --previous under the name of its restart count, and only that one", async () => {
    const pod = await podWithSandbox();
    for (let restartCount = 0; restartCount < 3; restartCount += 1) {
      const info = await started(pod, `echo run ${restartCount}`, { restartCount });
      await exited(info.id);
    }
    const all = await test.docker.listContainers({ all: true, filters: { label: [`dev.podyard.pod-uid=${pod.podUid}`, "dev.podyard.role=side-car"] } });
    const name = `/macos-vz_default_${pod.podName}_main`;
    expect(all.flatMap(({ Names }) => Names).toSorted()).toEqual([name, `${name}_1`]);
    const current = (await engine.list(pod.podUid)).find(({ restartCount }) => restartCount === 2);
    if (current === undefined) throw new Error("no current instance");
    expect(await log(current.id)).toBe("run 2\n");
    expect(await log(current.id, { previous: true })).toBe("run 1\n");
    const first = await started(await podWithSandbox(), "true");
    await expect(log(first.id, { previous: true })).rejects.toMatchObject({ code: "NotFound" });
  });

  it("is created once for one restart count", async () => {
    const pod = await podWithSandbox();
    const unstarted = await engine.create(container(pod, "echo old"));
    const info = await started(pod, "echo new; sleep 100");
    expect(info.id).not.toBe(unstarted.id);
    expect((await engine.create(container(pod, "echo newer"))).id).toBe(info.id);
    await expect(engine.create(container(pod, "true", { restartCount: 1 }))).rejects.toMatchObject({ code: "Conflict" });
    await engine.stop(info.id, 0);
  });

  it("is stopped by SIGTERM within the grace period, by SIGKILL after it, and twice without harm", async () => {
    const pod = await podWithSandbox();
    const polite = await started(pod, "trap 'exit 4' TERM; echo ready; while true; do sleep 1 & wait; done", { name: "polite" });
    const stubborn = await started(pod, "trap '' TERM; echo ready; while true; do sleep 1; done", { name: "stubborn" });
    await eventually(async () => expect((await log(polite.id)) + (await log(stubborn.id))).toBe("ready\nready\n"));
    await Promise.all([engine.stop(polite.id, 10), engine.stop(stubborn.id, 1)]);
    expect((await engine.inspect(polite.id))?.exitCode).toBe(4);
    expect((await engine.inspect(stubborn.id))?.exitCode).toBe(137);
    await engine.stop(polite.id, 10);
    await engine.remove(polite.id);
    await engine.remove(polite.id);
    await engine.stop(polite.id, 10);
    expect(await engine.inspect(polite.id)).toBeUndefined();
  });

  it("sees mounts (also with a colon in the path), environment, user and groups, and a read-only root", async () => {
    const pod = await podWithSandbox();
    const directory = join(test.directory, "vol:ume");
    await mkdir(directory, { recursive: true, mode: 0o755 });
    await writeFile(join(directory, "file"), "content\n", { mode: 0o644 });
    const info = await started(pod, 'cat /data/file; touch /data/new || echo data is read-only; touch /new || echo root is read-only; id; echo "$ODD"', {
      mounts: [{ hostPath: directory, containerPath: "/data", readOnly: true }],
      environment: [{ name: "ODD", value: "a=b\nc \u00e9" }],
      user: "1000:1000",
      groups: ["2000"],
      readOnlyRootFileSystem: true,
    });
    await exited(info.id);
    const text = await log(info.id, { stream: "Stdout" });
    expect(text).toBe("content\ndata is read-only\nroot is read-only\nuid=1000(user) gid=1000(user) groups=1000(user),2000\na=b\nc \u00e9\n");
    await expect(
      engine.create(container(pod, "true", { name: "other", mounts: [{ hostPath: join(directory, "none"), containerPath: "/x", readOnly: false }] })),
    ).rejects.toMatchObject({ code: "InvalidArgument" });
  });

  it("is told to have run out of memory", async () => {
    const info = await started(await podWithSandbox(), "dd if=/dev/zero of=/dev/null bs=64M count=2", {
      memoryLimit: 16 * 1024 * 1024,
      cpuLimit: 5e8,
      cpuShares: 256,
    });
    expect(await exited(info.id)).toMatchObject({ outOfMemoryKilled: true, exitCode: 137 });
  });

  it("shares processes only if asked", async () => {
    const pod = await podWithSandbox();
    const own = await started(pod, "ps | grep -c '[p]odyard-init'", { name: "own" });
    const shared = await started(pod, "ps | grep -c '[p]odyard-init'", { name: "shared", shareProcessNamespace: true });
    await Promise.all([exited(own.id), exited(shared.id)]);
    expect((await log(shared.id)).trim()).toBe("1");
    expect((await log(own.id)).trim()).toBe("0");
  });
});

describe("logs", () => {
  const line = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z /;

  it("merges, filters, tails, cuts and dates", async () => {
    const info = await started(await podWithSandbox(), "for n in 1 2 3 4 5; do echo out $n; done; echo error >&2");
    await exited(info.id);
    expect((await log(info.id)).split("\n").toSorted()).toEqual(["", "error", "out 1", "out 2", "out 3", "out 4", "out 5"]);
    expect(await log(info.id, { stream: "Stdout" })).toBe("out 1\nout 2\nout 3\nout 4\nout 5\n");
    expect(await log(info.id, { stream: "Stderr" })).toBe("error\n");
    expect((await log(info.id, { tailLines: 2 })).split("\n")).toHaveLength(3);
    expect(await log(info.id, { tailLines: 0 })).toBe("");
    expect(await log(info.id, { limitBytes: 9, stream: "Stdout" })).toBe("out 1\nout");
    for (const text of (await log(info.id, { timestamps: true })).trimEnd().split("\n")) expect(text).toMatch(line);
    expect(await log(info.id, { sinceTime: new Date(Date.now() + 60_000) })).toBe("");
  });

  it.each([false, true])("keeps a line longer than the engine's pieces whole (terminal: %s)", async (terminal) => {
    const long = "head -c 40000 /dev/zero | tr '\\0' x; echo";
    const info = await started(await podWithSandbox(), `echo first; ${long}; echo last`, { terminal });
    await exited(info.id);
    const end = terminal ? "\r\n" : "\n";
    const whole = `${"x".repeat(40_000)}${end}`;
    expect(await log(info.id)).toBe(`first${end}${whole}last${end}`);
    const dated = (await log(info.id, { timestamps: true })).split("\n");
    expect(dated.map((text) => text.replace(line, "").length)).toEqual(`first${end}${whole}last${end}`.split("\n").map((text) => text.length));
    expect(await log(info.id, { tailLines: 2 })).toBe(`${whole}last${end}`);
    expect(await log(info.id, { tailLines: 1 })).toBe(`last${end}`);
    expect(await log(info.id, { tailLines: 9 })).toBe(`first${end}${whole}last${end}`);
  });

  it("follows until the container ends", async () => {
    const info = await started(await podWithSandbox(), "echo one; read go; echo two", { stdin: true });
    const following = await engine.logs(info.id, { follow: true, previous: false, timestamps: false });
    const first: Buffer = await new Promise((resolve) => following.once("data", resolve));
    expect(first.toString()).toBe("one\n");
    const rest = textOf(following);
    const session = await engine.attach(info.id, { stdin: true, stdout: true, stderr: false });
    session.stdin?.write("go\n");
    expect(await rest).toBe("two\n");
    await session.exit;
  });

  it("stops following when the reader leaves, though nothing is written", async () => {
    const info = await started(await podWithSandbox(), "sleep 1000");
    const abort = new AbortController();
    const following = await engine.logs(info.id, { follow: true, previous: false, timestamps: false, signal: abort.signal });
    const closed = new Promise((resolve) => following.once("close", resolve));
    following.on("error", () => undefined);
    following.resume();
    abort.abort();
    await closed;
    await engine.stop(info.id, 0);
  });

  it("does not read ahead of its reader", async () => {
    const info = await started(await podWithSandbox(), "yes 0123456789012345678901234567890123456789 | head -c 8000000");
    await exited(info.id);
    const stream = await engine.logs(info.id, { follow: false, previous: false, timestamps: true });
    await new Promise((resolve) => stream.once("readable", resolve));
    expect(stream.readableLength).toBeLessThan(300_000);
    let bytes = 0;
    for await (const chunk of stream) bytes += chunk.length;
    expect(bytes).toBeGreaterThan(8_000_000);
  });
});

describe("files and statistics", () => {
  it("reads the end of a file, also of a stopped container and through links", async () => {
    const info = await started(await podWithSandbox(), "seq 1 1000 > /tmp/numbers; ln -s numbers /tmp/link; ln -s /tmp/link /etc/second; mkdir /tmp/dir");
    await exited(info.id);
    expect((await engine.readFile(info.id, "/tmp/numbers", 9))?.toString()).toBe("999\n1000\n");
    expect((await engine.readFile(info.id, "/etc/second", 5))?.toString()).toBe("1000\n");
    expect(await engine.readFile(info.id, "/tmp/none", 10)).toBeUndefined();
    expect(await engine.readFile(info.id, "/tmp/dir", 10)).toBeUndefined();
    expect(await engine.readFile("f".repeat(64), "/tmp/none", 10)).toBeUndefined();
  });

  it("counts CPU and memory while it runs", async () => {
    const info = await started(await podWithSandbox(), "head -c 3000000 /dev/zero > /tmp/cache; echo ready; sleep 1000");
    await eventually(async () => expect(await log(info.id)).toBe("ready\n"));
    const statistics = await engine.statistics(info.id);
    expect(statistics?.cpuNanoseconds).toBeGreaterThan(1_000_000);
    expect(statistics?.memoryUsageBytes).toBeGreaterThan(100_000);
    expect(statistics?.memoryWorkingSetBytes).toBeLessThanOrEqual(statistics?.memoryUsageBytes ?? 0);
    await engine.stop(info.id, 0);
    expect(await engine.statistics(info.id)).toBeUndefined();
  });
});

describe("what is ours", () => {
  it("is told apart from another host's on the same engine, even for Pods of one name", async () => {
    const other = createDockerEngine({ ...test.engine.address, hostId: "two", helperDirectory, logger: silentLogger });
    const pod = await podWithSandbox();
    const theirs = { ...pod, podUid: crypto.randomUUID() };
    await other.ensureSandbox({ ...theirs, hostname: "other", sysctls: {} });
    const mine = await started(pod, "sleep 1000");
    const foreign = await other.create(container(theirs, "sleep 1000"));
    await other.start(foreign.id);
    expect((await engine.list()).map(({ id }) => id)).not.toContain(foreign.id);
    expect(await engine.inspect(foreign.id)).toBeUndefined();
    await expect(log(foreign.id)).rejects.toMatchObject({ code: "NotFound" });
    await engine.sweep(new Set());
    expect(await engine.list()).toEqual([]);
    expect(await engine.inspect(mine.id)).toBeUndefined();
    expect((await other.inspect(foreign.id))?.state).toBe("running");
    await other.removePod(theirs.podUid);
    await other.removePod(theirs.podUid);
    expect(await other.list()).toEqual([]);
    expect(await test.docker.listContainers({ all: true })).toEqual([]);
  });

  it("never lets a call reach a container that is not ours", async () => {
    const foreign = await test.docker.createContainer({ Image: busybox, Cmd: ["sleep", "1000"], HostConfig: { NetworkMode: "none" } });
    await foreign.start();
    await engine.stop(foreign.id, 0);
    await engine.remove(foreign.id);
    expect((await foreign.inspect()).State.Running).toBe(true);
    await foreign.remove({ force: true });
  });
});

it("reports changes of our containers", async () => {
  const seen: string[] = [];
  await using _watch = engine.watch((podUid) => seen.push(podUid));
  const pod = newPod();
  await eventually(async () => {
    await engine.ensureSandbox({ ...pod, hostname: "x", sysctls: {} });
    await engine.removePod(pod.podUid);
    expect(seen).toContain(pod.podUid);
  });
});

it("says what is wrong and how to mend it when no engine answers", async () => {
  const away = createDockerEngine({ socketPath: join(test.directory, "none.sock"), hostId: "x", helperDirectory, logger: silentLogger });
  expect(await away.problem()).toMatchObject({ message: expect.stringContaining("none.sock"), fix: expect.stringContaining("Docker") });
  await expect(away.list()).rejects.toMatchObject({ code: "Unavailable" });
  expect(await engine.problem()).toBeUndefined();
  expect(() => createDockerEngine({ dockerHost: "ssh://host", hostId: "x", helperDirectory, logger: silentLogger })).toThrow(/ssh:\/\/host/);
});
