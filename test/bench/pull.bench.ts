/**
 * How fast a pull is, as a ratio to what this machine could do: the CPU time of HTTP read, hashing, decompression and
 * sparse write of the same bytes, each measured alone in this run, divided by the cores. The registry is a process of its
 * own and shares those cores; `cpuRatio` leaves it and other load of the machine out. Run: `node test/bench/pull.bench.ts [MiB] [podyard|agoda]`.
 */
import { createHash, randomFillSync } from "node:crypto";
import { open, rm } from "node:fs/promises";
import { closeSync, ftruncateSync, openSync } from "node:fs";
import { get } from "node:http";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { gunzipSync, zstdCompressSync, zstdDecompressSync, gzipSync } from "node:zlib";
import { silentLogger } from "../../main/contract/logger.ts";
import { writeSparse } from "../../main/images/sparse-file.ts";
import { macSource, makeDisk, mebibyte, openStore, temporaryDirectory } from "../images/fixture.ts";
import { startRegistry } from "../registry/registry.ts";

const dataBytes = Number(process.argv[2] ?? 512) * mebibyte;
const format = process.argv[3] === "agoda" ? "agoda" : "podyard";
const diskBytes = dataBytes * 4;
const sampleBytes = 16 * mebibyte;
const cores = availableParallelism();

await using registry = await startRegistry();
await using files = await temporaryDirectory();
const diskPath = join(files.path, "disk.raw");
const auxiliaryPath = join(files.path, "aux.raw");
await makeDisk(auxiliaryPath, mebibyte, [{ offset: 0, length: 1000 }]);
await writeTypicalDisk(diskPath);

const reference = `${registry.host}/bench/vm:v1`;
await using store = await openStore(join(files.path, "cache"), { threads: Math.max(2, cores), logger: { ...silentLogger, info: (message, fields) => console.error(message, JSON.stringify(fields?.["milliseconds"])) } });
await store.push(reference, macSource(diskPath, auxiliaryPath), { credentials: [], format });

const seconds: number[] = [];
const cpu: number[] = [];
let wireBytes = 0;
for (let round = 0; round < 3; round += 1) {
  const before = process.cpuUsage();
  const { milliseconds } = await store.pull(reference, { policy: "Always", credentials: [], onProgress: ({ bytesTotal }) => (wireBytes = Math.max(wireBytes, bytesTotal)) });
  const used = process.cpuUsage(before);
  seconds.push(milliseconds / 1000);
  cpu.push((used.user + used.system) / 1e6);
  await store.remove(reference);
}
const update = await measureUpdate();
const best = Math.min(...seconds);
const limit = await measureLimit();
const limitCpuSeconds = limit.http + limit.hashCompressed + limit.decompress + limit.inflateHoles + limit.hashRaw + limit.write;
const limitSeconds = limitCpuSeconds / cores;
console.log(JSON.stringify({ format, dataMiB: dataBytes / mebibyte, wireMiB: Math.round(wireBytes / mebibyte), cores, pullSeconds: seconds, pullCpuSeconds: cpu, update: { ...update, timeRatio: update.seconds / Math.min(...seconds) }, limit, limitSeconds, ratio: limitSeconds / best, cpuRatio: limitCpuSeconds / Math.min(...cpu) }, undefined, 2));

/** A second version in which a run of 5 % of the data changed, at an odd place; what comes over the wire and how long it takes. */
async function measureUpdate(): Promise<{ readonly changedMiB: number; readonly wireMiB: number; readonly bytesRatio: number; readonly seconds: number }> {
  await store.pull(reference, { policy: "Always", credentials: [] });
  const changed = Math.round(dataBytes / 20);
  const bytes = randomFillSync(Buffer.alloc(changed));
  {
    await using file = await open(diskPath, "r+");
    await file.write(bytes, 0, changed, sampleBytes * 4 + 1_234_567);
  }
  const next = `${registry.host}/bench/vm:v2`;
  await store.push(next, macSource(diskPath, auxiliaryPath), { credentials: [], format });
  let wire = 0;
  const { milliseconds } = await store.pull(next, { policy: "Always", credentials: [], onProgress: ({ bytesTotal }) => (wire = Math.max(wire, bytesTotal)) });
  return { changedMiB: changed / mebibyte, wireMiB: wire / mebibyte, bytesRatio: wire / changed, seconds: milliseconds / 1000 };
}

/** A quarter of the disk is data that compresses about as program files do; the rest is holes. */
async function writeTypicalDisk(path: string): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(diskBytes);
  const block = Buffer.alloc(sampleBytes);
  for (let done = 0; done < dataBytes; done += sampleBytes) {
    for (let start = 0; start < block.length; start += 4096) {
      // 1,400 random bytes, then text with a number in it: zstd makes about 2.6 of it.
      randomFillSync(block, start, 1400);
      block.fill(`entry ${done + start} of the file system, `, start + 1400, start + 4096);
    }
    await file.write(block, 0, block.length, done * 2);
  }
}

/** Seconds of CPU for all the data, from one sample of each step run alone. */
async function measureLimit(): Promise<{ readonly http: number; readonly hashCompressed: number; readonly decompress: number; readonly inflateHoles: number; readonly hashRaw: number; readonly write: number }> {
  const raw = Buffer.alloc(sampleBytes);
  await using file = await open(diskPath, "r");
  await file.read(raw, 0, raw.length, 0);
  const compressed = format === "agoda" ? gzipSync(raw) : zstdCompressSync(raw);
  const scale = dataBytes / sampleBytes;
  const options = { chunkSize: sampleBytes + 1 };
  const target = join(files.path, "write.raw");
  const descriptor = openSync(target, "w");
  ftruncateSync(descriptor, diskBytes);
  const rounds = Math.max(1, Math.round(scale / 4));
  const timed = (act: (round: number) => void): number => {
    act(0);
    const before = process.cpuUsage();
    for (let round = 0; round < rounds; round += 1) act(round);
    const { user, system } = process.cpuUsage(before);
    return ((user + system) / 1e6 / rounds) * scale;
  };
  // A gzip stream holds the holes as zeros, which must be inflated and hashed as well; our format leaves them out.
  const zeros = gzipSync(Buffer.alloc(sampleBytes));
  const holes = format === "agoda" ? diskBytes / dataBytes - 1 : 0;
  const result = {
    hashCompressed: timed(() => createHash("sha256").update(compressed).digest()),
    inflateHoles: holes * timed(() => gunzipSync(zeros, options)),
    decompress: timed(() => (format === "agoda" ? gunzipSync(compressed, options) : zstdDecompressSync(compressed, options))),
    hashRaw: (1 + holes) * timed(() => createHash("sha256").update(raw).digest()),
    write: timed((round) => writeSparse(descriptor, raw, (round + 1) * sampleBytes * 2)),
    http: await measureHttp(),
  };
  closeSync(descriptor);
  await rm(target);
  return result;
}

async function measureHttp(): Promise<number> {
  const response = await fetch(`http://${registry.host}/v2/bench/vm/manifests/v1`, { headers: { Accept: "application/vnd.oci.image.manifest.v1+json" } });
  const { layers } = (await response.json()) as { readonly layers: readonly { readonly digest: string }[] };
  const before = process.cpuUsage();
  for (const { digest } of layers) {
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    get(`http://${registry.host}/v2/bench/vm/blobs/${digest}`, (answer) => answer.on("data", () => undefined).on("end", () => resolve(undefined)).on("error", reject)).on("error", reject);
    await promise;
  }
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}

