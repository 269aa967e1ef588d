/**
 * The server's side of a SPDY/3.1 connection as client-go and the API server speak it after an upgrade. Traps handled here:
 * - Nothing may be sent before the client's first frame: client-go throws away what arrives right behind the 101 response.
 *   So no SETTINGS, and every frame of ours answers one of the client's.
 * - Go's spdystream neither sends nor heeds WINDOW_UPDATE: flow control is TCP's alone.
 * - Data that precedes a stream's SYN_REPLY is dropped by the client: the reply goes out before the stream is handed over.
 * - Bytes left unread when a socket closes turn into a TCP reset that can swallow our last frames: after GOAWAY the rest of
 *   the client's bytes is read and discarded until it closes.
 * https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/
 */
import type { Duplex } from "node:stream";
import { PodyardError } from "../../contract/errors.ts";
import { controlFrame, dataFrameHeader, frameFlag, FrameReader, frameType, maximumStreamId, resetStatus, twoWords } from "./frames.ts";
import { HeaderBlockReader, HeaderBlockWriter } from "./header-block.ts";
import type { SpdyHeaders } from "./header-block.ts";
import { SpdyStream } from "./stream.ts";
import type { StreamLink } from "./stream.ts";

export interface SpdyConnectionOptions {
  /** The upgraded socket; the connection owns it from now on. */
  readonly socket: Duplex;
  /** Bytes that arrived together with the upgrade request. */
  readonly head: Buffer;
  readonly maximumStreams: number;
  /** Whether a stream with these headers is wanted; if not it is reset. */
  accepts(headers: SpdyHeaders, id: number): boolean;
  /** A stream was opened and replied to. */
  onStream(stream: SpdyStream): void;
}

const maximumDataPayload = 64 * 1024;
/**
 * How long the client may take to close after our GOAWAY, in milliseconds. A slow one has megabytes before it in the kernel's
 * buffers, which would be lost: its next ping to a socket that we closed is answered by a reset.
 */
const lingerMilliseconds = 300_000;
/** While the socket is not read its end goes unnoticed; pings then, at this interval in milliseconds, meet it. */
const stalledPingMilliseconds = 2000;

export class SpdyConnection implements StreamLink {
  readonly #options: SpdyConnectionOptions;
  readonly #socket: Duplex;
  readonly #frames: FrameReader;
  readonly #headerReader = new HeaderBlockReader();
  readonly #headerWriter = new HeaderBlockWriter();
  readonly #streams = new Map<number, SpdyStream>();
  readonly #full = new Set<SpdyStream>();
  readonly #closed = new AbortController();
  #waitingForDrain: ((error?: Error) => void)[] = [];
  #lastStreamId = 0;
  #isClosing = false;
  #stalled: { readonly timer: NodeJS.Timeout; pingId: number } | undefined;

