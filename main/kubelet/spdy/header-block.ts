/**
 * Header blocks of SPDY/3.1: a count, then length-prefixed names and values, compressed. Each direction of a connection is
 * ONE zlib stream over all its blocks (each flushed to a byte boundary), primed with a fixed dictionary.
 *
 * Reading needs no stateful inflater, which Node has only asynchronously: since every block ends on a flush, a block is a
 * raw deflate run whose history is the last 32 KiB of dictionary and earlier output. Writing uses stored blocks, which need
 * no compressor at all; ours hold a few bytes.
 * https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/ (2.6.10)
 */
import { constants, inflateRawSync } from "node:zlib";
import { PodyardError } from "../../contract/errors.ts";
import { headerDictionary, headerDictionaryChecksum } from "./header-dictionary.ts";

/** Names in lower case; a header with several values has them separated by NUL, of which the first is kept. */
export type SpdyHeaders = ReadonlyMap<string, string>;

export const headerBlockLimits = { headers: 1000, bytes: 256 * 1024 } as const;

const historyBytes = 32 * 1024;
/** CMF = deflate with a 32 KiB window; FLG = preset dictionary, with the check bits that make the pair a multiple of 31. */
const zlibHeader = Buffer.from([0x78, 0xbb, 0, 0, 0, 0]);
zlibHeader.writeUInt32BE(headerDictionaryChecksum, 2);
const emptyStoredBlock = Buffer.from([0x00, 0x00, 0x00, 0xff, 0xff]);

/** Reads the header blocks of one direction, in order; every block of the connection must pass through it. */
export class HeaderBlockReader {
  #history: Buffer = headerDictionary;
  #isFirst = true;

  /** @throws PodyardError Corrupt if the block is malformed or over {@link headerBlockLimits}. */
  read(block: Buffer): SpdyHeaders {
    try {
      return parseHeaders(this.#inflate(block));
    } catch (cause) {
      throw new PodyardError("Corrupt", "a SPDY header block is malformed or too large", { cause });
    }
  }

  #inflate(block: Buffer): Buffer {
    let compressed = block;
    if (this.#isFirst) {
      if (block.length < zlibHeader.length || block.readUInt32BE(2) !== headerDictionaryChecksum) throw new RangeError("it does not name the SPDY/3 dictionary");
      compressed = block.subarray(zlibHeader.length);
      this.#isFirst = false;
    }
    const headers = inflateRawSync(compressed, {
      dictionary: this.#history,
      finishFlush: constants.Z_SYNC_FLUSH,
      maxOutputLength: headerBlockLimits.bytes,
    });
    this.#history = Buffer.concat([this.#history, headers]).subarray(-historyBytes);
    return headers;
  }
}

/** Writes the header blocks of the other direction, in order. */
export class HeaderBlockWriter {
  #isFirst = true;

  write(headers: SpdyHeaders): Buffer {
    const payload = serializeHeaders(headers);
    const storedHeader = Buffer.alloc(5);
    storedHeader.writeUInt16LE(payload.length, 1);
    storedHeader.writeUInt16LE(~payload.length & 0xffff, 3);
    const parts = [storedHeader, payload, emptyStoredBlock];
    if (this.#isFirst) parts.unshift(zlibHeader);
    this.#isFirst = false;
    return Buffer.concat(parts);
  }
}

function parseHeaders(block: Buffer): SpdyHeaders {
  const headers = new Map<string, string>();
  let offset = 4;
  const count = block.readUInt32BE(0);
  if (count > headerBlockLimits.headers) throw new RangeError(`${count} headers, allowed are ${headerBlockLimits.headers}`);
  for (let index = 0; index < count; index += 1) {
    const name = readString();
    const value = readString();
    const end = value.indexOf("\0");
    headers.set(name.toLowerCase(), end === -1 ? value : value.slice(0, end));
  }
  return headers;

  function readString(): string {
    const end = offset + 4 + block.readUInt32BE(offset);
    if (end > block.length) throw new RangeError("a header is longer than its block");
    const text = block.toString("latin1", offset + 4, end);
    offset = end;
    return text;
  }
}

function serializeHeaders(headers: SpdyHeaders): Buffer {
  const parts = [uint32(headers.size)];
  for (const text of [...headers].flat()) {
    const bytes = Buffer.from(text, "latin1");
    parts.push(uint32(bytes.length), bytes);
  }
  const payload = Buffer.concat(parts);
  if (payload.length > 0xffff) throw new RangeError("a header block of ours must fit one stored block");
  return payload;
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}
