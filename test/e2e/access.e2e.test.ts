/**
 * Who may ask a running node: every route of the kubelet API and every listener of the gateway, over the network. No call
 * without a credential is answered, none with somebody else's, and nothing of the host listens besides.
 */
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { request as requestPlain, type ClientRequest, type IncomingMessage } from "node:http";
import { request as requestSecure } from "node:https";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ControlPlane, startControlPlane } from "../control-plane/control-plane.ts";
import { TestCertificateAuthority } from "../support/kubelet/certificates.ts";
import { startTestServer } from "../support/kubelet/server.ts";
import { standaloneHost, type StandaloneHost } from "../support/standalone-host.ts";

const everything = new AsyncDisposableStack();
const node = `node-${randomBytes(3).toString("hex")}`;
let cluster: ControlPlane;
let host: StandaloneHost;
let kubeletPort: number;
let gatewayPort: number;
let routes: readonly { readonly method: string; readonly path: string }[];

beforeAll(async () => {
  cluster = everything.use(await startControlPlane());
  // The engine is not asked for here.
  host = everything.use(standaloneHost({ settings: { dockerHost: "/does/not/exist.sock" } }));
  await host.podyardOk(["join", "--context", "admin", "--kubeconfig", cluster.kubeconfig, "--node-name", node]);
  await host.start(["run", "--kubelet-port", "0", "--kubelet-address", "127.0.0.1", "--gateway-port", "0"]);
  kubeletPort = Number((await cluster.kubectl(["get", "node", node, "-o", "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}"])).stdout);
  gatewayPort = Number(/http:\/\/127\.0\.0\.1:(\d+)/.exec(host.output())?.[1]);
  // The same table that the host serves.
  await using server = await startTestServer();
  const concrete = (pattern: string): string => pattern.replaceAll(/\{(\w+)(\.\.\.)?\}/g, "x");
  routes = server.server.routes.flatMap(({ methods, pattern }) => methods.map((method) => ({ method, path: concrete(pattern) })));
});
afterAll(async () => {
  await everything.disposeAsync();
});

