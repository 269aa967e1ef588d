import { describe, expect, test } from "vitest";
import { controlFrame, dataFrameHeader, FrameReader, frameType } from "./frames.ts";

function readerInto(events: string[]): FrameReader {
  return new FrameReader({
    onControl: (type, flags, payload) => events.push(`control ${type} ${flags} ${payload.toString()}`),
    onData: (id, flags, piece, isEnd) => events.push(`data ${id} ${flags} ${piece.toString()}${isEnd ? "." : ""}`),
  });
}

const bytes = Buffer.concat([controlFrame(frameType.ping, 3, Buffer.from("abcd")), dataFrameHeader(7, 1, 5), Buffer.from("hello"), dataFrameHeader(9, 0, 0), controlFrame(frameType.settings, 0, Buffer.alloc(0))]);

describe("frames", () => {
  test("are split however the bytes arrive", () => {
    for (let size = 1; size <= bytes.length; size += 1) {
      const events: string[] = [];
      const reader = readerInto(events);
      for (let offset = 0; offset < bytes.length; offset += size) reader.push(bytes.subarray(offset, offset + size));
      const joined = events.filter((event) => event.startsWith("data 7")).map((event) => event.slice("data 7 1 ".length)).join("");
      expect(joined).toBe("hello.");
      expect(events.filter((event) => !event.startsWith("data 7"))).toEqual(["control 6 3 abcd", "data 9 0 .", "control 4 0 "]);
    }
  });

  test("of data are handed on before they are whole", () => {
    const events: string[] = [];
    const reader = readerInto(events);
    reader.push(Buffer.concat([dataFrameHeader(1, 1, 0xffffff), Buffer.from("start")]));
    expect(events).toEqual(["data 1 1 start"]);
  });

  test.each([
    ["another version", Buffer.from([0x80, 2, 0, 1, 0, 0, 0, 0])],
    ["an endless control frame", Buffer.from([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])],
  ])("of %s are refused", (_name, frame) => {
    expect(() => readerInto([]).push(frame)).toThrow(/SPDY/);
  });
});
