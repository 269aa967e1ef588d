/**
 * HTTP to a Docker engine: three ways to call it (an answer, a stream, a hijacked connection), nothing of Docker's model.
 * Ours because the usual client loads gRPC, protobuf and SSH with it, a quarter of the host's memory, and buffers logs.
 * Every request has its own connection: an engine that restarts would break kept ones.
 * https://docs.docker.com/reference/api/engine/version/v1.41/
 */
import http, { type IncomingMessage, type RequestOptions } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

export interface EngineCall {
  readonly method: "GET" | "HEAD" | "POST" | "DELETE";
  /** Without a version: the engine's newest. Names in it are written with {@link pathName}. */
  readonly path: string;
  /** An array is one parameter several times; undefined is left out. */
  readonly query?: Readonly<Record<string, string | number | boolean | readonly string[] | undefined>>;
  /** A stream is sent as it is, anything else as JSON. */
  readonly body?: Readable | Readonly<Record<string, unknown>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

/** Errors of all three: {@link EngineRefusal}, or what the connection failed with. */
export interface EngineClient {
  /** The whole answer, parsed; undefined for an empty one. */
  ask(call: EngineCall): Promise<unknown>;
  /** The answer as it comes; the caller reads or destroys it. An abort destroys it too. */
  open(call: EngineCall): Promise<IncomingMessage>;
  /** The bare connection after the engine switched to it. */
  hijack(call: EngineCall): Promise<Socket>;
}

/** The engine answered with a status that is no success (304, "already so", among them). */
export class EngineRefusal extends Error {
  readonly statusCode: number;

  constructor(statusCode: number, message: string) {
    super(message);
    this.name = "EngineRefusal";
    this.statusCode = statusCode;
  }
}

/** Where to connect, as node:http takes it. */
export type EngineEndpoint = Pick<RequestOptions, "socketPath" | "host" | "port">;

/** Makes no request. */
export function createEngineClient(endpoint: EngineEndpoint): EngineClient {
  function send(call: EngineCall, upgrade: boolean): Promise<IncomingMessage | Socket> {
    const { body } = call;
    const isStream = body instanceof Readable;
    const json = body === undefined || isStream ? undefined : JSON.stringify(body);
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage | Socket>();
    const request = http.request({
      ...endpoint,
      method: call.method,
      path: call.path + queryOf(call.query),
      agent: false,
      headers: {
        ...call.headers,
        ...(json !== undefined && { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(json) }),
        ...(isStream && { "Content-Type": "application/x-tar" }),
        ...(upgrade ? { Connection: "Upgrade", Upgrade: "tcp" } : { Connection: "close" }),
      },
      ...(call.signal !== undefined && { signal: call.signal }),
    });
    request.once("error", reject);
    request.once("response", resolve);
    request.once("upgrade", (_, socket: Socket, head: Buffer) => {
      if (head.length > 0) socket.unshift(head);
      resolve(socket);
    });
    // The engine may answer before it has read everything; a failure of the body is the request's "error".
    if (isStream) pipeline(body, request).catch(reject);
    else request.end(json);
    return promise;
  }

  async function open(call: EngineCall): Promise<IncomingMessage> {
    const answer = await send(call, false);
    if (!isMessage(answer)) {
      answer.destroy();
      throw new Error(`the engine took ${call.path} for something else`);
    }
    const { statusCode = 0 } = answer;
    if (statusCode >= 200 && statusCode < 300) return answer;
    throw await refusalOf(answer, statusCode);
  }

  return {
    open,
    async ask(call) {
      const text = await textOf(await open(call));
      return text === "" ? undefined : parseJson(text);
    },
    async hijack(call) {
      const answer = await send(call, true);
      if (!isMessage(answer)) return answer;
      throw await refusalOf(answer, answer.statusCode ?? 0);
    },
  };
}

/** A name or reference as a part of a path; its slashes stay, as the engine's routes want them. */
export function pathName(name: string): string {
  return name.split("/").map(encodeURIComponent).join("/");
}

function isMessage(answer: IncomingMessage | Socket): answer is IncomingMessage {
  return answer instanceof http.IncomingMessage;
}

function queryOf(query: EngineCall["query"]): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value === undefined) continue;
    for (const item of Array.isArray(value) ? value : [value]) parameters.append(name, String(item));
  }
  return parameters.size === 0 ? "" : `?${parameters.toString()}`;
}

async function refusalOf(answer: IncomingMessage, statusCode: number): Promise<EngineRefusal> {
  const text = await textOf(answer).catch(() => "");
  const body = parseJson(text);
  const message = typeof body === "object" && body !== null && "message" in body && typeof body.message === "string" ? body.message : text.trim();
  return new EngineRefusal(statusCode, message === "" ? `the engine answered ${statusCode} ${answer.statusMessage ?? ""}`.trim() : message);
}

async function textOf(answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const value of answer) {
    const chunk: Buffer = value;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

/** The text itself where it is no JSON: the caller's schema says then what was expected. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