const upgrades: readonly Readonly<Record<string, string>>[] = [
  {},
  { Connection: "Upgrade", Upgrade: "SPDY/3.1" },
  { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13" },
];

function statusOf(sent: ClientRequest): Promise<number> {
  return new Promise((resolve, reject) => {
    sent.on("response", (response: IncomingMessage) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
    sent.on("upgrade", (response, socket) => {
      socket.destroy();
      resolve(response.statusCode ?? 0);
    });
    sent.on("error", reject);
    sent.end();
  });
}

const askKubelet = (method: string, path: string, headers: Readonly<Record<string, string>> = {}, identity: { readonly key?: string; readonly cert?: string } = {}): Promise<number> =>
  statusOf(requestSecure({ host: "127.0.0.1", port: kubeletPort, method, path, headers, rejectUnauthorized: false, agent: false, ...identity }));

describe("the kubelet API", () => {
  /** Every route by every way; the answers, without doubles. */
  const everywhere = async (headers: Readonly<Record<string, string>>, identity?: { readonly key: string; readonly cert: string }): Promise<readonly number[]> => {
    const found = new Set<number>();
    for (const { method, path } of [...routes, { method: "GET", path: "/no/such/path" }, { method: "DELETE", path: "/pods" }]) {
      for (const upgrade of upgrades) found.add(await askKubelet(method, path, { ...headers, ...upgrade }, identity));
    }
    return [...found];
  };

  test("answers 401 on every route to who shows nothing, a token that is none, or a stranger's certificate", async () => {
    expect(routes.length).toBeGreaterThan(25);
    expect(await everywhere({})).toEqual([401]);
    expect(await everywhere({ authorization: "Basic YWRtaW46YWRtaW4=" })).toEqual([401]);
    expect(await askKubelet("GET", "/pods", { authorization: `Bearer ${randomBytes(24).toString("base64url")}` })).toBe(401);
    const stranger = new TestCertificateAuthority("stranger").issue({ commonName: "admin", organizations: ["system:masters"] }, "clientAuth");
    expect(await everywhere({}, { key: stranger.key, cert: stranger.cert })).toEqual([401]);
  });

  test("answers 403 on every route to who may not, and serves who may", async () => {
    const { stdout: token } = await cluster.kubectl(["-n", "default", "create", "token", "default"]);
    expect(await everywhere({ authorization: `Bearer ${token.trim()}` })).toEqual([403]);
    await cluster.kubectl(["create", "clusterrole", "reader", "--verb=get", "--resource=nodes/metrics,nodes/stats"]);
    await cluster.kubectl(["create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=default:reads"]);
    await cluster.kubectl(["-n", "default", "create", "serviceaccount", "reads"]);
    const { stdout: reader } = await cluster.kubectl(["-n", "default", "create", "token", "reads"]);
    const authorization = `Bearer ${reader.trim()}`;
    expect(await askKubelet("GET", "/metrics/resource", { authorization })).toBe(200);
    expect(await askKubelet("GET", "/stats/summary", { authorization })).toBe(200);
    expect(await askKubelet("GET", "/pods", { authorization })).toBe(403);
    expect(await askKubelet("POST", "/run/default/x/x", { authorization })).toBe(403);
  });
});

describe("the gateway", () => {
  const discovery = (): { readonly token: string; readonly socket: string } => JSON.parse(readFileSync(join(host.dataDirectory, "gateway.json"), "utf8")) as { token: string; socket: string };
  const ask = (headers: Readonly<Record<string, string>>, path = "/api/host.info", where: { readonly socketPath: string } | { readonly port: number } = { port: gatewayPort }): Promise<number> =>
    statusOf(requestPlain({ ...("port" in where ? { host: "127.0.0.1" } : {}), ...where, path, method: path.startsWith("/api/host") ? "POST" : "GET", headers: { "content-type": "application/json", ...headers }, agent: false }));
  const paths = ["/", "/api/host.info", "/api/host.stop", "/api/events", "/api/streams/vm.exec", "/none"];
  const everywhere = async (headers: Readonly<Record<string, string>>): Promise<readonly number[]> => {
    const found = new Set<number>();
    for (const path of paths) for (const upgrade of [upgrades[0] ?? {}, upgrades[2] ?? {}]) found.add(await ask({ ...headers, ...upgrade }, path));
    return [...found];
  };

  test("answers 401 to who has no token or a wrong one, on loopback and on the socket", async () => {
    expect(await everywhere({})).toEqual([401]);
    expect(await everywhere({ authorization: "Bearer wrong" })).toEqual([401]);
    expect(await everywhere({ cookie: `podyard-${gatewayPort}=forged.signature` })).toEqual([401]);
    expect(await ask({}, "/api/host.info", { socketPath: discovery().socket })).toBe(401);
    expect(await ask({ authorization: "Bearer wrong" }, "/api/host.stop", { socketPath: discovery().socket })).toBe(401);
  });

  test("answers 403 to another Host or Origin, even with the token", async () => {
    const authorization = `Bearer ${discovery().token}`;
    expect(await everywhere({ authorization, host: "evil.example" })).toEqual([403]);
    expect(await everywhere({ authorization, host: `evil.example:${gatewayPort}` })).toEqual([403]);
    expect(await everywhere({ authorization, origin: "http://evil.example" })).toEqual([403]);
    expect(await everywhere({ authorization, "sec-fetch-site": "cross-site" })).toEqual([403]);
    expect(await ask({ authorization, origin: "http://127.0.0.1" }, "/api/host.info", { socketPath: discovery().socket })).toBe(403);
    // With the right ones it only lacks a body.
    expect(await ask({ authorization })).toBe(400);
  });
});

test("nothing else of the host listens, and only loopback and the kubelet's address", () => {
  const inodes = readdirSync(`/proc/${host.processId}/fd`).flatMap((fd) => {
    try {
      return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${host.processId}/fd/${fd}`))?.[1] ?? [];
    } catch {
      return [];
    }
  });
  const listening = ["tcp", "tcp6"].flatMap((family) =>
    readFileSync(`/proc/${host.processId}/net/${family}`, "utf8")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .flatMap(([, address = "", , state, , , , , , inode = ""]) => (state === "0A" && inodes.includes(inode) ? [address] : [])),
  );
  const hexadecimal = (port: number): string => `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  expect(listening.toSorted()).toEqual([hexadecimal(gatewayPort), hexadecimal(kubeletPort)].toSorted());
});