  constructor(options: SpdyConnectionOptions) {
    this.#options = options;
    this.#socket = options.socket;
    this.#frames = new FrameReader({
      onControl: (type, flags, payload) => this.#onControl(type, flags, payload),
      onData: (streamId, flags, piece, isEnd) => this.#onData(streamId, flags, piece, isEnd),
    });
    this.#socket.on("error", () => this.#socket.destroy());
    this.#socket.on("end", () => this.#socket.destroy());
    this.#socket.on("close", () => this.#onSocketClosed());
    this.#socket.on("drain", () => this.#onDrain());
    if (options.head.length > 0) this.#receive(options.head);
    this.#socket.on("data", (bytes: Buffer) => this.#receive(bytes));
    if (this.#socket.destroyed) this.#onSocketClosed();
  }

  /** Aborted once the socket is gone, for whatever reason. */
  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  /** Says GOAWAY and closes. Streams that should be delivered whole must have been ended and finished before. */
  close(): void {
    if (this.#isClosing || this.#socket.destroyed) return;
    this.#isClosing = true;
    this.#socket.write(controlFrame(frameType.goAway, 0, twoWords(this.#lastStreamId, 0)));
    this.#socket.end();
    for (const stream of this.#streams.values()) stream.receiveReset();
    this.#full.clear();
    this.#resume();
    const timer = setTimeout(() => this.#socket.destroy(), lingerMilliseconds);
    this.#socket.once("close", () => clearTimeout(timer));
  }

  /** Drops the connection at once. */
  destroy(): void {
    this.#socket.destroy();
  }

  sendData(stream: SpdyStream, bytes: Buffer, done: (error?: Error) => void): void {
    if (this.#socket.destroyed || this.#isClosing) return done(new PodyardError("Unavailable", "the client closed the connection"));
    let isBelowMark = true;
    this.#socket.cork();
    for (let offset = 0; offset < bytes.length; offset += maximumDataPayload) {
      const payload = bytes.subarray(offset, offset + maximumDataPayload);
      this.#socket.write(dataFrameHeader(stream.id, 0, payload.length));
      isBelowMark = this.#socket.write(payload);
    }
    this.#socket.uncork();
    if (isBelowMark || !this.#socket.writableNeedDrain) done();
    else this.#waitingForDrain.push(done);
  }

  sendEnd(stream: SpdyStream): void {
    if (!this.#socket.destroyed && !this.#isClosing) this.#socket.write(dataFrameHeader(stream.id, frameFlag.fin, 0));
  }

  onReadable(stream: SpdyStream): void {
    if (this.#full.delete(stream) && this.#full.size === 0) this.#resume();
  }

  onDestroyed(stream: SpdyStream, isComplete: boolean): void {
    this.#streams.delete(stream.id);
    if (!isComplete) this.#reset(stream.id, resetStatus.cancel);
    this.onReadable(stream);
  }

  #receive(bytes: Buffer): void {
    if (this.#isClosing) return;
    try {
      this.#frames.push(bytes);
    } catch {
      // A peer that breaks the framing or the shared compression state cannot be talked to any further.
      this.#socket.destroy();
    }
  }

  #onControl(type: number, flags: number, payload: Buffer): void {
    if (this.#isClosing) return;
    switch (type) {
      case frameType.synStream:
        return this.#onSynStream(flags, payload);
      case frameType.rstStream:
        requireLength(payload, 8);
        return this.#streams.get(payload.readUInt32BE(0) & maximumStreamId)?.receiveReset();
      case frameType.ping:
        requireLength(payload, 4);
        if ((payload.readUInt32BE(0) & 1) === 1) this.#socket.write(controlFrame(frameType.ping, 0, payload.subarray(0, 4)));
        return;
      case frameType.headers:
      case frameType.synReply: {
        requireLength(payload, 4);
        this.#headerReader.read(payload.subarray(4)); // keeps the compression state in step
        if ((flags & frameFlag.fin) !== 0) this.#streams.get(payload.readUInt32BE(0) & maximumStreamId)?.receiveEnd();
        return;
      }
      case frameType.goAway: // the client opens no more streams; it closes the socket when it is done
      default: // SETTINGS, WINDOW_UPDATE and unknown frames mean nothing here
    }
  }

  #onSynStream(flags: number, payload: Buffer): void {
    requireLength(payload, 10);
    const id = payload.readUInt32BE(0) & maximumStreamId;
    const headers = this.#headerReader.read(payload.subarray(10));
    if (id % 2 === 0 || id <= this.#lastStreamId) throw new PodyardError("Corrupt", `SPDY stream id ${id} is not odd and above ${this.#lastStreamId}`);
    this.#lastStreamId = id;
    if ((flags & frameFlag.unidirectional) !== 0) return this.#reset(id, resetStatus.protocolError);
    if (this.#streams.size >= this.#options.maximumStreams) return this.#reset(id, resetStatus.refusedStream);
    if (!this.#options.accepts(headers, id)) return this.#reset(id, resetStatus.refusedStream);

    const stream = new SpdyStream(id, headers, this);
    this.#streams.set(id, stream);
    const streamId = Buffer.alloc(4);
    streamId.writeUInt32BE(id, 0);
    this.#socket.write(controlFrame(frameType.synReply, 0, Buffer.concat([streamId, this.#headerWriter.write(new Map())])));
    this.#options.onStream(stream);
    if ((flags & frameFlag.fin) !== 0) stream.receiveEnd();
  }

  #onData(streamId: number, flags: number, piece: Buffer, isEnd: boolean): void {
    const stream = this.#streams.get(streamId);
    if (streamId > this.#lastStreamId) throw new PodyardError("Corrupt", `SPDY data for stream ${streamId}, which was never opened`);
    if (stream === undefined) return; // it was reset meanwhile; what is under way is dropped
    if (piece.length > 0 && !stream.receive(piece)) {
      this.#full.add(stream);
      this.#pause();
    }
    if (isEnd && (flags & frameFlag.fin) !== 0) stream.receiveEnd();
  }

  #pause(): void {
    this.#socket.pause();
    if (this.#stalled !== undefined) return;
    const stalled = { pingId: 2, timer: setInterval(() => ping(), stalledPingMilliseconds) };
    const ping = (): void => {
      const id = Buffer.alloc(4);
      id.writeUInt32BE(stalled.pingId, 0);
      stalled.pingId += 2;
      if (!this.#socket.destroyed) this.#socket.write(controlFrame(frameType.ping, 0, id));
    };
    this.#stalled = stalled;
  }

  #resume(): void {
    clearInterval(this.#stalled?.timer);
    this.#stalled = undefined;
    this.#socket.resume();
  }

  #reset(streamId: number, status: number): void {
    if (!this.#socket.destroyed && !this.#isClosing) this.#socket.write(controlFrame(frameType.rstStream, 0, twoWords(streamId, status)));
  }

  #onDrain(): void {
    const waiting = this.#waitingForDrain;
    this.#waitingForDrain = [];
    for (const done of waiting) done();
  }

  #onSocketClosed(): void {
    clearInterval(this.#stalled?.timer);
    for (const stream of this.#streams.values()) stream.receiveReset();
    const waiting = this.#waitingForDrain;
    this.#waitingForDrain = [];
    for (const done of waiting) done(new PodyardError("Unavailable", "the client closed the connection"));
    this.#closed.abort();
  }
}

function requireLength(payload: Buffer, length: number): void {
  if (payload.length < length) throw new PodyardError("Corrupt", `a SPDY control frame has ${payload.length} bytes, expected at least ${length}`);
}
