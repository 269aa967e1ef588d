import { once } from "node:events";
import { mkdir, symlink, writeFile } from "node:fs/promises";
import { request } from "node:https";
import type { IncomingMessage } from "node:http";
import { join } from "node:path";
import { Readable } from "node:stream";
import { connect } from "node:tls";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PodyardError } from "../contract/errors.ts";
import { createKubeletServer } from "./kubelet-server.ts";
import type { ServingCertificate } from "./kubelet-server.ts";
import { TestCertificateAuthority } from "../../test/support/kubelet/certificates.ts";
import { startTestServer, testPod } from "../../test/support/kubelet/server.ts";
import type { TestServer } from "../../test/support/kubelet/server.ts";

let host: TestServer;
beforeAll(async () => {
  host = await startTestServer();
});
afterAll(() => host[Symbol.asyncDispose]());

const administrator = { commonName: "admin", organizations: ["system:masters"] };
const concrete = (pattern: string): string =>
  pattern.replace("{namespace}", "default").replace("{pod}", "shell").replace("{container}", "main").replace("{uid}", String(testPod.metadata?.uid)).replace("{path...}", "x");

describe("every route", () => {
  const upgrades: readonly Readonly<Record<string, string>>[] = [
    {},
    { Connection: "Upgrade", Upgrade: "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io" },
    { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13" },
  ];
  const everyRequest = (): readonly { method: string; path: string; headers: Readonly<Record<string, string>>; subresources: readonly string[] }[] =>
    host.server.routes.flatMap(({ methods, pattern, subresources }) =>
      methods.flatMap((method) => upgrades.map((headers) => ({ method, path: `${concrete(pattern)}?command=true&output=1`, headers, subresources }))),
    );

  test("is there", () => {
    const patterns = host.server.routes.map(({ methods, pattern, subresources }) => `${methods.join(",")} ${pattern} ${subresources.join("|")}`);
    expect(patterns).toEqual([
      "GET /pods pods|proxy",
      "GET /runningpods/ pods|proxy",
      "GET /runningpods pods|proxy",
      "GET /containerLogs/{namespace}/{pod}/{container} proxy",
      "POST /run/{namespace}/{pod}/{container} proxy",
      "POST /run/{namespace}/{pod}/{uid}/{container} proxy",
      "GET,POST /exec/{namespace}/{pod}/{container} proxy",
      "GET,POST /exec/{namespace}/{pod}/{uid}/{container} proxy",
      "GET,POST /attach/{namespace}/{pod}/{container} proxy",
      "GET,POST /attach/{namespace}/{pod}/{uid}/{container} proxy",
      "GET,POST /portForward/{namespace}/{pod} proxy",
      "GET,POST /portForward/{namespace}/{pod}/{uid} proxy",
      "GET,POST /stats/summary stats",
      "GET /metrics metrics",
      "GET /metrics/resource metrics",
      "GET /metrics/cadvisor metrics",
      "GET /metrics/probes metrics",
      "GET /healthz healthz|proxy",
      "GET /healthz/ping healthz|proxy",
      "GET /healthz/log healthz|proxy",
      "GET /healthz/syncloop healthz|proxy",
      "GET /configz configz|proxy",
      "GET /logs/{path...} log",
    ]);
  });

  test("refuses the anonymous, bad tokens and certificates of others with 401", async () => {
    const stranger = new TestCertificateAuthority("cluster").issue(administrator, "clientAuth");
    const nobody = host.authority.issue({ ...administrator, commonName: "" }, "clientAuth");
    const serverCertificate = host.authority.issue(administrator, "serverAuth");
    for (const { method, path, headers } of everyRequest()) {
      const callers = [
        { client: undefined, headers },
        { client: undefined, headers: { ...headers, Authorization: "Bearer wrong" } },
        { client: undefined, headers: { ...headers, Authorization: "Bearer broken" } },
        { client: undefined, headers: { ...headers, Authorization: "Basic reader" } },
        { client: stranger, headers },
        { client: nobody, headers },
        { client: serverCertificate, headers },
      ];
      for (const caller of callers) {
        const { status, body } = await host.fetch(path, { method, ...caller });
        expect({ method, path, status, body }).toEqual({ method, path, status: 401, body: "Unauthorized" });
      }
    }
    expect(host.authorizations).toEqual([]);
    expect(host.pods.started).toEqual([]);
  }, 60_000);

  test("refuses who may not with 403 and the kubelet's sentence", async () => {
    for (const { method, path, headers, subresources } of everyRequest()) {
      const { status, body } = await host.fetch(path, { method, client: undefined, headers: { ...headers, Authorization: "Bearer reader" } });
      const verb = method === "POST" ? "create" : "get";
      expect({ method, path, status, body }).toEqual({ method, path, status: 403, body: `Forbidden (user=reader, verb=${verb}, resource=nodes, subresource(s)=[${subresources.join(" ")}])\n` });
    }
    expect(host.pods.started).toEqual([]);
  }, 60_000);

  test("is judged before it is said whether it exists", async () => {
    expect((await host.fetch("/nothing", { client: undefined })).status).toBe(401);
    expect((await host.fetch("/nothing")).status).toBe(404);
    expect((await host.fetch("/debug/pprof/")).status).toBe(404);
    expect((await host.fetch("//pods")).status).toBe(404);
    expect((await host.fetch("/%ff")).status).toBe(404);
    expect(await host.fetch("/pods", { method: "DELETE" })).toMatchObject({ status: 405, headers: { allow: "GET" } });
  });
});

describe("authorization", () => {
  test("takes the finer subresource or, failing that, the coarse one", async () => {
    host.authorizations.length = 0;
    await host.fetch("/pods", { headers: { Authorization: "Bearer monitor" }, client: undefined });
    expect(host.authorizations).toEqual(["monitor get pods", "monitor get proxy"]);
  });

  test("lets a token with the right permission in", async () => {
    const { status } = await host.fetch("/metrics/resource", { headers: { Authorization: "Bearer monitor" }, client: undefined });
    expect(status).toBe(200);
  });

  test("that cannot be asked is 500", async () => {
    await using broken = await startTestServer({ authorizer: { authorize: () => Promise.reject(new PodyardError("Unavailable", "away")) } });
    expect(await broken.fetch("/stats/summary")).toMatchObject({ status: 500, body: "Authorization error (user=admin, verb=get, resource=nodes, subresource=stats)" });
  });

  test("cannot be had without a client CA", () => {
    expect(() => createKubeletServer({ ...unusable, clientCertificateAuthorities: [] })).toThrow(/clientCertificateAuthorities is empty/);
  });
});

const unusable = {
  pods: { list: () => [] } as never,
  node: { name: "n", kubernetesVersion: "v1.35.4" },
  authenticator: { reviewToken: async () => undefined },
  authorizer: { authorize: async () => false },
  tls: { current: () => ({ key: "", cert: "" }), subscribe: () => () => undefined },
  address: "127.0.0.1",
  port: 0,
  metrics: { nodeUsage: () => Promise.reject(new Error("none")), certificateExpiry: () => ({ client: undefined, serving: undefined }) },
  health: { syncLoop: () => undefined, configuration: () => ({}) },
  logger: { debug() {}, info() {}, warn() {}, error() {}, child: () => unusable.logger } as never,
};

test("a renewed serving certificate is used for new connections, a broken one is not", async () => {
  const authority = new TestCertificateAuthority("serving");
  const first = authority.issue({ commonName: "first" }, "serverAuth");
  let current: ServingCertificate = first;
  let renew = (): void => undefined;
  await using renewed = await startTestServer({
    tls: {
      current: () => current,
      subscribe(onChange) {
        renew = onChange;
        return () => undefined;
      },
    },
  });
  const servedName = async (): Promise<unknown> => {
    const socket = connect({ port: renewed.port, host: "127.0.0.1", rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const name = socket.getPeerCertificate().subject.CN;
    socket.destroy();
    return name;
  };
  expect(await servedName()).toBe("first");
  current = authority.issue({ commonName: "second" }, "serverAuth");
  renew();
  expect(await servedName()).toBe("second");
  current = { key: "broken", cert: "broken" };
  renew();
  expect(await servedName()).toBe("second");
  expect((await renewed.fetch("/healthz")).status).toBe(200);
});

test("an address that is taken is Unavailable", async () => {
  await expect(startTestServer({ port: host.port })).rejects.toMatchObject({ code: "Unavailable" });
});

describe("pods", () => {
  test("are a PodList", async () => {
    expect(JSON.parse((await host.fetch("/pods")).body)).toEqual({ kind: "PodList", apiVersion: "v1", metadata: {}, items: [testPod] });
    expect(JSON.parse((await host.fetch("/runningpods/")).body).items).toEqual([testPod]);
    expect(await host.fetch("/runningpods")).toMatchObject({ status: 301, headers: { location: "/runningpods/" } });
  });

  test("run a command and return what it printed", async () => {
    expect(await host.fetch("/run/default/shell/main?cmd=echo%20a+b", { method: "POST" })).toMatchObject({ status: 200, body: "a b\n" });
    expect(await host.fetch(`/run/default/shell/${testPod.metadata?.uid}/main?cmd=false`, { method: "POST" })).toMatchObject({ status: 500, body: "command 'false' exited with 1: " });
    expect(await host.fetch("/run/default/shell/99999999-0000/main?cmd=true", { method: "POST" })).toMatchObject({ status: 404, body: "pod does not exist" });
  });
});

describe("logs", () => {
  test.each([
    ["/containerLogs/default/ghost/main", 404, 'pod "ghost" does not exist'],
    ["/containerLogs/default/shell/ghost", 404, 'container "ghost" not found in pod "shell"'],
    ["/containerLogs/default/shell/main?tailLines=-1", 422, '{"message": "Invalid request."}'],
    ["/containerLogs/default/shell/prepare", 200, "first\nsecond\n"],
  ])("%s is %i", async (path, status, body) => {
    expect(await host.fetch(path)).toMatchObject({ status, body });
  });

  test("of a container that waits are refused with the reason", async () => {
    host.pods.logText = () => {
      throw new PodyardError("Conflict", 'container "main" in pod "shell" is waiting to start: ContainerCreating');
    };
    expect(await host.fetch("/containerLogs/default/shell/main")).toMatchObject({ status: 400, body: 'container "main" in pod "shell" is waiting to start: ContainerCreating' });
  });

  test("end with the client", async () => {
    const log = new Readable({ read: () => undefined });
    host.pods.logText = () => log;
    const following = request({ host: "127.0.0.1", port: host.port, path: "/containerLogs/default/shell/main?follow=true", ...host.admin, rejectUnauthorized: false, agent: false });
    following.on("error", () => undefined);
    following.end();
    const [response] = (await once(following, "response")) as [IncomingMessage]; // before the first line
    log.push("line\n");
    expect(String((await once(response, "data"))[0])).toBe("line\n");
    following.destroy();
    await once(log, "close");
    expect(log.destroyed).toBe(true);
  });

  test("that break off are not taken for whole ones", async () => {
    let reads = 0;
    host.pods.logText = () =>
      new Readable({
        read() {
          reads += 1;
          if (reads === 1) this.push("half");
          else this.destroy(new Error("the disk is gone"));
        },
      });
    await expect(host.fetch("/containerLogs/default/shell/main")).rejects.toThrow("aborted");
  });
});

describe("health", () => {
  test("is told with and without its parts", async () => {
    expect(await host.fetch("/healthz")).toMatchObject({ status: 200, body: "ok" });
    expect((await host.fetch("/healthz?verbose")).body).toBe("[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n");
    expect((await host.fetch("/healthz/syncloop")).body).toBe("ok");
    expect(JSON.parse((await host.fetch("/configz")).body)).toEqual({ kubeletconfig: { port: 10250 } });
  });

  test("fails with a stuck sync loop", async () => {
    const syncLoop = (): void => {
      throw new PodyardError("Timeout", "the sync loop has not run for 3 minutes");
    };
    await using sick = await startTestServer({ health: { syncLoop, configuration: () => ({}) } });
    expect(await sick.fetch("/healthz")).toMatchObject({ status: 500, body: "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n" });
    expect((await sick.fetch("/healthz/ping")).status).toBe(200);
    expect(await sick.fetch("/healthz/syncloop")).toMatchObject({ status: 500 });
  });
});

describe("node logs", () => {
  test("are listed and served, and nothing outside of them", async () => {
    await writeFile(join(host.directory, "secret"), "secret");
    const logDirectory = join(host.directory, "log");
    await mkdir(join(logDirectory, "pods"), { recursive: true });
    await writeFile(join(logDirectory, "a <b>.log"), "line\n");
    await writeFile(join(logDirectory, "empty"), "");
    await symlink("../secret", join(logDirectory, "link"));
    await symlink("a <b>.log", join(logDirectory, "current"));
    await using served = await startTestServer({ logDirectory });
    expect((await served.fetch("/logs/")).body).toBe(
      '<pre>\n<a href="a%20%3Cb%3E.log">a &lt;b&gt;.log</a>\n<a href="current">current</a>\n<a href="empty">empty</a>\n<a href="link">link</a>\n<a href="pods/">pods/</a>\n</pre>\n',
    );
    expect(await served.fetch("/logs/a%20%3Cb%3E.log")).toMatchObject({ status: 200, body: "line\n", headers: { "content-type": "text/plain; charset=utf-8" } });
    expect(await served.fetch("/logs/current")).toMatchObject({ status: 200, body: "line\n" });
    expect(await served.fetch("/logs/empty")).toMatchObject({ status: 200, body: "" });
    for (const path of ["link", "../secret", "..%2fsecret", "pods/../../secret", "missing", "%2e%2e/secret", "a%00b"]) {
      expect(await served.fetch(`/logs/${path}`), path).toMatchObject({ status: 404 });
    }
    expect((await host.fetch("/logs/")).status).toBe(404);
  });
});
