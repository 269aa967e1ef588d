import { constants, deflateRawSync, deflateSync, inflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { HeaderBlockReader, HeaderBlockWriter } from "./header-block.ts";
import { headerDictionary } from "./header-dictionary.ts";

function rawBlock(count: number, ...texts: readonly string[]): Buffer {
  const word = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value);
    return bytes;
  };
  return Buffer.concat([word(count), ...texts.flatMap((text) => [word(text.length), Buffer.from(text, "latin1")])]);
}

const compress = (bytes: Buffer): Buffer => deflateSync(bytes, { dictionary: headerDictionary, finishFlush: constants.Z_SYNC_FLUSH });

describe("a header block", () => {
  test("is read with lower-case names, the first of several values and any byte", () => {
    const headers = new HeaderBlockReader().read(compress(rawBlock(3, "Streamtype", "data", "port", "80\x0081", "x", "\xff")));
    expect([...headers]).toEqual([
      ["streamtype", "data"],
      ["port", "80"],
      ["x", "\xff"],
    ]);
  });

  test("may refer to the blocks before it, far back in the window", () => {
    const reader = new HeaderBlockReader();
    const first = rawBlock(1, "long", "x".repeat(20_000) + "marker");
    const second = rawBlock(1, "long", "x".repeat(20_000) + "marker");
    expect(reader.read(compress(first)).get("long")).toHaveLength(20_006);
    const continued = deflateRawSync(second, { dictionary: Buffer.concat([headerDictionary, first]).subarray(-32768), finishFlush: constants.Z_SYNC_FLUSH });
    expect(continued.length).toBeLessThan(200);
    expect(reader.read(continued).get("long")).toHaveLength(20_006);
  });

  test.each([
    ["no zlib stream", Buffer.from("garbage that is long enough")],
    ["an empty block", Buffer.alloc(0)],
    ["another dictionary", deflateSync(rawBlock(0), { dictionary: Buffer.from("other"), finishFlush: constants.Z_SYNC_FLUSH })],
    ["a count beyond the limit", compress(rawBlock(1001))],
    ["fewer headers than announced", compress(rawBlock(2, "a", "b"))],
    ["a length beyond the block", compress(Buffer.from([0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x61]))],
    ["a bomb", compress(rawBlock(1, "a", "x".repeat(10_000_000)))],
  ])("of %s is refused", (_name, block) => {
    expect(() => new HeaderBlockReader().read(block)).toThrow(/malformed or too large/);
  });

  test("is written so that zlib reads it, again and again", () => {
    const writer = new HeaderBlockWriter();
    const stream = Buffer.concat([writer.write(new Map()), writer.write(new Map([["streamtype", "data"]]))]);
    expect(inflateSync(stream, { dictionary: headerDictionary, finishFlush: constants.Z_SYNC_FLUSH })).toEqual(Buffer.concat([rawBlock(0), rawBlock(1, "streamtype", "data")]));
  });
});
