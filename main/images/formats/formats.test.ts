import { describe, expect, test } from "vitest";
import { chunkSizeFor, writePodyardConfig, writePodyardManifest } from "./podyard.ts";
import { parseManifestDocument, type Manifest } from "./oci.ts";
import { kindOf, readVirtualMachineImage } from "./recognise.ts";
import type { Piece, VirtualMachineImage } from "./virtual-machine-image.ts";

const mebibyte = 1024 * 1024;
const digest = (digit: string): `sha256:${string}` => `sha256:${digit.repeat(64)}`;
const piece = (offset: number, length: number, size = 100): Piece => ({ target: "disk", offset, length, digest: digest("a"), compression: "zstd", blob: { digest: digest("b"), size } });

function manifestOf(pieces: readonly Piece[]): Manifest {
  const document = parseManifestDocument(writePodyardManifest({ digest: digest("c"), size: 2 }, pieces, new Date(0)), "test");
  if (document.kind !== "manifest") throw new Error("not a manifest");
  return document.manifest;
}

function read(pieces: readonly Piece[], config: Buffer = configOf()): Promise<VirtualMachineImage> {
  return readVirtualMachineImage(manifestOf(pieces), "test", () => Promise.resolve(config));
}

function configOf(diskSize = 64 * mebibyte): Buffer {
  return writePodyardConfig({ operatingSystem: "linux", architecture: "amd64", hardwareModel: undefined, machineIdentifier: undefined, guest: { user: "root" }, diskSize, auxiliarySize: 0 }, 16 * mebibyte);
}

describe("our format", () => {
  test("is read as it was written", async () => {
    const pieces = [piece(0, 16 * mebibyte), piece(48 * mebibyte, 16 * mebibyte)];
    expect(kindOf(manifestOf(pieces))).toBe("virtual-machine");
    expect(await read(pieces)).toEqual({ format: "podyard", operatingSystem: "linux", architecture: "amd64", guest: { user: "root" }, diskSize: 64 * mebibyte, auxiliarySize: 0, pieces, hardwareModel: undefined, machineIdentifier: undefined });
  });

  test.each<[string, readonly Piece[], RegExp]>([
    ["overlap", [piece(0, 100), piece(99, 100)], /overlap at byte 99/],
    ["lie beyond the disk", [piece(64 * mebibyte - 1, 2)], /ends at byte 67108865 of a disk of 67108864/],
    ["are empty", [piece(0, 0)], /overlap at byte 0/],
    ["grow when compressed", [piece(0, 100, 10 * mebibyte)], /is compressed to 10485760/],
    ["are longer than a chunk may be", [piece(0, 65 * mebibyte)], /at most 67108864/],
  ])("layers that %s are refused", async (_, pieces, message) => {
    await expect(read(pieces)).rejects.toMatchObject({ code: "Corrupt", message: expect.stringMatching(message) });
  });

  test.each([
    ["not JSON", "{"],
    ["an unknown operating system", JSON.stringify({ version: 1, os: "windows", diskSize: 1, chunkSize: 1 })],
    ["an absurd disk", JSON.stringify({ version: 1, os: "linux", diskSize: 2 ** 52, chunkSize: 1 })],
    ["a version of the future", JSON.stringify({ version: 2, os: "linux", diskSize: 1, chunkSize: 1 })],
  ])("a configuration with %s is refused", async (_, config) => {
    await expect(read([], Buffer.from(config))).rejects.toMatchObject({ code: "Corrupt" });
  });

  test("chunks grow with the data, within bounds", () => {
    expect([0, 1, 100, 1000].map((gibibytes) => chunkSizeFor(gibibytes * 1024 * mebibyte) / mebibyte)).toEqual([16, 16, 64, 64]);
  });
});

test.each([
  ["not JSON", "<html>"],
  ["no layers", JSON.stringify({ schemaVersion: 2, config: {} })],
  ["another digest algorithm", JSON.stringify({ schemaVersion: 2, config: { mediaType: "x", digest: `md5:${"a".repeat(32)}`, size: 1 }, layers: [] })],
  ["a negative size", JSON.stringify({ schemaVersion: 2, config: { mediaType: "x", digest: digest("a"), size: -1 }, layers: [] })],
])("a manifest with %s is corrupt", (_, text) => {
  expect(() => parseManifestDocument(Buffer.from(text), "test")).toThrow(expect.objectContaining({ code: "Corrupt" }));
});
