/** A kubelet server on a free port, with a CA, clients of several kinds and Pods made of processes. */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Pod } from "../../../main/contract/kubernetes-api.generated.ts";
import { silentLogger } from "../../../main/contract/logger.ts";
import { PodyardError } from "../../../main/contract/errors.ts";
import { createKubeletServer } from "../../../main/kubelet/kubelet-server.ts";
import type { KubeletServer, KubeletServerOptions } from "../../../main/kubelet/kubelet-server.ts";
import { createHostUsage } from "../../../main/kubelet/metrics/node-usage.ts";
import { TestCertificateAuthority } from "./certificates.ts";
import type { IssuedCertificate } from "./certificates.ts";
import { ProcessPodRuntime } from "./process-pod-runtime.ts";

export const testPod: Pod = {
  metadata: { name: "shell", namespace: "default", uid: "11111111-2222-3333-4444-555555555555" },
  spec: { containers: [{ name: "main", image: "machine" }], initContainers: [{ name: "prepare", image: "busybox" }], nodeName: "test-node" },
};

export interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export interface RequestOptions {
  readonly method?: string;
  readonly client?: IssuedCertificate | undefined;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface TestServer extends AsyncDisposable {
  readonly server: KubeletServer;
  readonly port: number;
  readonly pods: ProcessPodRuntime;
  readonly directory: string;
  /** May do everything. */
  readonly admin: IssuedCertificate;
  readonly authority: TestCertificateAuthority;
  /** What the authorizer was asked: `user verb subresource`. */
  readonly authorizations: string[];
  /** As the administrator unless told otherwise; `client: undefined` in the options = no certificate. */
  fetch(path: string, options?: RequestOptions): Promise<Answer>;
}

/** Token `reader` is a user without permissions, `monitor` may get metrics, `broken` cannot be reviewed. */
export async function startTestServer(options: Partial<KubeletServerOptions> = {}): Promise<TestServer> {
  const authority = new TestCertificateAuthority("cluster");
  const serving = authority.issue({ commonName: "test-node" }, "serverAuth", ["127.0.0.1"]);
  const admin = authority.issue({ commonName: "admin", organizations: ["system:masters"] }, "clientAuth");
  const directory = await mkdtemp(join(tmpdir(), "podyard-kubelet-"));
  const pods = new ProcessPodRuntime([testPod]);
  const authorizations: string[] = [];
  const server = createKubeletServer({
    pods,
    node: { name: "test-node", kubernetesVersion: "v1.35.4" },
    authenticator: {
      async reviewToken(token) {
        if (token === "broken") throw new PodyardError("Unavailable", "the API server is away");
        return token === "reader" || token === "monitor" ? { user: token, groups: [] } : undefined;
      },
    },
    authorizer: {
      async authorize({ user, groups }, verb, subresource) {
        authorizations.push(`${user} ${verb} ${subresource}`);
        return groups.includes("system:masters") || (user === "monitor" && verb === "get" && subresource === "metrics");
      },
    },
    clientCertificateAuthorities: [authority.pem],
    tls: { current: () => serving, subscribe: () => () => undefined },
    address: "127.0.0.1",
    port: 0,
    metrics: {
      nodeUsage: createHostUsage({ state: directory, images: directory }),
      certificateExpiry: () => ({ client: new Date(Date.now() + 60_000), serving: undefined }),
    },
    health: { syncLoop: () => undefined, configuration: () => ({ port: 10250 }) },
    logger: silentLogger,
    ...options,
  });
  const listener = await server.listen().catch(async (error: unknown) => {
    await rm(directory, { recursive: true, force: true });
    throw error;
  });
  return {
    server,
    port: listener.port,
    pods,
    directory,
    admin,
    authority,
    authorizations,
    fetch: (path, more = {}) => fetchAnswer(listener.port, path, "client" in more ? more : { ...more, client: admin }),
    async [Symbol.asyncDispose]() {
      await listener[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

async function fetchAnswer(port: number, path: string, { method = "GET", client, headers = {} }: RequestOptions): Promise<Answer> {
  const outgoing = request({ host: "127.0.0.1", port, path, method, headers, key: client?.key, cert: client?.cert, rejectUnauthorized: false, agent: false });
  outgoing.end();
  const [response] = (await once(outgoing, "response")) as [IncomingMessage];
  let body = "";
  for await (const chunk of response) body += String(chunk);
  return { status: response.statusCode ?? 0, headers: response.headers, body };
}
