/**
 * A thin client of the API server: HTTPS with keep-alive, the few verbs we need, typed by resource. Not the official
 * client, whose generated code would take more memory than the rest of the host. Credentials can be exchanged while
 * requests are under way, since the node's certificate rotates. Ordinary requests, watches and (as a second instance of
 * this class) the lease use separate connections, so that none waits behind another.
 * https://kubernetes.io/docs/reference/using-api/api-concepts/
 */
import { request as httpsRequest, Agent } from "node:https";
import type { IncomingMessage } from "node:http";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { ObjectMeta } from "../contract/kubernetes-api.generated.ts";
import { ApiError, apiErrorOf, parseJson } from "./api-error.ts";
import { pause } from "./backoff.ts";
import { pathOf } from "./resources.ts";
import type { ApiObject, Resource, Scope } from "./resources.ts";

/** How to reach the server and who we are. PEM texts. Without a certificate and headers: anonymous. */
export interface Connection {
  /** `https://host:port`, with a path if the server is behind one. */
  readonly server: string;
  /** Absent: the system's authorities. */
  readonly certificateAuthority?: string;
  readonly certificate?: string;
  readonly key?: string;
  /** Name to verify instead of the server's host (`tls-server-name`). */
  readonly serverName?: string;
  /** Sent with every request: `Authorization` of a token. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Only for discovery, where the answer is verified by other means. */
  readonly withoutVerification?: boolean;
}

export interface ClientOptions {
  readonly connection: Connection;
  readonly userAgent: string;
  /** Of one request, connecting included; 30 s. Watches are exempt. */
  readonly timeoutMilliseconds?: number;
  /** Connections for ordinary requests; 8. */
  readonly connections?: number;
}

export interface ListOptions {
  readonly fieldSelector?: string;
  readonly labelSelector?: string;
  /** "0" lets the server answer from its cache. */
  readonly resourceVersion?: string;
  readonly signal?: AbortSignal;
}

export interface WatchOptions extends ListOptions {
  readonly resourceVersion: string;
  /** After this the server ends the watch. */
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
}

export interface ObjectList<T> {
  readonly items: readonly T[];
  readonly resourceVersion: string;
}

export type WatchEvent<T> =
  | { readonly type: "ADDED" | "MODIFIED" | "DELETED"; readonly object: T }
  | { readonly type: "BOOKMARK"; readonly resourceVersion: string };

export type PatchType = "strategic-merge" | "merge" | "json";

export interface DeletionOptions {
  readonly gracePeriodSeconds?: number;
  readonly uid?: string;
  readonly signal?: AbortSignal;
}

const patchContentTypes = {
  "strategic-merge": "application/strategic-merge-patch+json",
  merge: "application/merge-patch+json",
  json: "application/json-patch+json",
} as const;

/** An answer or a watch event above this is not from an API server (etcd holds objects up to 1.5 MB). */
const maximumAnswerBytes = 256 * 1024 * 1024;
const maximumEventBytes = 16 * 1024 * 1024;
const maximumThrottlings = 5;

const listSchema = z.object({ metadata: z.object({ resourceVersion: z.string().default("") }), items: z.array(z.unknown()).nullable().default([]) });
const watchEventSchema = z.object({ type: z.enum(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]), object: z.looseObject({}) });

export class KubernetesClient implements Disposable {
  readonly #options: ClientOptions;
  #connection: Connection;
  #requests: Agent;
  #watches: Agent;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#connection = options.connection;
    [this.#requests, this.#watches] = this.#createAgents();
  }

  get connection(): Connection {
    return this.#connection;
  }

