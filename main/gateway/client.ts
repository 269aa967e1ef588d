/** A client of the gateway, typed by the API's schemas: for the command line, tests and whatever runs beside the host. */
import http from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { WebSocket } from "ws";
import type { z } from "zod";
import { PodyardError, messageOf } from "../contract/errors.ts";
import type { ProcessSession } from "../contract/streams.ts";
import { requireHost } from "./discovery.ts";
import { bytesOf, envelopeSchema, errorOfBody, eventMessageSchema, largestMessage, parseJson, type EventOf, type GatewayApi } from "./protocol.ts";
import { openStream } from "./stream-client.ts";

export type GatewayAddress =
  | { readonly dataDirectory: string }
  | { readonly socketPath: string; readonly token: string }
  | { readonly origin: string; readonly token: string };

export interface SubscribeOptions {
  /** Sequence of the last event known; absent = only new ones. */
  readonly since?: number;
  /** Events were missed: ask for the whole state. */
  readonly onMissed?: () => void;
  readonly onConnection?: (isConnected: boolean) => void;
}

export interface GatewayClient<Api extends GatewayApi> extends AsyncDisposable {
  /** Errors: the host's, Unavailable if it cannot be reached, Cancelled. */
  call<Name extends keyof Api["calls"] & string>(
    name: Name,
    request: z.input<Api["calls"][Name]["request"]>,
    options?: { readonly signal?: AbortSignal },
  ): Promise<z.output<Api["calls"][Name]["response"]>>;
  /** Disposing the session ends the stream. Errors: as {@link call}. */
  stream<Name extends keyof Api["streams"] & string>(
    name: Name,
    request: z.input<Api["streams"][Name]["request"]>,
    options?: { readonly signal?: AbortSignal },
  ): Promise<ProcessSession>;
  /** Resolves when connected; from then on connects again by itself and goes on where it was. */
  subscribe(listener: (event: EventOf<Api>, sequence: number) => void, options?: SubscribeOptions): Promise<AsyncDisposable>;
}

/** Errors: Unavailable if no host runs with the data directory. */
export async function connectGateway<Api extends GatewayApi>(api: Api, address: GatewayAddress): Promise<GatewayClient<Api>> {
  const place = await placeOf(address);
  const sockets = new Set<WebSocket>();

  async function call(name: string, input: unknown, options: { readonly signal?: AbortSignal } = {}): Promise<unknown> {
    const definition = api.calls[name];
    if (definition === undefined) throw new PodyardError("InvalidArgument", `There is no call "${name}"`);
    const text = await post(place, `/api/${name}`, JSON.stringify(input), options.signal);
    const answer = envelopeSchema.parse(parseJson(text, "answer of the host"));
    if ("error" in answer) throw errorOfBody(answer.error);
    const output = definition.response.safeParse(answer.result);
    if (!output.success)
      throw new PodyardError("Internal", `${name}: the host's answer does not have the form of the contract`, {
        cause: output.error,
        fix: "Restart the host: it may run another version than this command.",
      });
    return output.data;
  }

  async function connect(path: string, signal?: AbortSignal): Promise<WebSocket> {
    const socket = new WebSocket(place.webSocketUrl(path), {
      headers: { authorization: `Bearer ${place.token}` },
      maxPayload: 2 * largestMessage,
      perMessageDeflate: false,
      // Masks protect proxies from what a web page sends. We are no page and there is no proxy: zeros cost nothing.
      generateMask: (mask) => void mask.fill(0),
    });
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    try {
      await opened(socket, signal);
    } catch (error) {
      socket.terminate();
      throw error;
    }
    socket.on("error", () => undefined);
    return socket;
  }

  async function stream(name: string, input: unknown, options: { readonly signal?: AbortSignal } = {}): Promise<ProcessSession> {
    const socket = await connect(`/api/streams/${name}`, options.signal);
    try {
      return await openStream(socket, input, options.signal);
    } catch (error) {
      socket.terminate();
      throw error;
    }
  }

  async function subscribe(listener: (event: EventOf<Api>, sequence: number) => void, options: SubscribeOptions = {}): Promise<AsyncDisposable> {
    const stop = new AbortController();
    let since = options.since;
    const open = (): Promise<WebSocket> => connect(since === undefined ? "/api/events?gaps=1" : `/api/events?gaps=1&since=${since}`, stop.signal);
    const receive = (text: string): void => {
      const received = eventMessageSchema.parse(parseJson(text, "event"));
      since = received.sequence;
      if ("missed" in received) {
        options.onMissed?.();
        return;
      }
      const event = api.events.safeParse(received.event);
      // A newer host may know events that we do not.
      if (event.success) listener(event.data as EventOf<Api>, received.sequence);
    };
    const run = async (first: Subscription): Promise<void> => {
      let current: Subscription | undefined = first;
      for (let pause = 250; ; pause = Math.min(pause * 2, 5000)) {
        if (current !== undefined) {
          options.onConnection?.(true);
          pause = 250;
          await current.closed;
          if (stop.signal.aborted) return;
          options.onConnection?.(false);
        }
        await delay(pause, undefined, { signal: stop.signal }).catch(() => undefined);
        if (stop.signal.aborted) return;
        current = await open().then(
          (socket) => attach(socket, receive, stop.signal),
          () => undefined,
        );
      }
    };
    const finished = run(attach(await open(), receive, stop.signal));
    return {
      async [Symbol.asyncDispose]() {
        stop.abort();
        await finished;
      },
    };
  }

  return {
    call: call as GatewayClient<Api>["call"],
    stream,
    subscribe,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.terminate();
    },
  };
}

