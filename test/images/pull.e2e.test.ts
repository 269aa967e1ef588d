/** The image store against a real docker-registry: formats, policies, credentials, sharing. */
import { randomBytes } from "node:crypto";
import { chmod, copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { PullProgress } from "../../main/contract/image.ts";
import { startFaultProxy } from "../registry/fault-proxy.ts";
import { startRegistry, type TestRegistry } from "../registry/registry.ts";
import { agodaParts, allocated, digestOfBytes, emptyBlob, emptyConfig, filesBelow, macSource, makeDisk, mebibyte, openStore, overwrite, putImage, recordingLogger, sha256OfFile, temporaryDirectory, type TemporaryDirectory } from "./fixture.ts";

let registry: TestRegistry;
let files: TemporaryDirectory;
let diskPath: string;
let auxiliaryPath: string;

beforeAll(async () => {
  registry = await startRegistry();
  files = await temporaryDirectory();
  diskPath = join(files.path, "disk.raw");
  auxiliaryPath = join(files.path, "aux.raw");
  await makeDisk(diskPath, 200 * mebibyte + 4096, [{ offset: 0, length: mebibyte }, { offset: 50 * mebibyte, length: 20 * mebibyte }, { offset: 200 * mebibyte, length: 4096 }]);
  await makeDisk(auxiliaryPath, 3 * mebibyte, [{ offset: 100, length: 5000 }]);
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
  await files[Symbol.asyncDispose]();
});

describe.each(["podyard", "agoda"] as const)("the %s format", (format) => {
  test("comes back from the registry byte for byte and sparse", async () => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    const reference = `${registry.host}/round/${format}:v1`;
    const digest = await store.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [], format });
    const progress: PullProgress[] = [];
    const { image, downloaded } = await store.pull(reference, { policy: "IfNotPresent", credentials: [], onProgress: (step) => progress.push(step) });
    expect(downloaded).toBe(true);
    expect(image).toMatchObject({ digest, operatingSystem: "darwin", architecture: "arm64", references: [reference], diskSize: 200 * mebibyte + 4096, hardwareModel: "bW9kZWw=", machineIdentifier: "bWFjaGluZQ==" });
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));
    expect(await sha256OfFile(image.auxiliaryPath ?? "")).toBe(await sha256OfFile(auxiliaryPath));
    expect(await allocated(image.diskPath)).toBeLessThan(23 * mebibyte);
    expect(progress.map((step) => step.phase)).toEqual(expect.arrayContaining(["resolving", "downloading", "done"]));
    const last = progress.findLast((step) => step.phase === "downloading");
    expect(last?.bytesDone).toBe(last?.bytesTotal);
    expect(await filesBelow(join(cache.path, "staging"))).toEqual([]);
  });
});