  /** From now on new requests use this; requests and watches under way end as they began. */
  use(connection: Connection): void {
    const former = [this.#requests, this.#watches];
    this.#connection = connection;
    [this.#requests, this.#watches] = this.#createAgents();
    for (const agent of former) {
      agent.maxFreeSockets = 0;
      for (const sockets of Object.values(agent.freeSockets)) sockets?.forEach((socket) => socket.destroy());
    }
  }

  [Symbol.dispose](): void {
    this.#requests.destroy();
    this.#watches.destroy();
  }

  /** Whether the server says that it is ready. Errors: Unavailable, Unauthorized. */
  async isReady(signal?: AbortSignal): Promise<boolean> {
    return (await this.#text({ method: "GET", path: "/readyz", what: "get /readyz", signal })).trim() === "ok";
  }

  /** Errors: NotFound, Forbidden, Unauthorized, Unavailable (as for every method here). */
  async get<T extends ApiObject>(resource: Resource<T>, scope: Scope, options: { readonly signal?: AbortSignal } = {}): Promise<T> {
    return this.#object<T>({ method: "GET", path: pathOf(resource, scope), what: describe("get", resource, scope), signal: options.signal });
  }

  async list<T extends ApiObject>(resource: Resource<T>, scope: Scope, options: ListOptions = {}): Promise<ObjectList<T>> {
    const what = describe("list", resource, scope);
    const path = `${pathOf(resource, scope)}${queryOf({ fieldSelector: options.fieldSelector, labelSelector: options.labelSelector, resourceVersion: options.resourceVersion })}`;
    const parsed = listSchema.safeParse(parseJson(await this.#text({ method: "GET", path, what, signal: options.signal })));
    if (!parsed.success) throw new PodyardError("Corrupt", `${what}: the answer is not a list`);
    return { items: (parsed.data.items ?? []) as readonly T[], resourceVersion: parsed.data.metadata.resourceVersion };
  }

  /** Creates the object, or calls a subresource such as `serviceaccounts/token`. Errors also: AlreadyExists, InvalidArgument. */
  async create<T extends ApiObject>(resource: Resource<T>, scope: Scope, object: T, options: { readonly signal?: AbortSignal } = {}): Promise<T> {
    const body = JSON.stringify({ apiVersion: resource.bodyApiVersion ?? resource.apiVersion, kind: resource.kind, ...object });
    return this.#object<T>({ method: "POST", path: pathOf(resource, scope), what: describe("create", resource, scope), body, signal: options.signal });
  }

  /** Replaces the object or subresource. Errors also: Conflict. */
  async replace<T extends ApiObject>(resource: Resource<T>, scope: Scope, object: T, options: { readonly signal?: AbortSignal } = {}): Promise<T> {
    const body = JSON.stringify({ apiVersion: resource.apiVersion, kind: resource.kind, ...object });
    return this.#object<T>({ method: "PUT", path: pathOf(resource, scope), what: describe("update", resource, scope), body, signal: options.signal });
  }

  /** Errors also: Conflict (a uid or resourceVersion within the patch does not match). */
  async patch<T extends ApiObject>(resource: Resource<T>, scope: Scope, type: PatchType, patch: unknown, options: { readonly signal?: AbortSignal } = {}): Promise<T> {
    const what = describe("patch", resource, scope);
    return this.#object<T>({ method: "PATCH", path: pathOf(resource, scope), what, body: JSON.stringify(patch), contentType: patchContentTypes[type], signal: options.signal });
  }

  /** Errors also: Conflict (another UID). */
  async delete(resource: Resource<ApiObject>, scope: Scope, options: DeletionOptions = {}): Promise<void> {
    const body = JSON.stringify({
      apiVersion: "v1",
      kind: "DeleteOptions",
      ...(options.gracePeriodSeconds !== undefined && { gracePeriodSeconds: options.gracePeriodSeconds }),
      ...(options.uid !== undefined && { preconditions: { uid: options.uid } }),
    });
    await this.#text({ method: "DELETE", path: pathOf(resource, scope), what: describe("delete", resource, scope), body, signal: options.signal });
  }

  /**
   * Changes after `resourceVersion`, until the server ends the watch (the iteration ends) or it fails (it throws; see
   * {@link isExpired}). Events are yielded as fast as they are taken: a slow consumer slows the socket.
   */
  async *watch<T extends ApiObject>(resource: Resource<T>, scope: Scope, options: WatchOptions): AsyncGenerator<WatchEvent<T>, void, undefined> {
    const what = describe("watch", resource, scope);
    const path = `${pathOf(resource, scope)}${queryOf({
      watch: "true",
      allowWatchBookmarks: "true",
      fieldSelector: options.fieldSelector,
      labelSelector: options.labelSelector,
      resourceVersion: options.resourceVersion,
      timeoutSeconds: String(options.timeoutSeconds),
    })}`;
    const response = await this.#send({ method: "GET", path, what, signal: options.signal, isWatch: true });
    try {
      for await (const line of linesOf(response, what)) yield eventOf<T>(line, what);
    } catch (cause) {
      options.signal.throwIfAborted();
      if (cause instanceof PodyardError) throw cause;
      throw new PodyardError("Unavailable", `${what}: the connection to the API server was lost`, { cause });
    } finally {
      response.destroy();
    }
  }

  async #object<T>(request: OutgoingRequest): Promise<T> {
    const parsed = parseJson(await this.#text(request));
    if (typeof parsed !== "object" || parsed === null) throw new PodyardError("Corrupt", `${request.what}: the answer is not an object`);
    return parsed as T;
  }

  async #text(request: OutgoingRequest): Promise<string> {
    for (let throttlings = 0; ; throttlings += 1) {
      try {
        return await readAll(await this.#send(request), request.what);
      } catch (error) {
        // "Come back in n seconds", and the request was not executed. An eviction that a budget forbids is for its caller.
        const seconds = error instanceof ApiError && (error.httpStatus === 429 || error.httpStatus === 503) && !error.causes.some(({ reason }) => reason === "DisruptionBudget") ? error.retryAfterSeconds : undefined;
        if (seconds === undefined || throttlings >= maximumThrottlings) throw error;
        await pause(Math.min(seconds, 10) * 1000, request.signal ?? new AbortController().signal);
        request.signal?.throwIfAborted();
      }
    }
  }

  /** Resolves with a successful response whose body is still to be read. */
  async #send(request: OutgoingRequest): Promise<IncomingMessage> {
    try {
      const response = await this.#exchange(request);
      const status = response.statusCode ?? 0;
      if (status >= 200 && status < 300) return response;
      throw apiErrorOf(request.what, status, await readAll(response, request.what), response.headers["retry-after"]);
    } catch (cause) {
      request.signal?.throwIfAborted();
      if (cause instanceof PodyardError) throw cause;
      throw new PodyardError("Unavailable", `${request.what}: the API server ${this.#connection.server} is not reachable`, { cause });
    }
  }

  #exchange(request: OutgoingRequest, isRepeated = false): Promise<IncomingMessage> {
    const connection = this.#connection;
    const base = new URL(connection.server);
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const timeout = AbortSignal.timeout(this.#options.timeoutMilliseconds ?? 30_000);
    const signals = request.signal === undefined ? [timeout] : [timeout, request.signal];
    const outgoing = httpsRequest({
      agent: request.isWatch === true ? this.#watches : this.#requests,
      host: base.hostname.replace(/^\[|\]$/g, ""),
      port: base.port === "" ? 443 : base.port,
      path: `${base.pathname.replace(/\/$/, "")}${request.path}`,
      method: request.method,
      headers: {
        accept: "application/json",
        "user-agent": this.#options.userAgent,
        ...connection.headers,
        ...(request.body !== undefined && { "content-type": request.contentType ?? "application/json", "content-length": Buffer.byteLength(request.body) }),
      },
      // A watch outlives the time-out of the request that opened it; that one is handled below.
      signal: request.isWatch === true ? request.signal : AbortSignal.any(signals),
    });
    if (request.isWatch === true) {
      const giveUp = (): void => void outgoing.destroy(new Error("timed out"));
      timeout.addEventListener("abort", giveUp, { once: true });
      outgoing.once("response", () => timeout.removeEventListener("abort", giveUp));
    }
    outgoing.once("response", resolve);
    outgoing.once("error", (error: NodeJS.ErrnoException) => {
      // The server closed an idle connection just as we used it. A create is not repeated, since it may have been done.
      if (outgoing.reusedSocket && error.code === "ECONNRESET" && request.method !== "POST" && !isRepeated) resolve(this.#exchange(request, true));
      else reject(timeout.aborted ? new Error("no answer in time", { cause: error }) : error);
    });
    outgoing.end(request.body);
    return promise;
  }

  #createAgents(): [Agent, Agent] {
    const { certificateAuthority, certificate, key, serverName, withoutVerification } = this.#connection;
    const tls = {
      ...(certificateAuthority !== undefined && { ca: certificateAuthority }),
      ...(certificate !== undefined && { cert: certificate }),
      ...(key !== undefined && { key }),
      ...(serverName !== undefined && { servername: serverName }),
      rejectUnauthorized: withoutVerification !== true,
      minVersion: "TLSv1.2" as const,
    };
    // TCP keep-alive notices within a minute that a peer vanished without a word, as after sleep of the machine.
    const requests = new Agent({ ...tls, keepAlive: true, keepAliveMsecs: 30_000, maxSockets: this.#options.connections ?? 8, maxFreeSockets: 2 });
    return [requests, new Agent({ ...tls, keepAlive: true, keepAliveMsecs: 30_000, maxFreeSockets: 1 })];
  }
}

interface OutgoingRequest {
  readonly method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  readonly path: string;
  /** For the sentence of an error: `get pods default/a`. */
  readonly what: string;
  readonly body?: string;
  readonly contentType?: string;
  readonly signal?: AbortSignal | undefined;
  readonly isWatch?: boolean;
}

function describe(verb: string, resource: Resource<ApiObject>, scope: Scope): string {
  const subresource = scope.subresource === undefined ? "" : `/${scope.subresource}`;
  const name = [scope.namespace, scope.name].filter((part) => part !== undefined).join("/");
  return `${verb} ${resource.plural}${subresource}${name === "" ? "" : ` ${name}`}`;
}

function queryOf(parameters: Readonly<Record<string, string | undefined>>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value !== undefined) query.set(name, value);
  return query.size === 0 ? "" : `?${query.toString()}`;
}

async function readAll(response: IncomingMessage, what: string): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > maximumAnswerBytes) throw new PodyardError("Corrupt", `${what}: the answer is longer than ${maximumAnswerBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

async function* linesOf(response: IncomingMessage, what: string): AsyncGenerator<string, void, undefined> {
  let rest: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    let start = 0;
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, start)) {
      yield Buffer.concat([...rest, chunk.subarray(start, end)]).toString("utf8");
      rest = [];
      length = 0;
      start = end + 1;
    }
    if (start === chunk.length) continue;
    length += chunk.length - start;
    if (length > maximumEventBytes) throw new PodyardError("Corrupt", `${what}: an event is longer than ${maximumEventBytes} bytes`);
    rest.push(chunk.subarray(start));
  }
}

function eventOf<T>(line: string, what: string): WatchEvent<T> {
  const parsed = watchEventSchema.safeParse(parseJson(line));
  if (!parsed.success) throw new PodyardError("Corrupt", `${what}: a line is not a watch event`);
  const { type, object } = parsed.data;
  if (type === "ERROR") throw apiErrorOf(what, typeof object["code"] === "number" ? object["code"] : 500, JSON.stringify(object));
  if (type === "BOOKMARK") return { type, resourceVersion: (object["metadata"] as ObjectMeta | undefined)?.resourceVersion ?? "" };
  return { type, object: object as T };
}