interface Subscription {
  readonly closed: Promise<void>;
}

/** Listens at once: the first events come with the handshake's answer. */
function attach(socket: WebSocket, receive: (text: string) => void, signal: AbortSignal): Subscription {
  const close = (): void => socket.terminate();
  signal.addEventListener("abort", close, { once: true });
  if (signal.aborted) close();
  socket.on("message", (data) => {
    try {
      receive(bytesOf(data).toString());
    } catch {
      socket.terminate();
    }
  });
  socket.resume();
  return {
    closed: new Promise((resolve) => {
      const done = (): void => {
        signal.removeEventListener("abort", close);
        resolve();
      };
      if (socket.readyState === socket.CLOSED) done();
      else socket.once("close", done);
    }),
  };
}

interface Place {
  readonly token: string;
  readonly request: http.RequestOptions;
  webSocketUrl(path: string): string;
}

async function placeOf(address: GatewayAddress): Promise<Place> {
  if ("origin" in address) {
    const { hostname, port, host } = new URL(address.origin);
    return { token: address.token, request: { host: hostname, port }, webSocketUrl: (path) => `ws://${host}${path}` };
  }
  const { socketPath, token } =
    "socketPath" in address ? address : await requireHost(address.dataDirectory).then((host) => ({ socketPath: host.socket, token: host.token }));
  return { token, request: { socketPath }, webSocketUrl: (path) => `ws+unix:${socketPath}:${path}` };
}

function post(place: Place, path: string, body: string, signal: AbortSignal | undefined): Promise<string> {
  return new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body), authorization: `Bearer ${place.token}` };
    const request = http.request({ ...place.request, path, method: "POST", headers, agent: false, ...(signal === undefined ? {} : { signal }) }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.once("end", () => resolve(Buffer.concat(chunks).toString()));
      response.once("error", fail);
    });
    const fail = (error: Error): void =>
      reject(signal?.aborted === true ? new PodyardError("Cancelled", "cancelled", { cause: signal.reason }) : unreachable(error));
    request.once("error", fail);
    request.end(body);
  });
}

function opened(socket: WebSocket, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const cancel = (): void => reject(new PodyardError("Cancelled", "cancelled"));
    signal?.addEventListener("abort", cancel, { once: true });
    if (signal?.aborted === true) cancel();
    socket.once("open", () => {
      // Nothing is read before somebody listens; who does resumes it.
      socket.pause();
      signal?.removeEventListener("abort", cancel);
      resolve();
    });
    socket.once("error", (error) => reject(unreachable(error)));
    socket.once("unexpected-response", (_request, response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.once("end", () => {
        reject(refusal(response.statusCode ?? 0, Buffer.concat(chunks).toString()));
      });
    });
  });
}

function refusal(status: number, body: string): PodyardError {
  try {
    const answer = envelopeSchema.parse(JSON.parse(body));
    if ("error" in answer) return errorOfBody(answer.error);
  } catch {
    // Not our envelope: then not our host, or a broken one.
  }
  return new PodyardError("Internal", `The host answered with status ${status}`);
}

function unreachable(error: Error): PodyardError {
  return new PodyardError("Unavailable", `The host cannot be reached: ${messageOf(error)}`, { cause: error, fix: "See whether it runs: podyard node status" });
}
