import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { describe, expect, it } from "vitest";
import { createPreambleFilter, encodeFrame, fromSupervisor, NoSupervisorError, parsePayload, preamble, readFrames, stateSchema } from "./supervisor-protocol.ts";
import { parseProbe } from "./supervisor-installation.ts";

const frames = Buffer.concat([
  encodeFrame(fromSupervisor.error, Buffer.from("problem")),
  encodeFrame(fromSupervisor.credit, Buffer.from([0, 0, 1, 0])),
  encodeFrame(fromSupervisor.output, Buffer.alloc(0)),
  encodeFrame(fromSupervisor.exit, Buffer.from('{"exitCode":3}')),
]);

async function read(bytes: Buffer, size: number): Promise<Map<number, string>> {
  const chunks: Buffer[] = [];
  for (let position = 0; position < bytes.length; position += size) chunks.push(bytes.subarray(position, position + size));
  const seen = new Map<number, string>();
  for await (const { kind, payload } of readFrames(Readable.from(chunks))) seen.set(kind, (seen.get(kind) ?? "") + payload.toString("latin1"));
  return seen;
}

describe("frames", () => {
  it.each([1, 2, 3, 7, 22, 1000])("are read from pieces of %d bytes, behind a shell's noise", async (size) => {
    expect([...(await read(Buffer.concat([Buffer.from("Welcome!\n\0pod"), preamble, frames]), size))]).toEqual([
      [0, ""],
      [fromSupervisor.error, "problem"],
      [fromSupervisor.credit, "\0\0\x01\0"],
      [fromSupervisor.output, ""],
      [fromSupervisor.exit, '{"exitCode":3}'],
    ]);
  });

  it("show what was said instead when there is no supervisor", async () => {
    const failure = await read(Buffer.from("fish: Unknown command"), 5).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(NoSupervisorError);
    expect(failure).toMatchObject({ noise: "fish: Unknown command" });
  });

  it("are refused when longer than sense allows", async () => {
    await expect(read(Buffer.concat([preamble, Buffer.from([fromSupervisor.exit, 0x7f, 0, 0, 0])]), 100)).rejects.toMatchObject({ code: "Corrupt" });
  });

  it("with answers of another shape are refused", () => {
    for (const text of ["", "{", '{"state":"running","processId":-1,"startedAt":"now"}', '{"state":"exited"}']) {
      expect(() => parsePayload(stateSchema, Buffer.from(text))).toThrow("cannot be read");
    }
  });
});

it.each([1, 5, 21, 100])("stdout begins behind the preamble, in pieces of %d bytes", async (size) => {
  const bytes = Buffer.concat([Buffer.from("noise \0podyard-super"), preamble, Buffer.from("text"), preamble]);
  const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) => bytes.subarray(index * size, (index + 1) * size));
  expect(await buffer(Readable.from(chunks).pipe(createPreambleFilter()))).toEqual(Buffer.concat([Buffer.from("text"), preamble]));
});

describe("the look at a guest", () => {
  it("is read behind a shell's noise", () => {
    expect(parseProbe("motd\nPODYARD probe linux-amd64 Linux/x86_64 0 absent /var/lib/podyard\n")).toEqual({
      target: "linux-amd64",
      system: "Linux/x86_64",
      userId: 0,
      present: false,
      directory: "/var/lib/podyard",
    });
  });

  it.each([
    ["This account is currently not available.", "Unavailable"],
    ["PODYARD probe linux-amd64 Linux/x86_64 1000 present /home/a b/.podyard", "Unsupported"],
    ["PODYARD probe linux-amd64 Linux/x86_64 1000 present /home/$(id)/.podyard", "Unsupported"],
  ])("%j is refused as %s", (text, code) => {
    expect(() => parseProbe(text)).toThrow(expect.objectContaining({ code }) as Error);
  });
});
