/** The client against small servers that do what docker-registry cannot be made to do: tokens, redirects, odd Range answers. */
import { once } from "node:events";
import { createServer, type IncomingMessage, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, test } from "vitest";
import { silentLogger } from "../contract/logger.ts";
import { downloadToMemory } from "./blob-download.ts";
import { parseChallenge } from "./registry-authentication.ts";
import { digestOf, RegistryClient } from "./registry-client.ts";
import { isLoopback } from "./registry-http.ts";

async function serve(listener: RequestListener): Promise<AsyncDisposable & { readonly host: string }> {
  const server = createServer(listener);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

function newClient(): RegistryClient & Disposable {
  const client = new RegistryClient({ logger: silentLogger, backOffMilliseconds: 1, maximumAttempts: 3 });
  return Object.assign(client, { [Symbol.dispose]: () => client.close() });
}

const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2 }));

describe("challenges", () => {
  test.each([
    ['Bearer realm="https://a/t",service="s",scope="repository:x:pull"', { scheme: "bearer", parameters: { realm: "https://a/t", service: "s", scope: "repository:x:pull" } }],
    ['bearer Realm="https://a/t", error="invalid_token"', { scheme: "bearer", parameters: { realm: "https://a/t", error: "invalid_token" } }],
    ['Basic realm="x"', { scheme: "basic", parameters: {} }],
    ['Basic realm="x", Bearer realm="https://a"', { scheme: "bearer", parameters: { realm: "https://a" } }],
    ["Negotiate", undefined],
    ["", undefined],
  ])("%s", (header, expected) => {
    expect(parseChallenge(header)).toEqual(expected);
  });
});

describe("tokens", () => {
  function tokenRegistry(seen: string[]): RequestListener {
    let valid = "";
    return (request, response) => {
      const url = new URL(request.url ?? "/", `http://${request.headers.host ?? ""}`);
      if (url.pathname === "/token") {
        void answerToken(request, url, seen).then((token) => {
          if (token === undefined) return response.writeHead(401).end();
          valid = token;
          return response.end(JSON.stringify({ access_token: token, expires_in: 3600 }));
        });
        return;
      }
      seen.push(`${request.method ?? ""} ${request.headers.authorization ?? "anonymous"}`);
      if (request.headers.authorization !== `Bearer ${valid}` || valid === "") {
        response.writeHead(401, { "WWW-Authenticate": `Bearer realm="http://${request.headers.host ?? ""}/token",service="test"` }).end();
        return;
      }
      response.end(manifest);
      if (seen.length === 5) valid = "expired-now";
    };
  }

  async function answerToken(request: IncomingMessage, url: URL, seen: string[]): Promise<string | undefined> {
    const body = Buffer.concat(await request.toArray()).toString();
    seen.push(`token ${request.method ?? ""} ${request.headers.authorization ?? body} ${url.searchParams.get("scope") ?? ""}`.trim());
    const isGood = request.headers.authorization === `Basic ${Buffer.from("user:right").toString("base64")}` || new URLSearchParams(body).get("refresh_token") === "identity";
    return isGood ? `t${seen.length}` : undefined;
  }

  test("are fetched once per repository with the credentials that work, and renewed when they are refused", async () => {
    const seen: string[] = [];
    await using server = await serve(tokenRegistry(seen));
    using client = newClient();
    const credentials = [{ username: "user", password: "wrong" }, { username: "user", password: "right" }];
    const session = client.session(server.host, "team/vm", credentials);
    const wrong = `Basic ${Buffer.from("user:wrong").toString("base64")}`;
    const right = `Basic ${Buffer.from("user:right").toString("base64")}`;
    const scope = "repository:team/vm:pull";
    expect((await session.fetchManifest("v1")).digest).toBe(digestOf(manifest));
    await session.fetchManifest("v1");
    await session.fetchManifest("v1");
    expect(seen).toEqual(["GET anonymous", `token GET ${wrong} ${scope}`, `token GET ${right} ${scope}`, "GET Bearer t3", "GET Bearer t3", "GET Bearer t3", `token GET ${right} ${scope}`, "GET Bearer t7"]);
  });

  test("are fetched with an identity token by POST, and the registry's refusal is Unauthorized", async () => {
    const seen: string[] = [];
    await using server = await serve(tokenRegistry(seen));
    using client = newClient();
    await client.session(server.host, "vm", [{ identityToken: "identity" }]).fetchManifest("v1");
    expect(seen[1]).toContain("token POST service=test&scope=repository%3Avm%3Apull&grant_type=refresh_token");
    await expect(client.session(server.host, "vm", []).fetchManifest("v1")).rejects.toMatchObject({ code: "Unauthorized" });
    await expect(client.session(server.host, "vm", [{ username: "user", password: "wrong" }]).fetchManifest("v1")).rejects.toMatchObject({ code: "Unauthorized" });
  });

  test("are never fetched from a realm in the clear that is not the registry's kind of host", async () => {
    await using server = await serve((_request, response) => response.writeHead(401, { "WWW-Authenticate": 'Bearer realm="http://169.254.169.254/token"' }).end());
    using client = newClient();
    await expect(client.session(server.host, "vm", [{ username: "u", password: "p" }]).fetchManifest("v1")).rejects.toMatchObject({ code: "Forbidden" });
  });
});