describe("the manifest shapes of macOS-vz-kubelet", () => {
  const disk = Buffer.concat([randomBytes(300_000), Buffer.alloc(2 * mebibyte), randomBytes(10)]);
  const auxiliary = randomBytes(70_000);
  const parts = agodaParts(disk, auxiliary);
  const shapes = {
    "configuration as a layer, in any order": { schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", artifactType: "application/vnd.agoda.macosvz.artifact", config: emptyConfig, layers: [parts.config, parts.disk, parts.auxiliary] },
    "configuration as the manifest's config": { schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: parts.config, layers: [parts.auxiliary, parts.disk] },
  };
  test.each(Object.entries(shapes))("%s", async (name, manifest) => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    const reference = `${registry.host}/shape/${name.replaceAll(/[^a-z]/g, "")}:v1`;
    const digest = await putImage(registry.host, `shape/${name.replaceAll(/[^a-z]/g, "")}`, "v1", [...parts.blobs, emptyBlob], manifest);
    expect(await store.classify(reference, [])).toEqual({ kind: "virtual-machine", digest });
    const { image } = await store.pull(reference, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(image.diskPath)).toBe(digestOfBytes(disk));
    expect(await sha256OfFile(image.auxiliaryPath ?? "")).toBe(digestOfBytes(auxiliary));
    expect(image.hardwareModel).toBe("bW9kZWw=");
  });

  test("a title that is a path is refused and nothing is written outside of the cache", async () => {
    await using outer = await temporaryDirectory();
    const cacheDirectory = join(outer.path, "deep", "cache");
    await mkdir(cacheDirectory, { recursive: true });
    await using store = await openStore(cacheDirectory);
    for (const [index, title] of ["../../escaped.img", "/tmp/podyard-escaped.img", "..", "a\\b"].entries()) {
      const hostile = agodaParts(disk, auxiliary, title);
      await putImage(registry.host, "hostile/title", `v${index}`, hostile.blobs, { schemaVersion: 2, config: hostile.config, layers: [hostile.auxiliary, hostile.disk], mediaType: "application/vnd.oci.image.manifest.v1+json" });
      await expect(store.pull(`${registry.host}/hostile/title:v${index}`, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Corrupt", message: expect.stringContaining("title") });
    }
    expect((await filesBelow(outer.path)).filter((path) => path.endsWith(".img"))).toEqual([]);
  });

  test("an existing cache of macOS-vz-kubelet is used instead of the network, if its bytes are right", async () => {
    const manifest = { schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: parts.config, layers: [parts.auxiliary, parts.disk] };
    await putImage(registry.host, "fleet/macos", "v1", parts.blobs, manifest);
    await using proxy = await startFaultProxy(registry.host);
    for (const content of [disk, Buffer.alloc(disk.length, 7)]) {
      await using cache = await temporaryDirectory();
      const legacy = join(cache.path, "blobs", ...proxy.host.split(":"), "fleet", "macos", "v1");
      await mkdir(legacy, { recursive: true });
      await writeFile(join(legacy, "disk.img"), content);
      await writeFile(join(legacy, "disk.img.digest"), digestOfBytes(disk));
      await writeFile(join(legacy, "aux.img"), auxiliary);
      await writeFile(join(legacy, "aux.img.digest"), digestOfBytes(auxiliary));
      await using store = await openStore(cache.path);
      proxy.setFaults([]);
      const { image } = await store.pull(`${proxy.host}/fleet/macos:v1`, { policy: "IfNotPresent", credentials: [] });
      expect(await sha256OfFile(image.diskPath)).toBe(digestOfBytes(disk));
      const isRight = content === disk;
      expect(proxy.bytes > 300_000).toBe(!isRight);
    }
  });
});

describe("classification", () => {
  test("tells a container image, alone and in an index, and something else", async () => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    const config = new Uint8Array(Buffer.from("{}"));
    const manifest = { schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: { mediaType: "application/vnd.oci.image.config.v1+json", digest: digestOfBytes(config), size: 2 }, layers: [] };
    const digest = await putImage(registry.host, "library/busybox", "v1", [config], manifest);
    expect(await store.classify(`${registry.host}/library/busybox:v1`, [])).toEqual({ kind: "container", digest });
    const index = { schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [{ mediaType: manifest.mediaType, digest, size: JSON.stringify(manifest).length, platform: { os: "linux", architecture: "s390x" } }] };
    await putImage(registry.host, "library/busybox", "index", [], index, index.mediaType);
    expect(await store.classify(`${registry.host}/library/busybox:index`, [])).toEqual({ kind: "container", digest });
    await putImage(registry.host, "library/other", "v1", [config], { ...manifest, artifactType: "application/vnd.example.chart", config: { ...emptyConfig } });
    expect(await store.classify(`${registry.host}/library/other:v1`, [])).toMatchObject({ kind: "unknown" });
    await expect(store.pull(`${registry.host}/library/busybox:v1`, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "InvalidArgument", message: expect.stringContaining("not a virtual machine image") });
    await expect(store.pull(`${registry.host}/library/busybox:absent`, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "NotFound" });
  });

  test("an image for another platform is refused before it is fetched", async () => {
    await using cache = await temporaryDirectory();
    await using pusher = await openStore(cache.path);
    const reference = `${registry.host}/platform/mac:v1`;
    await pusher.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [] });
    await using linux = await openStore(join(cache.path, "linux"), { platforms: [{ operatingSystem: "linux", architecture: "amd64" }] });
    await expect(linux.pull(reference, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "InvalidArgument", message: expect.stringContaining("darwin/arm64; this host runs linux/amd64") });
    expect(await filesBelow(join(cache.path, "linux", "staging"))).toEqual([]);
  });
});

