import { createPrivateKey, X509Certificate } from "node:crypto";
import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { alternativeNamesOf, createCertificateRequest, generateKey, issueCertificate, keyFromPem, keyToPem, publicKeyHash, splitCertificates, subjectOf } from "./x509.ts";

const authorityKey = generateKey();
const authority = { subject: { commonName: "test authority" }, key: authorityKey };
const validity = { notBefore: new Date("2026-01-01T00:00:00Z"), notAfter: new Date("2060-01-01T00:00:00Z") };
const authorityPem = issueCertificate({ ...authority, issuer: authority, ...validity, isCertificateAuthority: true });

describe("certificates", () => {
  it("are issued with subject, names and usages that node:crypto reads back", () => {
    const key = generateKey();
    const names = ["node-1.example", "192.0.2.7", "2001:db8::7", "::1"];
    const pem = issueCertificate({
      subject: { commonName: "system:node:a", organizations: ["system:nodes", "other"] },
      key,
      issuer: authority,
      ...validity,
      usages: ["serverAuth"],
      alternativeNames: names,
    });
    const certificate = new X509Certificate(pem);
    expect(certificate.verify(new X509Certificate(authorityPem).publicKey)).toBe(true);
    expect(certificate.checkIssued(new X509Certificate(authorityPem))).toBe(true);
    expect(certificate.checkPrivateKey(key)).toBe(true);
    expect(subjectOf(certificate)).toEqual({ commonName: "system:node:a", organizations: ["system:nodes", "other"] });
    expect(certificate.checkIP("192.0.2.7")).toBe("192.0.2.7");
    expect(certificate.checkIP("2001:db8::7")).toBeDefined();
    expect(certificate.checkHost("node-1.example")).toBe("node-1.example");
    expect(alternativeNamesOf(certificate)).toHaveLength(4);
    expect(certificate.keyUsage).toEqual(["1.3.6.1.5.5.7.3.1"]);
    expect(certificate.validToDate).toEqual(validity.notAfter);
    expect(new X509Certificate(authorityPem).ca).toBe(true);
  });

  it("are requested with a signature and names that openssl accepts", () => {
    const request = createCertificateRequest(generateKey(), { commonName: "system:node:a", organizations: ["system:nodes"] }, ["a.example", "192.0.2.1"]);
    const text = execFileSync("openssl", ["req", "-verify", "-noout", "-text"], { input: request, encoding: "utf8", stdio: ["pipe", "pipe", "pipe"] });
    expect(text).toMatch(/O\s*=\s*system:nodes, CN\s*=\s*system:node:a/);
    expect(text).toContain("DNS:a.example, IP Address:192.0.2.1");
  });

  it("are pinned by the hash that kubeadm computes", () => {
    const der = execFileSync("openssl", ["x509", "-pubkey", "-noout"], { input: authorityPem, encoding: "utf8" });
    const hash = execFileSync("openssl", ["dgst", "-sha256", "-hex"], { input: execFileSync("openssl", ["pkey", "-pubin", "-outform", "der"], { input: der }) }).toString();
    expect(publicKeyHash(authorityPem)).toBe(`sha256:${hash.trim().split(" ").at(-1)}`);
  });
});

it("keeps a key through PEM, and splits bundles", () => {
  const key = generateKey();
  expect(keyFromPem(keyToPem(key)).equals(createPrivateKey(keyToPem(key)))).toBe(true);
  expect(splitCertificates(`${authorityPem}${keyToPem(key)}${authorityPem}`)).toHaveLength(2);
});