describe("blobs", () => {
  const bytes = Buffer.from("0123456789".repeat(50_000));
  const digest = digestOf(bytes);

  test("a redirect to another host loses the authorization, one within the host keeps it", async () => {
    const seen: Record<string, string | undefined> = {};
    await using storage = await serve((request, response) => {
      seen["storage"] = request.headers.authorization;
      response.end(bytes);
    });
    await using server = await serve((request, response) => {
      const { authorization } = request.headers;
      if (authorization === undefined) return response.writeHead(401, { "WWW-Authenticate": "Basic" }).end();
      if (request.url?.startsWith("/moved") !== true) return response.writeHead(307, { Location: "/moved" }).end();
      seen["moved"] = authorization;
      return response.writeHead(307, { Location: `http://${storage.host}/presigned` }).end();
    });
    using client = newClient();
    const session = client.session(server.host, "vm", [{ username: "u", password: "p" }]);
    const got = await downloadToMemory({ session, blob: { digest, size: bytes.length }, signal: new AbortController().signal, onBytes: () => undefined, backOffMilliseconds: 1 });
    expect(digestOf(got)).toBe(digest);
    expect(seen["moved"]).toBe("Basic dTpw");
    expect(seen["storage"]).toBeUndefined();
  });

  test("a server that ignores Range is read from the start without doubling bytes", async () => {
    let requests = 0;
    await using server = await serve((_request, response) => {
      requests += 1;
      response.writeHead(200, { "Content-Length": String(bytes.length) });
      if (requests > 2) return response.end(bytes);
      return response.write(bytes.subarray(0, 100_000 * requests), () => setImmediate(() => response.destroy()));
    });
    using client = newClient();
    let counted = 0;
    const got = await downloadToMemory({ session: client.session(server.host, "vm", []), blob: { digest, size: bytes.length }, signal: new AbortController().signal, onBytes: (count) => (counted += count), backOffMilliseconds: 1 });
    expect(digestOf(got)).toBe(digest);
    expect(counted).toBe(bytes.length);
    expect(requests).toBe(3);
  });

  test("more bytes than the manifest says, and a manifest with another digest, are corrupt", async () => {
    await using server = await serve((_request, response) => response.end(bytes));
    using client = newClient();
    const session = client.session(server.host, "vm", []);
    await expect(downloadToMemory({ session, blob: { digest, size: 1000 }, signal: new AbortController().signal, onBytes: () => undefined, backOffMilliseconds: 1 })).rejects.toMatchObject({ code: "Corrupt" });
    await expect(session.fetchManifest(`sha256:${"0".repeat(64)}`)).rejects.toMatchObject({ code: "Corrupt" });
  });

  test("a registry that is busy is asked again, and not for ever", async () => {
    let requests = 0;
    await using server = await serve((_request, response) => {
      requests += 1;
      if (requests === 2) return response.end(manifest);
      return response.writeHead(429, { "Retry-After": "0" }).end();
    });
    using client = newClient();
    const session = client.session(server.host, "vm", []);
    await session.fetchManifest("v1");
    expect(requests).toBe(2);
    await expect(session.fetchManifest("v1")).rejects.toMatchObject({ code: "Unavailable" });
    expect(requests).toBe(5);
  });
});

test.each([["127.0.0.1:5000", true], ["127.9.9.9", true], ["localhost", true], ["[::1]:5000", true], ["10.0.0.1:5000", false], ["localhost.example.com", false], ["127.0.0.1.example.com", false]])("%s is loopback: %s", (host, expected) => {
  expect(isLoopback(host)).toBe(expected);
});
