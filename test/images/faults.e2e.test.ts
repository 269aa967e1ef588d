/** What a pull does when the network, the registry's data, the disk or the host itself fails. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFile, stat, writeFile, chmod, mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { startFaultProxy, type Fault, type FaultProxy } from "../registry/fault-proxy.ts";
import { blobPath, startRegistry, type TestRegistry } from "../registry/registry.ts";
import { filesBelow, macSource, makeDisk, mebibyte, openStore, overwrite, recordingLogger, sha256OfFile, temporaryDirectory, type TemporaryDirectory } from "./fixture.ts";

const formats = ["podyard", "agoda"] as const;
let registry: TestRegistry;
let files: TemporaryDirectory;
let diskPath: string;
let auxiliaryPath: string;
/** The blob with most of the disk, per format. */
const largest = new Map<string, { readonly digest: string; readonly size: number }>();
const total = new Map<string, number>();

const manifestSchema = z.object({ layers: z.array(z.object({ digest: z.string(), size: z.number() })) });

beforeAll(async () => {
  registry = await startRegistry();
  files = await temporaryDirectory();
  diskPath = join(files.path, "disk.raw");
  auxiliaryPath = join(files.path, "aux.raw");
  await makeDisk(diskPath, 128 * mebibyte, [{ offset: 0, length: 40 * mebibyte }, { offset: 100 * mebibyte, length: mebibyte }]);
  await makeDisk(auxiliaryPath, mebibyte, [{ offset: 0, length: 5000 }]);
  await using cache = await temporaryDirectory();
  await using store = await openStore(cache.path);
  for (const format of formats) {
    await store.push(`${registry.host}/fault/${format}:v1`, macSource(diskPath, auxiliaryPath), { credentials: [], format });
    const response = await fetch(`http://${registry.host}/v2/fault/${format}/manifests/v1`, { headers: { Accept: "application/vnd.oci.image.manifest.v1+json" } });
    const { layers } = manifestSchema.parse(await response.json());
    const bySize = layers.toSorted((a, b) => b.size - a.size);
    const [first] = bySize;
    if (first !== undefined) largest.set(format, first);
    total.set(format, layers.reduce((sum, layer) => sum + layer.size, 0));
  }
});

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
  await files[Symbol.asyncDispose]();
});

