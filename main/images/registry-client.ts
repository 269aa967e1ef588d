/**
 * Client of the OCI distribution API for pulling: manifests and blobs, by mirror first and origin last. A session is one
 * repository seen with one caller's credentials, so that nobody reads with somebody else's.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
 */
import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { Digest, RegistryCredentials } from "../contract/image.ts";
import { hasCode, PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import { abortable, backOff, cancelled, throwIfCancelled } from "./cancellation.ts";
import { maximumManifestBytes, mediaTypes, type Descriptor } from "./formats/oci.ts";
import { apiHostOf, isDigest } from "./reference.ts";
import { authorize, fingerprintOf, parseChallenge, type Authorization } from "./registry-authentication.ts";
import { headerOf, readBody, RegistryHttp, type HttpRequest, type RegistryHttpOptions } from "./registry-http.ts";

export interface RegistryClientOptions extends RegistryHttpOptions {
  readonly logger: Logger;
  /** For a registry's name: hosts asked first, in order, without the caller's credentials. */
  readonly mirrors?: Readonly<Record<string, readonly string[]>>;
  /** How often a request is tried while the registry is away or busy. Default 5. */
  readonly maximumAttempts?: number;
  /** Base of the exponential back-off. Default 500 ms. */
  readonly backOffMilliseconds?: number;
}

export interface FetchedManifest {
  readonly bytes: Buffer;
  readonly digest: Digest;
}

/** A blob's bytes from `offset` on; the stream may end early, the caller counts. */
export interface OpenBlob {
  readonly stream: IncomingMessage;
  readonly offset: number;
}

const manifestTypes = [mediaTypes.manifest, mediaTypes.index, mediaTypes.dockerManifest, mediaTypes.dockerList].join(", ");
const retriedStatuses: readonly number[] = [408, 429, 500, 502, 503, 504];

export class RegistryClient {
  readonly options: RegistryClientOptions;
  readonly http: RegistryHttp;
  /** Tokens by host, scope and fingerprint of the credentials. */
  readonly authorizations = new Map<string, Authorization>();

  constructor(options: RegistryClientOptions) {
    this.options = options;
    this.http = new RegistryHttp(options);
  }

  session(registry: string, repository: string, credentials: readonly RegistryCredentials[], actions: "pull" | "pull,push" = "pull"): RegistrySession {
    const origin = new RegistryEndpoint(this, apiHostOf(registry), registry, repository, credentials, actions);
    const mirrors = actions === "pull" ? (this.options.mirrors?.[registry] ?? []) : [];
    return new RegistrySession(origin, mirrors.map((host) => new RegistryEndpoint(this, host, host, repository, [], actions)), this.options);
  }

  close(): void {
    this.http.close();
  }
}

export class RegistrySession {
  readonly origin: RegistryEndpoint;
  readonly #mirrors: RegistryEndpoint[];
  readonly #options: RegistryClientOptions;

  constructor(origin: RegistryEndpoint, mirrors: readonly RegistryEndpoint[], options: RegistryClientOptions) {
    this.origin = origin;
    this.#mirrors = [...mirrors];
    this.#options = options;
  }

  /** Errors: NotFound, Unauthorized, Unavailable, Corrupt (digest), Cancelled. `attempts` overrides the retries. */
  fetchManifest(target: string, signal?: AbortSignal, attempts?: number): Promise<FetchedManifest> {
    return this.#fromAny((endpoint) => endpoint.fetchManifest(target, signal, attempts));
  }

  /** The blob from the given byte on (Range); a registry that ignores Range gives it from 0. Errors: as fetchManifest. */
  openBlob(digest: Digest, offset: number, signal?: AbortSignal): Promise<OpenBlob> {
    return this.#fromAny((endpoint) => endpoint.openBlob(digest, offset, signal));
  }

  /** A small blob, verified. Errors: as fetchManifest. */
  readBlob(descriptor: Descriptor, signal?: AbortSignal): Promise<Buffer> {
    return this.#fromAny(async (endpoint) => {
      const { stream } = await endpoint.openBlob(descriptor.digest, 0, signal);
      const bytes = await readBody(stream, descriptor.size).catch((error: unknown) => {
        throw endpoint.networkError(error, signal);
      });
      if (bytes.length !== descriptor.size || digestOf(bytes) !== descriptor.digest) {
        throw new PodyardError("Corrupt", `The blob ${descriptor.digest} from ${endpoint.host} has the wrong content (${bytes.length} of ${descriptor.size} bytes).`);
      }
      return bytes;
    });
  }

  /** Leaves a mirror out for the rest of this session: what it served was wrong. True if there was one. */
  dropMirrors(): boolean {
    return this.#mirrors.splice(0).length > 0;
  }

  async #fromAny<T>(act: (endpoint: RegistryEndpoint) => Promise<T>): Promise<T> {
    for (const mirror of this.#mirrors.slice()) {
      try {
        return await act(mirror);
      } catch (error) {
        if (hasCode(error, "Cancelled")) throw error;
        this.#options.logger.debug("a registry mirror failed", { mirror: mirror.host, error: String(error) });
        if (!hasCode(error, "NotFound")) this.#mirrors.splice(this.#mirrors.indexOf(mirror), 1);
      }
    }
    return act(this.origin);
  }
}

