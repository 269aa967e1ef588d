/**
 * What the routes of the kubelet server share: the shape of a route, the request as a handler sees it, and how errors
 * become answers. Bodies of errors are plain text, as the kubelet's are; the API server relays them to kubectl.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Duplex } from "node:stream";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { ErrorCode } from "../contract/errors.ts";
import type { Identity } from "./authorization.ts";
import type { Query } from "./query.ts";

export interface KubeletRoute {
  readonly methods: readonly string[];
  /** `/exec/{namespace}/{pod}/{container}`; a last `{path...}` takes the rest, even an empty one. */
  readonly pattern: string;
  /** Subresources of `nodes`; the caller needs one of them. Always what `subresourcesOf` says of the path. */
  readonly subresources: readonly string[];
  /** Streams and followed logs: not to be measured by their duration. */
  readonly isLongRunning: boolean;
  handle(context: RequestContext): Promise<void>;
}

export interface RequestContext {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly parameters: Readonly<Record<string, string>>;
  readonly query: Query;
  readonly identity: Identity;
  /** Present if the client asked for an upgrade. Whoever calls `take` owns the socket and must answer. */
  readonly upgrade: Upgrade | undefined;
  /** Aborted when the client goes away or the server stops. */
  readonly signal: AbortSignal;
}

export interface Upgrade {
  /** Lower case: `spdy/3.1`, `websocket`. */
  readonly protocol: string;
  take(): { readonly socket: Duplex; readonly head: Buffer };
}

/** An answer other than success, thrown by handlers. */
export class HttpError extends Error {
  override readonly name = "HttpError";
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[]>>;

  constructor(status: number, body: string, headers: Readonly<Record<string, string | readonly string[]>> = {}) {
    super(body);
    this.status = status;
    this.headers = headers;
  }
}

/** Turns anything thrown by a handler into status and body. */
export function httpErrorOf(error: unknown): HttpError {
  if (error instanceof HttpError) return error;
  if (error instanceof PodyardError) return new HttpError(statusByCode[error.code], messageOf(error));
  return new HttpError(500, messageOf(error));
}

const statusByCode: Readonly<Record<ErrorCode, number>> = {
  InvalidArgument: 400,
  Conflict: 400, // the kubelet's answer for containers that are not there yet; kubectl prints the body
  NotFound: 404,
  AlreadyExists: 409,
  Unauthorized: 401,
  Forbidden: 403,
  Unavailable: 503,
  Unsupported: 501,
  MissingPrerequisite: 503,
  NoSpace: 507,
  Corrupt: 500,
  Cancelled: 499,
  Timeout: 504,
  Internal: 500,
};

export function sendText(response: ServerResponse, body: string, contentType = "text/plain; charset=utf-8", status = 200): void {
  response.writeHead(status, { "Content-Type": contentType, "Content-Length": Buffer.byteLength(body), "X-Content-Type-Options": "nosniff" });
  response.end(body);
}

export function sendJson(response: ServerResponse, body: unknown): void {
  sendText(response, JSON.stringify(body), "application/json");
}

export function sendError(response: ServerResponse, error: HttpError): void {
  if (response.headersSent) {
    // Too late for a status: a torn connection is the only way to say that the body is not whole.
    response.destroy();
    return;
  }
  for (const [name, value] of Object.entries(error.headers)) response.setHeader(name, typeof value === "string" ? value : [...value]);
  sendText(response, error.message, "text/plain; charset=utf-8", error.status);
}
