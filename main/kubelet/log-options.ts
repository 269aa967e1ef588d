/**
 * The query of /containerLogs as a LogRequest, read as Go's ParameterCodec reads PodLogOptions of core/v1: what cannot be
 * decoded is 400, what decodes but is not allowed is 422. Pure.
 * https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.35/#read-log-pod-v1-core
 */
import type { LogRequest } from "../contract/streams.ts";
import { HttpError } from "./http.ts";
import type { Query } from "./query.ts";

const streams = ["All", "Stdout", "Stderr"] as const;

/** @throws HttpError with the kubelet's status and body. */
export function parseLogOptions(query: Query, now: Date): Omit<LogRequest, "signal"> {
  // `tail` is the parameter of old clients and wins; "all" is the same as none.
  const legacyTail = query.get("tail") ?? "";
  const tailLines = legacyTail === "" ? integer(query.get("tailLines")) : legacyTail === "all" ? undefined : integer(legacyTail);
  const sinceSeconds = integer(query.get("sinceSeconds"));
  const sinceTime = time(query.get("sinceTime"));
  const limitBytes = integer(query.get("limitBytes"));
  const streamName = query.get("stream") ?? "";
  const stream = streams.find((name) => name === streamName);

  if (tailLines !== undefined && tailLines < 0) throw invalid();
  if (limitBytes !== undefined && limitBytes < 1) throw invalid();
  if (sinceSeconds !== undefined && (sinceTime !== undefined || sinceSeconds < 1)) throw invalid();
  if (streamName !== "" && stream === undefined) throw invalid();
  if (tailLines !== undefined && stream !== undefined && stream !== "All") throw invalid();

  const since = sinceSeconds === undefined ? sinceTime : new Date(Math.max(0, now.getTime() - sinceSeconds * 1000));
  return {
    follow: flag(query.get("follow")),
    previous: flag(query.get("previous")),
    timestamps: flag(query.get("timestamps")),
    ...(since === undefined ? {} : { sinceTime: since }),
    ...(tailLines === undefined ? {} : { tailLines }),
    ...(limitBytes === undefined ? {} : { limitBytes }),
    ...(stream === undefined ? {} : { stream }),
  };
}

/** Present and neither "0" nor "false" is true. */
function flag(text: string | undefined): boolean {
  return text !== undefined && text !== "0" && text.toLowerCase() !== "false";
}

function integer(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = /^[+-]?[0-9]+$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw undecodable();
  return value;
}

function time(text: string | undefined): Date | undefined {
  if (text === undefined || text === "" || text === "null") return undefined;
  const date = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/.test(text) ? new Date(text) : new Date(Number.NaN);
  if (Number.isNaN(date.getTime())) throw undecodable();
  return date;
}

function undecodable(): HttpError {
  return new HttpError(400, '{"message": "Unable to decode query."}');
}

function invalid(): HttpError {
  return new HttpError(422, '{"message": "Invalid request."}');
}
