import { X509Certificate } from "node:crypto";
import { expect, it } from "vitest";
import { rotationTime } from "./certificates.ts";
import { generateKey, issueCertificate } from "./x509.ts";

it("renews after 70 to 90 % of the lifetime, each certificate at its own time, always the same", () => {
  const start = new Date("2026-01-01T00:00:00Z");
  const end = new Date("2027-01-01T00:00:00Z");
  const shares = Array.from({ length: 20 }, () => {
    const key = generateKey();
    const subject = { commonName: "a" };
    const certificate = new X509Certificate(issueCertificate({ subject, key, issuer: { subject, key }, notBefore: start, notAfter: end }));
    expect(rotationTime(certificate)).toEqual(rotationTime(certificate));
    return (rotationTime(certificate).getTime() - start.getTime()) / (end.getTime() - start.getTime());
  });
  expect(Math.min(...shares)).toBeGreaterThanOrEqual(0.7);
  expect(Math.max(...shares)).toBeLessThanOrEqual(0.9);
  expect(new Set(shares).size).toBeGreaterThan(10);
});
