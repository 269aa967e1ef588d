/** A certificate authority in memory, and what it issues. */
import type { KeyObject } from "node:crypto";
import { generateKey, issueCertificate, keyToPem } from "../../../main/kubernetes/x509.ts";
import type { Subject } from "../../../main/kubernetes/x509.ts";

export interface IssuedCertificate {
  readonly key: string;
  readonly cert: string;
}

export class TestCertificateAuthority {
  readonly pem: string;
  readonly #subject: Subject;
  readonly #key: KeyObject = generateKey();

  constructor(commonName: string) {
    this.#subject = { commonName };
    this.pem = issueCertificate({ subject: this.#subject, key: this.#key, issuer: { subject: this.#subject, key: this.#key }, ...validity(), isCertificateAuthority: true });
  }

  issue(subject: Subject, usage: "clientAuth" | "serverAuth", alternativeNames: readonly string[] = []): IssuedCertificate {
    const key = generateKey();
    const issuer = { subject: this.#subject, key: this.#key };
    return { key: keyToPem(key), cert: issueCertificate({ subject, key, issuer, ...validity(), usages: [usage], alternativeNames }) };
  }
}

function validity(): { readonly notBefore: Date; readonly notAfter: Date } {
  return { notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 3_600_000) };
}
