/**
 * Reads kubeconfig files with a client certificate: our node's own, and nothing implicit (never ~/.kube/config). The node
 * must be `system:node:NAME` in `system:nodes`: with an administrator's credential the host would work as well, and be
 * worth stealing. A renewed certificate lies beside as `client.pem`, certificate and key in one file, so that a crash
 * between two writes cannot separate them. https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { dirname, isAbsolute, join } from "node:path";
import { parse } from "yaml";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { Connection } from "./client.ts";
import { readOptionalFile, writeAtomically } from "../records/atomic-file.ts";
import { splitCertificates, subjectOf } from "./x509.ts";

export interface Kubeconfig {
  readonly connection: Connection;
  /** The user's name within the file. */
  readonly user: string;
}

/** What the node is and how it reaches its cluster. */
export interface NodeCredentials {
  readonly nodeName: string;
  readonly connection: Connection & { readonly certificateAuthority: string; readonly certificate: string; readonly key: string };
  /** Where renewed certificates are kept. */
  readonly directory: string;
}

export const userPrefix = "system:node:";
export const nodesGroup = "system:nodes";

const clusterSchema = z.object({
  server: z.url({ protocol: /^https$/ }),
  "certificate-authority": z.string().optional(),
  "certificate-authority-data": z.base64().optional(),
  "tls-server-name": z.string().optional(),
  "insecure-skip-tls-verify": z.literal(false).optional(),
});
const userSchema = z.object({
  "client-certificate": z.string().optional(),
  "client-certificate-data": z.base64().optional(),
  "client-key": z.string().optional(),
  "client-key-data": z.base64().optional(),
});
const kubeconfigSchema = z.object({
  clusters: z.array(z.object({ name: z.string(), cluster: clusterSchema })),
  users: z.array(z.object({ name: z.string(), user: userSchema })),
  contexts: z.array(z.object({ name: z.string(), context: z.object({ cluster: z.string(), user: z.string() }) })),
  "current-context": z.string().optional(),
});

/** Errors: NotFound (no file), InvalidArgument (names the file and the field). */
export async function loadKubeconfigFile(path: string, context?: string): Promise<Kubeconfig> {
  const text = await readOptionalFile(path);
  if (text === undefined) throw new PodyardError("NotFound", `kubeconfig ${path} does not exist`, { fix: "podyard join" });
  const config = parseKubeconfig(path, text);
  const contextName = context ?? config["current-context"] ?? "";
  const chosen = config.contexts.find(({ name }) => name === contextName)?.context;
  if (chosen === undefined) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: there is no context "${contextName}", only ${config.contexts.map(({ name }) => name).join(", ") || "none"}`);
  const cluster = config.clusters.find(({ name }) => name === chosen.cluster)?.cluster;
  const user = config.users.find(({ name }) => name === chosen.user)?.user;
  if (cluster === undefined) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: context "${contextName}" names cluster "${chosen.cluster}", which is not in the file`);
  if (user === undefined) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: context "${contextName}" names user "${chosen.user}", which is not in the file`);
  const [certificateAuthority, certificate, key] = await Promise.all([
    readData(path, "certificate-authority", cluster["certificate-authority-data"], cluster["certificate-authority"]),
    readData(path, "client-certificate", user["client-certificate-data"], user["client-certificate"]),
    readData(path, "client-key", user["client-key-data"], user["client-key"]),
  ]);
  return {
    user: chosen.user,
    connection: {
      server: cluster.server,
      ...(certificateAuthority !== undefined && { certificateAuthority }),
      ...(certificate !== undefined && { certificate }),
      ...(key !== undefined && { key }),
      ...(cluster["tls-server-name"] !== undefined && { serverName: cluster["tls-server-name"] }),
    },
  };
}

/**
 * The node's credentials from `kubeconfig`, with the renewed certificate of `directory` if that one is newer and of the
 * same node. Errors: NotFound, InvalidArgument; Forbidden if the user is not a node or not `nodeName` (when given).
 */
export async function loadNodeCredentials(options: { readonly kubeconfig: string; readonly directory: string; readonly nodeName?: string }): Promise<NodeCredentials> {
  const { kubeconfig: path, directory } = options;
  const { connection } = await loadKubeconfigFile(path);
  const { certificateAuthority, certificate, key } = connection;
  if (certificateAuthority === undefined) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: the cluster has no certificate-authority; without it the API server cannot be verified`);
  if (certificate === undefined || key === undefined) {
    throw new PodyardError("Forbidden", `kubeconfig ${path}: the user has no client certificate; a node needs one of ${userPrefix}NAME`, { fix: "podyard join" });
  }
  const nodeName = nodeNameOf(certificate, `kubeconfig ${path}`);
  if (options.nodeName !== undefined && options.nodeName !== nodeName) {
    throw new PodyardError("Forbidden", `kubeconfig ${path} belongs to node "${nodeName}", not to "${options.nodeName}"`, { fix: "podyard join, to get a credential for this name" });
  }
  const renewed = await readOptionalFile(clientFile(directory));
  // Both may be in one file: the certificate must not carry the key along to where certificates are shown.
  const given = { certificate: splitPair(certificate).certificate, key: splitPair(key).key };
  const pair = renewed !== undefined && isNewer(renewed, certificate, nodeName) ? splitPair(renewed) : given;
  assertPair(pair, path);
  return { nodeName, directory, connection: { ...connection, certificateAuthority, ...pair } };
}

