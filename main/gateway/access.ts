/**
 * Who may ask the gateway: the checks against other users (token), against other web sites (Origin, Sec-Fetch-Site) and
 * against DNS rebinding (Host). Pure, so that it is a table.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";

export interface Listener {
  readonly kind: "socket" | "loopback";
  /** TCP port of a loopback listener. */
  readonly port: number;
}

export interface RequestFacts {
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** A WebSocket handshake: browsers always send Origin there, and no preflight protects it. */
  readonly isUpgrade: boolean;
}

export type Verdict = { readonly allowed: true } | { readonly allowed: false; readonly status: 401 | 403; readonly message: string };

const refused = (status: 401 | 403, message: string): Verdict => ({ allowed: false, status, message });

export function decideAccess(request: RequestFacts, listener: Listener, secrets: Secrets): Verdict {
  const { host, origin, authorization, cookie } = request.headers;
  if (listener.kind === "loopback") {
    if (typeof host !== "string" || !hostsOf(listener.port).includes(host)) return refused(403, "The Host header is not this gateway's address");
    if (origin !== undefined && origin !== `http://${host}`) return refused(403, "The Origin header is not this gateway's address");
    const site = request.headers["sec-fetch-site"];
    if (site !== undefined && site !== "same-origin" && site !== "none") return refused(403, "The request comes from another web site");
  } else if (origin !== undefined) {
    return refused(403, "A web site may not use the gateway's socket");
  }
  if (typeof authorization === "string") {
    const token = /^Bearer (\S+)$/.exec(authorization)?.[1];
    return token !== undefined && secrets.isToken(token) ? { allowed: true } : refused(401, "The token is not valid");
  }
  if (listener.kind === "loopback" && typeof cookie === "string" && secrets.isSession(sessionOf(cookie, listener.port))) {
    if (request.isUpgrade && origin === undefined) return refused(403, "A WebSocket with a cookie needs an Origin header");
    return { allowed: true };
  }
  return refused(401, "A token is needed");
}

/** Whether a page navigation may exchange its one-time token: like {@link decideAccess}, but it may come from a link anywhere. */
export function mayExchange(request: RequestFacts, listener: Listener): boolean {
  const { host } = request.headers;
  return listener.kind === "loopback" && typeof host === "string" && hostsOf(listener.port).includes(host);
}

function hostsOf(port: number): readonly string[] {
  return [`127.0.0.1:${port}`, `localhost:${port}`];
}

/** Cookies know no port, so the name does. */
export function sessionCookie(port: number, session: string): string {
  return `podyard-${port}=${session}; HttpOnly; SameSite=Strict; Path=/`;
}

function sessionOf(cookie: string, port: number): string {
  for (const part of cookie.split(";")) {
    const [name, value] = part.trim().split("=");
    if (name === `podyard-${port}` && value !== undefined) return value;
  }
  return "";
}

export interface Secrets {
  readonly token: string;
  isToken(text: string): boolean;
  /** A token for one use in a page's address. */
  createOneTime(): string;
  /** True once for each. */
  redeem(oneTime: string): boolean;
  createSession(): string;
  isSession(text: string): boolean;
}

/** Sessions are signed, not stored: they stay valid over a restart of the host, which keeps its token. */
export function createSecrets(token: string): Secrets {
  const sign = (id: string): string => createHmac("sha256", `podyard session ${token}`).update(id).digest("base64url");
  const oneTimes = new Set<string>();
  return {
    token,
    isToken: (text) => isEqual(text, token),
    createOneTime() {
      const oneTime = newToken();
      oneTimes.add(oneTime);
      const [oldest] = oneTimes;
      if (oneTimes.size > 100 && oldest !== undefined) oneTimes.delete(oldest);
      return oneTime;
    },
    redeem: (oneTime) => oneTimes.delete(oneTime),
    createSession() {
      const id = newToken();
      return `${id}.${sign(id)}`;
    },
    isSession(text) {
      const [id, signature] = text.split(".");
      return id !== undefined && signature !== undefined && isEqual(signature, sign(id));
    },
  };
}

export function newToken(): string {
  return randomBytes(32).toString("base64url");
}

function isEqual(one: string, other: string): boolean {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(one), digest(other));
}
