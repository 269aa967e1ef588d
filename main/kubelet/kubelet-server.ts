/**
 * The kubelet's HTTPS server (port 10250): what the API server, metrics-server and Prometheus ask of a node. Every request
 * is authenticated (client certificate, then bearer token; never anonymous) and authorised by the table of
 * request-attributes.ts before anything else is looked at, upgrades to SPDY and WebSocket included.
 * HTTP/1.1 only, which is what the API server negotiates for nodes.
 */
import { ServerResponse } from "node:http";
import type { IncomingMessage } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import { TLSSocket } from "node:tls";
import type { SecureContextOptions } from "node:tls";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { PodRuntime } from "../pods/pod-runtime.ts";
import { authenticateRequest } from "./authentication.ts";
import type { Authenticator, Authorizer, Identity } from "./authorization.ts";
import { HttpError, httpErrorOf, sendError } from "./http.ts";
import type { KubeletRoute, RequestContext, Upgrade } from "./http.ts";
import { RequestCounter } from "./metrics/kubelet-metrics.ts";
import { decodePath, Query } from "./query.ts";
import { subresourcesOf, verbOf } from "./request-attributes.ts";
import { matchRoute, metricPathOf, withSubresources } from "./router.ts";
import { healthRoutes } from "./routes/health-routes.ts";
import { metricsRoutes } from "./routes/metrics-routes.ts";
import type { MetricsSources } from "./routes/metrics-routes.ts";
import { nodeLogRoutes } from "./routes/node-log-routes.ts";
import { podRoutes } from "./routes/pod-routes.ts";
import { streamRoutes } from "./routes/stream-routes.ts";

/** Key and certificate chain in PEM. */
export interface ServingCertificate {
  readonly key: string;
  readonly cert: string;
}

/** The serving certificate, renewed while the server runs: new connections get the new one. */
export interface ServingCertificateSource {
  current(): ServingCertificate;
  /** Calls back after `current` changed. Returns the unsubscriber. */
  subscribe(onChange: () => void): () => void;
}

export interface KubeletServerOptions {
  readonly pods: PodRuntime;
  /** `kubernetesVersion`: `v1.35.4`, the version this node claims. */
  readonly node: { readonly name: string; readonly kubernetesVersion: string };
  readonly authenticator: Authenticator;
  readonly authorizer: Authorizer;
  /** PEM of the CAs whose client certificates are believed; at least one. */
  readonly clientCertificateAuthorities: readonly string[];
  readonly tls: ServingCertificateSource;
  /** Where to listen: `0.0.0.0` or `::` for all addresses; port 0 takes a free one. */
  readonly address: string;
  readonly port: number;
  readonly metrics: MetricsSources;
  readonly health: {
    /** Throws or rejects while the loop that keeps Pods in step is stuck. */
    syncLoop(): void | Promise<void>;
    /** Shown by /configz as `kubeletconfig`; must hold no secret. */
    configuration(): Readonly<Record<string, unknown>>;
  };
  /** Served under /logs/; without it that is 404. */
  readonly logDirectory?: string;
  readonly logger: Logger;
  /** Milliseconds; the defaults are the kubelet's. */
  readonly streamingIdleTimeout?: number;
  readonly streamCreationTimeout?: number;
}

export interface KubeletListener extends AsyncDisposable {
  readonly port: number;
}

export interface KubeletServer {
  /** Every route with its methods and what the caller must be allowed. */
  readonly routes: readonly KubeletRoute[];
  /** Rejects with Unavailable if the address is taken. Disposing the listener ends every connection, streams included. */
  listen(): Promise<KubeletListener>;
}

/** @throws PodyardError InvalidArgument without a client CA, or with a certificate that cannot be read. */
export function createKubeletServer(options: KubeletServerOptions): KubeletServer {
  const requests = new RequestCounter();
  const routes = withSubresources([
    ...podRoutes(options.pods),
    ...streamRoutes({
      pods: options.pods,
      idleTimeout: options.streamingIdleTimeout ?? 4 * 60 * 60 * 1000,
      streamCreationTimeout: options.streamCreationTimeout ?? 30_000,
    }),
    ...metricsRoutes({ pods: options.pods, node: options.node, sources: options.metrics, requests, logger: options.logger }),
    ...healthRoutes({ ...options.health, logger: options.logger }),
    ...nodeLogRoutes(options.logDirectory),
  ]);
  if (options.clientCertificateAuthorities.length === 0) {
    // Without a list OpenSSL would believe every public CA.
    throw new PodyardError("InvalidArgument", "clientCertificateAuthorities is empty, expected the PEM of at least one client CA");
  }
  return { routes, listen: () => listen(options, routes, requests) };
}

