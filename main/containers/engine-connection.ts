/**
 * The connection to a Docker engine and the one place that turns its errors into PodyardErrors. Engines are reached by
 * unix socket or plain TCP; every request has its own connection (an engine that restarts would break kept ones).
 * API: https://docs.docker.com/reference/api/engine/version/v1.41/
 */
import http, { type IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import type { Readable } from "node:stream";
import Docker from "dockerode";
import { z } from "zod";
import { PodyardError, messageOf } from "../contract/errors.ts";

/** Where an engine listens. `dockerHost` as in the variable DOCKER_HOST: `unix:///path` or `tcp://host:port`. */
export interface EngineAddress {
  readonly socketPath?: string;
  readonly dockerHost?: string;
}

export const defaultSocketPath = "/var/run/docker.sock";

/** Errors: InvalidArgument for a dockerHost that is neither unix:// nor tcp://. */
export function connectEngine(address: EngineAddress): Docker {
  const options = connectionOptions(address);
  // docker-modem hands `agent` on to http.request; its types do not list it.
  const withAgent = { ...options, agent: new http.Agent({ keepAlive: false }) };
  return new Docker(withAgent);
}

/** How the address is written in messages. */
export function describeAddress(address: EngineAddress): string {
  return address.socketPath !== undefined ? `unix://${address.socketPath}` : (address.dockerHost ?? `unix://${defaultSocketPath}`);
}

function connectionOptions(address: EngineAddress): Docker.DockerOptions {
  if (address.socketPath !== undefined) return { socketPath: address.socketPath };
  if (address.dockerHost === undefined) return { socketPath: defaultSocketPath };
  const match = /^(unix|tcp|http):\/\/(.+)$/.exec(address.dockerHost);
  const rest = match?.[2];
  if (match === null || rest === undefined) {
    throw new PodyardError("InvalidArgument", `Docker host "${address.dockerHost}" is not supported, expected unix:///path or tcp://host:port`, {
      fix: "Forward the engine's socket, for example with ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST, and give that path.",
    });
  }
  if (match[1] === "unix") return { socketPath: rest };
  const url = new URL(`http://${rest}`);
  return { host: url.hostname, port: url.port === "" ? 2375 : Number(url.port), protocol: "http" };
}

const versionSchema = z.object({ Version: z.string(), ApiVersion: z.string(), Arch: z.string() });

/** Also the ping: an engine that tells its version works. Asked of the modem, since dockerode's types know no signal here. */
export function askVersion(docker: Docker, signal?: AbortSignal): Promise<z.infer<typeof versionSchema>> {
  return request(
    "reach the Docker engine",
    () =>
      new Promise((resolve, reject) => {
        docker.modem.dial(
          { path: "/version", method: "GET", abortSignal: signal, statusCodes: { 200: true, 500: "server error" } },
          (error: unknown, answer: unknown) => {
            const version = versionSchema.safeParse(answer);
            if (version.success) resolve(version.data);
            else reject(error instanceof Error ? error : new PodyardError("Unavailable", "What listens there is not a Docker engine"));
          },
        );
      }),
  );
}

// dockerode types its streams by less than what they are.

export function asReadable(stream: object): Readable {
  return stream as Readable;
}

/** A hijacked connection. */
export function asSocket(stream: object): Socket {
  return stream as Socket;
}

export function asIncomingMessage(stream: object): IncomingMessage {
  return stream as IncomingMessage;
}

const engineErrorSchema = z.object({
  message: z.string(),
  code: z.string().optional(),
  name: z.string().optional(),
  statusCode: z.number().optional(),
  json: z.union([z.object({ message: z.string() }), z.unknown()]).optional(),
});

/** The HTTP status of an engine's refusal, if it is one. */
export function statusOf(error: unknown): number | undefined {
  const parsed = engineErrorSchema.safeParse(error);
  return parsed.success ? parsed.data.statusCode : undefined;
}

const connectionCodes = new Set(["ENOENT", "ECONNREFUSED", "ECONNRESET", "EPIPE", "EACCES", "ETIMEDOUT", "EHOSTUNREACH", "ENOTFOUND"]);

/**
 * Any error of a request as a PodyardError. `action` begins the sentence, e.g. `start container "web"`.
 */
export function engineError(error: unknown, action: string): PodyardError {
  if (error instanceof PodyardError) return error;
  const parsed = engineErrorSchema.safeParse(error);
  if (!parsed.success) return new PodyardError("Internal", `Cannot ${action}: ${messageOf(error)}`, { cause: error });
  const { code, name, statusCode, json } = parsed.data;
  const sentence = messageOfBody(json) ?? parsed.data.message.replace(/^\(HTTP code \d+\) .*? - /, "").trim();
  if (name === "AbortError" || code === "ABORT_ERR") return new PodyardError("Cancelled", `Cancelled: ${action}`, { cause: error });
  if (statusCode === undefined) {
    if ((code !== undefined && connectionCodes.has(code)) || /socket hang up/i.test(sentence)) {
      return new PodyardError("Unavailable", `Cannot ${action}: the Docker engine does not answer (${sentence})`, { cause: error });
    }
    return new PodyardError("Internal", `Cannot ${action}: ${sentence}`, { cause: error });
  }
  const message = `Cannot ${action}: ${sentence.trim()}`;
  if (/no space left on device/i.test(sentence))
    return new PodyardError("NoSpace", message, { fix: "Free space in the engine's data directory.", cause: error });
  switch (statusCode) {
    case 400:
      return new PodyardError("InvalidArgument", message, { cause: error });
    case 404:
      return new PodyardError("NotFound", message, { cause: error });
    case 409:
      return new PodyardError("Conflict", message, { cause: error });
    case 503:
      return new PodyardError("Unavailable", message, { cause: error });
    default:
      return new PodyardError("Internal", message, { cause: error });
  }
}

function messageOfBody(json: unknown): string | undefined {
  const body = z.object({ message: z.string() }).safeParse(json);
  return body.success ? body.data.message : undefined;
}

/** Runs one request; its failure becomes a PodyardError. */
export async function request<Result>(action: string, run: () => Promise<Result>): Promise<Result> {
  try {
    return await run();
  } catch (error) {
    throw engineError(error, action);
  }
}

/** As {@link request}, but undefined where the engine says 404, and for these further statuses. */
export async function requestUnlessGone<Result>(action: string, run: () => Promise<Result>, ...ignored: readonly number[]): Promise<Result | undefined> {
  try {
    return await run();
  } catch (error) {
    const status = statusOf(error);
    if (status !== undefined && (status === 404 || ignored.includes(status))) return undefined;
    throw engineError(error, action);
  }
}
