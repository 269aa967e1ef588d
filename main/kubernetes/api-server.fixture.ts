/** An HTTPS server that stands for the API server in tests of what a real one cannot be made to do: break off, expire, hang. */
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { KubernetesClient } from "./client.ts";
import { generateKey, issueCertificate, keyToPem } from "./x509.ts";

export interface Exchange {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly body: unknown;
  /** CN of the client's certificate. */
  readonly user: string | undefined;
  readonly response: ServerResponse;
  /** Answers JSON. */
  readonly answer: (status: number, body: unknown, headers?: Readonly<Record<string, string>>) => void;
}

export interface ApiServerFixture extends AsyncDisposable {
  readonly server: string;
  readonly certificateAuthority: string;
  readonly requests: Exchange[];
  /** A client certificate with this name. */
  readonly issue: (commonName: string) => { readonly certificate: string; readonly key: string };
  client(timeoutMilliseconds?: number): KubernetesClient;
}

export async function startApiServer(handle: (exchange: Exchange) => void): Promise<ApiServerFixture> {
  const validity = { notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 3600_000) };
  const issuer = { subject: { commonName: "fixture" }, key: generateKey() };
  const certificateAuthority = issueCertificate({ ...issuer, issuer, ...validity, isCertificateAuthority: true });
  const key = generateKey();
  const certificate = issueCertificate({ subject: { commonName: "server" }, key, issuer, ...validity, usages: ["serverAuth"], alternativeNames: ["127.0.0.1"] });
  const requests: Exchange[] = [];
  const receive = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const url = new URL(request.url ?? "", "https://fixture");
    const body = Buffer.concat(chunks).toString();
    const exchange: Exchange = {
      method: request.method ?? "",
      path: url.pathname,
      query: url.searchParams,
      body: body === "" ? undefined : JSON.parse(body),
      user: (request.socket as TLSSocket).getPeerX509Certificate()?.subject.replace(/^CN=/, ""),
      response,
      answer(status, content, headers = {}) {
        response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(content));
      },
    };
    requests.push(exchange);
    handle(exchange);
  };
  const server = createServer({ cert: certificate, key: keyToPem(key), ca: certificateAuthority, requestCert: true, rejectUnauthorized: false }, (request, response) => {
    receive(request, response).catch(() => response.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    server: url,
    certificateAuthority,
    requests,
    issue(commonName) {
      const clientKey = generateKey();
      return { certificate: issueCertificate({ subject: { commonName }, key: clientKey, issuer, ...validity, usages: ["clientAuth"] }), key: keyToPem(clientKey) };
    },
    client: (timeoutMilliseconds = 5000) => new KubernetesClient({ connection: { server: url, certificateAuthority }, userAgent: "test", timeoutMilliseconds }),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
