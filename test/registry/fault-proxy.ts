/**
 * A TCP proxy in front of a registry that misbehaves on purpose: it passes HTTP through and, for responses to paths that
 * match, drops the connection after some bytes of the body, ends it early with a length that fits, changes a byte, or
 * delays. It also counts requests and body bytes, so that a test can say what went over the wire.
 */
import { once } from "node:events";
import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { Transform, type TransformCallback } from "node:stream";

export type Fault =
  /** The connection breaks after so many bytes of the body, `times` times (default 1). */
  | { readonly kind: "drop"; readonly path: RegExp; readonly afterBytes: number; readonly times?: number }
  /** The response claims and has only so many bytes. */
  | { readonly kind: "truncate"; readonly path: RegExp; readonly toBytes: number; readonly times?: number }
  /** The byte at this position of the body is flipped. */
  | { readonly kind: "corrupt"; readonly path: RegExp; readonly atByte: number; readonly times?: number }
  /** Answered with this status instead. */
  | { readonly kind: "status"; readonly path: RegExp; readonly status: number; readonly times?: number }
  /** The body stops after so many bytes until {@link FaultProxy.release}. */
  | { readonly kind: "stall"; readonly path: RegExp; readonly afterBytes: number; readonly times?: number };

export interface SeenRequest {
  readonly method: string;
  readonly path: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

export interface FaultProxy extends AsyncDisposable {
  readonly host: string;
  readonly requests: readonly SeenRequest[];
  /** Bytes of response bodies sent on. */
  readonly bytes: number;
  /** Faults from now on; the counters start over. */
  setFaults(faults: readonly Fault[]): void;
  /** Lets stalled bodies go on. */
  release(): void;
  /** Settles when a body stalls. */
  readonly stalled: Promise<void>;
}

export async function startFaultProxy(upstreamHost: string, faults: readonly Fault[] = []): Promise<FaultProxy> {
  const proxy = new Proxy(upstreamHost, faults);
  await proxy.listen();
  return proxy;
}

class Proxy implements FaultProxy {
  requests: SeenRequest[] = [];
  bytes = 0;
  readonly #upstream: URL;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #faults: { readonly fault: Fault; left: number }[] = [];
  #gate = Promise.withResolvers<void>();
  #stalled = Promise.withResolvers<void>();

  constructor(upstreamHost: string, faults: readonly Fault[]) {
    this.#upstream = new URL(`http://${upstreamHost}`);
    this.setFaults(faults);
    this.#server = createServer((incoming, outgoing) => this.#forward(incoming, outgoing));
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      socket.on("error", () => undefined);
    });
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get stalled(): Promise<void> {
    return this.#stalled.promise;
  }

  async listen(): Promise<void> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
  }

  setFaults(faults: readonly Fault[]): void {
    this.#faults = faults.map((fault) => ({ fault, left: fault.times ?? 1 }));
    this.requests = [];
    this.bytes = 0;
    this.#stalled = Promise.withResolvers<void>();
    this.#gate = Promise.withResolvers<void>();
  }

  release(): void {
    this.#gate.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.release();
    const closed = once(this.#server, "close");
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  #forward(incoming: IncomingMessage, outgoing: ServerResponse): void {
    const path = incoming.url ?? "/";
    this.requests.push({ method: incoming.method ?? "", path, range: incoming.headers.range, authorization: incoming.headers.authorization });
    const active = this.#faults.find(({ fault, left }) => left > 0 && fault.path.test(path) && incoming.method === "GET");
    if (active !== undefined) active.left -= 1;
    const fault = active?.fault;
    if (fault?.kind === "status") {
      outgoing.writeHead(fault.status).end();
      return;
    }
    const { headers, method } = incoming;
    // The registry makes absolute URLs from the Host it sees, so it must see ours.
    const sent = request({ host: this.#upstream.hostname, port: this.#upstream.port, method, path, headers: { ...headers, host: this.host } }, (response) => {
      const length = Number(response.headers["content-length"] ?? Number.NaN);
      const changed = fault?.kind === "truncate" && Number.isFinite(length) ? { ...response.headers, "content-length": String(Math.min(length, fault.toBytes)) } : response.headers;
      outgoing.writeHead(response.statusCode ?? 502, changed);
      const body = new FaultyBody(fault, {
        count: (bytes) => (this.bytes += bytes),
        drop: () => outgoing.destroy(),
        stall: () => {
          this.#stalled.resolve();
          return this.#gate.promise;
        },
      });
      body.on("error", () => outgoing.destroy());
      response.on("error", () => outgoing.destroy());
      response.pipe(body).pipe(outgoing);
      outgoing.on("close", () => response.destroy());
    });
    sent.on("error", () => outgoing.destroy());
    incoming.pipe(sent);
  }
}

interface BodyHooks {
  readonly count: (bytes: number) => void;
  readonly drop: () => void;
  readonly stall: () => Promise<void>;
}

class FaultyBody extends Transform {
  readonly #fault: Fault | undefined;
  readonly #hooks: BodyHooks;
  #position = 0;

  constructor(fault: Fault | undefined, hooks: BodyHooks) {
    super();
    this.#fault = fault;
    this.#hooks = hooks;
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    const start = this.#position;
    this.#position += chunk.length;
    const pass = (bytes: Buffer): void => {
      this.#hooks.count(bytes.length);
      callback(null, bytes);
    };
    const fault = this.#fault;
    if (fault?.kind === "truncate") return pass(chunk.subarray(0, Math.max(0, fault.toBytes - start)));
    if (fault?.kind === "corrupt" && start <= fault.atByte && fault.atByte < this.#position) {
      const changed = Buffer.from(chunk);
      changed.writeUInt8(changed.readUInt8(fault.atByte - start) ^ 0xff, fault.atByte - start);
      return pass(changed);
    }
    if (fault?.kind === "drop" && this.#position > fault.afterBytes) {
      const rest = chunk.subarray(0, Math.max(0, fault.afterBytes - start));
      this.#hooks.count(rest.length);
      this.push(rest);
      // The bytes before the break must reach the client, or nothing is proven about them.
      setImmediate(() => setImmediate(this.#hooks.drop));
      return;
    }
    if (fault?.kind === "stall" && start <= fault.afterBytes && fault.afterBytes < this.#position) {
      const head = chunk.subarray(0, fault.afterBytes - start);
      this.#hooks.count(head.length);
      this.push(head);
      void this.#hooks.stall().then(() => pass(chunk.subarray(head.length)));
      return;
    }
    pass(chunk);
  }
}
