/**
 * Joins a cluster: gets a client certificate for `system:node:NAME` and writes it as the node's kubeconfig. Either with a
 * bootstrap token, as kubeadm does, or with a context of an administrator's kubeconfig, which is used for one request and
 * its approval and then forgotten. The key is on disk before the request is sent: a join that was interrupted finds its
 * request again.
 */
import type { KeyObject } from "node:crypto";
import { rm } from "node:fs/promises";
import type { RequestOptions } from "node:https";
import { join } from "node:path";
import { messageOf, PodyardError } from "../contract/errors.ts";
import { approveOrder, awaitCertificate, submitOrder } from "./certificate-requests.ts";
import type { CertificateOrder } from "./certificate-requests.ts";
import { KubernetesClient } from "./client.ts";
import type { Connection } from "./client.ts";
import { discoverCertificateAuthority, parseBootstrapToken, parseCaHash, parseServer } from "./discovery.ts";
import { readOptionalFile, writeAtomically } from "../records/atomic-file.ts";
import { writeNodeCredentials } from "./kubeconfig.ts";
import { generateKey, keyFromPem, keyToPem } from "./x509.ts";

interface JoinOptions {
  readonly nodeName: string;
  /** `DATA_DIR/node`. */
  readonly directory: string;
  readonly userAgent?: string;
  readonly signal: AbortSignal;
  /** Wished validity of the certificate; the cluster's default (often a year) otherwise. At least 600. */
  readonly expirationSeconds?: number;
}

export interface TokenJoinOptions extends JoinOptions {
  readonly server: string;
  readonly token: string;
  readonly caHashes: readonly string[];
}

export interface ContextJoinOptions extends JoinOptions {
  /** Path of the administrator's kubeconfig. */
  readonly kubeconfig: string;
  /** Its current one if absent. */
  readonly context?: string;
}

export interface JoinResult {
  readonly nodeName: string;
  readonly server: string;
  /** Path of the node's kubeconfig. */
  readonly kubeconfig: string;
}

const defaultUserAgent = "podyard";
/** Time for a certificate to be approved and issued. */
const patienceMilliseconds = 120_000;

/** Errors: InvalidArgument, Unavailable, NotFound, Forbidden, Unauthorized (token), Timeout (nobody approved). */
export async function joinWithToken(options: TokenJoinOptions): Promise<JoinResult> {
  const server = parseServer(options.server);
  const token = parseBootstrapToken(options.token);
  const caHashes = options.caHashes.map(parseCaHash);
  if (caHashes.length === 0) throw new PodyardError("InvalidArgument", "--ca-hash is needed: without it a token is sent to whoever answers", { fix: "kubeadm token create --print-join-command" });
  assertNodeName(options.nodeName);
  const certificateAuthority = await discoverCertificateAuthority({ server, token, caHashes, userAgent: options.userAgent ?? defaultUserAgent, signal: options.signal });
  return issue(options, { server, certificateAuthority, headers: { authorization: `Bearer ${token.id}.${token.secret}` } }, async () => undefined);
}

/** Errors: as {@link joinWithToken}; Forbidden also if the context's user may not create or approve certificates. */
export async function joinWithContext(options: ContextJoinOptions): Promise<JoinResult> {
  assertNodeName(options.nodeName);
  return issue(options, await loadAdministrator(options.kubeconfig, options.context), (client, name, signal) => approveOrder(client, name, signal));
}

/** A name that a Node can have: RFC 1123 subdomain. Errors: InvalidArgument. */
export function assertNodeName(name: string): void {
  if (name.length <= 253 && /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/.test(name)) return;
  throw new PodyardError("InvalidArgument", `node name "${name}" must be lower case letters, digits, "-" and ".", at most 253, beginning and ending with a letter or digit`);
}

