/**
 * What travels between gateway and client, for any API given as schemas.
 *
 * Calls: `POST /api/<name>` with a JSON body; the answer is `{result}` or `{error}`.
 * Events: WebSocket `/api/events?since=<sequence>`; text messages `{sequence, event}`. With `gaps=1` also `{sequence,
 * missed: true}` where events between `since` and now are no longer known.
 * Streams: WebSocket `/api/streams/<name>`; the client's first message is the request as JSON text, the server answers with
 * `{result: {stdin, stderr}}` or `{error}` as text; then binary messages of one channel byte and data, both ways.
 */
import type { RawData } from "ws";
import { z } from "zod";
import { PodyardError, messageOf, type ErrorCode } from "../contract/errors.ts";
import type { ProcessExit, ProcessSession } from "../contract/streams.ts";

export interface GatewayApi {
  readonly calls: Readonly<Record<string, { readonly request: z.ZodType; readonly response: z.ZodType }>>;
  readonly streams: Readonly<Record<string, { readonly request: z.ZodType }>>;
  readonly events: z.ZodType;
}

/** Checks that an API has the shape, keeping its exact type. */
export function defineApi<const Api extends GatewayApi>(api: Api): Api {
  return api;
}

export interface CallContext {
  /** Aborts when the client went away. */
  readonly signal: AbortSignal;
}

export type CallHandlers<Api extends GatewayApi> = {
  readonly [Name in keyof Api["calls"]]: (
    request: z.output<Api["calls"][Name]["request"]>,
    context: CallContext,
  ) => Promise<z.input<Api["calls"][Name]["response"]>>;
};

export type StreamHandlers<Api extends GatewayApi> = {
  readonly [Name in keyof Api["streams"]]: (request: z.output<Api["streams"][Name]["request"]>, context: CallContext) => Promise<ProcessSession>;
};

export type EventOf<Api extends GatewayApi> = z.output<Api["events"]>;

/** First byte of a binary message. Exit carries an {@link exitMessageSchema}, resize a {@link resizeMessageSchema}, both JSON. */
export const channel = { stdin: 0, stdout: 1, stderr: 2, exit: 3, resize: 4, stdinEnd: 5 } as const;

/** Larger messages are refused; the sender splits its data. */
export const largestMessage = 1024 * 1024;
export const largestPiece = 64 * 1024;
export const largestBody = 8 * 1024 * 1024;

export function message(channelByte: number, data: Uint8Array = new Uint8Array(0)): Buffer {
  const buffer = Buffer.allocUnsafe(data.length + 1);
  buffer[0] = channelByte;
  buffer.set(data, 1);
  return buffer;
}

/** What `ws` delivers, as one buffer. */
export function bytesOf(data: RawData): Buffer {
  if (Buffer.isBuffer(data)) return data;
  return Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data);
}

const errorCodes = {
  InvalidArgument: 400,
  NotFound: 404,
  AlreadyExists: 409,
  Conflict: 409,
  // Of a registry or cluster behind the host: 401 and 403 speak of the gateway's own token alone.
  Unauthorized: 422,
  Forbidden: 422,
  Unavailable: 503,
  Unsupported: 501,
  MissingPrerequisite: 503,
  NoSpace: 507,
  Corrupt: 502,
  Cancelled: 499,
  Timeout: 504,
  Internal: 500,
} as const satisfies Record<ErrorCode, number>;

export function statusOfError(code: ErrorCode): number {
  return errorCodes[code];
}

const isErrorCode = (code: string): code is ErrorCode => Object.hasOwn(errorCodes, code);

export const errorSchema = z.object({ code: z.string(), message: z.string(), fix: z.string().optional() });
export const envelopeSchema = z.union([z.object({ error: errorSchema }), z.object({ result: z.unknown() })]);
export const openedSchema = z.object({ stdin: z.boolean(), stderr: z.boolean() });
export const exitMessageSchema = z.union([z.object({ error: errorSchema }), z.object({ exitCode: z.number(), signal: z.number().optional() })]);
export const resizeMessageSchema = z.object({ columns: z.number().int().min(1).max(65_535), rows: z.number().int().min(1).max(65_535) });
export const eventMessageSchema = z.union([
  z.object({ sequence: z.number(), event: z.unknown() }),
  z.object({ sequence: z.number(), missed: z.literal(true) }),
]);

export type ErrorBody = z.infer<typeof errorSchema>;
export type ExitMessage = { readonly error: ErrorBody } | ProcessExit;

export function errorBody(error: unknown): ErrorBody {
  if (error instanceof PodyardError) return { code: error.code, message: messageOf(error), ...(error.fix === undefined ? {} : { fix: error.fix }) };
  return { code: "Internal", message: messageOf(error) };
}

export function errorOfBody({ code, message: sentence, fix }: ErrorBody): PodyardError {
  return new PodyardError(isErrorCode(code) ? code : "Internal", sentence, fix === undefined ? undefined : { fix });
}

/** The one choke point for what comes from outside. Errors: InvalidArgument naming the path within the request. */
export function validate<Schema extends z.ZodType>(schema: Schema, value: unknown, what: string): z.output<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const sentences = parsed.error.issues.slice(0, 5).map((issue) => `${pathOf(issue.path)}: ${issue.message}`);
  throw new PodyardError("InvalidArgument", `${what}: ${sentences.join("; ")}`);
}

function pathOf(path: readonly PropertyKey[]): string {
  return (
    path.reduce<string>((text, key) => (typeof key === "number" ? `${text}[${key}]` : text === "" ? String(key) : `${text}.${String(key)}`), "") || "request"
  );
}

/** Errors: InvalidArgument. */
export function parseJson(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new PodyardError("InvalidArgument", `${what}: not JSON`, { cause: error });
  }
}
