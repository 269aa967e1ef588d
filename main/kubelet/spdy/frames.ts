/**
 * SPDY/3.1 frames: an eight-byte header, then the payload. Splits a byte stream into whole control frames and into pieces
 * of data frames as they arrive (a data frame may have 16 MiB, so it is never collected).
 * https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/ (2.2)
 */
import { PodyardError } from "../../contract/errors.ts";
import { headerBlockLimits } from "./header-block.ts";

export const frameType = { synStream: 1, synReply: 2, rstStream: 3, settings: 4, ping: 6, goAway: 7, headers: 8, windowUpdate: 9 } as const;
export const frameFlag = { fin: 0x01, unidirectional: 0x02 } as const;
export const resetStatus = { protocolError: 1, invalidStream: 2, refusedStream: 3, cancel: 5 } as const;

export const maximumStreamId = 0x7fffffff;
const frameHeaderBytes = 8;
const spdyVersion = 3;
/** A compressed block is at most a little larger than its content. */
const maximumControlPayload = headerBlockLimits.bytes + 4096;

export interface FrameHandler {
  onControl(type: number, flags: number, payload: Buffer): void;
  /** A piece of a data frame; `isEnd` = the frame's last piece, `flags` then apply. Empty frames have one empty piece. */
  onData(streamId: number, flags: number, piece: Buffer, isEnd: boolean): void;
}

type Position =
  | { readonly at: "header" }
  | { readonly at: "control"; readonly type: number; readonly flags: number; readonly length: number }
  | { readonly at: "data"; readonly streamId: number; readonly flags: number; readonly remaining: number };

/** Feed it what the socket reads. @throws PodyardError Corrupt; the connection must then be given up. */
export class FrameReader {
  readonly #handler: FrameHandler;
  #position: Position = { at: "header" };
  #collected: Buffer[] = [];
  #collectedBytes = 0;

  constructor(handler: FrameHandler) {
    this.#handler = handler;
  }

  push(bytes: Buffer): void {
    let rest = bytes;
    for (;;) {
      const position = this.#position;
      if (position.at === "data") {
        const piece = rest.subarray(0, position.remaining);
        rest = rest.subarray(piece.length);
        const remaining = position.remaining - piece.length;
        this.#position = remaining === 0 ? { at: "header" } : { ...position, remaining };
        if (piece.length > 0 || remaining === 0) this.#handler.onData(position.streamId, position.flags, piece, remaining === 0);
        if (remaining > 0) return;
        continue;
      }
      const wanted = position.at === "header" ? frameHeaderBytes : position.length;
      const taken = rest.subarray(0, wanted - this.#collectedBytes);
      rest = rest.subarray(taken.length);
      if (taken.length > 0) this.#collected.push(taken);
      this.#collectedBytes += taken.length;
      if (this.#collectedBytes < wanted) return;
      const whole = Buffer.concat(this.#collected);
      this.#collected = [];
      this.#collectedBytes = 0;
      if (position.at === "header") {
        this.#position = parseFrameHeader(whole);
      } else {
        this.#position = { at: "header" };
        this.#handler.onControl(position.type, position.flags, whole);
      }
    }
  }
}

/** A control frame as bytes. */
export function controlFrame(type: number, flags: number, payload: Buffer): Buffer {
  const frame = Buffer.alloc(frameHeaderBytes + payload.length);
  frame.writeUInt16BE(0x8000 | spdyVersion, 0);
  frame.writeUInt16BE(type, 2);
  frame.writeUInt8(flags, 4);
  frame.writeUIntBE(payload.length, 5, 3);
  payload.copy(frame, frameHeaderBytes);
  return frame;
}

/** The header of a data frame whose payload follows it on the wire. */
export function dataFrameHeader(streamId: number, flags: number, length: number): Buffer {
  const header = Buffer.alloc(frameHeaderBytes);
  header.writeUInt32BE(streamId, 0);
  header.writeUInt8(flags, 4);
  header.writeUIntBE(length, 5, 3);
  return header;
}

/** The two words that most control frames consist of. */
export function twoWords(first: number, second: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeUInt32BE(first, 0);
  payload.writeUInt32BE(second, 4);
  return payload;
}

function parseFrameHeader(header: Buffer): Position {
  const firstWord = header.readUInt32BE(0);
  const flags = header.readUInt8(4);
  const length = header.readUIntBE(5, 3);
  if ((firstWord & 0x80000000) === 0) return { at: "data", streamId: firstWord, flags, remaining: length };
  const version = (firstWord >>> 16) & 0x7fff;
  if (version !== spdyVersion) throw new PodyardError("Corrupt", `a SPDY frame has version ${version}, expected ${spdyVersion}`);
  if (length > maximumControlPayload) throw new PodyardError("Corrupt", `a SPDY control frame has ${length} bytes, allowed are ${maximumControlPayload}`);
  return { at: "control", type: firstWord & 0xffff, flags, length };
}