async function listen(options: KubeletServerOptions, routes: readonly KubeletRoute[], requests: RequestCounter): Promise<KubeletListener> {
  const { logger } = options;
  const stopping = new AbortController();
  const upgradedSockets = new Set<Duplex>();
  const server = createServer({
    ...secureContext(options),
    requestCert: true,
    rejectUnauthorized: false, // the chain is judged per request, see authentication.ts
    ALPNProtocols: ["http/1.1"],
    handshakeTimeout: 10_000,
    headersTimeout: 30_000,
    maxHeaderSize: 1024 * 1024, // Go's limit: the argv of exec is in the request line
    keepAliveTimeout: 120_000, // above the 90 s after which Go's clients drop an idle connection, so that they do it first
  });
  const dispatch = (request: IncomingMessage, response: ServerResponse, upgrade: Upgrade | undefined): void => {
    void handleRequest({ options, routes, requests, request, response, upgrade, stopping: stopping.signal });
  };
  server.on("request", (request, response) => dispatch(request, response, undefined));
  server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    upgradedSockets.add(socket);
    socket.on("close", () => upgradedSockets.delete(socket));
    socket.on("error", () => socket.destroy());
    const response = new ServerResponse(request);
    response.shouldKeepAlive = false;
    if (socket instanceof TLSSocket) response.assignSocket(socket);
    const onAnswered = (): void => void socket.end();
    response.once("finish", onAnswered);
    dispatch(request, response, {
      protocol: (request.headers.upgrade ?? "").toLowerCase(),
      take() {
        response.off("finish", onAnswered);
        if (socket instanceof TLSSocket) response.detachSocket(socket);
        return { socket, head };
      },
    });
  });
  server.on("tlsClientError", (error) => logger.debug("a TLS handshake failed", { error: error.message }));

  await new Promise<void>((resolve, reject) => {
    server.once("error", (cause) => reject(new PodyardError("Unavailable", `the kubelet server cannot listen on ${options.address} port ${options.port}`, { cause })));
    server.listen({ host: options.address, port: options.port }, resolve);
  });
  server.on("error", (error) => logger.error("the kubelet server failed", { error: error.message }));
  const unsubscribe = options.tls.subscribe(() => {
    try {
      server.setSecureContext(secureContext(options));
      logger.info("the serving certificate was renewed");
    } catch (error) {
      logger.error("the new serving certificate cannot be used; the old one stays", { error: messageOf(error) });
    }
  });
  const { port } = server.address() as AddressInfo;
  logger.info("the kubelet server listens", { address: options.address, port });

  return {
    port,
    async [Symbol.asyncDispose]() {
      unsubscribe();
      stopping.abort();
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      server.closeAllConnections();
      for (const socket of upgradedSockets) socket.destroy();
      await closed;
    },
  };
}

function secureContext({ tls, clientCertificateAuthorities }: KubeletServerOptions): SecureContextOptions {
  const { key, cert } = tls.current();
  return { key, cert, ca: [...clientCertificateAuthorities], minVersion: "TLSv1.2" };
}

interface Exchange {
  readonly options: KubeletServerOptions;
  readonly routes: readonly KubeletRoute[];
  readonly requests: RequestCounter;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly upgrade: Upgrade | undefined;
  readonly stopping: AbortSignal;
}

/** Never rejects. */
async function handleRequest({ options, routes, requests, request, response, upgrade, stopping }: Exchange): Promise<void> {
  const clientGone = new AbortController();
  response.on("error", () => undefined); // a client that goes away while it is answered
  response.once("close", () => clientGone.abort());
  const method = request.method ?? "";
  let taken = false;
  try {
    const target = request.url ?? "/";
    const queryStart = target.indexOf("?");
    const segments = decodePath(queryStart === -1 ? target : target.slice(0, queryStart));
    const matches = segments === undefined ? [] : matchRoute(routes, segments);
    const match = matches.find(({ route }) => route.methods.includes(method));
    requests.count(method, metricPathOf(match?.route), match?.route.isLongRunning ?? false);

    const identity = await authenticateRequest(request, options.authenticator, options.logger);
    if (identity === undefined) throw new HttpError(401, "Unauthorized");
    await authorize(options.authorizer, identity, verbOf(method), subresourcesOf(segments?.[0] ?? ""));
    if (match === undefined) {
      const allowed = matches.flatMap(({ route }) => route.methods);
      if (allowed.length > 0) throw new HttpError(405, "405: Method Not Allowed", { Allow: [...new Set(allowed)].join(", ") });
      throw new HttpError(404, "404: Page Not Found");
    }
    const context: RequestContext = {
      request,
      response,
      parameters: match.parameters,
      query: new Query(queryStart === -1 ? "" : target.slice(queryStart + 1)),
      identity,
      upgrade: upgrade && {
        ...upgrade,
        take() {
          taken = true;
          return upgrade.take();
        },
      },
      signal: AbortSignal.any([clientGone.signal, stopping]),
    };
    await match.route.handle(context);
  } catch (error) {
    if (taken || clientGone.signal.aborted) {
      options.logger.debug("a stream ended early", { error: messageOf(error) });
      request.socket.destroy();
      return;
    }
    const httpError = httpErrorOf(error);
    if (httpError.status >= 500) options.logger.warn("a request to the kubelet server failed", { method, path: (request.url ?? "").split("?")[0], error: httpError.message });
    sendError(response, httpError);
  }
}

/** Any one of the subresources will do. Rejects with the kubelet's sentence. */
async function authorize(authorizer: Authorizer, identity: Identity, verb: string, subresources: readonly string[]): Promise<void> {
  for (const subresource of subresources) {
    try {
      if (await authorizer.authorize(identity, verb, subresource)) return;
    } catch {
      throw new HttpError(500, `Authorization error (user=${identity.user}, verb=${verb}, resource=nodes, subresource=${subresource})`);
    }
  }
  throw new HttpError(403, `Forbidden (user=${identity.user}, verb=${verb}, resource=nodes, subresource(s)=[${subresources.join(" ")}])\n`);
}
