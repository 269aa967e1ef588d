/**
 * A SPDY/3.1 client that compresses with zlib proper, so that the server's reader meets what Go sends. It
 * checks the rule that the server is silent until the client's first frame.
 */
import { request } from "node:https";
import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import { constants, createDeflate } from "node:zlib";
import { controlFrame, dataFrameHeader, frameFlag, FrameReader, frameType, twoWords } from "../../../main/kubelet/spdy/frames.ts";
import { headerDictionary } from "../../../main/kubelet/spdy/header-dictionary.ts";

export interface SpdyTarget {
  readonly port: number;
  readonly path: string;
  readonly protocols: readonly string[];
  readonly key?: string;
  readonly cert?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

export class SpdyRefusal extends Error {
  readonly status: number;
  readonly response: IncomingMessage;
  constructor(status: number, body: string, response: IncomingMessage) {
    super(body);
    this.status = status;
    this.response = response;
  }
}

export interface ReceivedStream {
  readonly chunks: Buffer[];
  bytes: number;
  replied: boolean;
  ended: boolean;
  resetStatus: number | undefined;
}

export class SpdyTestClient {
  readonly socket: Socket;
  readonly protocol: string;
  readonly streams = new Map<number, ReceivedStream>();
  readonly pings: number[] = [];
  goneAway = false;
  /** Streams of which only the length is kept. */
  readonly discarded = new Set<number>();
  readonly #deflate = createDeflate({ dictionary: headerDictionary });
  #queue: Promise<void> = Promise.resolve();
  #nextId = 1;
  #sent = false;
  #waiting: (() => void)[] = [];

  constructor(socket: Socket, head: Buffer, protocol: string) {
    this.socket = socket;
    this.protocol = protocol;
    const reader = new FrameReader({
      onControl: (type, _flags, payload) => this.#onControl(type, payload),
      onData: (id, flags, piece, isEnd) => this.#onData(id, flags, piece, isEnd),
    });
    const receive = (bytes: Buffer): void => {
      if (!this.#sent) throw new Error("the server spoke before the client's first frame");
      reader.push(bytes);
      this.#wake();
    };
    if (head.length > 0) receive(head);
    socket.on("data", receive);
    socket.on("error", () => this.#wake());
    socket.on("close", () => this.#wake());
  }

  static async connect(target: SpdyTarget): Promise<SpdyTestClient> {
    const upgrade = request({
      host: "127.0.0.1",
      port: target.port,
      path: target.path,
      method: "POST",
      key: target.key,
      cert: target.cert,
      rejectUnauthorized: false,
      agent: false,
      headers: { Connection: "Upgrade", Upgrade: "SPDY/3.1", "X-Stream-Protocol-Version": [...target.protocols], "Content-Length": "0", ...target.headers },
    });
    upgrade.end();
    const outcome = await Promise.race([
      once(upgrade, "upgrade") as Promise<[IncomingMessage, Socket, Buffer]>,
      once(upgrade, "response") as Promise<[IncomingMessage]>,
    ]);
    const [response, socket, head] = outcome;
    if (socket === undefined || head === undefined) {
      let body = "";
      for await (const chunk of response) body += String(chunk);
      throw new SpdyRefusal(response.statusCode ?? 0, body, response);
    }
    return new SpdyTestClient(socket, head, String(response.headers["x-stream-protocol-version"]));
  }

  /** Opens a stream and waits for the reply or a reset. */
  async open(headers: Readonly<Record<string, string>>, isEnded = false): Promise<number> {
    const id = this.#nextId;
    this.#nextId += 2;
    this.streams.set(id, { chunks: [], bytes: 0, replied: false, ended: false, resetStatus: undefined });
    const entries = Object.entries(headers);
    const parts = [word(entries.length)];
    for (const text of entries.flat()) parts.push(word(Buffer.byteLength(text)), Buffer.from(text));
    const task = this.#queue.then(async () => {
      const block = await this.#compress(Buffer.concat(parts));
      this.send(controlFrame(frameType.synStream, isEnded ? frameFlag.fin : 0, Buffer.concat([twoWords(id, 0), Buffer.alloc(2), block])));
    });
    this.#queue = task;
    await task;
    await this.until(() => this.stream(id).replied || this.stream(id).resetStatus !== undefined);
    return id;
  }

  stream(id: number): ReceivedStream {
    const stream = this.streams.get(id);
    if (stream === undefined) throw new Error(`stream ${id} was not opened`);
    return stream;
  }

  text(id: number): string {
    return Buffer.concat(this.stream(id).chunks).toString("utf8");
  }

  send(bytes: Buffer): boolean {
    this.#sent = true;
    return this.socket.write(bytes);
  }

  data(id: number, bytes: Buffer | string): boolean {
    const payload = Buffer.from(bytes);
    this.send(dataFrameHeader(id, 0, payload.length));
    return this.socket.write(payload);
  }

  end(id: number): void {
    this.send(dataFrameHeader(id, frameFlag.fin, 0));
  }

  reset(id: number): void {
    this.send(controlFrame(frameType.rstStream, 0, twoWords(id, 5)));
  }

  ping(id: number): void {
    this.send(controlFrame(frameType.ping, 0, word(id)));
  }

  /** Waits until the condition holds; fails when the connection ends without it. */
  async until(condition: () => boolean, deadline = 20_000): Promise<void> {
    const timeout = AbortSignal.timeout(deadline);
    while (!condition()) {
      if (this.socket.destroyed) throw new Error(`the connection closed before ${condition.toString()}`);
      if (timeout.aborted) throw new Error(`timed out waiting for ${condition.toString()}`);
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
        timeout.addEventListener("abort", () => resolve(), { once: true });
      });
    }
  }

  close(): void {
    this.socket.destroy();
  }

  async #compress(bytes: Buffer): Promise<Buffer> {
    this.#deflate.write(bytes);
    await new Promise<void>((resolve) => this.#deflate.flush(constants.Z_SYNC_FLUSH, () => resolve()));
    const chunks: Buffer[] = [];
    for (let chunk = this.#deflate.read(); chunk !== null; chunk = this.#deflate.read()) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  #onControl(type: number, payload: Buffer): void {
    if (type === frameType.synReply) this.stream(payload.readUInt32BE(0)).replied = true;
    else if (type === frameType.rstStream) this.stream(payload.readUInt32BE(0)).resetStatus = payload.readUInt32BE(4);
    else if (type === frameType.ping) this.pings.push(payload.readUInt32BE(0));
    else if (type === frameType.goAway) this.goneAway = true;
    else throw new Error(`unexpected control frame ${type}`);
  }

  #onData(id: number, flags: number, piece: Buffer, isEnd: boolean): void {
    const stream = this.stream(id);
    if (!stream.replied) throw new Error(`data on stream ${id} before its reply`);
    stream.bytes += piece.length;
    if (!this.discarded.has(id) && piece.length > 0) stream.chunks.push(Buffer.from(piece));
    if (isEnd && (flags & frameFlag.fin) !== 0) stream.ended = true;
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}
