/** Pulls from a real registry (distribution), with and without a password. */
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import type { ContainerEngine } from "./container-engine.ts";
import { createDockerEngine } from "./docker-engine.ts";
import { asReadable, busybox, eventually, helperDirectory, startTestEngine, type TestEngine } from "./test-engine.ts";

let test: TestEngine;
let engine: ContainerEngine;
let registry: ChildProcess;
let address: string;
const credentials = { username: "user", password: "pass+/word" };

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const answer = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (answer === null || typeof answer === "string") throw new Error("no port");
  return answer.port;
}

async function push(reference: string): Promise<void> {
  const [repo, tag] = [reference.slice(0, reference.lastIndexOf(":")), reference.slice(reference.lastIndexOf(":") + 1)];
  await test.docker.getImage(busybox).tag({ repo, tag });
  const stream = asReadable(await test.docker.getImage(reference).push({ authconfig: { ...credentials, serveraddress: address } }));
  let text = "";
  for await (const chunk of stream) text += String(chunk);
  if (text.includes("errorDetail")) throw new Error(text);
  await test.docker.getImage(reference).remove();
}

beforeAll(async () => {
  test = await startTestEngine();
  engine = createDockerEngine({ ...test.engine.address, hostId: "pull", helperDirectory, logger: silentLogger });
  const port = await freePort();
  address = `127.0.0.1:${port}`;
  const directory = join(test.directory, "registry");
  await mkdir(directory);
  await writeFile(join(directory, "htpasswd"), execFileSync("htpasswd", ["-nbB", credentials.username, credentials.password]));
  const configuration = [
    "version: 0.1",
    "log: {level: error}",
    `storage: {filesystem: {rootdirectory: ${directory}/data}}`,
    `http: {addr: "${address}"}`,
    `auth: {htpasswd: {realm: test, path: ${directory}/htpasswd}}`,
  ];
  await writeFile(join(directory, "config.yml"), configuration.join("\n"));
  registry = spawn("docker-registry", ["serve", join(directory, "config.yml")], { stdio: "ignore" });
  await eventually(async () => expect((await fetch(`http://${address}/v2/`)).status).toBe(401));
  for (const tag of ["1", "2", "latest"]) await push(`${address}/team/tool:${tag}`);
});

afterAll(async () => {
  registry.kill();
  await test.close();
});

describe("pull", () => {
  it("takes the first credential that the registry accepts, and only the tag asked for", async () => {
    const reference = `${address}/team/tool:1`;
    const first = await engine.pull(reference, { policy: "IfNotPresent", credentials: [{ username: "user", password: "wrong" }, credentials] });
    expect(first.image.references).toContain(reference);
    expect(first.image.repositoryDigests).toEqual([expect.stringMatching(new RegExp(`^${address}/team/tool@sha256:[0-9a-f]{64}$`))]);
    expect(await engine.findImage(`${address}/team/tool:2`)).toBeUndefined();
    expect((await engine.pull(reference, { policy: "IfNotPresent", credentials: [] })).downloaded).toBe(false);
    expect((await engine.pull(reference, { policy: "Never", credentials: [] })).image.id).toBe(first.image.id);
    const byDigest = await engine.pull(first.image.repositoryDigests[0] ?? "", { policy: "Always", credentials: [credentials] });
    expect(byDigest.image.id).toBe(first.image.id);
    expect((await engine.listImages()).map(({ id }) => id)).toContain(first.image.id);
  });

  it("pulls the tag latest where none is given", async () => {
    await engine.pull(`${address}/team/tool`, { policy: "Always", credentials: [credentials] });
    expect(await engine.findImage(`${address}/team/tool:latest`)).toBeDefined();
    expect(await engine.findImage(`${address}/team/tool:2`)).toBeUndefined();
  });

  it("shares one download between concurrent callers, and goes on when one of them gives up", async () => {
    const reference = `${address}/team/tool:2`;
    const abort = new AbortController();
    const impatient = engine.pull(reference, { policy: "Always", credentials: [credentials], signal: abort.signal });
    const others = [1, 2].map(() => engine.pull(reference, { policy: "Always", credentials: [credentials] }));
    abort.abort();
    await expect(impatient).rejects.toMatchObject({ code: "Cancelled" });
    const results = await Promise.all(others);
    expect(new Set(results.map(({ image }) => image.id)).size).toBe(1);
  });

  it.each([
    ["a wrong password", "team/tool:1", [{ username: "user", password: "wrong" }], "Unauthorized"],
    ["no credentials", "team/tool:1", [], "Unauthorized"],
    ["an unknown tag", "team/tool:none", [credentials], "NotFound"],
    ["an unknown repository", "team/none:1", [credentials], "NotFound"],
    ["a malformed reference", "Team/UPPER:1", [credentials], "InvalidArgument"],
  ])("answers %s with the right code", async (_, path, given, code) => {
    await expect(engine.pull(`${address}/${path}`, { policy: "Always", credentials: given })).rejects.toMatchObject({ code });
  });

  it("tells a registry that is away, and an image that must be here", async () => {
    const away = `127.0.0.1:${await freePort()}/team/tool:1`;
    await expect(engine.pull(away, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Unavailable" });
    await expect(engine.pull(away, { policy: "Never", credentials: [] })).rejects.toThrow(`Container image "${away}" is not present with pull policy of Never`);
    await expect(engine.pull(away, { policy: "Always", credentials: [], signal: AbortSignal.abort() })).rejects.toMatchObject({ code: "Cancelled" });
  });
});
