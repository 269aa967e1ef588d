/**
 * One HTTP exchange with a registry: scheme (plain HTTP only for loopback and hosts named as insecure), certificate
 * authorities, idle limit, redirects. A redirect to another host drops Authorization, since blobs are commonly answered
 * with a presigned URL; one from HTTPS to plain HTTP is refused. Content-Encoding is declined: digests are of the bytes
 * as stored.
 */
import { Agent as HttpAgent, request as httpRequest, type IncomingHttpHeaders, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { connect as tlsConnect, getCACertificates } from "node:tls";
import { pipeline } from "node:stream/promises";
import type { Readable } from "node:stream";
import { PodyardError } from "../contract/errors.ts";

export interface RegistryHttpOptions {
  /** `host` or `host:port` that may speak plain HTTP or show a certificate nobody signed. */
  readonly insecureHosts?: readonly string[];
  /** PEM certificates trusted besides the system's. */
  readonly certificateAuthorities?: readonly string[];
  /** A connection without a byte for so long is dropped. Default 60 s. */
  readonly idleMilliseconds?: number;
  readonly userAgent?: string;
}

export interface HttpRequest {
  readonly method: "GET" | "HEAD" | "POST" | "PUT" | "PATCH";
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Buffer | (() => Readable);
  readonly signal?: AbortSignal;
}

const maximumRedirects = 5;
const redirectStatuses: readonly number[] = [301, 302, 303, 307, 308];

export class RegistryHttp {
  readonly #options: RegistryHttpOptions;
  readonly #schemes = new Map<string, "http:" | "https:">();
  readonly #httpAgent = new HttpAgent({ keepAlive: true, maxSockets: 16 });
  readonly #httpsAgents = new Map<boolean, HttpsAgent>();

  constructor(options: RegistryHttpOptions = {}) {
    this.#options = options;
  }

  /** `https://host` or, where that is allowed and the host speaks it, `http://host`. Errors: network errors as thrown. */
  async originOf(host: string, signal?: AbortSignal): Promise<string> {
    const known = this.#schemes.get(host);
    if (known !== undefined) return `${known}//${host}`;
    const scheme = this.allowsPlainHttp(host) ? await probeScheme(host, signal) : "https:";
    this.#schemes.set(host, scheme);
    return `${scheme}//${host}`;
  }

  allowsPlainHttp(host: string): boolean {
    return isLoopback(host) || this.#isInsecure(host);
  }

  /** The response to the request or to the last redirect; the caller reads or drains its body. Errors: as thrown by Node, PodyardError Forbidden for a redirect we do not follow. */
  async exchange(url: URL, request: HttpRequest): Promise<IncomingMessage> {
    let current = url;
    let headers: Readonly<Record<string, string>> = request.headers ?? {};
    for (let redirects = 0; ; redirects += 1) {
      const response = await this.#send(current, { ...request, headers });
      const { location } = response.headers;
      const canFollow = request.method === "GET" || request.method === "HEAD";
      if (!canFollow || location === undefined || !redirectStatuses.includes(response.statusCode ?? 0)) return response;
      response.resume();
      if (redirects === maximumRedirects) throw new PodyardError("Unavailable", `${url.host} redirected more than ${maximumRedirects} times.`);
      const next = new URL(location, current);
      if (next.protocol !== "https:" && (next.protocol !== "http:" || current.protocol === "https:" || !this.allowsPlainHttp(next.host))) {
        throw new PodyardError("Forbidden", `${current.host} redirects to ${next.protocol}//${next.host}, which is not encrypted.`);
      }
      if (next.host !== current.host || next.protocol !== current.protocol) headers = Object.fromEntries(Object.entries(headers).filter(([key]) => key.toLowerCase() !== "authorization"));
      current = next;
    }
  }

  close(): void {
    this.#httpAgent.destroy();
    for (const agent of this.#httpsAgents.values()) agent.destroy();
  }

  #isInsecure(host: string): boolean {
    return this.#options.insecureHosts?.includes(host) ?? false;
  }

  #send(url: URL, request: HttpRequest): Promise<IncomingMessage> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const idle = this.#options.idleMilliseconds ?? 60_000;
    const options = {
      method: request.method,
      signal: request.signal,
      headers: { "User-Agent": this.#options.userAgent ?? "podyard", "Accept-Encoding": "identity", ...request.headers, ...(Buffer.isBuffer(request.body) ? { "Content-Length": String(request.body.length) } : {}) },
    };
    const sent = url.protocol === "http:" ? httpRequest(url, { ...options, agent: this.#httpAgent }) : httpsRequest(url, { ...options, agent: this.#httpsAgent(url.host) });
    sent.setTimeout(idle, () => sent.destroy(Object.assign(new Error(`${url.host} sent nothing for ${idle / 1000} s`), { code: "ETIMEDOUT" })));
    sent.on("response", resolve);
    sent.on("error", reject);
    if (typeof request.body === "function") {
      pipeline(request.body(), sent).catch(reject);
    } else {
      sent.end(request.body);
    }
    return promise;
  }

  #httpsAgent(host: string): HttpsAgent {
    const isInsecure = this.#isInsecure(host);
    const known = this.#httpsAgents.get(isInsecure);
    if (known !== undefined) return known;
    const ca = [...new Set([...getCACertificates("default"), ...getCACertificates("system"), ...(this.#options.certificateAuthorities ?? [])])];
    const agent = new HttpsAgent({ keepAlive: true, maxSockets: 16, ca, rejectUnauthorized: !isInsecure });
    this.#httpsAgents.set(isInsecure, agent);
    return agent;
  }
}

/** Reads a body to its end. Errors: Corrupt above the limit, network errors as thrown. */
export async function readBody(response: IncomingMessage, limit: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let size = 0;
  for await (const part of response as AsyncIterable<Buffer>) {
    size += part.length;
    if (size > limit) {
      response.destroy();
      throw new PodyardError("Corrupt", `The registry answered with more than ${limit} bytes where that many are the limit.`);
    }
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/** A header that is there once, or undefined. */
export function headerOf(headers: IncomingHttpHeaders, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** True for 127.0.0.0/8, ::1 and localhost, with or without a port. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/:[0-9]+$/, "");
  return name === "localhost" || name === "[::1]" || /^127\.[0-9]+\.[0-9]+\.[0-9]+$/.test(name);
}

/** Asks whether a host that may speak plain HTTP speaks TLS. The certificate is judged later, by the real request. */
async function probeScheme(host: string, signal?: AbortSignal): Promise<"http:" | "https:"> {
  const url = new URL(`https://${host}`);
  const { promise, resolve, reject } = Promise.withResolvers<"http:" | "https:">();
  const socket = tlsConnect({ host: url.hostname.replace(/^\[|\]$/g, ""), port: Number(url.port || 443), rejectUnauthorized: false });
  const onAbort = (): void => void socket.destroy(new Error("cancelled"));
  signal?.addEventListener("abort", onAbort, { once: true });
  socket.setTimeout(10_000, () => socket.destroy(Object.assign(new Error(`${host} did not answer within 10 s`), { code: "ETIMEDOUT" })));
  socket.on("secureConnect", () => resolve("https:"));
  socket.on("error", (error: NodeJS.ErrnoException) => {
    const speaksNoTls = error.code === "EPROTO" || error.code?.startsWith("ERR_SSL") === true;
    if (speaksNoTls) resolve("http:");
    else if (error.code === "ECONNREFUSED" && url.port === "") resolve("http:");
    else reject(error);
  });
  try {
    return await promise;
  } finally {
    signal?.removeEventListener("abort", onAbort);
    socket.destroy();
  }
}
