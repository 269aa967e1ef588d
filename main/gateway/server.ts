/**
 * The gateway: serves an API given as schemas on a unix socket, and on loopback TCP when asked (then also the page). It
 * knows nothing of what it serves; every request is checked for who asks (access.ts) and what is asked (validate) here.
 */
import { createHash } from "node:crypto";
import { chmod, lstat, mkdir, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { WebSocketServer, type WebSocket } from "ws";
import { PodyardError, messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { ProcessSession } from "../contract/streams.ts";
import { createSecrets, decideAccess, mayExchange, sessionCookie, type Listener, type Secrets } from "./access.ts";
import { ensureToken, refuseSecondHost, processStartTime, removeDiscovery, writeDiscovery } from "./discovery.ts";
import type { EventLog } from "./event-log.ts";
import {
  errorBody,
  largestBody,
  largestMessage,
  parseJson,
  statusOfError,
  validate,
  type CallContext,
  type CallHandlers,
  type EventOf,
  type GatewayApi,
  type StreamHandlers,
} from "./protocol.ts";
import { securityHeaders, servePage } from "./static-page.ts";
import { serveStream } from "./stream-server.ts";

export interface GatewayOptions<Api extends GatewayApi> {
  readonly api: Api;
  readonly calls: CallHandlers<Api>;
  readonly streams: StreamHandlers<Api>;
  readonly events: EventLog<EventOf<Api>>;
  /** Gets `gateway.json` and the token. */
  readonly dataDirectory: string;
  /** Short, 0700; gets the socket. */
  readonly runtimeDirectory: string;
  /** Loopback TCP too; 0 = any free port. Absent = unix socket only. */
  readonly port?: number;
  /** Built page to serve on TCP. */
  readonly pageDirectory?: string;
  readonly logger: Logger;
}

export interface Gateway extends AsyncDisposable {
  readonly socketPath: string;
  readonly port: number | undefined;
  /** `http://127.0.0.1:<port>`, undefined without TCP. */
  readonly origin: string | undefined;
  /** An address of the page that signs in once; each call makes a new one. */
  createPageUrl(): string | undefined;
}

/** Errors: Conflict (a host runs with this data directory, or the port is taken), InvalidArgument (path of the socket too long). */
export async function startGateway<Api extends GatewayApi>(options: GatewayOptions<Api>): Promise<Gateway> {
  const { dataDirectory, runtimeDirectory, logger } = options;
  await refuseSecondHost(dataDirectory);
  const socketPath = join(runtimeDirectory, `${createHash("sha256").update(dataDirectory).digest("hex").slice(0, 8)}-gateway.sock`);
  if (Buffer.byteLength(socketPath) > 100) {
    throw new PodyardError("InvalidArgument", `The path of the gateway's socket is longer than 100 bytes: ${socketPath}`, {
      fix: "Choose a shorter runtime directory (XDG_RUNTIME_DIR).",
    });
  }
  const secrets = createSecrets(await ensureToken(dataDirectory));
  await mkdir(runtimeDirectory, { recursive: true, mode: 0o700 });
  await using started = new AsyncDisposableStack();
  // Nobody answers there, or we would have been refused.
  if (await lstat(socketPath).catch(() => undefined)) await rm(socketPath, { force: true });
  const socketServer = createListener(options, secrets, { kind: "socket", port: 0 });
  await listen(socketServer.server, { path: socketPath });
  started.defer(() => socketServer.close());
  await chmod(socketPath, 0o600);
  let port: number | undefined;
  if (options.port !== undefined) {
    const loopback: { kind: "loopback"; port: number } = { kind: "loopback", port: options.port };
    const tcp = createListener(options, secrets, loopback);
    await listen(tcp.server, { host: "127.0.0.1", port: options.port });
    started.defer(() => tcp.close());
    const address = tcp.server.address();
    port = typeof address === "object" && address !== null ? address.port : options.port;
    loopback.port = port;
  }
  await writeDiscovery(dataDirectory, { socket: socketPath, pid: process.pid, startTime: (await processStartTime(process.pid)) ?? "", token: secrets.token });
  started.defer(() => removeDiscovery(dataDirectory, process.pid));
  const origin = port === undefined ? undefined : `http://127.0.0.1:${port}`;
  logger.info("the gateway listens", { socket: socketPath, ...(origin === undefined ? {} : { origin }) });
  const resources = started.move();
  return {
    socketPath,
    port,
    origin,
    createPageUrl: () => (origin === undefined ? undefined : `${origin}/?token=${secrets.createOneTime()}`),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

function listen(server: Server, where: { readonly path: string } | { readonly host: string; readonly port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    const name = "path" in where ? where.path : `${where.host}:${where.port}`;
    server.once("error", (error: NodeJS.ErrnoException) =>
      reject(
        new PodyardError(error.code === "EADDRINUSE" ? "Conflict" : "Unavailable", `The gateway cannot listen on ${name}: ${messageOf(error)}`, {
          cause: error,
          fix: "Choose another --gateway-port.",
        }),
      ),
    );
    server.listen(where, resolve);
  });
}

type LooseHandlers<Result> = Readonly<Record<string, ((request: unknown, context: CallContext) => Promise<Result>) | undefined>>;

function createListener<Api extends GatewayApi>(
  options: GatewayOptions<Api>,
  secrets: Secrets,
  listener: Listener,
): { readonly server: Server; close(): Promise<void> } {
  const { api, events, logger } = options;
  // The types of each handler were checked where they were given; here a name chooses one.
  const calls = options.calls as unknown as LooseHandlers<unknown>;
  const streams = options.streams as unknown as LooseHandlers<ProcessSession>;
  const sockets = new WebSocketServer({ noServer: true, maxPayload: largestMessage, perMessageDeflate: false, clientTracking: true });

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    for (const [name, value] of Object.entries(securityHeaders(listener.kind === "loopback" ? request.headers.host : undefined)))
      response.setHeader(name, value);
    const url = new URL(request.url ?? "/", "http://gateway");
    const oneTime = url.pathname === "/" ? url.searchParams.get("token") : null;
    if (request.method === "GET" && oneTime !== null && mayExchange({ headers: request.headers, isUpgrade: false }, listener)) {
      signIn(response, oneTime);
      return;
    }
    const verdict = decideAccess({ headers: request.headers, isUpgrade: false }, listener, secrets);
    if (!verdict.allowed) {
      refuse(response, verdict.status, { code: verdict.status === 401 ? "Unauthorized" : "Forbidden", message: verdict.message });
      return;
    }
    if (url.pathname.startsWith("/api/")) {
      await answerCall(request, response, url.pathname.slice("/api/".length));
      return;
    }
    const isRead = request.method === "GET" || request.method === "HEAD";
    if (
      isRead &&
      options.pageDirectory !== undefined &&
      listener.kind === "loopback" &&
      (await servePage(options.pageDirectory, url.pathname, response, request.method === "GET"))
    )
      return;
    refuse(response, 404, { code: "NotFound", message: `There is nothing at ${url.pathname}` });
  }

  /** A page that goes on by itself instead of a redirect: a redirect from another site's link would not carry the strict cookie. */
  function signIn(response: ServerResponse, oneTime: string): void {
    response.setHeader("cache-control", "no-store");
    if (!secrets.redeem(oneTime)) {
      response
        .writeHead(401, { "content-type": "text/plain; charset=utf-8" })
        .end("This address was used already. The host prints a new one when it starts.\n");
      return;
    }
    response.writeHead(200, { "content-type": "text/html; charset=utf-8", "set-cookie": sessionCookie(listener.port, secrets.createSession()) });
    response.end('<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/"><title>Podyard</title>');
  }

  async function answerCall(request: IncomingMessage, response: ServerResponse, name: string): Promise<void> {
    const left = new AbortController();
    response.once("close", () => left.abort());
    response.setHeader("cache-control", "no-store");
    try {
      const definition = Object.hasOwn(api.calls, name) ? api.calls[name] : undefined;
      const handler = Object.hasOwn(calls, name) ? calls[name] : undefined;
      if (definition === undefined || handler === undefined) throw new PodyardError("NotFound", `There is no call "${name}"`);
      if (request.method !== "POST") {
        response.setHeader("allow", "POST");
        refuse(response, 405, { code: "InvalidArgument", message: `Call "${name}" with POST` });
        return;
      }
      // A form of another site cannot have this type without a preflight, which is never granted.
      if (!/^application\/json\b/.test(request.headers["content-type"] ?? ""))
        throw new PodyardError("InvalidArgument", `${name}: the body must have content-type application/json`);
      const input = validate(definition.request, parseJson(await readBody(request, name), name), name);
      const result = await handler(input, { signal: left.signal });
      const output = definition.response.safeParse(result);
      if (!output.success) throw new PodyardError("Internal", `${name}: the host's answer does not have the form of the contract`, { cause: output.error });
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ result: output.data }));
    } catch (error) {
      const body = errorBody(error);
      if (!(error instanceof PodyardError)) logger.error("a call failed", { call: name, error: messageOf(error) });
      refuse(response, error instanceof PodyardError ? statusOfError(error.code) : 500, body);
    }
  }

  function upgrade(request: IncomingMessage, connection: Duplex, head: Buffer): void {
    connection.on("error", () => connection.destroy());
    const verdict = decideAccess({ headers: request.headers, isUpgrade: true }, listener, secrets);
    if (!verdict.allowed) {
      reject(connection, verdict.status, verdict.message);
      return;
    }
    const url = new URL(request.url ?? "/", "http://gateway");
    const name = /^\/api\/streams\/([^/]+)$/.exec(url.pathname)?.[1];
    const definition = name !== undefined && Object.hasOwn(api.streams, name) ? api.streams[name] : undefined;
    const handler = name !== undefined && Object.hasOwn(streams, name) ? streams[name] : undefined;
    if (url.pathname === "/api/events") {
      sockets.handleUpgrade(request, connection, head, (socket) => sendEvents(socket, url.searchParams));
    } else if (name !== undefined && definition !== undefined && handler !== undefined) {
      sockets.handleUpgrade(request, connection, head, (socket) => {
        socket.on("error", () => undefined);
        serveStream(socket, (value, signal) => handler(validate(definition.request, value, name), { signal })).catch((error: unknown) => {
          logger.warn("a stream failed", { stream: name, error: messageOf(error) });
          socket.terminate();
        });
      });
    } else {
      reject(connection, 404, `There is no stream at ${url.pathname}`);
    }
  }

  function sendEvents(socket: WebSocket, parameters: URLSearchParams): void {
    socket.on("error", () => undefined);
    const given = parameters.get("since");
    const since = given !== null && /^\d{1,16}$/.test(given) ? Number(given) : events.sequence;
    const { events: known, missed } = events.after(since);
    if (missed && parameters.get("gaps") === "1") socket.send(JSON.stringify({ sequence: events.sequence, missed: true }));
    for (const event of known) socket.send(JSON.stringify(event));
    const unsubscribe = events.subscribe((event) => {
      // It comes back and goes on after the last event it got.
      if (socket.bufferedAmount > largestMessage) socket.close(1013, "too slow");
      else socket.send(JSON.stringify(event));
    });
    socket.once("close", unsubscribe);
  }

  const server = createServer((request, response) => {
    answer(request, response).catch((error: unknown) => {
      logger.error("the gateway could not answer", { error: messageOf(error) });
      response.destroy();
    });
  });
  server.on("upgrade", upgrade);
  return {
    server,
    async close() {
      for (const socket of sockets.clients) socket.terminate();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function readBody(request: IncomingMessage, name: string): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const value of request) {
    const chunk: Buffer = value;
    length += chunk.length;
    if (length > largestBody) throw new PodyardError("InvalidArgument", `${name}: the body is larger than ${largestBody} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

function refuse(response: ServerResponse, status: number, error: { readonly code: string; readonly message: string }): void {
  if (response.headersSent) return;
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify({ error }));
}

function reject(connection: Duplex, status: number, sentence: string): void {
  const body = JSON.stringify({ error: { code: status === 401 ? "Unauthorized" : status === 403 ? "Forbidden" : "NotFound", message: sentence } });
  connection.end(
    `HTTP/1.1 ${status} Refused\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