describe("updates and sharing", () => {
  const cloning = {
    "copied": undefined,
    // What clonefile does, without sharing: the file systems of most test machines cannot.
    "cloned": async (from: string, to: string): Promise<boolean> => {
      await copyFile(from, to);
      await chmod(to, 0o600);
      return true;
    },
  };
  test.each(Object.entries(cloning))("an update fetches only the changed chunks, the rest is %s from the cached image", async (_, cloneFile) => {
    await using cache = await temporaryDirectory();
    await using proxy = await startFaultProxy(registry.host);
    let clones = 0;
    const count = cloneFile && (async (from: string, to: string): Promise<boolean> => ((clones += 1), cloneFile(from, to)));
    await using store = await openStore(cache.path, { ...(count && { cloneFile: count }) });
    const path = join(files.path, "update.raw");
    await makeDisk(path, 256 * mebibyte, [{ offset: 0, length: 160 * mebibyte }]);
    const source = { diskPath: path, operatingSystem: "linux" } as const;
    const first = await store.push(`${proxy.host}/update/vm:v1`, source, { credentials: [] });
    await store.pull(`${proxy.host}/update/vm:v1`, { policy: "Always", credentials: [] });
    await overwrite(path, 64 * mebibyte, randomBytes(8 * mebibyte));
    // A chunk that becomes zeros must not keep the old bytes.
    await overwrite(path, 16 * mebibyte, Buffer.alloc(16 * mebibyte));
    proxy.setFaults([]);
    const second = await store.push(`${proxy.host}/update/vm:v2`, source, { credentials: [] });
    const puts = proxy.requests.filter(({ method }) => method === "PUT");
    expect(puts.filter(({ path: where }) => where.includes("/blobs/uploads/"))).toHaveLength(1);
    expect(second).not.toBe(first);
    proxy.setFaults([]);
    const { image } = await store.pull(`${proxy.host}/update/vm:v2`, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(path));
    expect(proxy.bytes).toBeLessThan(17 * mebibyte);
    expect(proxy.bytes).toBeGreaterThan(8 * mebibyte);
    expect(clones).toBe(cloneFile === undefined ? 0 : 1);
  });

  test("pushing a known disk to another repository mounts its chunks instead of sending them", async () => {
    await using cache = await temporaryDirectory();
    await using proxy = await startFaultProxy(registry.host);
    await using store = await openStore(cache.path);
    await store.push(`${proxy.host}/mount/a:v1`, macSource(diskPath, auxiliaryPath), { credentials: [] });
    await store.pull(`${proxy.host}/mount/a:v1`, { policy: "Always", credentials: [] });
    proxy.setFaults([]);
    await store.push(`${proxy.host}/mount/b:v1`, macSource(diskPath, auxiliaryPath), { credentials: [] });
    const sent = proxy.requests.filter(({ method, path }) => method === "PUT" && path.includes("/blobs/uploads/"));
    const mounted = proxy.requests.filter(({ method, path }) => method === "POST" && path.includes("mount="));
    // Auxiliary storage is not indexed and the configuration is not a chunk; the disk's four chunks are.
    expect({ sent: sent.length, mounted: mounted.length }).toEqual({ sent: 2, mounted: 4 });
  });

  test("pulls of one digest share the download, and each sees its own progress", async () => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    await store.push(`${registry.host}/share/vm:v1`, macSource(diskPath, auxiliaryPath), { credentials: [] });
    await using proxy = await startFaultProxy(registry.host);
    const seen = [0, 0, 0];
    const pulls = await Promise.all(seen.map((_, index) => store.pull(`${proxy.host}/share/vm:v1`, { policy: "Always", credentials: [], onProgress: ({ phase }) => void (seen[index] = (seen[index] ?? 0) + (phase === "downloading" ? 1 : 0)) })));
    expect(new Set(pulls.map(({ image }) => image.diskPath)).size).toBe(1);
    expect(seen.every((count) => count > 0)).toBe(true);
    const blobs = proxy.requests.filter(({ method, path }) => method === "GET" && path.includes("/blobs/")).map(({ path }) => path);
    // Each caller reads the small configuration itself; no other blob is fetched twice.
    const [config = ""] = blobs;
    expect(blobs.filter((path) => path !== config).length).toBe(new Set(blobs).size - 1);
  });

  test("a caller that cancels leaves the download to the others; the last one ends it", async () => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    await store.push(`${registry.host}/cancel/vm:v1`, macSource(diskPath, auxiliaryPath), { credentials: [] });
    await using proxy = await startFaultProxy(registry.host);
    const reference = `${proxy.host}/cancel/vm:v1`;
    const stallAll = [{ kind: "stall", path: /\/blobs\/sha256/, afterBytes: 1000, times: 100 }] as const;
    proxy.setFaults(stallAll);
    const first = new AbortController();
    const second = new AbortController();
    const one = store.pull(reference, { policy: "Always", credentials: [], signal: first.signal });
    const two = store.pull(reference, { policy: "Always", credentials: [], signal: second.signal });
    await proxy.stalled;
    first.abort();
    await expect(one).rejects.toMatchObject({ code: "Cancelled" });
    proxy.release();
    expect((await two).downloaded).toBe(true);

    await store.remove(reference);
    proxy.setFaults(stallAll);
    const alone = new AbortController();
    const last = store.pull(reference, { policy: "Always", credentials: [], signal: alone.signal });
    await proxy.stalled;
    alone.abort();
    await expect(last).rejects.toMatchObject({ code: "Cancelled" });
    proxy.setFaults([]);
    expect((await store.pull(reference, { policy: "Always", credentials: [] })).downloaded).toBe(true);
  });
});

