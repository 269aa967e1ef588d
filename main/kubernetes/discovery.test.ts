import { createHmac } from "node:crypto";
import { describe, expect, it } from "vitest";
import { isSignedBy, parseBootstrapToken, parseCaHash, parseServer } from "./discovery.ts";

const token = { id: "abcdef", secret: "0123456789abcdef" };
const encode = (text: string): string => Buffer.from(text).toString("base64url");
const signatureOf = (content: string, header: object, secret = token.secret): string => {
  const protectedHeader = encode(JSON.stringify(header));
  return `${protectedHeader}..${createHmac("sha256", secret).update(`${protectedHeader}.${encode(content)}`).digest("base64url")}`;
};
const header = { alg: "HS256", kid: "abcdef" };

describe("the signature of the cluster information", () => {
  it("holds for this content and this token only", () => {
    expect(isSignedBy(signatureOf("content", header), "content", token)).toBe(true);
    expect(isSignedBy(signatureOf("content", header), "content!", token)).toBe(false);
    expect(isSignedBy(signatureOf("content", header, "another-secret--"), "content", token)).toBe(false);
    expect(isSignedBy(signatureOf("content", { ...header, kid: "zzzzzz" }), "content", token)).toBe(false);
  });

  it("cannot be left out or be of another kind", () => {
    const [protectedHeader = "", , mac = ""] = signatureOf("content", header).split(".");
    const none = encode(JSON.stringify({ alg: "none", kid: "abcdef" }));
    for (const forged of ["", "..", `${none}..`, `${protectedHeader}..`, `${protectedHeader}.${encode("content")}.${mac}`, `${protectedHeader}..${mac.slice(0, 10)}`, `not base64..${mac}`]) {
      expect(isSignedBy(forged, "content", token)).toBe(false);
    }
  });
});

describe("what a user types", () => {
  it("is a token of the exact form", () => {
    expect(parseBootstrapToken(" abcdef.0123456789abcdef\n")).toEqual(token);
    for (const wrong of ["", "abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde", "abcdef.0123456789abcdef0"]) expect(() => parseBootstrapToken(wrong)).toThrow("--token must be");
  });

  it("is a server with or without scheme", () => {
    expect(parseServer("10.0.0.1:6443")).toBe("https://10.0.0.1:6443");
    expect(parseServer("https://cluster.example/path/")).toBe("https://cluster.example/path");
    expect(parseServer("[2001:db8::1]:6443")).toBe("https://[2001:db8::1]:6443");
    for (const wrong of ["http://10.0.0.1", "https://user:password@host", "", "https://host?x=1"]) expect(() => parseServer(wrong)).toThrow("must be HOST:PORT");
  });

  it("is a hash of the exact form", () => {
    expect(parseCaHash(`SHA256:${"AB".repeat(32)}`)).toBe(`sha256:${"ab".repeat(32)}`);
    for (const wrong of ["", "ab".repeat(32), `sha256:${"ab".repeat(31)}`, `sha512:${"ab".repeat(64)}`]) expect(() => parseCaHash(wrong)).toThrow("--ca-hash");
  });
});