describe.each(formats)("the %s format", (format) => {
  const blob = (): { readonly digest: string; readonly size: number } => largest.get(format) ?? { digest: "", size: 0 };
  const path = (): RegExp => new RegExp(`/blobs/${blob().digest}`);

  test("continues after dropped connections from the byte reached", async () => {
    await using cache = await temporaryDirectory();
    await using proxy = await startFaultProxy(registry.host, [{ kind: "drop", path: path(), afterBytes: 3 * mebibyte, times: 3 }]);
    await using store = await openStore(cache.path);
    const { image } = await store.pull(`${proxy.host}/fault/${format}:v1`, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));
    const ranges = rangesOf(proxy, blob().digest);
    expect(ranges.length).toBe(4);
    expect(ranges.slice(1).every((start, index) => start > (ranges[index] ?? 0))).toBe(true);
    expect(proxy.bytes).toBeLessThan((total.get(format) ?? 0) + mebibyte);
  });

  test("continues with what is on disk after the host was killed", async () => {
    await using cache = await temporaryDirectory();
    await using proxy = await startFaultProxy(registry.host, [{ kind: "stall", path: path(), afterBytes: 4 * mebibyte, times: 100 }]);
    const reference = `${proxy.host}/fault/${format}:v1`;
    const child = spawn(process.execPath, [join(import.meta.dirname, "pull-child.ts"), cache.path, reference], { stdio: "ignore" });
    const exit = once(child, "exit");
    await proxy.stalled;
    // Everything but the stalled blob must be finished, and the part of it that arrived must be on disk.
    await eventually(async () => {
      const [staging = ""] = await readdir(join(cache.path, "staging"));
      if (format === "agoda") return (await stat(join(cache.path, "staging", staging, `${blob().digest.slice(7)}.partial`))).size >= 3 * mebibyte;
      return (await readFile(join(cache.path, "staging", staging, "journal"), "utf8")).split("\n").length > 4;
    });
    child.kill("SIGKILL");
    expect((await exit)[1]).toBe("SIGKILL");
    expect(await filesBelow(join(cache.path, "images"))).toEqual([]);

    proxy.setFaults([]);
    await using store = await openStore(cache.path);
    const { image } = await store.pull(reference, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));
    expect(await sha256OfFile(image.auxiliaryPath ?? "")).toBe(await sha256OfFile(auxiliaryPath));
    const [start = 0] = rangesOf(proxy, blob().digest);
    const saved = format === "agoda" ? start : (total.get(format) ?? 0) - blob().size;
    expect(saved).toBeGreaterThan(2 * mebibyte);
    expect(proxy.bytes).toBeLessThan((total.get(format) ?? 0) - saved + 100_000);
  });

  test("fetches a blob once more if it arrives corrupt, and reports one that is corrupt for good", async () => {
    await using cache = await temporaryDirectory();
    const fault: Fault = { kind: "corrupt", path: path(), atByte: 2 * mebibyte };
    await using proxy = await startFaultProxy(registry.host, [fault]);
    await using store = await openStore(cache.path);
    const reference = `${proxy.host}/fault/${format}:v1`;
    const { image } = await store.pull(reference, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));

    await store.remove(reference);
    proxy.setFaults([{ ...fault, times: 100 }]);
    await expect(store.pull(reference, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Corrupt", message: expect.stringContaining(blob().digest) });
    expect(await store.list()).toEqual([]);
    // The wrong bytes are not what the next attempt continues from.
    proxy.setFaults([]);
    const again = await store.pull(reference, { policy: "Always", credentials: [] });
    expect(await sha256OfFile(again.image.diskPath)).toBe(await sha256OfFile(diskPath));
  });

  test("reports a truncated blob", async () => {
    await using cache = await temporaryDirectory();
    await using damaged = await startRegistry();
    await using store = await openStore(cache.path);
    const reference = `${damaged.host}/fault/${format}:v1`;
    await store.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [], format });
    const response = await fetch(`http://${damaged.host}/v2/fault/${format}/manifests/v1`, { headers: { Accept: "application/vnd.oci.image.manifest.v1+json" } });
    const { layers } = manifestSchema.parse(await response.json());
    const victim = layers.toSorted((a, b) => b.size - a.size)[0]?.digest ?? "";
    const bytes = await readFile(blobPath(damaged, victim));
    // A fresh registry does not remember the size it was told.
    await damaged.stop();
    await chmod(blobPath(damaged, victim), 0o600);
    await writeFile(blobPath(damaged, victim), bytes.subarray(0, 2 * mebibyte));
    await damaged.start();
    await expect(store.pull(reference, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Corrupt" });
    expect(await store.list()).toEqual([]);
  });

  test("gives up when the registry stays away, and says so", async () => {
    await using cache = await temporaryDirectory();
    await using proxy = await startFaultProxy(registry.host, [{ kind: "status", path: /\/blobs\//, status: 503, times: 1000 }]);
    await using store = await openStore(cache.path, { registry: { backOffMilliseconds: 2 } });
    await expect(store.pull(`${proxy.host}/fault/${format}:v1`, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "Unavailable", message: expect.stringContaining("503") });
    proxy.setFaults([{ kind: "status", path: /\/blobs\//, status: 503, times: 3 }]);
    expect((await store.pull(`${proxy.host}/fault/${format}:v1`, { policy: "Always", credentials: [] })).downloaded).toBe(true);
  });

  test("refuses to start without the space, naming bytes needed and free", async () => {
    await using cache = await temporaryDirectory();
    let availableBytes = 10 * mebibyte;
    await using store = await openStore(cache.path, { reserveBytes: 5 * mebibyte, fileSystemSpace: () => Promise.resolve({ availableBytes, capacityBytes: 100 * mebibyte }) });
    const reference = `${registry.host}/fault/${format}:v1`;
    await expect(store.pull(reference, { policy: "Always", credentials: [] })).rejects.toMatchObject({ code: "NoSpace", message: expect.stringMatching(/needs \d{8} bytes .*; 10485760 bytes are free/) });
    availableBytes = 1000 * mebibyte;
    expect((await store.pull(reference, { policy: "Always", credentials: [] })).downloaded).toBe(true);
  });
});

test("a journaled chunk whose bytes were lost is fetched again", async () => {
  await using cache = await temporaryDirectory();
  const { digest } = largest.get("podyard") ?? { digest: "" };
  await using proxy = await startFaultProxy(registry.host, [{ kind: "stall", path: new RegExp(digest), afterBytes: 1000 }]);
  await using store = await openStore(cache.path);
  const reference = `${proxy.host}/fault/podyard:v1`;
  const interruption = new AbortController();
  const interrupted = store.pull(reference, { policy: "Always", credentials: [], signal: interruption.signal });
  const readJournal = async (): Promise<string> => {
    const [staging = ""] = await readdir(join(cache.path, "staging"));
    return readFile(join(cache.path, "staging", staging, "journal"), "utf8");
  };
  await eventually(async () => (await readJournal()).split("\n").length > 4);
  interruption.abort();
  await expect(interrupted).rejects.toMatchObject({ code: "Cancelled" });
  const journal = await readJournal();
  const [staging = ""] = await readdir(join(cache.path, "staging"));
  const [, offset = "", length = ""] = /^disk (\d+) (\d+)/m.exec(journal) ?? [];
  await overwrite(join(cache.path, "staging", staging, "disk.img"), Number(offset) + 1000, Buffer.alloc(Math.min(Number(length) - 1000, 70_000), 0x55));
  proxy.setFaults([]);
  const { image } = await store.pull(reference, { policy: "Always", credentials: [] });
  expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));
});

test("two hosts on one cache do not disturb each other, and neither takes what the other still works on", async () => {
  await using cache = await temporaryDirectory();
  const { digest } = largest.get("agoda") ?? { digest: "" };
  await using slow = await startFaultProxy(registry.host, [{ kind: "stall", path: new RegExp(digest), afterBytes: 5 * mebibyte }]);
  await using first = await openStore(cache.path);
  await using second = await openStore(cache.path, { minimumAgeMilliseconds: 0 });
  const stalled = first.pull(`${slow.host}/fault/agoda:v1`, { policy: "Always", credentials: [] });
  await slow.stalled;
  expect(await second.collectGarbage(Number.MAX_SAFE_INTEGER)).toBe(0);
  const quick = await second.pull(`${registry.host}/fault/agoda:v1`, { policy: "Always", credentials: [] });
  slow.release();
  const late = await stalled;
  expect(late.image.diskPath).toBe(quick.image.diskPath);
  expect(await sha256OfFile(late.image.diskPath)).toBe(await sha256OfFile(diskPath));
  expect(await filesBelow(join(cache.path, "staging"))).toEqual([]);
});

describe("keeping and removing", () => {
  const reference = (index: number): string => `${registry.host}/keep/vm:v${index}`;

  async function pullThree(cacheDirectory: string): Promise<Awaited<ReturnType<typeof openStore>>> {
    const store = await openStore(cacheDirectory, { minimumAgeMilliseconds: 0 });
    for (const index of [1, 2, 3]) {
      const path = join(files.path, "keep.raw");
      await makeDisk(path, mebibyte, [{ offset: 0, length: 300_000 + index }]);
      await store.push(reference(index), { diskPath: path, operatingSystem: "linux" }, { credentials: [] });
      await store.pull(reference(index), { policy: "Always", credentials: [] });
      await delay(5);
    }
    return store;
  }

  test("garbage collection takes the least recently used, never what is used or pinned, also after a restart", async () => {
    await using cache = await temporaryDirectory();
    let digest: string;
    {
      await using store = await pullThree(cache.path);
      const image = await store.find(reference(1));
      digest = image?.digest ?? "";
      await store.retain(image?.digest ?? "sha256:", "0123abcd");
      await store.retain(image?.digest ?? "sha256:", "0123abcd");
      await store.pin(reference(2), true);
      await expect(store.remove(reference(1))).rejects.toMatchObject({ code: "Conflict", message: expect.stringContaining("0123abcd") });
      await expect(store.remove(reference(2))).rejects.toMatchObject({ code: "Conflict", message: expect.stringContaining("pinned") });
      await expect(store.retain(`sha256:${"0".repeat(64)}`, "0123abcd")).rejects.toMatchObject({ code: "NotFound" });
      await expect(store.retain(image?.digest ?? "sha256:", "../../escape")).rejects.toMatchObject({ code: "InvalidArgument" });
    }
    await using store = await openStore(cache.path, { minimumAgeMilliseconds: 0 });
    expect(await store.collectGarbage(Number.MAX_SAFE_INTEGER)).toBeGreaterThan(250_000);
    expect((await store.list()).flatMap(({ references }) => references).toSorted()).toEqual([reference(1), reference(2)]);
    expect((await store.find(reference(1)))?.usedBy).toEqual(["0123abcd"]);
    await store.release("0123abcd");
    await store.release("0123abcd");
    await store.collectGarbage(1);
    expect(await store.find(digest)).toBeUndefined();
    await store.pin(reference(2), false);
    await store.remove(reference(2));
    expect(await store.list()).toEqual([]);
    expect(await filesBelow(cache.path)).toEqual([]);
  });

  test("a host on a shared cache releases no other host's images", async () => {
    await using cache = await temporaryDirectory();
    await using one = await openStore(cache.path, { host: "one", minimumAgeMilliseconds: 0 });
    await using two = await openStore(cache.path, { host: "two", minimumAgeMilliseconds: 0 });
    const { image } = await one.pull(`${registry.host}/fault/podyard:v1`, { policy: "Always", credentials: [] });
    await one.retain(image.digest, "0123abcd");
    await two.retain(image.digest, "0123abcd");
    expect((await two.find(image.digest))?.usedBy.toSorted()).toEqual(["0123abcd", "one.0123abcd"]);
    for (const owner of (await two.find(image.digest))?.usedBy ?? []) await two.release(owner);
    await two.collectGarbage(Number.MAX_SAFE_INTEGER);
    expect((await one.find(image.digest))?.usedBy).toEqual(["0123abcd"]);
    await one.release("0123abcd");
    await two.collectGarbage(Number.MAX_SAFE_INTEGER);
    expect(await one.find(image.digest)).toBeUndefined();
  });

  test("garbage collection stops when enough was freed, oldest first, and spares what was just used", async () => {
    await using cache = await temporaryDirectory();
    await using store = await pullThree(cache.path);
    await store.pull(reference(1), { policy: "IfNotPresent", credentials: [] });
    await store.collectGarbage(1);
    expect((await store.list()).flatMap(({ references }) => references).toSorted()).toEqual([reference(1), reference(3)]);
    const { usedBytes, availableBytes, capacityBytes } = await store.usage();
    expect(usedBytes).toBeGreaterThan(600_000);
    expect(availableBytes).toBeLessThanOrEqual(capacityBytes);
    await using careful = await openStore(cache.path);
    expect(await careful.collectGarbage(Number.MAX_SAFE_INTEGER)).toBe(0);
  });

  test("a tag is removed alone while another one names the image", async () => {
    await using cache = await temporaryDirectory();
    await using store = await openStore(cache.path);
    const digest = await store.push(`${registry.host}/tags/vm:a`, { diskPath: auxiliaryPath, operatingSystem: "linux" }, { credentials: [] });
    await store.pull(`${registry.host}/tags/vm:a`, { policy: "Always", credentials: [] });
    expect((await store.pull(`${registry.host}/tags/vm@${digest}`, { policy: "Always", credentials: [] })).downloaded).toBe(false);
    await store.remove(`${registry.host}/tags/vm:a`);
    expect((await store.find(digest))?.references).toEqual([`${registry.host}/tags/vm@${digest}`]);
    await store.remove(digest);
    await expect(store.remove(digest)).rejects.toMatchObject({ code: "NotFound" });
  });

  test("a record that cannot be read is set aside with a warning, the image used by a machine stays, and a pull repairs it from the bytes at hand", async () => {
    await using cache = await temporaryDirectory();
    let digest: string;
    {
      await using store = await openStore(cache.path);
      const { image } = await store.pull(`${registry.host}/fault/podyard:v1`, { policy: "Always", credentials: [] });
      digest = image.digest;
      await store.retain(image.digest, "0123abcd");
    }
    const directory = join(cache.path, "images", digest.slice(7));
    await writeFile(join(directory, "image.json"), "{ broken");
    for (const name of await readdir(join(cache.path, "references"))) await writeFile(join(cache.path, "references", name), "");
    const logger = recordingLogger();
    await using store = await openStore(cache.path, { logger, minimumAgeMilliseconds: 0 });
    expect(await store.list()).toEqual([]);
    expect(await store.find(`${registry.host}/fault/podyard:v1`)).toBeUndefined();
    expect(logger.warnings.length).toBeGreaterThanOrEqual(2);
    await store.collectGarbage(Number.MAX_SAFE_INTEGER);
    expect((await stat(join(directory, "disk.img"))).size).toBe(128 * mebibyte);
    await using proxy = await startFaultProxy(registry.host);
    const { image } = await store.pull(`${proxy.host}/fault/podyard:v1`, { policy: "Always", credentials: [] });
    expect(proxy.bytes).toBeLessThan(100_000);
    expect(image.usedBy).toEqual(["0123abcd"]);
    expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(diskPath));
    expect((await filesBelow(directory)).some((name) => name.startsWith("image.json.unreadable-"))).toBe(true);
  });

  test("everything below the cache is for its owner only, and images are read-only", async () => {
    await using cache = await temporaryDirectory();
    await mkdir(join(cache.path, "c"));
    await using store = await openStore(join(cache.path, "c"));
    const { image } = await store.pull(`${registry.host}/fault/podyard:v1`, { policy: "Always", credentials: [] });
    expect((await stat(image.diskPath)).mode & 0o777).toBe(0o400);
    for (const entry of await readdir(join(cache.path, "c"), { recursive: true, withFileTypes: true })) {
      expect((await stat(join(entry.parentPath, entry.name))).mode & 0o077, entry.name).toBe(0);
    }
  });
});

function rangesOf(proxy: FaultProxy, digest: string): readonly number[] {
  return proxy.requests.filter(({ method, path }) => method === "GET" && path.endsWith(digest)).map(({ range }) => Number(/^bytes=(\d+)-/.exec(range ?? "")?.[1] ?? 0));
}

async function eventually(condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!(await condition().catch(() => false))) {
    if (Date.now() > deadline) throw new Error("the condition did not come true within 20 s");
    await delay(25);
  }
}

// A disk of random data is the worst case for the codec; keep one compressible image in the suite as well.
test("a disk that compresses well comes back as it was", async () => {
  await using cache = await temporaryDirectory();
  await using store = await openStore(cache.path);
  const path = join(files.path, "text.raw");
  await writeFile(path, Buffer.concat([Buffer.from("podyard ".repeat(500_000)), randomBytes(1000), Buffer.alloc(5 * mebibyte), Buffer.from("end")]));
  await store.push(`${registry.host}/text/vm:v1`, { diskPath: path, operatingSystem: "linux", architecture: "amd64", guest: { user: "root", port: 22 } }, { credentials: [] });
  const { image } = await store.pull(`${registry.host}/text/vm:v1`, { policy: "Always", credentials: [] });
  expect(await sha256OfFile(image.diskPath)).toBe(await sha256OfFile(path));
  expect(image.guest).toEqual({ user: "root", port: 22 });
});
