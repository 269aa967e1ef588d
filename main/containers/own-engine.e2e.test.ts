/** Our own engine over crashes of the host and of the engine itself. */
import { execFileSync } from "node:child_process";
import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import { createDockerEngine } from "./docker-engine.ts";
import { startOwnEngine } from "./own-engine.ts";
import { container, eventually, helperDirectory, leftovers, newPod, startTestEngine, textOf, type TestEngine } from "./test-engine.ts";

let test: TestEngine;

beforeAll(async () => {
  test = await startTestEngine();
});

afterAll(() => test.close());

function daemonOf(directory: string): number {
  const line = execFileSync("ps", ["-eo", "pid,args"], { encoding: "utf8" })
    .split("\n")
    .find((text) => text.includes(`--data-root=${directory}`));
  return Number(line?.trim().split(/\s+/)[0]);
}

it("is private, and adopted by the next start of the host", async () => {
  const before = daemonOf(test.directory);
  const again = await startOwnEngine(test.options);
  expect(again).toMatchObject({ isOwn: true, socketPath: test.engine.socketPath });
  expect(daemonOf(test.directory)).toBe(before);
  for (const path of [test.options.dataDirectory, test.options.runtimeDirectory]) expect((await stat(path)).mode & 0o077).toBe(0);
  expect((await stat(join(test.options.dataDirectory, "engine.log"))).mode & 0o077).toBe(0);
});

it("keeps containers and their logs when the engine is killed, and the watch goes on", async () => {
  const engine = createDockerEngine({ ...test.engine.address, hostId: "own", helperDirectory, logger: silentLogger });
  const pod = newPod();
  await engine.ensureSandbox({ ...pod, hostname: "x", sysctls: {} });
  const { id } = await engine.create(container(pod, "n=0; while true; do n=$((n + 1)); echo $n; sleep 0.2; done"));
  const seen: string[] = [];
  await using _watch = engine.watch((podUid) => seen.push(podUid));
  await engine.start(id);
  await eventually(() => expect(seen).toContain(pod.podUid));
  const processId = (await engine.inspect(id))?.processId;
  seen.length = 0;
  process.kill(daemonOf(test.directory), "SIGKILL");
  await eventually(async () => expect(await engine.problem()).toBeDefined());
  const again = await startOwnEngine(test.options);
  expect((await engine.inspect(id))?.processId).toBe(processId);
  await eventually(() => expect(seen).toContain(pod.podUid));
  const lines = async (): Promise<number> => (await textOf(await engine.logs(id, { follow: false, previous: false, timestamps: false }))).split("\n").length;
  const count = await lines();
  await eventually(async () => expect(await lines()).toBeGreaterThan(count));
  // A container runs: stopping the host leaves the engine alone.
  await again[Symbol.asyncDispose]();
  expect(await engine.problem()).toBeUndefined();
  await engine.removePod(pod.podUid);
});

it("uses a running engine as it is and never stops it", async () => {
  const found = await startOwnEngine({ ...test.options, candidates: ["/nonexistent/docker.sock", test.engine.socketPath ?? ""] });
  expect(found).toMatchObject({ isOwn: false, socketPath: test.engine.socketPath });
  await found[Symbol.asyncDispose]();
  const given = await startOwnEngine({ ...test.options, dockerHost: `unix://${test.engine.socketPath}` });
  await given[Symbol.asyncDispose]();
  await expect(startOwnEngine({ ...test.options, socketPath: "/nonexistent/docker.sock" })).rejects.toMatchObject({ code: "Unavailable" });
  expect(daemonOf(test.directory)).toBeGreaterThan(1);
});

it("says what to install where there is no Docker", async () => {
  const directory = await mkdtemp(join(tmpdir(), "pyd-"));
  const options = {
    dataDirectory: join(directory, "state"),
    runtimeDirectory: join(directory, "run"),
    logger: silentLogger,
    candidates: [],
    searchPath: directory,
  };
  await expect(startOwnEngine(options)).rejects.toMatchObject({ code: "MissingPrerequisite", fix: expect.stringContaining("docker.io") });
  await rm(directory, { recursive: true });
});

it("leaves neither process nor mount", async () => {
  const directory = await mkdtemp(join(tmpdir(), "pyd-"));
  const options = { dataDirectory: join(directory, "state"), runtimeDirectory: join(directory, "run"), logger: silentLogger, candidates: [] };
  const engine = await startOwnEngine(options);
  expect(leftovers(directory).length).toBeGreaterThanOrEqual(2);
  await engine[Symbol.asyncDispose]();
  expect(leftovers(directory)).toEqual([]);
  await rm(directory, { recursive: true });
});
