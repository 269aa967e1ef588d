/**
 * The certificates of the test cluster, as kubeadm would lay them out: one authority for clients, the API server and
 * kubelets, one for the front proxy, a key for service accounts, and a kubeconfig for each component.
 */
import { createPublicKey } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { join } from "node:path";
import { writeFile } from "node:fs/promises";
import { generateKey, issueCertificate, keyToPem, publicKeyHash } from "../../main/kubernetes/x509.ts";
import type { Subject } from "../../main/kubernetes/x509.ts";

export interface ClusterCertificates {
  readonly certificateAuthority: string;
  /** `sha256:…`, as kubeadm prints it. */
  readonly caHash: string;
  /** Path of a file in the cluster's directory. */
  readonly path: (name: string) => string;
  /** A client certificate of the cluster's authority, PEM. */
  issueClient(subject: Subject, validForMilliseconds?: number): { readonly certificate: string; readonly key: string };
}

/** Writes everything into `directory`. `server` is the URL in the kubeconfigs, `addresses` the API server's names. */
export async function writeCertificates(directory: string, server: string, addresses: readonly string[]): Promise<ClusterCertificates> {
  const notBefore = new Date(Date.now() - 5 * 60_000);
  const notAfter = new Date(Date.now() + 365 * 24 * 3600_000);
  const path = (name: string): string => join(directory, name);
  const write = (name: string, text: string): Promise<void> => writeFile(path(name), text, { mode: 0o600 });
  const authorityOf = (commonName: string): { subject: Subject; key: KeyObject; pem: string } => {
    const subject = { commonName };
    const key = generateKey();
    return { subject, key, pem: issueCertificate({ subject, key, issuer: { subject, key }, notBefore, notAfter, isCertificateAuthority: true }) };
  };
  const cluster = authorityOf("kubernetes");
  const frontProxy = authorityOf("front-proxy-ca");
  const issue = (issuer: typeof cluster, subject: Subject, until = notAfter, alternativeNames: readonly string[] = []): { certificate: string; key: string } => {
    const key = generateKey();
    const usage = alternativeNames.length > 0 ? "serverAuth" : "clientAuth";
    return { certificate: issueCertificate({ subject, key, issuer, notBefore, notAfter: until, usages: [usage], alternativeNames }), key: keyToPem(key) };
  };
  const writePair = async (name: string, pair: { certificate: string; key: string }): Promise<void> => {
    await Promise.all([write(`${name}.crt`, pair.certificate), write(`${name}.key`, pair.key)]);
  };
  const writeKubeconfig = async (name: string, subject: Subject): Promise<void> => {
    await write(`${name}.kubeconfig`, kubeconfigOf(server, cluster.pem, name, issue(cluster, subject)));
  };
  const serviceAccounts = generateKey();
  await Promise.all([
    writePair("ca", { certificate: cluster.pem, key: keyToPem(cluster.key) }),
    write("front-proxy-ca.crt", frontProxy.pem),
    writePair("front-proxy-client", issue(frontProxy, { commonName: "front-proxy-client" })),
    writePair(
      "apiserver",
      issue(cluster, { commonName: "kube-apiserver" }, notAfter, ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "10.96.0.1", ...addresses]),
    ),
    writePair("apiserver-kubelet-client", issue(cluster, { commonName: "kube-apiserver-kubelet-client" })),
    write("service-accounts.key", keyToPem(serviceAccounts)),
    write("service-accounts.pub", createPublicKey(serviceAccounts).export({ type: "spki", format: "pem" }).toString()),
    writeKubeconfig("admin", { commonName: "kubernetes-admin", organizations: ["system:masters"] }),
    writeKubeconfig("controller-manager", { commonName: "system:kube-controller-manager" }),
    writeKubeconfig("scheduler", { commonName: "system:kube-scheduler" }),
  ]);
  return {
    certificateAuthority: cluster.pem,
    caHash: publicKeyHash(cluster.pem),
    path,
    issueClient: (subject, validForMilliseconds) => issue(cluster, subject, validForMilliseconds === undefined ? notAfter : new Date(Date.now() + validForMilliseconds)),
  };
}

/** A kubeconfig with everything in it; JSON is YAML. Without a pair it names the cluster only. */
export function kubeconfigOf(server: string, certificateAuthority: string, user: string, pair?: { readonly certificate: string; readonly key: string }): string {
  const base64 = (text: string): string => Buffer.from(text).toString("base64");
  return JSON.stringify(
    {
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "podyard-test", cluster: { server, "certificate-authority-data": base64(certificateAuthority) } }],
      users: pair === undefined ? [] : [{ name: user, user: { "client-certificate-data": base64(pair.certificate), "client-key-data": base64(pair.key) } }],
      contexts: pair === undefined ? [] : [{ name: user, context: { cluster: "podyard-test", user } }],
      "current-context": pair === undefined ? "" : user,
    },
    undefined,
    2,
  );
}
