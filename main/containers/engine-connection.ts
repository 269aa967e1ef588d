/**
 * Where a Docker engine is, and the one place that turns its errors into PodyardErrors. Engines are reached by unix socket
 * or plain TCP.
 * API: https://docs.docker.com/reference/api/engine/version/v1.41/
 */
import { z } from "zod";
import { PodyardError, messageOf } from "../contract/errors.ts";
import { createEngineClient, EngineRefusal, type EngineClient, type EngineEndpoint } from "./engine-client.ts";

/** Where an engine listens. `dockerHost` as in the variable DOCKER_HOST: `unix:///path` or `tcp://host:port`. */
export interface EngineAddress {
  readonly socketPath?: string;
  readonly dockerHost?: string;
  /** Why nothing is expected to answer there: said instead of the connection's own error, which would name a symptom. */
  readonly missing?: { readonly message: string; readonly fix: string };
}

export const defaultSocketPath = "/var/run/docker.sock";

/** Errors: InvalidArgument for a dockerHost that is neither unix:// nor tcp://. */
export function connectEngine(address: EngineAddress): EngineClient {
  const client = createEngineClient(endpointOf(address));
  const { missing } = address;
  if (missing === undefined) return client;
  const explain = (error: unknown): never => {
    throw isAway(error) ? new PodyardError("MissingPrerequisite", missing.message, { fix: missing.fix }) : error;
  };
  return { ask: (call) => client.ask(call).catch(explain), open: (call) => client.open(call).catch(explain), hijack: (call) => client.hijack(call).catch(explain) };
}

/** How the address is written in messages. */
export function describeAddress(address: EngineAddress): string {
  return address.socketPath !== undefined ? `unix://${address.socketPath}` : (address.dockerHost ?? `unix://${defaultSocketPath}`);
}

function endpointOf(address: EngineAddress): EngineEndpoint {
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
  return { host: url.hostname, port: url.port === "" ? 2375 : Number(url.port) };
}

const versionSchema = z.object({ Version: z.string(), ApiVersion: z.string(), Arch: z.string() });

/** Also the ping: an engine that tells its version works. */
export async function askVersion(docker: EngineClient, signal?: AbortSignal): Promise<z.infer<typeof versionSchema>> {
  return request("reach the Docker engine", async () => {
    const version = versionSchema.safeParse(await docker.ask({ method: "GET", path: "/version", ...(signal !== undefined && { signal }) }));
    if (version.success) return version.data;
    throw new PodyardError("Unavailable", "What listens there is not a Docker engine");
  });
}

/** The HTTP status of an engine's refusal, if it is one. */
export function statusOf(error: unknown): number | undefined {
  return error instanceof EngineRefusal ? error.statusCode : undefined;
}

const connectionCodes = new Set(["ENOENT", "ECONNREFUSED", "ECONNRESET", "EPIPE", "EACCES", "ETIMEDOUT", "EHOSTUNREACH", "ENOTFOUND"]);

function isAway(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return ("code" in error && typeof error.code === "string" && connectionCodes.has(error.code)) || /socket hang up/i.test(messageOf(error));
}

/**
 * Any error of a request as a PodyardError. `action` begins the sentence, e.g. `start container "web"`.
 */
export function engineError(error: unknown, action: string): PodyardError {
  if (error instanceof PodyardError) return error;
  const sentence = messageOf(error).trim();
  const code = error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
  if ((error instanceof Error && error.name === "AbortError") || code === "ABORT_ERR") return new PodyardError("Cancelled", `Cancelled: ${action}`, { cause: error });
  const statusCode = statusOf(error);
  if (statusCode === undefined) {
    if (isAway(error)) {
      return new PodyardError("Unavailable", `Cannot ${action}: the Docker engine does not answer (${sentence})`, { cause: error });
    }
    return new PodyardError("Internal", `Cannot ${action}: ${sentence}`, { cause: error });
  }
  const message = `Cannot ${action}: ${sentence}`;
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