/** One host, one repository, one caller. */
export class RegistryEndpoint {
  readonly host: string;
  readonly #client: RegistryClient;
  readonly #name: string;
  readonly #repository: string;
  readonly #credentials: readonly (RegistryCredentials | undefined)[];
  readonly #scope: string;
  #chosen = 0;
  #refresh: Promise<void> | undefined;

  constructor(client: RegistryClient, host: string, name: string, repository: string, credentials: readonly RegistryCredentials[], actions: string) {
    this.#client = client;
    this.host = host;
    this.#name = name;
    this.#repository = repository;
    this.#credentials = credentials.length === 0 ? [undefined] : credentials;
    this.#scope = `repository:${repository}:${actions}`;
  }

  /** The credentials that the registry last accepted, if any were needed and sent. */
  get acceptedCredentials(): RegistryCredentials | undefined {
    return this.#authorization() === undefined ? undefined : this.#credentials[this.#chosen];
  }

  async fetchManifest(target: string, signal?: AbortSignal, attempts?: number): Promise<FetchedManifest> {
    const response = await this.request(`/v2/${this.#repository}/manifests/${target}`, { method: "GET", headers: { Accept: manifestTypes }, signal }, attempts);
    await this.expect(response, [200], `the manifest ${target}`);
    const bytes = await readBody(response, maximumManifestBytes).catch((error: unknown) => {
      throw this.networkError(error, signal);
    });
    const digest = digestOf(bytes);
    const claimed = isDigest(target) ? target : headerOf(response.headers, "docker-content-digest");
    if (claimed !== undefined && isDigest(claimed) && claimed !== digest) throw new PodyardError("Corrupt", `The manifest ${target} of ${this.#name}/${this.#repository} has the digest ${digest}, not ${claimed}.`);
    return { bytes, digest };
  }

  /** True if a manifest is there for this caller. Errors: Unauthorized, Unavailable, Cancelled. */
  async hasManifest(target: string, signal?: AbortSignal, attempts?: number): Promise<boolean> {
    const response = await this.request(`/v2/${this.#repository}/manifests/${target}`, { method: "HEAD", headers: { Accept: manifestTypes }, signal }, attempts);
    await this.expect(response, [200, 404], `the manifest ${target}`);
    response.resume();
    return response.statusCode === 200;
  }

  async openBlob(digest: Digest, offset: number, signal?: AbortSignal): Promise<OpenBlob> {
    const headers: Record<string, string> = offset > 0 ? { Range: `bytes=${offset}-` } : {};
    const response = await this.request(`/v2/${this.#repository}/blobs/${digest}`, { method: "GET", headers, signal });
    await this.expect(response, [200, 206, 416], `the blob ${digest}`);
    if (response.statusCode === 416) {
      response.resume();
      throw new PodyardError("Corrupt", `The registry ${this.#name} has fewer than ${offset + 1} bytes of the blob ${digest}.`);
    }
    const start = response.statusCode === 206 ? Number(/^bytes (\d+)-/.exec(headerOf(response.headers, "content-range") ?? "")?.[1] ?? Number.NaN) : 0;
    if (start !== offset && start !== 0) {
      response.destroy();
      throw new PodyardError("Unavailable", `The registry ${this.#name} answered a request for byte ${offset} of ${digest} with other bytes.`);
    }
    return { stream: response, offset: start };
  }

