import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { PodyardError } from "../contract/errors.ts";
import { loadNodeCredentials, writeClientCertificate, writeNodeCredentials } from "./kubeconfig.ts";
import { generateKey, issueCertificate, keyToPem } from "./x509.ts";
import type { Subject } from "./x509.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "podyard-kubeconfig-"));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

const issuer = { subject: { commonName: "authority" }, key: generateKey() };
const authority = issueCertificate({ ...issuer, issuer, notBefore: new Date(), notAfter: new Date(Date.now() + 3600_000), isCertificateAuthority: true });
const node = (name: string): Subject => ({ commonName: `system:node:${name}`, organizations: ["system:nodes"] });
const pairOf = (subject: Subject, validMilliseconds = 3600_000): { readonly certificate: string; readonly key: string } => {
  const key = generateKey();
  return { certificate: issueCertificate({ subject, key, issuer, notBefore: new Date(Date.now() - 1000), notAfter: new Date(Date.now() + validMilliseconds) }), key: keyToPem(key) };
};
const base64 = (text: string): string => Buffer.from(text).toString("base64");
/** A kubeconfig in the way of an administrator; `user` and `cluster` replace parts. */
async function writeKubeconfig(user: object, cluster: object = {}): Promise<string> {
  const path = join(directory, "config");
  const config = {
    clusters: [{ name: "c", cluster: { server: "https://192.0.2.1:6443", "certificate-authority-data": base64(authority), ...cluster } }],
    users: [{ name: "u", user }],
    contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
    "current-context": "x",
  };
  await writeFile(path, JSON.stringify(config));
  return path;
}
const inline = (pair: { readonly certificate: string; readonly key: string }): object => ({ "client-certificate-data": base64(pair.certificate), "client-key-data": base64(pair.key) });
const load = (kubeconfig: string, nodeName?: string) => loadNodeCredentials({ kubeconfig, directory: join(directory, "node"), ...(nodeName !== undefined && { nodeName }) });
const refusal = async (kubeconfig: string): Promise<string> => {
  const error = await load(kubeconfig).then(() => undefined).catch((thrown: unknown) => thrown);
  if (!(error instanceof PodyardError)) throw new Error(`not refused: ${String(error)}`);
  return `${error.code}: ${error.message}`;
};

describe("the node's credential", () => {
  it("is read inline, and from files beside the kubeconfig", async () => {
    const pair = pairOf(node("a"));
    expect(await load(await writeKubeconfig(inline(pair)))).toMatchObject({ nodeName: "a", connection: { server: "https://192.0.2.1:6443", ...pair } });
    await Promise.all([writeFile(join(directory, "crt"), pair.certificate), writeFile(join(directory, "key"), pair.key)]);
    expect((await load(await writeKubeconfig({ "client-certificate": "crt", "client-key": "key" }))).connection.key).toBe(pair.key);
  });

  it.each<readonly [string, Subject]>([
    ["an administrator", { commonName: "admin", organizations: ["system:masters"] }],
    ["a node that is also administrator", { commonName: "system:node:a", organizations: ["system:nodes", "system:masters"] }],
    ["a node's name without its group", { commonName: "system:node:a" }],
    ["a nameless node", { commonName: "system:node:", organizations: ["system:nodes"] }],
  ])("is not that of %s", async (_, subject) => {
    expect(await refusal(await writeKubeconfig(inline(pairOf(subject))))).toMatch(/^Forbidden: .*must be "system:node:NAME" in group system:nodes/);
  });

  it("names the file and the field of what is wrong", async () => {
    const pair = pairOf(node("a"));
    expect(await refusal(await writeKubeconfig({ token: "x" }))).toContain("Forbidden: kubeconfig");
    expect(await refusal(await writeKubeconfig(inline(pair), { server: "http://192.0.2.1" }))).toContain("clusters.0.cluster.server");
    expect(await refusal(await writeKubeconfig(inline(pair), { "insecure-skip-tls-verify": true }))).toContain("insecure-skip-tls-verify");
    expect(await refusal(await writeKubeconfig(inline(pair), { "certificate-authority-data": undefined }))).toContain("no certificate-authority");
    expect(await refusal(await writeKubeconfig({ ...inline(pair), "client-key-data": base64(pairOf(node("a")).key) }))).toContain("does not belong to");
    expect(await refusal(await writeKubeconfig({ "client-certificate": "missing", "client-key": "missing" }))).toContain("client-certificate cannot be read");
    await writeFile(join(directory, "config"), "{ not: [yaml");
    expect(await refusal(join(directory, "config"))).toContain("is not YAML");
    expect(await refusal(join(directory, "absent"))).toMatch(/^NotFound: .*absent does not exist/);
  });

  it("is written for its owner alone and read back", async () => {
    const pair = pairOf(node("a"));
    const kubeconfig = await writeNodeCredentials({ nodeName: "a", directory: join(directory, "node"), connection: { server: "https://192.0.2.1:6443", certificateAuthority: authority, ...pair } });
    expect((await stat(kubeconfig)).mode & 0o777).toBe(0o600);
    expect((await load(kubeconfig, "a")).connection.certificate).toBe(pair.certificate);
  });

  it("is the renewed one where that is newer, of this node, and whole", async () => {
    const kubeconfig = await writeKubeconfig(inline(pairOf(node("a"))));
    const store = join(directory, "node");
    const renewed = pairOf(node("a"), 7200_000);
    await writeClientCertificate(store, renewed);
    expect((await load(kubeconfig)).connection.certificate).toBe(renewed.certificate);
    for (const useless of [pairOf(node("a"), 60_000), pairOf(node("b"), 7200_000), { ...renewed, key: keyToPem(generateKey()) }, { certificate: "", key: "" }]) {
      await writeClientCertificate(store, useless);
      expect((await load(kubeconfig)).connection.certificate).not.toBe(useless.certificate);
    }
  });
});
