/**
 * Finds out a cluster's certificate authority with nothing but its address, a bootstrap token and the authority's hash.
 * The published `cluster-info` is fetched without verification, then proven twice: by its signature under the token and
 * by the hash; only then is the server contacted with verification.
 * https://kubernetes.io/docs/reference/setup-tools/kubeadm/kubeadm-join/#token-based-discovery-with-ca-pinning
 */
import { createHmac, timingSafeEqual, X509Certificate } from "node:crypto";
import { parse } from "yaml";
import { z } from "zod";
import { hasCode, PodyardError } from "../contract/errors.ts";
import { parseJson } from "./api-error.ts";
import { KubernetesClient } from "./client.ts";
import { configMaps } from "./resources.ts";
import { publicKeyHash, splitCertificates } from "./x509.ts";

export interface BootstrapToken {
  readonly id: string;
  readonly secret: string;
}

export interface DiscoveryOptions {
  /** `host:port` or `https://host:port`. */
  readonly server: string;
  readonly token: BootstrapToken;
  /** `sha256:<64 hex>`; one must match. */
  readonly caHashes: readonly string[];
  readonly userAgent: string;
  readonly signal: AbortSignal;
}

const clusterInfoSchema = z.object({ clusters: z.array(z.object({ cluster: z.object({ server: z.string(), "certificate-authority-data": z.base64() }) })).min(1) });
const headerSchema = z.object({ alg: z.literal("HS256"), kid: z.string() });

/** `abcdef.0123456789abcdef`. The error does not repeat what was given, since it may be nearly right. */
export function parseBootstrapToken(text: string): BootstrapToken {
  const [, id, secret] = /^([a-z0-9]{6})\.([a-z0-9]{16})$/.exec(text.trim()) ?? [];
  if (id === undefined || secret === undefined) throw new PodyardError("InvalidArgument", "--token must be 6 and 16 characters of a-z and 0-9 with a dot between", { fix: "kubeadm token create" });
  return { id, secret };
}

export function parseServer(text: string): string {
  const url = URL.parse(text.includes("://") ? text : `https://${text}`);
  if (url === null || url.protocol !== "https:" || url.username !== "" || url.search !== "" || url.hash !== "") {
    throw new PodyardError("InvalidArgument", `server "${text}" must be HOST:PORT or https://HOST:PORT`);
  }
  return url.href.replace(/\/$/, "");
}

export function parseCaHash(text: string): string {
  const lower = text.trim().toLowerCase();
  if (/^sha256:[0-9a-f]{64}$/.test(lower)) return lower;
  throw new PodyardError("InvalidArgument", `--ca-hash "${text}" must be sha256: and 64 hexadecimal digits`, { fix: "kubeadm token create --print-join-command" });
}

/** The verified authority, PEM. Errors: Unavailable, NotFound (nothing published), Forbidden (signature or hash do not match). */
export async function discoverCertificateAuthority(options: DiscoveryOptions): Promise<string> {
  const { server, token, caHashes, signal, userAgent } = options;
  const published = await fetchClusterInfo({ server, withoutVerification: true }, userAgent, signal);
  const signature = published[`jws-kubeconfig-${token.id}`];
  if (signature === undefined) {
    throw new PodyardError("Forbidden", `the cluster at ${server} does not know the token ${token.id}: it may have expired`, { fix: "kubeadm token create" });
  }
  const kubeconfig = published["kubeconfig"] ?? "";
  if (!isSignedBy(signature, kubeconfig, token)) throw new PodyardError("Forbidden", `the cluster information at ${server} is not signed with the token ${token.id}: the token is wrong or somebody is in between`);
  const certificateAuthority = authorityOf(kubeconfig, server);
  const hashes = splitCertificates(certificateAuthority).map(publicKeyHash);
  if (!hashes.some((hash) => caHashes.includes(hash))) {
    throw new PodyardError("Forbidden", `the certificate authority at ${server} has the hash ${hashes.join(", ")}, expected ${caHashes.join(" or ")}: this is another cluster, or somebody is in between`);
  }
  // Now verified: this proves that the server holds a certificate of that authority.
  const verified = await fetchClusterInfo({ server, certificateAuthority }, userAgent, signal);
  if (verified["kubeconfig"] !== kubeconfig) throw new PodyardError("Unavailable", `the cluster information at ${server} changed meanwhile: try again`);
  return certificateAuthority;
}

/** A detached JWS (`header..signature`, HMAC-SHA256 with the token's secret) over `content`. */
export function isSignedBy(signature: string, content: string, token: BootstrapToken): boolean {
  const [header = "", between, mac = ""] = signature.split(".");
  if (between !== "") return false;
  const parsed = headerSchema.safeParse(parseJson(Buffer.from(header, "base64url").toString("utf8")));
  if (!parsed.success || parsed.data.kid !== token.id) return false;
  const expected = createHmac("sha256", token.secret).update(`${header}.${Buffer.from(content).toString("base64url")}`).digest();
  const actual = Buffer.from(mac, "base64url");
  return actual.length === expected.length && timingSafeEqual(actual, expected);
}

async function fetchClusterInfo(connection: { server: string; certificateAuthority?: string; withoutVerification?: boolean }, userAgent: string, signal: AbortSignal): Promise<Readonly<Record<string, string>>> {
  using client = new KubernetesClient({ connection, userAgent });
  try {
    return (await client.get(configMaps, { namespace: "kube-public", name: "cluster-info" }, { signal })).data ?? {};
  } catch (error) {
    if (!hasCode(error, "Forbidden", "NotFound", "Unauthorized")) throw error;
    throw new PodyardError("NotFound", `the cluster at ${connection.server} does not publish its information (ConfigMap cluster-info in kube-public)`, {
      cause: error,
      fix: "podyard join --context CONTEXT, with an administrator's kubeconfig",
    });
  }
}

function authorityOf(kubeconfig: string, server: string): string {
  let document: unknown;
  try {
    document = parse(kubeconfig);
  } catch {
    document = undefined;
  }
  const parsed = clusterInfoSchema.safeParse(document);
  const encoded = parsed.success ? (parsed.data.clusters[0]?.cluster["certificate-authority-data"] ?? "") : "";
  const certificates = splitCertificates(Buffer.from(encoded, "base64").toString("utf8"));
  if (certificates.length === 0 || certificates.some((pem) => !new X509Certificate(pem).ca)) throw new PodyardError("Corrupt", `the cluster information at ${server} holds no certificate authority`);
  return certificates.join("");
}