  /** Sends a request to a path of this host with back-off and authentication. Errors: Unavailable, Unauthorized, Cancelled. */
  async request(path: string, request: HttpRequest, attempts = this.#client.options.maximumAttempts ?? 5): Promise<IncomingMessage> {
    const { signal } = request;
    for (let attempt = 1; ; attempt += 1) {
      throwIfCancelled(signal);
      let retryAfter: number | undefined;
      try {
        const url = new URL(path, await abortable(this.#client.http.originOf(this.host, signal), signal));
        const response = await this.#exchange(url, request);
        if (attempt >= attempts || !retriedStatuses.includes(response.statusCode ?? 0)) return response;
        retryAfter = Number(headerOf(response.headers, "retry-after"));
        response.resume();
      } catch (error) {
        const failure = this.networkError(error, signal);
        if (attempt >= attempts || !hasCode(failure, "Unavailable")) throw failure;
      }
      await backOff(attempt, this.#client.options.backOffMilliseconds ?? 500, signal, retryAfter);
    }
  }

  /** Passes a response with an expected status; turns any other into the error it means. */
  async expect(response: IncomingMessage, statuses: readonly number[], what: string): Promise<void> {
    const status = response.statusCode ?? 0;
    if (statuses.includes(status)) return;
    const text = (await readBody(response, 64 * 1024).catch(() => Buffer.alloc(0))).toString("utf8");
    const detail = /"message"\s*:\s*"([^"\\]{1,200})"/.exec(text)?.[1];
    const subject = `${what} of ${this.#name}/${this.#repository}`;
    const suffix = detail === undefined ? `status ${status}` : `status ${status}: ${detail}`;
    if (status === 401 || status === 403) {
      throw new PodyardError("Unauthorized", `The registry ${this.#name} refused access to ${subject} (${suffix}).`, { fix: "Give the Pod or its ServiceAccount an image pull secret for this registry, or log in to it." });
    }
    if (status === 404) throw new PodyardError("NotFound", `The registry ${this.#name} does not have ${subject} (${suffix}).`);
    throw new PodyardError("Unavailable", `The registry ${this.#name} failed on ${subject} (${suffix}).`);
  }

  /** The error that a failure of the connection means. */
  networkError(error: unknown, signal?: AbortSignal): PodyardError {
    if (error instanceof PodyardError) return error;
    if (signal?.aborted === true) return cancelled(signal);
    return new PodyardError("Unavailable", `The registry ${this.#name} cannot be reached`, { cause: error });
  }

  async #exchange(url: URL, request: HttpRequest): Promise<IncomingMessage> {
    for (let round = 0; ; round += 1) {
      const used = this.#authorization();
      const headers = used === undefined ? request.headers : { ...request.headers, Authorization: used.header };
      const response = await this.#client.http.exchange(url, { ...request, headers });
      const challenge = parseChallenge(headerOf(response.headers, "www-authenticate") ?? "");
      const isRefused = response.statusCode === 401 || (response.statusCode === 403 && used !== undefined && this.#chosen + 1 < this.#credentials.length);
      if (!isRefused || challenge === undefined || round > this.#credentials.length) return response;
      this.#refresh ??= this.#authenticate(challenge, used, round > 0, request.signal).finally(() => (this.#refresh = undefined));
      await this.#refresh;
      const next = this.#authorization();
      if (next === undefined || next.header === used?.header) return response;
      response.resume();
    }
  }

  /** Gets a new authorization: with the same credentials if a token ran out, with the next ones if they were refused. */
  async #authenticate(challenge: NonNullable<ReturnType<typeof parseChallenge>>, refused: Authorization | undefined, isFresh: boolean, signal?: AbortSignal): Promise<void> {
    const { http, authorizations } = this.#client;
    const isHopeless = refused !== undefined && (isFresh || challenge.scheme === "basic");
    if (refused !== undefined) authorizations.delete(this.#key());
    for (let index = isHopeless ? this.#chosen + 1 : this.#chosen; index < this.#credentials.length; index += 1) {
      const authorization = await authorize(http, this.host, challenge, this.#scope, this.#credentials[index], signal);
      if (authorization === undefined || authorization.header === refused?.header) continue;
      this.#chosen = index;
      authorizations.set(this.#key(), authorization);
      return;
    }
  }

  #authorization(): Authorization | undefined {
    const known = this.#client.authorizations.get(this.#key());
    return known !== undefined && known.expiresAt > Date.now() ? known : undefined;
  }

  #key(): string {
    return `${this.host} ${this.#scope} ${fingerprintOf(this.#credentials[this.#chosen])}`;
  }
}

export function digestOf(bytes: Uint8Array): Digest {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}
