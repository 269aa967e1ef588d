/**
 * Channels over a WebSocket as Kubernetes multiplexes them: every message is one channel byte and payload; in the base64
 * flavour text messages, the digit of the channel and base64. Each channel is a Node stream, so back-pressure reaches the
 * socket: a channel whose reader is slow stops the reading of all, after {@link channelBufferBytes}.
 * Version 5 adds [255][channel], the client's end of a channel.
 * Model: k8s.io/apimachinery pkg/util/httpstream/wsstream (1.35).
 */
import { Readable, Writable } from "node:stream";
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";
import { WebSocketServer } from "ws";
import type { RawData, WebSocket } from "ws";
import { PodyardError } from "../../contract/errors.ts";

/** How much of one channel is kept for a slow reader, in bytes. */
const channelBufferBytes = 1024 * 1024;
/** The longest message accepted, in bytes. */
const maximumMessage = 4 * 1024 * 1024;
/** Above this many bytes under way in the socket, writers wait. */
const sendBufferBytes = 256 * 1024;
const closeChannel = 255;
/** While the socket is not read its end goes unnoticed; pings then, at this interval in milliseconds, meet it. */
const stalledPingMilliseconds = 2000;

export type ChannelEncoding = "binary" | "base64";

const server = new WebSocketServer({
  noServer: true,
  clientTracking: false,
  perMessageDeflate: false,
  maxPayload: maximumMessage,
  handleProtocols: (_requested, request) => chosenProtocols.get(request) ?? false,
});
const chosenProtocols = new WeakMap<IncomingMessage, string>();

/** The subprotocols the client offers, in its order. */
export function requestedProtocols(request: IncomingMessage): readonly string[] {
  return (request.headers["sec-websocket-protocol"] ?? "").split(",").flatMap((part) => part.trim() || []);
}

/** Answers the upgrade, choosing `protocol` (empty if the client offered none). A malformed handshake is answered with 400. */
export async function acceptWebSocket(request: IncomingMessage, socket: Duplex, head: Buffer, protocol: string): Promise<WebSocketChannels> {
  if (protocol !== "") chosenProtocols.set(request, protocol);
  const webSocket = await new Promise<WebSocket>((resolve, reject) => {
    socket.once("close", () => reject(new PodyardError("Unavailable", "the WebSocket handshake failed")));
    server.handleUpgrade(request, socket, head, resolve);
  });
  return new WebSocketChannels(webSocket, protocol.includes("base64") ? "base64" : "binary");
}

export class WebSocketChannels {
  readonly #webSocket: WebSocket;
  readonly #encoding: ChannelEncoding;
  readonly #closed = new AbortController();
  readonly #readers = new Map<number, Readable>();
  readonly #full = new Set<Readable>();
  #stalledTimer: NodeJS.Timeout | undefined;

  constructor(webSocket: WebSocket, encoding: ChannelEncoding) {
    this.#webSocket = webSocket;
    this.#encoding = encoding;
    webSocket.on("error", () => webSocket.terminate());
    webSocket.on("close", () => this.#onClosed());
    webSocket.on("message", (message: RawData) => this.#onMessage(message));
  }

  /** Aborted once the client is gone. */
  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  /** What the client sends on a channel. Channels without a reader are discarded. */
  reader(channel: number): Readable {
    const reader = new Readable({
      highWaterMark: channelBufferBytes,
      read: () => this.#onReadable(reader),
      destroy: (error, done) => {
        this.#readers.delete(channel);
        this.#onReadable(reader);
        done(error);
      },
    });
    this.#readers.set(channel, reader);
    return reader;
  }

  /** Sends on a channel. Ending it sends nothing: these protocols have no end of a channel towards the client. */
  writer(channel: number): Writable {
    return new Writable({
      highWaterMark: 64 * 1024,
      write: (bytes: Buffer, _encoding, done) => this.#send(channel, bytes, done),
    });
  }

  /** Sends a message even if it is empty, as the handshake of exec wants. */
  sendEmpty(channel: number): void {
    this.#send(channel, Buffer.alloc(0), () => undefined);
  }

  /** Ends what is read of a channel; what still comes is discarded. */
  endReader(channel: number): void {
    const reader = this.#readers.get(channel);
    this.#readers.delete(channel);
    reader?.push(null);
  }

  close(): void {
    this.#full.clear();
    for (const reader of this.#readers.values()) reader.resume();
    this.#resume();
    this.#webSocket.close(1000); // `ws` terminates by itself if the client does not answer
  }

  #send(channel: number, bytes: Buffer, done: (error?: Error | null) => void): void {
    if (this.#webSocket.readyState !== this.#webSocket.OPEN) return done(new PodyardError("Unavailable", "the client closed the connection"));
    const message = this.#encoding === "binary" ? Buffer.concat([Buffer.from([channel]), bytes]) : `${channel}${bytes.toString("base64")}`;
    const mustWait = this.#webSocket.bufferedAmount > sendBufferBytes;
    this.#webSocket.send(message, (error) => {
      if (mustWait) done(error);
    });
    if (!mustWait) done();
  }

  #onMessage(message: RawData): void {
    const bytes = Array.isArray(message) ? Buffer.concat(message) : Buffer.from(message instanceof ArrayBuffer ? new Uint8Array(message) : message);
    const first = bytes[0];
    if (first === undefined) return;
    if (this.#encoding === "binary" && first === closeChannel) {
      const channel = bytes[1];
      if (channel !== undefined) this.endReader(channel);
      return;
    }
    const channel = this.#encoding === "binary" ? first : first - 0x30;
    const payload = this.#encoding === "binary" ? bytes.subarray(1) : Buffer.from(bytes.toString("latin1", 1), "base64");
    const reader = this.#readers.get(channel);
    if (reader === undefined || payload.length === 0) return;
    if (!reader.push(payload)) {
      this.#full.add(reader);
      this.#webSocket.pause();
      this.#stalledTimer ??= setInterval(() => this.#webSocket.ping(), stalledPingMilliseconds);
    }
  }


  #onReadable(reader: Readable): void {
    if (this.#full.delete(reader) && this.#full.size === 0) this.#resume();
  }

  #resume(): void {
    clearInterval(this.#stalledTimer);
    this.#stalledTimer = undefined;
    this.#webSocket.resume();
  }

  #onClosed(): void {
    clearInterval(this.#stalledTimer);
    for (const reader of this.#readers.values()) reader.destroy();
    this.#closed.abort();
  }
}
