/**
 * Answers a registry's challenge with one of the caller's credentials: Basic, or a Bearer token fetched from the realm.
 * The realm comes from the registry, hence from a stranger: it must be HTTPS unless the registry itself may speak plain
 * HTTP. https://distribution.github.io/distribution/spec/auth/token/
 */
import { createHash, createHmac, randomBytes } from "node:crypto";
import { z } from "zod";
import type { RegistryCredentials } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import { parseJson, parseWith } from "./formats/oci.ts";
import { readBody, type RegistryHttp } from "./registry-http.ts";

export interface Authorization {
  readonly header: string;
  /** Milliseconds since the epoch. */
  readonly expiresAt: number;
}

export interface Challenge {
  readonly scheme: "basic" | "bearer";
  readonly parameters: Readonly<Record<string, string>>;
}

const tokenSchema = z.object({ token: z.string().optional(), access_token: z.string().optional(), expires_in: z.number().optional() });
const maximumTokenBytes = 256 * 1024;
const processKey = randomBytes(32);

/** Tells credentials apart within this process without keeping them. */
export function fingerprintOf(credentials: RegistryCredentials | undefined): string {
  return createHmac("sha256", processKey).update(canonical(credentials)).digest("base64url");
}

/** Tells credentials apart across restarts: salted with a key that is kept beside the records, never reversible to the secret in practice. */
export function persistentFingerprintOf(credentials: RegistryCredentials, key: Buffer): string {
  return createHmac("sha256", key).update(createHash("sha512").update(canonical(credentials)).digest()).digest("base64url");
}

/** Parses `WWW-Authenticate`; Bearer is preferred if both are offered. */
export function parseChallenge(header: string): Challenge | undefined {
  const bearer = /(?:^|,\s*)bearer\s+(.*)$/i.exec(header);
  if (bearer?.[1] !== undefined) {
    const parameters: Record<string, string> = {};
    for (const match of bearer[1].matchAll(/([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))/g)) {
      if (match[1] !== undefined) parameters[match[1].toLowerCase()] = match[2]?.replaceAll(/\\(.)/g, "$1") ?? match[3] ?? "";
    }
    return { scheme: "bearer", parameters };
  }
  return /(?:^|,\s*)basic\b/i.test(header) ? { scheme: "basic", parameters: {} } : undefined;
}

/**
 * What to send so that the challenge is met, or undefined if these credentials cannot meet it (wrong password, or none
 * where one is needed). Errors: Unavailable, Forbidden (a realm that is not encrypted), Corrupt; network errors as thrown.
 */
export async function authorize(http: RegistryHttp, host: string, challenge: Challenge, scope: string, credentials: RegistryCredentials | undefined, signal?: AbortSignal): Promise<Authorization | undefined> {
  if (credentials?.registryToken !== undefined) return { header: `Bearer ${credentials.registryToken}`, expiresAt: Number.POSITIVE_INFINITY };
  const basic = credentials?.username === undefined ? undefined : `Basic ${Buffer.from(`${credentials.username}:${credentials.password ?? ""}`).toString("base64")}`;
  if (challenge.scheme === "basic") return basic === undefined ? undefined : { header: basic, expiresAt: Number.POSITIVE_INFINITY };
  return fetchToken(http, host, challenge, scope, credentials?.identityToken, basic, signal);
}

async function fetchToken(http: RegistryHttp, host: string, challenge: Challenge, scope: string, identityToken: string | undefined, basic: string | undefined, signal?: AbortSignal): Promise<Authorization | undefined> {
  const { realm, service } = challenge.parameters;
  if (realm === undefined || !URL.canParse(realm)) throw new PodyardError("Corrupt", `The registry ${host} asks for a token but names no realm to fetch it from.`);
  const url = new URL(realm);
  if (url.protocol !== "https:" && !(url.protocol === "http:" && http.allowsPlainHttp(host) && http.allowsPlainHttp(url.host))) {
    throw new PodyardError("Forbidden", `The registry ${host} wants its token fetched from ${url.protocol}//${url.host}, which is not encrypted.`);
  }
  const parameters = new URLSearchParams({ ...(service === undefined ? {} : { service }), scope });
  const request = (): Parameters<RegistryHttp["exchange"]>[1] => {
    if (identityToken === undefined) return { method: "GET", headers: basic === undefined ? {} : { Authorization: basic }, signal };
    const body = Buffer.from(new URLSearchParams({ ...Object.fromEntries(parameters), grant_type: "refresh_token", client_id: "podyard", refresh_token: identityToken }).toString());
    return { method: "POST", headers: { "Content-Type": "application/x-www-form-urlencoded" }, body, signal };
  };
  if (identityToken === undefined) for (const [key, value] of parameters) url.searchParams.append(key, value);
  const askedAt = Date.now();
  const response = await http.exchange(url, request());
  const status = response.statusCode ?? 0;
  const body = await readBody(response, maximumTokenBytes);
  if (status === 400 || status === 401 || status === 403) return undefined;
  if (status !== 200) throw new PodyardError("Unavailable", `The token service ${url.host} of the registry ${host} answered with status ${status}.`);
  const answer = parseWith(tokenSchema, parseJson(body, `The answer of ${url.host}`), `The answer of ${url.host}`);
  const token = answer.token ?? answer.access_token;
  if (token === undefined || token === "" || /[^\x21-\x7e]/.test(token)) throw new PodyardError("Corrupt", `The token service ${url.host} answered without a usable token.`);
  return { header: `Bearer ${token}`, expiresAt: askedAt + Math.max(answer.expires_in ?? 60, 20) * 1000 - 10_000 };
}

function canonical(credentials: RegistryCredentials | undefined): string {
  return JSON.stringify([credentials?.username, credentials?.password, credentials?.identityToken, credentials?.registryToken]);
}