describe("policies, credentials and an absent registry", () => {
  const alice = { username: "alice", password: "pass word" };

  test("a wrong password is refused, the right one of several is found, and a cached private image is given to its readers only", async () => {
    await using guarded = await startRegistry({ htpasswd: { user: alice.username, password: alice.password } });
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    const reference = `${guarded.host}/private/vm:v1`;
    const wrong = { username: "alice", password: "guess" };
    await expect(store.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [wrong] })).rejects.toMatchObject({ code: "Unauthorized" });
    await store.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [alice] });
    await expect(store.pull(reference, { policy: "IfNotPresent", credentials: [wrong] })).rejects.toMatchObject({ code: "Unauthorized", message: expect.not.stringContaining("guess") });
    await expect(store.pull(reference, { policy: "IfNotPresent", credentials: [] })).rejects.toMatchObject({ code: "Unauthorized" });
    await expect(store.classify(reference, [])).rejects.toMatchObject({ code: "Unauthorized" });
    expect((await store.pull(reference, { policy: "IfNotPresent", credentials: [wrong, alice] })).downloaded).toBe(true);

    await expect(store.pull(reference, { policy: "IfNotPresent", credentials: [] })).rejects.toMatchObject({ code: "Unauthorized" });
    await expect(store.pull(reference, { policy: "Never", credentials: [wrong] })).rejects.toMatchObject({ code: "Unauthorized" });
    expect((await store.pull(reference, { policy: "IfNotPresent", credentials: [alice] })).downloaded).toBe(false);
    for (const path of await filesBelow(join(cache.path, "references"))) expect(await readFile(join(cache.path, "references", path), "utf8")).not.toContain(alice.password);
  });

  test("with the registry away, IfNotPresent and Never use the cache, Always does not, and the kind is still known", async () => {
    await using own = await startRegistry();
    await using cache = await temporaryDirectory();
    const reference = `${own.host}/away/vm:v1`;
    {
      await using store = await openStore(cache.path, { registry: { backOffMilliseconds: 5, maximumAttempts: 2 } });
      await expect(store.pull(reference, { policy: "Never", credentials: [] })).rejects.toMatchObject({ code: "NotFound", message: expect.stringContaining("ErrImageNeverPull") });
      await store.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [] });
      await store.pull(reference, { policy: "IfNotPresent", credentials: [] });
      expect((await store.pull(reference, { policy: "Always", credentials: [] })).downloaded).toBe(false);
    }
    await own.stop();
    await using store = await openStore(cache.path, { registry: { backOffMilliseconds: 5, maximumAttempts: 2 } });
    expect((await store.pull(reference, { policy: "IfNotPresent", credentials: [] })).downloaded).toBe(false);
    expect((await store.pull(reference, { policy: "Never", credentials: [] })).downloaded).toBe(false);
    expect((await store.classify(reference, [])).kind).toBe("virtual-machine");
    await expect(store.pull(reference, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Unavailable" });
    await expect(store.pull(`${own.host}/away/other:v1`, { policy: "IfNotPresent", credentials: [] })).rejects.toMatchObject({ code: "Unavailable" });
    await own.start();
    expect((await store.pull(reference, { policy: "Always", credentials: [] })).downloaded).toBe(false);
  });

  test("Always notices a tag that moved, IfNotPresent keeps what it has", async () => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    const reference = `${registry.host}/moving/vm:latest`;
    const path = join(files.path, "moving.raw");
    await makeDisk(path, mebibyte, [{ offset: 0, length: 1000 }]);
    const first = await store.push(reference, { diskPath: path, operatingSystem: "linux" }, { credentials: [] });
    await store.pull(reference, { policy: "Always", credentials: [] });
    await makeDisk(path, mebibyte, [{ offset: 0, length: 1000 }]);
    const second = await store.push(reference, { diskPath: path, operatingSystem: "linux" }, { credentials: [] });
    expect((await store.pull(reference, { policy: "IfNotPresent", credentials: [] })).image.digest).toBe(first);
    expect((await store.pull(reference, { policy: "Always", credentials: [] })).image.digest).toBe(second);
    expect((await store.find(reference))?.digest).toBe(second);
    expect((await store.find(`${registry.host}/moving/vm@${second}`))?.references).toEqual([reference]);
    expect((await store.find(first))?.references).toEqual([]);
  });

  test("TLS needs a certificate authority that is trusted, or a host named insecure", async () => {
    await using secure = await startRegistry({ tls: true });
    await using cache = await temporaryDirectory();
    const reference = `${secure.host}/tls/vm:v1`;
    {
      await using store = await openStore(cache.path, { registry: { maximumAttempts: 1 } });
      await expect(store.pull(reference, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Unavailable" });
    }
    await using trusting = await openStore(cache.path, { registry: { certificateAuthorities: [secure.certificate ?? ""] } });
    await trusting.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [] });
    expect((await trusting.pull(reference, { policy: "Always", credentials: [] })).downloaded).toBe(true);
    await using careless = await openStore(join(cache.path, "careless"), { registry: { insecureHosts: [secure.host] } });
    expect((await careless.pull(reference, { policy: "Always", credentials: [] })).downloaded).toBe(true);
  });

  test("a mirror is asked first, without credentials; a bad one is left out", async () => {
    await using cache = await temporaryDirectory();
    await using mirror = await startFaultProxy(registry.host);
    const logger = recordingLogger();
    await using pusher = await openStore(join(cache.path, "p"));
    const reference = `${registry.host}/mirrored/vm:v1`;
    await pusher.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [] });
    const registryOptions = { mirrors: { [registry.host]: ["127.0.0.1:1", mirror.host] } };
    await using store = await openStore(join(cache.path, "a"), { logger, registry: { ...registryOptions, maximumAttempts: 1 } });
    await store.pull(reference, { policy: "Always", credentials: [{ username: "u", password: "p" }] });
    expect(mirror.requests.length).toBeGreaterThan(3);
    expect(mirror.requests.every(({ authorization }) => authorization === undefined)).toBe(true);

    mirror.setFaults([{ kind: "corrupt", path: /\/blobs\/sha256/, atByte: 500, times: 1000 }]);
    await using wary = await openStore(join(cache.path, "b"), { logger, registry: { mirrors: { [registry.host]: [mirror.host] } } });
    const { image } = await wary.pull(reference, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));
    expect(logger.warnings.some((warning) => warning.includes("wrong digest"))).toBe(true);
  });
});
