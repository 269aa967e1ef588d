/**
 * One stream of a SPDY connection as a Node Duplex: reading is what the client sends, ending it is our FIN, destroying it
 * before both sides are done is RST_STREAM. SPDY/3.1 as Kubernetes speaks it has no flow control, so what the reader does
 * not take is kept up to {@link streamBufferBytes}, then the connection stops reading its socket.
 */
import { Duplex } from "node:stream";
import type { SpdyHeaders } from "./header-block.ts";

/** How much of one stream is kept for a slow reader, in bytes. */
export const streamBufferBytes = 1024 * 1024;

/** What a stream needs of its connection. */
export interface StreamLink {
  sendData(stream: SpdyStream, bytes: Buffer, done: (error?: Error) => void): void;
  sendEnd(stream: SpdyStream): void;
  /** The reader wants more. */
  onReadable(stream: SpdyStream): void;
  /** `isComplete` = both sides had ended, so that no reset is due. */
  onDestroyed(stream: SpdyStream, isComplete: boolean): void;
}

export class SpdyStream extends Duplex {
  readonly id: number;
  readonly headers: SpdyHeaders;
  readonly #link: StreamLink;
  #localEnded = false;
  #remoteEnded = false;

  constructor(id: number, headers: SpdyHeaders, link: StreamLink) {
    super({ readableHighWaterMark: streamBufferBytes, writableHighWaterMark: 64 * 1024 });
    this.id = id;
    this.headers = headers;
    this.#link = link;
  }

  /** For the connection: bytes from the client. False = the buffer is full, wait for `onReadable`. */
  receive(bytes: Buffer): boolean {
    return this.#remoteEnded || this.destroyed || this.push(bytes);
  }

  /** For the connection: the client's FIN. */
  receiveEnd(): void {
    if (this.#remoteEnded || this.destroyed) return;
    this.#remoteEnded = true;
    this.push(null);
  }

  /** For the connection: the client reset the stream, or the connection is gone; nothing is to be sent any more. */
  receiveReset(): void {
    this.#remoteEnded = true;
    this.#localEnded = true;
    this.destroy();
  }

  override _read(): void {
    this.#link.onReadable(this);
  }

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (bytes.length === 0) done();
    else this.#link.sendData(this, bytes, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#localEnded = true;
    this.#link.sendEnd(this);
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#link.onDestroyed(this, this.#localEnded && this.#remoteEnded);
    done(error);
  }
}