async function issue(options: JoinOptions, connection: Connection, approve: (client: KubernetesClient, name: string, signal: AbortSignal) => Promise<void>): Promise<JoinResult> {
  const { nodeName, directory, userAgent = defaultUserAgent } = options;
  const { server, certificateAuthority, serverName } = connection;
  if (certificateAuthority === undefined) throw new PodyardError("InvalidArgument", `the cluster ${server} has no certificate-authority in the kubeconfig; the node needs it to verify the API server`);
  const patience = AbortSignal.timeout(patienceMilliseconds);
  const signal = AbortSignal.any([options.signal, patience]);
  const keyFile = join(directory, "join.key");
  const key = await loadOrCreateKey(keyFile);
  const order: CertificateOrder = {
    nodeName,
    signer: "kubernetes.io/kube-apiserver-client-kubelet",
    key,
    ...(options.expirationSeconds !== undefined && { expirationSeconds: options.expirationSeconds }),
  };
  using client = new KubernetesClient({ connection, userAgent });
  let name: string | undefined;
  try {
    name = await submitOrder(client, order, signal);
    await approve(client, name, signal);
    const certificate = await awaitCertificate(client, name, signal);
    const kubeconfig = await writeNodeCredentials({
      nodeName,
      directory,
      connection: { server, certificateAuthority, certificate, key: keyToPem(key), ...(serverName !== undefined && { serverName }) },
    });
    await rm(keyFile, { force: true });
    return { nodeName, server, kubeconfig };
  } catch (error) {
    if (options.signal.aborted || !patience.aborted) throw error;
    const fix = name === undefined ? undefined : `kubectl certificate approve ${name}, then join again`;
    throw new PodyardError("Timeout", `no certificate for node "${nodeName}" within ${patienceMilliseconds / 1000} s: nobody approved the request`, { cause: error, ...(fix !== undefined && { fix }) });
  }
}

async function loadOrCreateKey(path: string): Promise<KeyObject> {
  const known = await readOptionalFile(path);
  if (known !== undefined) {
    try {
      return keyFromPem(known);
    } catch {
      // Unreadable: a new key is as good, nothing was issued for the old one.
    }
  }
  const key = generateKey();
  await writeAtomically(path, keyToPem(key));
  return key;
}

/**
 * The official client is loaded here and only here: it knows every way to log in (exec plugins of clouds, OIDC), and its
 * memory is given back when the join command ends.
 */
async function loadAdministrator(path: string, context: string | undefined): Promise<Connection> {
  const { KubeConfig } = await import("@kubernetes/client-node");
  const config = new KubeConfig();
  try {
    config.loadFromFile(path);
  } catch (cause) {
    throw new PodyardError("InvalidArgument", `kubeconfig ${path} cannot be read`, { cause });
  }
  const name = context ?? config.getCurrentContext();
  if (config.getContextObject(name) === null) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: there is no context "${name}", only ${config.getContexts().map((known) => known.name).join(", ") || "none"}`);
  config.setCurrentContext(name);
  const cluster = config.getCurrentCluster();
  if (cluster === null) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: context "${name}" names a cluster that is not in the file`);
  if (cluster.skipTLSVerify) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: cluster "${cluster.name}" has insecure-skip-tls-verify; a node needs its certificate-authority`);
  const options: RequestOptions = {};
  try {
    await config.applyToHTTPSOptions(options);
  } catch (cause) {
    throw new PodyardError("Unauthorized", `kubeconfig ${path}: context "${name}" gives no credential: ${messageOf(cause)}`);
  }
  const text = (value: unknown): string | undefined => (typeof value === "string" ? value : Buffer.isBuffer(value) ? value.toString("utf8") : undefined);
  const [certificateAuthority, certificate, key, serverName] = [text(options.ca), text(options.cert), text(options.key), text(options.servername)];
  return {
    server: parseServer(cluster.server),
    ...(certificateAuthority !== undefined && { certificateAuthority }),
    ...(certificate !== undefined && { certificate }),
    ...(key !== undefined && { key }),
    ...(serverName !== undefined && { serverName }),
    headers: Object.fromEntries(Object.entries(options.headers ?? {}).flatMap(([header, value]) => (typeof value === "string" ? [[header, value]] : []))),
  };
}
