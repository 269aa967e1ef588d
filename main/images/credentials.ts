/**
 * Where credentials for a registry come from: image pull secrets, matched as the kubelet's keyring does
 * (https://kubernetes.io/docs/concepts/containers/images/#config-json), and a docker config.json with its helpers.
 * Secrets go to helpers' stdin and stay out of messages.
 */
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { z } from "zod";
import type { RegistryCredentials } from "../contract/image.ts";
import { PodyardError } from "../contract/errors.ts";
import { ignoreMissing } from "./image-records.ts";
import { parseReference, type ImageReference } from "./reference.ts";

/** The one entry of a pull secret's data, decoded from base64: `.dockerconfigjson` or `.dockercfg` and its JSON text. */
export interface PullSecretPayload {
  readonly key: ".dockerconfigjson" | ".dockercfg";
  readonly value: string;
  /** For messages: `namespace/name` of the Secret. */
  readonly name?: string;
}

const entrySchema = z.object({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  registrytoken: z.string().optional(),
});
const authsSchema = z.record(z.string(), entrySchema);
const secretSchema = z.object({ auths: authsSchema });
const configSchema = z.object({ auths: authsSchema.optional(), credHelpers: z.record(z.string(), z.string()).optional(), credsStore: z.string().optional() });
const helperAnswerSchema = z.object({ Username: z.string(), Secret: z.string() });

type Auths = z.infer<typeof authsSchema>;

const helperMilliseconds = 15_000;
const maximumHelperBytes = 256 * 1024;
const dockerHubHosts: readonly string[] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/** Credentials of the secrets that apply to a reference, the most specific first. Errors: InvalidArgument (a payload or the reference is malformed). */
export function credentialsFromPullSecrets(secrets: readonly PullSecretPayload[], reference: string): readonly RegistryCredentials[] {
  const parsed = parseReference(reference);
  return secrets.flatMap((secret) => {
    const what = `The pull secret ${secret.name ?? ""}`.trimEnd();
    const value = parseJsonSecret(secret.value, `${what} ("${secret.key}")`);
    const auths = secret.key === ".dockercfg" ? parseSecret(authsSchema, value, what) : parseSecret(secretSchema, value, what).auths;
    return matchingCredentials(auths, parsed);
  });
}

/** Credentials that a docker config.json has for a reference; none if there is no file. Errors: InvalidArgument (malformed), Unavailable (a helper failed). */
export async function credentialsFromDockerConfig(path: string, reference: string): Promise<readonly RegistryCredentials[]> {
  const parsed = parseReference(reference);
  const text = await readFile(path, "utf8").catch(ignoreMissing);
  if (text === undefined) return [];
  const config = parseSecret(configSchema, parseJsonSecret(text, `The docker configuration ${path}`), `The docker configuration ${path}`);
  const serverAddress = parsed.registry === "docker.io" ? "https://index.docker.io/v1/" : parsed.registry;
  const helper = Object.entries(config.credHelpers ?? {}).find(([host]) => hostOf(host) === parsed.registry || (parsed.registry === "docker.io" && dockerHubHosts.includes(hostOf(host))))?.[1] ?? config.credsStore;
  const fromHelper = helper === undefined || helper === "" ? undefined : await askHelper(helper, serverAddress);
  return fromHelper === undefined ? matchingCredentials(config.auths ?? {}, parsed) : [fromHelper];
}

/** True if a key of `auths` (`[scheme://]host[:port][/path]`, globs in the host) covers the reference. */
export function isKeyFor(key: string, reference: ImageReference): boolean {
  const { host, path } = splitKey(key);
  const hosts = reference.registry === "docker.io" ? dockerHubHosts : [reference.registry];
  // Docker Hub's key has no path; its repositories' "library/" is not written by people either.
  return hosts.some((candidate) => matchesHost(host, candidate)) && `/${reference.repository}`.startsWith(path);
}

function matchingCredentials(auths: Auths, reference: ImageReference): readonly RegistryCredentials[] {
  return Object.entries(auths)
    .filter(([key]) => isKeyFor(key, reference))
    .toSorted(([a], [b]) => specificity(b) - specificity(a) || (a < b ? 1 : -1))
    .map(([, entry]) => toCredentials(entry))
    .filter((credentials) => credentials !== undefined);
}