/** Writes `directory/client.pem` and `directory/kubeconfig`. Returns the path of the kubeconfig. */
export async function writeNodeCredentials(credentials: NodeCredentials): Promise<string> {
  const { connection, directory, nodeName } = credentials;
  await writeClientCertificate(directory, connection);
  const path = join(directory, "kubeconfig");
  const user = `${userPrefix}${nodeName}`;
  const config = {
    apiVersion: "v1",
    kind: "Config",
    clusters: [
      {
        name: "cluster",
        cluster: {
          server: connection.server,
          "certificate-authority-data": Buffer.from(connection.certificateAuthority).toString("base64"),
          ...(connection.serverName !== undefined && { "tls-server-name": connection.serverName }),
        },
      },
    ],
    users: [{ name: user, user: { "client-certificate": clientFile(directory), "client-key": clientFile(directory) } }],
    contexts: [{ name: "node", context: { cluster: "cluster", user } }],
    "current-context": "node",
  };
  // JSON is YAML.
  await writeAtomically(path, `${JSON.stringify(config, undefined, 2)}\n`);
  return path;
}

/** Keeps a renewed certificate. */
export async function writeClientCertificate(directory: string, pair: { readonly certificate: string; readonly key: string }): Promise<void> {
  await writeAtomically(clientFile(directory), `${pair.certificate.trimEnd()}\n${pair.key}`);
}

function clientFile(directory: string): string {
  return join(directory, "client.pem");
}

function parseKubeconfig(path: string, text: string): z.infer<typeof kubeconfigSchema> {
  let document: unknown;
  try {
    document = parse(text);
  } catch (cause) {
    throw new PodyardError("InvalidArgument", `kubeconfig ${path} is not YAML`, { cause });
  }
  const parsed = kubeconfigSchema.safeParse(document);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new PodyardError("InvalidArgument", `kubeconfig ${path}: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? "not valid"}`);
}

async function readData(kubeconfig: string, field: string, data: string | undefined, file: string | undefined): Promise<string | undefined> {
  if (data !== undefined) return Buffer.from(data, "base64").toString("utf8");
  if (file === undefined) return undefined;
  const path = isAbsolute(file) ? file : join(dirname(kubeconfig), file);
  return readFile(path, "utf8").catch((cause: unknown) => {
    throw new PodyardError("InvalidArgument", `kubeconfig ${kubeconfig}: ${field} cannot be read`, { cause });
  });
}

/** The node that a certificate stands for. `where` begins the sentence of the error. */
function nodeNameOf(certificatePem: string, where: string): string {
  let subject: ReturnType<typeof subjectOf>;
  try {
    subject = subjectOf(new X509Certificate(certificatePem));
  } catch (cause) {
    throw new PodyardError("InvalidArgument", `${where}: the client certificate cannot be read`, { cause });
  }
  const { commonName = "", organizations } = subject;
  if (commonName.startsWith(userPrefix) && commonName.length > userPrefix.length && organizations.length === 1 && organizations[0] === nodesGroup) return commonName.slice(userPrefix.length);
  const groups = organizations.length === 0 ? "no group" : `group ${organizations.join(", ")}`;
  throw new PodyardError("Forbidden", `${where}: the user is "${commonName}" (${groups}), but a node must be "${userPrefix}NAME" in group ${nodesGroup}`, {
    fix: "podyard join --context CONTEXT uses such a credential once to issue the node's own",
  });
}

function splitPair(pem: string): { readonly certificate: string; readonly key: string } {
  const key = /-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]+-----END [A-Z ]*PRIVATE KEY-----\n?/.exec(pem)?.[0] ?? "";
  return { certificate: splitCertificates(pem).join(""), key };
}

/** A file that cannot be read loses against the kubeconfig, silently: rotation will replace it. */
function isNewer(renewed: string, certificate: string, nodeName: string): boolean {
  try {
    const pair = splitPair(renewed);
    assertPair(pair, "client.pem");
    if (nodeNameOf(pair.certificate, "client.pem") !== nodeName) return false;
    return new X509Certificate(pair.certificate).validToDate > new X509Certificate(certificate).validToDate;
  } catch {
    return false;
  }
}

function assertPair(pair: { readonly certificate: string; readonly key: string }, path: string): void {
  let matches: boolean;
  try {
    matches = new X509Certificate(pair.certificate).checkPrivateKey(createPrivateKey(pair.key));
  } catch (cause) {
    throw new PodyardError("InvalidArgument", `kubeconfig ${path}: the client key cannot be read`, { cause });
  }
  if (!matches) throw new PodyardError("InvalidArgument", `kubeconfig ${path}: the client key does not belong to the client certificate`);
}
