/**
 * An answer of the API server that is not a success, as one of our errors. Callers decide by `code`; the few that need
 * more (which conflict, how long to wait) read `reason` and `retryAfterSeconds`.
 */
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { ErrorCode } from "../contract/errors.ts";

const causeSchema = z.object({ reason: z.string().default(""), field: z.string().default("") });
const statusSchema = z.object({
  kind: z.literal("Status"),
  message: z.string().optional(),
  reason: z.string().optional(),
  code: z.number().optional(),
  details: z.object({ retryAfterSeconds: z.number().optional(), causes: z.array(causeSchema).optional() }).optional(),
});

export interface ApiErrorCause {
  readonly reason: string;
  readonly field: string;
}

export class ApiError extends PodyardError {
  readonly httpStatus: number;
  /** `metav1.Status.reason`, such as `AlreadyExists` or `Expired`. */
  readonly reason: string;
  readonly retryAfterSeconds: number | undefined;
  /** What exactly was refused, by machine-readable reason and field. */
  readonly causes: readonly ApiErrorCause[];

  constructor(httpStatus: number, message: string, reason: string, retryAfterSeconds?: number, causes: readonly ApiErrorCause[] = []) {
    super(codeOf(httpStatus, reason), message);
    this.httpStatus = httpStatus;
    this.reason = reason;
    this.retryAfterSeconds = retryAfterSeconds;
    this.causes = causes;
  }
}

/** `what` names the request in the sentence, `body` is what the server answered, `retryAfter` the header. */
export function apiErrorOf(what: string, httpStatus: number, body: string, retryAfter?: string): ApiError {
  const headerSeconds = retryAfter !== undefined && /^\d+$/.test(retryAfter) ? Number(retryAfter) : undefined;
  const parsed = statusSchema.safeParse(parseJson(body));
  if (!parsed.success) return new ApiError(httpStatus, `${what}: the API server answered ${httpStatus} ${body.slice(0, 200).trim()}`.trim(), "", headerSeconds);
  const { message, reason, details } = parsed.data;
  return new ApiError(httpStatus, `${what}: ${message ?? reason ?? httpStatus}`, reason ?? "", headerSeconds ?? details?.retryAfterSeconds, details?.causes);
}

/** True if the resourceVersion asked for is no longer known: list again. */
export function isExpired(error: unknown): boolean {
  return error instanceof ApiError && (error.httpStatus === 410 || error.reason === "Expired" || error.reason === "Gone");
}

export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function codeOf(httpStatus: number, reason: string): ErrorCode {
  if (reason === "AlreadyExists") return "AlreadyExists";
  switch (httpStatus) {
    case 400:
    case 413:
    case 415:
    case 422:
      return "InvalidArgument";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "NotFound";
    case 409:
    case 410:
    case 412:
      return "Conflict";
    case 405:
    case 406:
      return "Unsupported";
    default:
      return "Unavailable";
  }
}