function toCredentials(entry: z.infer<typeof entrySchema>): RegistryCredentials | undefined {
  const decoded = entry.auth === undefined ? "" : Buffer.from(entry.auth, "base64").toString("utf8");
  const colon = decoded.indexOf(":");
  const username = nonEmpty(entry.username) ?? (colon === -1 ? undefined : decoded.slice(0, colon));
  // Docker pads passwords of old files with NUL.
  const password = nonEmpty(entry.password) ?? (colon === -1 ? undefined : decoded.slice(colon + 1).replace(/\0+$/, ""));
  const identityToken = nonEmpty(entry.identitytoken);
  const registryToken = nonEmpty(entry.registrytoken);
  if (nonEmpty(username) === undefined && identityToken === undefined && registryToken === undefined) return undefined;
  return {
    ...(nonEmpty(username) === undefined ? {} : { username, password: password ?? "" }),
    ...(identityToken === undefined ? {} : { identityToken }),
    ...(registryToken === undefined ? {} : { registryToken }),
  };
}

function splitKey(key: string): { readonly host: string; readonly path: string } {
  const bare = key.replace(/^https?:\/\//i, "");
  const slash = bare.indexOf("/");
  const host = (slash === -1 ? bare : bare.slice(0, slash)).toLowerCase();
  const path = slash === -1 ? "/" : bare.slice(slash);
  // "/v1/" and "/v2/" are the API's prefix, as docker login writes them, not part of a repository.
  const repositoryPath = /^\/v[12](?:\/|$)/.test(path) ? `/${path.slice(4)}` : path;
  return { host, path: repositoryPath };
}

/** Part by part as the kubelet does: `*.example.com` covers one more label, never two; the port must be the same. */
function matchesHost(pattern: string, host: string): boolean {
  const [patternName = "", patternPort = ""] = splitPort(pattern);
  const [name = "", port = ""] = splitPort(host);
  const patternParts = patternName.split(".");
  const parts = name.split(".");
  return patternPort === port && patternParts.length === parts.length && patternParts.every((part, index) => matchesGlob(part, parts[index] ?? ""));
}

function matchesGlob(glob: string, text: string): boolean {
  if (!/[*?[]/.test(glob)) return glob === text;
  const source = glob.replaceAll(/[.+^${}()|\\]/g, String.raw`\$&`).replaceAll("*", ".*").replaceAll("?", ".");
  try {
    return new RegExp(`^${source}$`).test(text);
  } catch {
    return false;
  }
}

function splitPort(host: string): readonly string[] {
  const match = /^(.*?)(?::(\d+))?$/.exec(host);
  return [match?.[1] ?? host, match?.[2] ?? ""];
}

/** A longer path is more specific, then a host without a glob. */
function specificity(key: string): number {
  const { host, path } = splitKey(key);
  return path.length * 2 + (/[*?[]/.test(host) ? 0 : 1);
}

async function askHelper(name: string, serverAddress: string): Promise<RegistryCredentials | undefined> {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) throw new PodyardError("InvalidArgument", `The credential helper "${name}" must be a plain name.`);
  const command = `docker-credential-${name}`;
  const { promise, resolve, reject } = Promise.withResolvers<{ readonly code: number | null; readonly output: string }>();
  const child = spawn(command, ["get"], { stdio: ["pipe", "pipe", "ignore"], timeout: helperMilliseconds, killSignal: "SIGKILL" });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    if (output.length > maximumHelperBytes) child.kill("SIGKILL");
  });
  child.on("error", reject);
  child.on("close", (code) => resolve({ code, output }));
  child.stdin.on("error", () => undefined);
  child.stdin.end(serverAddress);
  const answer = await promise.catch((cause: unknown) => {
    throw new PodyardError("Unavailable", `The credential helper ${command} could not be run`, { cause, fix: `Install ${command} or remove it from the docker configuration.` });
  });
  if (answer.code !== 0) {
    if (/credentials not found/i.test(answer.output)) return undefined;
    throw new PodyardError("Unavailable", `The credential helper ${command} failed for ${serverAddress} (exit code ${answer.code ?? "none: it was killed"}).`);
  }
  const { Username: username, Secret: secret } = parseSecret(helperAnswerSchema, parseJsonSecret(answer.output, `The answer of ${command}`), `The answer of ${command}`);
  if (secret === "") return undefined;
  return username === "<token>" ? { identityToken: secret } : { username, password: secret };
}

/** The parser's own message would quote the secret, so it is left out. */
function parseJsonSecret(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new PodyardError("InvalidArgument", `${what} is not JSON.`);
  }
}

function parseSecret<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new PodyardError("InvalidArgument", `${what} is malformed at "${issue?.path.join(".") ?? ""}": ${issue?.code ?? "unknown"}.`);
}

function hostOf(key: string): string {
  return splitKey(key).host;
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === "" ? undefined : text;
}
