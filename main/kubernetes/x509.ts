/**
 * Keys, certificate signing requests and certificates as a node needs them: EC P-256 with SHA-256, subject of CN and O,
 * subject alternative names. Requests go to the cluster's signers; certificates are issued here only for the self-signed
 * serving certificate of the time before approval (and for the certificate authorities of tests). RFC 2986, RFC 5280.
 */
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, sign, X509Certificate } from "node:crypto";
import type { KeyObject } from "node:crypto";
import { isIP } from "node:net";
import { bitString, boolean, integer, objectIdentifier, octetString, sequence, set, tagged, taggedPrimitive, time, toPem, utf8String } from "./asn1.ts";

export interface Subject {
  readonly commonName: string;
  readonly organizations?: readonly string[];
}

/** DNS names and IP addresses, told apart by form. */
export type AlternativeNames = readonly string[];

export interface IssueOptions {
  readonly subject: Subject;
  /** Key of the subject; its public half is certified. */
  readonly key: KeyObject;
  readonly issuer: { readonly subject: Subject; readonly key: KeyObject };
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly isCertificateAuthority?: boolean;
  readonly usages?: readonly ("serverAuth" | "clientAuth")[];
  readonly alternativeNames?: AlternativeNames;
}

const ecdsaWithSha256 = sequence(objectIdentifier("1.2.840.10045.4.3.2"));
const extendedUsages = { serverAuth: "1.3.6.1.5.5.7.3.1", clientAuth: "1.3.6.1.5.5.7.3.2" } as const;

/** A new EC P-256 private key. */
export function generateKey(): KeyObject {
  return generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
}

/** PKCS #8 PEM of a private key. */
export function keyToPem(key: KeyObject): string {
  return key.export({ type: "pkcs8", format: "pem" }).toString();
}

export function keyFromPem(pem: string): KeyObject {
  return createPrivateKey(pem);
}

/** PKCS #10 request as PEM, signed by `key`. */
export function createCertificateRequest(key: KeyObject, subject: Subject, alternativeNames: AlternativeNames = []): string {
  const extensions = alternativeNames.length === 0 ? [] : [sequence(extension("2.5.29.17", false, encodeAlternativeNames(alternativeNames)))];
  const attributes = extensions.map((value) => sequence(objectIdentifier("1.2.840.113549.1.9.14"), set(value)));
  const information = sequence(integer(Buffer.from([0])), encodeSubject(subject), publicKeyInfo(key), tagged(0, ...attributes));
  return toPem("CERTIFICATE REQUEST", signed(information, key));
}

/** An X.509 v3 certificate as PEM. */
export function issueCertificate(options: IssueOptions): string {
  const isAuthority = options.isCertificateAuthority === true;
  // keyCertSign and cRLSign for an authority, digitalSignature otherwise.
  const keyUsage = isAuthority ? bitString(Buffer.from([0x06]), 1) : bitString(Buffer.from([0x80]), 7);
  const extensions = [
    extension("2.5.29.19", true, isAuthority ? sequence(boolean(true)) : sequence()),
    extension("2.5.29.15", true, keyUsage),
    extension("2.5.29.14", false, octetString(keyIdentifier(options.key))),
    extension("2.5.29.35", false, sequence(taggedPrimitive(0, keyIdentifier(options.issuer.key)))),
  ];
  if (options.usages) extensions.push(extension("2.5.29.37", false, sequence(...options.usages.map((usage) => objectIdentifier(extendedUsages[usage])))));
  if (options.alternativeNames?.length) extensions.push(extension("2.5.29.17", false, encodeAlternativeNames(options.alternativeNames)));
  const serial = randomBytes(16);
  serial[0] = ((serial[0] ?? 0) & 0x7f) | 0x40;
  const certificate = sequence(
    tagged(0, integer(Buffer.from([2]))),
    integer(serial),
    ecdsaWithSha256,
    encodeSubject(options.issuer.subject),
    sequence(time(options.notBefore), time(options.notAfter)),
    encodeSubject(options.subject),
    publicKeyInfo(options.key),
    tagged(3, sequence(...extensions)),
  );
  return toPem("CERTIFICATE", signed(certificate, options.issuer.key));
}

/** `sha256:<hex>` of the certificate's public key, as `kubeadm join --discovery-token-ca-cert-hash` takes it. */
export function publicKeyHash(certificatePem: string): string {
  return `sha256:${createHash("sha256").update(new X509Certificate(certificatePem).publicKey.export({ type: "spki", format: "der" })).digest("hex")}`;
}

/** The certificates of a PEM bundle, one PEM each; other blocks are skipped. */
export function splitCertificates(pem: string): readonly string[] {
  return (pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []).map((certificate) => `${certificate}\n`);
}

/** CN and the Os of a certificate's subject. */
export function subjectOf(certificate: X509Certificate): { readonly commonName: string | undefined; readonly organizations: readonly string[] } {
  const subject = certificate.toLegacyObject().subject as unknown as Readonly<Record<string, string | readonly string[] | undefined>>;
  const all = (value: string | readonly string[] | undefined): readonly string[] => (value === undefined ? [] : typeof value === "string" ? [value] : value);
  return { commonName: all(subject["CN"])[0], organizations: all(subject["O"]) };
}

/** The DNS names and IP addresses that a certificate is valid for. */
export function alternativeNamesOf(certificate: X509Certificate): readonly string[] {
  return (certificate.subjectAltName ?? "").split(", ").flatMap((entry) => /^(?:DNS|IP Address):(.+)$/.exec(entry)?.[1] ?? []);
}

function signed(content: Buffer, key: KeyObject): Buffer {
  return sequence(content, ecdsaWithSha256, bitString(sign("sha256", content, key)));
}

function publicKeyInfo(key: KeyObject): Buffer {
  return createPublicKey(key).export({ type: "spki", format: "der" });
}

function keyIdentifier(key: KeyObject): Buffer {
  return createHash("sha256").update(publicKeyInfo(key)).digest().subarray(0, 20);
}

function encodeSubject(subject: Subject): Buffer {
  const attribute = (type: string, value: string): Buffer => sequence(objectIdentifier(type), utf8String(value));
  // Several organizations are several RDNs, as Go's crypto/x509 reads and writes them.
  const organizations = (subject.organizations ?? []).map((name) => set(attribute("2.5.4.10", name)));
  return sequence(...organizations, set(attribute("2.5.4.3", subject.commonName)));
}

function extension(type: string, isCritical: boolean, value: Buffer): Buffer {
  return sequence(objectIdentifier(type), ...(isCritical ? [boolean(true)] : []), octetString(value));
}

function encodeAlternativeNames(names: AlternativeNames): Buffer {
  return sequence(...names.map((name) => (isIP(name) === 0 ? taggedPrimitive(2, Buffer.from(name, "ascii")) : taggedPrimitive(7, encodeAddress(name)))));
}

function encodeAddress(address: string): Buffer {
  if (isIP(address) === 4) return Buffer.from(address.split(".").map(Number));
  // The URL parser writes every form of IPv6 in the canonical one, which leaves only `::` to expand.
  const [head = "", tail] = new URL(`http://[${address.replace(/%.*$/, "")}]`).hostname.slice(1, -1).split("::");
  const groups = (text: string | undefined): string[] => (text === undefined || text === "" ? [] : text.split(":"));
  const before = groups(head);
  const after = groups(tail);
  const all = tail === undefined ? before : [...before, ...Array.from({ length: 8 - before.length - after.length }, () => "0"), ...after];
  return Buffer.from(all.flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 0xff]));
}
