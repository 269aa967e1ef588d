import { createHash } from "node:crypto";
import { mkdtemp, open, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { zstdCompressSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Digest } from "../contract/image.ts";
import { PieceWorkers } from "./piece-workers.ts";
import type { PieceOutcome } from "./piece-task.ts";

const blockSize = 64 * 1024;
let directory: string;
let path: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "podyard-pieces-"));
  path = join(directory, "disk.img");
});

afterAll(() => rm(directory, { recursive: true, force: true }));

function sha256(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

async function decode(workers: PieceWorkers, raw: Buffer, compressed: Uint8Array<ArrayBuffer>, offset: number, claimed = raw): Promise<PieceOutcome> {
  return workers.run({ kind: "decode", path, offset, length: claimed.length, digest: sha256(claimed), compression: "zstd", blobDigest: sha256(compressed), compressed });
}

describe("a decoded chunk", () => {
  test("is written at its place without its runs of zeros, whatever the alignment", async () => {
    await using workers = new PieceWorkers(2);
    for (const offset of [0, 1000, blockSize - 1]) {
      await rm(path, { force: true });
      await (await open(path, "w")).close();
      await truncate(path, 40 * blockSize);
      const raw = Buffer.concat([Buffer.alloc(10, 1), Buffer.alloc(30 * blockSize), Buffer.alloc(10, 2)]);
      expect(await decode(workers, raw, new Uint8Array(zstdCompressSync(raw)), offset)).toEqual({ kind: "done" });
      const disk = await readFile(path);
      expect(disk.subarray(offset, offset + raw.length).equals(raw)).toBe(true);
      expect(disk.subarray(0, offset).every((byte) => byte === 0)).toBe(true);
      expect((await stat(path)).blocks * 512).toBeLessThanOrEqual(4 * blockSize);
    }
  });

  test("that holds more, fewer or other bytes than it should leaves the file alone", async () => {
    await using workers = new PieceWorkers(2);
    await writeFile(path, Buffer.alloc(blockSize));
    const raw = Buffer.alloc(1000, 7);
    const bomb = new Uint8Array(zstdCompressSync(Buffer.alloc(300 * 1024 * 1024)));
    for (const [compressed, claimed] of [[new Uint8Array(zstdCompressSync(raw)), Buffer.alloc(999, 7)], [new Uint8Array(zstdCompressSync(raw)), Buffer.alloc(1001, 7)], [new Uint8Array(zstdCompressSync(raw)), Buffer.alloc(1000, 8)], [bomb, raw], [new Uint8Array(20).fill(3), raw]] as const) {
      expect(await decode(workers, raw, new Uint8Array(compressed), 0, claimed)).toMatchObject({ kind: "raw-mismatch" });
    }
    const outcome = await workers.run({ kind: "decode", path, offset: 0, length: raw.length, digest: sha256(raw), compression: "zstd", blobDigest: sha256(Buffer.from("other")), compressed: new Uint8Array(zstdCompressSync(raw)) });
    expect(outcome).toMatchObject({ kind: "blob-mismatch" });
    expect((await readFile(path)).every((byte) => byte === 0)).toBe(true);
  });
});

test("a task waiting for a thread can be cancelled, and closing ends what runs", async () => {
  const workers = new PieceWorkers(1);
  await writeFile(path, Buffer.alloc(64 * 1024 * 1024, 1));
  const verify = { kind: "verify", path, offset: 0, length: 64 * 1024 * 1024, digest: sha256(Buffer.alloc(0)) } as const;
  const first = workers.run(verify);
  const cancellation = new AbortController();
  const second = workers.run(verify, cancellation.signal);
  cancellation.abort();
  await expect(second).rejects.toMatchObject({ code: "Cancelled" });
  expect(await first).toMatchObject({ kind: "raw-mismatch" });
  const third = expect(workers.run(verify)).rejects.toMatchObject({ code: "Cancelled" });
  await workers[Symbol.asyncDispose]();
  await third;
});
