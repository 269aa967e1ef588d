/** Tables for the pure parts of the sync loop, and probes against real servers of this process. */
import { createServer as createHttpServer } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import { type AddressInfo, createServer as createTcpServer, type Server } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import type { Container, Pod, Probe, Secret } from "../contract/kubernetes-api.generated.ts";
import { afterFailure, type BackoffState, formatDuration, remaining } from "./backoff.ts";
import { connectTo } from "./dial.ts";
import { guestLogin } from "./guest-login.ts";
import { isImageReference } from "./image-pull.ts";
import { repositoryOf } from "./machine-exit.ts";
import { MachineSlots } from "./machine-slots.ts";
import type { ContainerTarget } from "./pod-target.ts";
import { check, type CheckResult } from "./probe-actions.ts";
import { ContainerProber, countResult, NO_RUN } from "./prober.ts";
import { shouldRestart } from "./restart-policy.ts";
import { RfbViewOnlyFilter } from "./rfb-view-only.ts";
import { contains } from "./status-writer.ts";

describe("back-off", () => {
  it("doubles from ten seconds to five minutes and forgets after ten", () => {
    let state: BackoffState | undefined;
    let now = 0;
    const delays: number[] = [];
    for (let failure = 0; failure < 8; failure++) {
      state = afterFailure(state, now, { initial: 10_000, maximum: 300_000 });
      delays.push(state.delay / 1000);
      now += state.delay;
    }
    expect(delays).toEqual([10, 20, 40, 80, 160, 300, 300, 300]);
    expect(afterFailure(state, now + 300_001).delay).toBe(10_000);
  });

  it("never waits longer than its delay, whatever the clock does", () => {
    expect(remaining(10_000, 1000, 5000)).toBe(6000);
    expect(remaining(10_000, 1000, 50_000)).toBe(0);
    expect(remaining(10_000, 1_000_000, 0)).toBe(10_000);
  });

  it.each([[0, "0s"], [850, "850ms"], [10_000, "10s"], [80_000, "1m20s"], [300_000, "5m0s"], [3_600_000, "1h0m0s"], [1234, "1.234s"]])("writes %d ms as %s", (milliseconds, text) => {
    expect(formatDuration(milliseconds)).toBe(text);
  });
});

describe("restart policy", () => {
  const rules = { restartPolicy: "Never", restartPolicyRules: [{ action: "Restart", exitCodes: { operator: "In", values: [42] } }] };
  const table: [string, string, Partial<Container>, "init" | "main" | "ephemeral", number, boolean][] = [
    ["Always, 0", "Always", {}, "main", 0, true],
    ["OnFailure, 0", "OnFailure", {}, "main", 0, false],
    ["OnFailure, 1", "OnFailure", {}, "main", 1, true],
    ["Never, 1", "Never", {}, "main", 1, false],
    ["init under Always, 0", "Always", {}, "init", 0, false],
    ["init under Always, 1", "Always", {}, "init", 1, true],
    ["init under Never, 1", "Never", {}, "init", 1, false],
    ["native side-car under Never, 0", "Never", { restartPolicy: "Always" }, "init", 0, true],
    ["ephemeral", "Always", {}, "ephemeral", 1, false],
    ["a rule that matches", "Never", rules, "main", 42, true],
    ["a rule that does not", "Always", rules, "main", 1, false],
  ];
  it.each(table)("%s", (_name, restartPolicy, container, kind, exitCode, expected) => {
    const pod: Pod = { spec: { restartPolicy, containers: [] } };
    expect(shouldRestart(pod, { name: "c", ...container }, kind, exitCode)).toBe(expected);
  });
});

describe("slots", () => {
  it("are never more than the maximum, and are given in order", async () => {
    const slots = new MachineSlots(1);
    const signal = new AbortController().signal;
    expect(slots.tryAcquire("a")).toBe(true);
    expect(slots.tryAcquire("a")).toBe(true);
    const order: string[] = [];
    const abandoned = new AbortController();
    const second = slots.acquire("b", signal).then(() => order.push("b"));
    const third = slots.acquire("c", abandoned.signal);
    const fourth = slots.acquire("d", signal).then(() => order.push("d"));
    abandoned.abort();
    await expect(third).rejects.toMatchObject({ code: "Cancelled" });
    slots.release("a");
    await second;
    expect([slots.used, slots.tryAcquire("e")]).toEqual([1, false]);
    slots.release("b");
    await fourth;
    expect(order).toEqual(["b", "d"]);
  });
});

describe("image names", () => {
  it.each([
    ["busybox", true],
    ["registry.example:5000/team/image:v1.2", true],
    [`image@sha256:${"a".repeat(64)}`, true],
    ["[::1]:5000/image", true],
    ["team/Upper", false],
    ["image:bad tag", false],
    ["../image", false],
    ["", false],
  ])("%s: %s", (reference, expected) => {
    expect(isImageReference(reference)).toBe(expected);
  });

  it.each([["r:5000/a/b:1", "r:5000/a/b"], ["r:5000/a", "r:5000/a"], [`a:1@sha256:${"a".repeat(64)}`, "a"]])("repository of %s", (reference, expected) => {
    expect(repositoryOf(reference)).toBe(expected);
  });
});

describe("guest login", () => {
  const base64 = (text: string) => Buffer.from(text).toString("base64");
  const pod = (name?: string): Pod => ({ metadata: { namespace: "n", ...(name === undefined ? {} : { annotations: { "podyard.dev/guest-login-secret": name } }) } });
  const objects = { secret: async (_namespace: string, name: string): Promise<Secret | undefined> => (name === "login" ? { data: { username: base64("ci"), password: base64("secret"), port: base64("2222") } } : name === "empty" ? { data: {} } : undefined) };
  const settings = { user: "host", password: "host-password" };

  it("prefers the Secret, then the image, then the host, and never mixes their passwords", async () => {
    expect(await guestLogin(pod("login"), { user: "image", password: "p" }, settings, objects)).toEqual({ user: "ci", password: "secret", port: 2222 });
    expect(await guestLogin(pod(), { user: "image", port: 23 }, settings, objects)).toEqual({ user: "image", port: 23 });
    expect(await guestLogin(pod(), {}, settings, objects)).toEqual({ user: "host", password: "host-password", port: 22 });
  });

  it.each([["missing"], ["empty"]])("says what is wrong with a Secret that is %s", async (name) => {
    await expect(guestLogin(pod(name), {}, settings, objects)).rejects.toMatchObject({ code: "InvalidArgument", message: expect.stringContaining(`n/${name}`) });
  });
});

describe("view-only screens", () => {
  const handshake = [Buffer.from("RFB 003.008\n"), Buffer.from([1]), Buffer.from([0])];
  const pixelFormat = Buffer.from([0, ...Array.from({ length: 19 }, () => 7)]);
  const encodings = Buffer.from([2, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7]);
  const update = Buffer.from([3, 1, 0, 0, 0, 0, 1, 0, 1, 0]);
  const key = Buffer.from([4, 1, 0, 0, 0, 0, 0, 65]);
  const pointer = Buffer.from([5, 1, 0, 10, 0, 10]);
  const cut = Buffer.from([6, 0, 0, 0, 0, 0, 0, 3, 3, 3, 3]);
  const extendedKey = Buffer.from([255, 0, 0, 1, 0, 0, 0, 65, 0, 0, 0, 30]);

  it("pass everything but input, however the bytes are cut", () => {
    const sent = Buffer.concat([...handshake, pixelFormat, key, encodings, pointer, cut, update, extendedKey, pointer, update]);
    const expected = Buffer.concat([...handshake.slice(0, 2), Buffer.from([1]), pixelFormat, encodings, update, update]);
    for (const size of [1, 2, 3, 7, 1000]) {
      const filter = new RfbViewOnlyFilter();
      const passed: Buffer[] = [];
      for (let start = 0; start < sent.length; start += size) passed.push(filter.push(sent.subarray(start, start + size)));
      expect(Buffer.concat(passed)).toEqual(expected);
    }
  });

  it.each([["an unknown message", [77]], ["an unknown QEMU message", [255, 9]], ["a huge clipboard", [6, 0, 0, 0, 0x7f, 0, 0, 0]]])("refuse %s", (_name, bytes) => {
    const filter = new RfbViewOnlyFilter();
    filter.push(Buffer.concat(handshake));
    expect(() => filter.push(Buffer.from(bytes))).toThrow(expect.objectContaining({ code: "Forbidden" }));
  });
});

describe("status comparison", () => {
  it("finds what the API lacks or says otherwise, and ignores what others added", () => {
    const ours = { phase: "Running", conditions: [{ type: "Ready", status: "True" }], containerStatuses: [{ name: "a", state: { running: { startedAt: "x" } } }] };
    expect(contains({ ...ours, conditions: [{ type: "Foreign", status: "True" }, { type: "Ready", status: "True", lastProbeTime: null }] }, ours)).toBe(true);
    expect(contains({ ...ours, conditions: [{ type: "Ready", status: "False" }] }, ours)).toBe(false);
    expect(contains({ ...ours, containerStatuses: [{ name: "a", state: { running: { startedAt: "x" }, waiting: {} } }] }, ours)).toBe(false);
    expect(contains({}, ours)).toBe(false);
  });
});

describe("probes", () => {
  const stops: (() => void)[] = [];
  afterEach(() => {
    for (const stop of stops.splice(0)) stop();
  });
  const listen = async (server: Pick<Server, "listen" | "address" | "close">): Promise<number> => {
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    stops.push(() => server.close());
    return (server.address() as AddressInfo).port;
  };
  const target: ContainerTarget = {
    address: "127.0.0.1",
    exec: async () => {
      throw new Error("no exec here");
    },
    dial: (port, host, signal) => connectTo(host ?? "127.0.0.1", port, signal),
  };
  const probe = (what: Probe, ports: Container["ports"] = []): Promise<CheckResult> => check(what, { name: "c", ports }, target, new AbortController().signal);

  it("HTTP: status, headers, redirects, named ports, silence", async () => {
    const seen: string[] = [];
    const port = await listen(
      createHttpServer((request, response) => {
        seen.push(`${request.url} ${request.headers["user-agent"]} ${String(request.headers["x-a"] ?? "")}`);
        if (request.url === "/moved") response.writeHead(302, { location: "/ok" }).end();
        else if (request.url === "/away") response.writeHead(302, { location: "http://elsewhere.example/" }).end();
        else if (request.url === "/slow") return;
        else response.writeHead(request.url === "/ok" ? 200 : 500).end("body");
      }),
    );
    const named = [{ name: "web", containerPort: port }];
    expect(await probe({ httpGet: { port: "web", path: "ok", httpHeaders: [{ name: "X-A", value: "1" }] } }, named)).toEqual({ outcome: "success" });
    expect(seen).toEqual(["/ok kube-probe/1.35 1"]);
    expect(await probe({ httpGet: { port, path: "/moved" } })).toEqual({ outcome: "success" });
    expect(await probe({ httpGet: { port, path: "/away" } })).toMatchObject({ outcome: "success", warning: expect.stringContaining("elsewhere") });
    expect(await probe({ httpGet: { port, path: "/bad" } })).toEqual({ outcome: "failure", output: "HTTP probe failed with statuscode: 500" });
    expect(await probe({ httpGet: { port, path: "/slow" }, timeoutSeconds: 1 })).toMatchObject({ outcome: "failure", output: expect.stringContaining("deadline exceeded") });
    expect(await probe({ httpGet: { port: "nope" } })).toMatchObject({ outcome: "error", output: expect.stringContaining("nope") });
  });

  it("TCP: open and refused", async () => {
    const server = createTcpServer((socket) => socket.destroy());
    const port = await listen(server);
    expect(await probe({ tcpSocket: { port } })).toEqual({ outcome: "success" });
    await new Promise((resolve) => server.close(resolve));
    expect(await probe({ tcpSocket: { port } })).toEqual({ outcome: "failure", output: `dial tcp 127.0.0.1:${port}: connect: connection refused` });
  });

  it("gRPC: serving, not serving, not implemented", async () => {
    const server = createHttp2Server();
    const asked: string[] = [];
    server.on("stream", (stream, headers) => {
      const chunks: Buffer[] = [];
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("end", () => {
        const service = Buffer.concat(chunks).subarray(7).toString();
        asked.push(`${String(headers[":path"])} ${service}`);
        if (service === "none") {
          stream.respond({ ":status": 200, "content-type": "application/grpc", "grpc-status": "12" }, { endStream: true });
          return;
        }
        stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
        stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
        stream.end(Buffer.from([0, 0, 0, 0, 2, 8, service === "down" ? 2 : 1]));
      });
    });
    const port = await listen(server);
    expect(await probe({ grpc: { port } })).toEqual({ outcome: "success" });
    expect(await probe({ grpc: { port, service: "down" } })).toEqual({ outcome: "failure", output: 'service unhealthy (responded with "NOT_SERVING")' });
    expect(await probe({ grpc: { port, service: "none" } })).toMatchObject({ outcome: "failure", output: expect.stringContaining("does not implement") });
    expect(asked[0]).toBe("/grpc.health.v1.Health/Check ");
  });

  it("counts the same result in a row", () => {
    const three: Probe = { failureThreshold: 3, successThreshold: 2 };
    let run = NO_RUN;
    const decided = (["failure", "failure", "success", "failure", "failure", "failure", "success", "success"] as const).map((result) => {
      const counted = countResult(run, result, three);
      run = counted.run;
      return counted.decided;
    });
    expect(decided).toEqual([false, false, false, false, false, true, false, true]);
  });

  it("gates readiness and liveness by startup, then kills once", async () => {
    const killed = Promise.withResolvers<string>();
    const results = new Map<string, CheckResult["outcome"]>([["startup", "failure"], ["readiness", "success"], ["liveness", "success"]]);
    const asked: string[] = [];
    const ready = Promise.withResolvers<void>();
    const named = (name: string, extra: Probe = {}): Probe => ({ exec: { command: [name] }, periodSeconds: 0.01, ...extra });
    const prober: ContainerProber = new ContainerProber({
      container: { name: "c", startupProbe: named("startup", { failureThreshold: 100 }), readinessProbe: named("readiness"), livenessProbe: named("liveness", { failureThreshold: 2, terminationGracePeriodSeconds: 7 }) },
      startedAt: new Date(),
      async check({ exec }) {
        const name = exec?.command?.[0] ?? "";
        asked.push(name);
        if (name === "startup" && asked.length === 3) results.set("startup", "success");
        const outcome = results.get(name) ?? "success";
        return outcome === "success" ? { outcome } : { outcome, output: "no" };
      },
      onChange() {
        if (prober.ready) {
          ready.resolve();
          results.set("liveness", "failure");
        }
      },
      onEvent() {},
      onKill: (kind, grace) => killed.resolve(`${kind} ${grace}`),
    });
    expect([prober.started, prober.ready]).toEqual([false, false]);
    await ready.promise;
    expect(asked.slice(0, 3)).toEqual(["startup", "startup", "startup"]);
    expect(await killed.promise).toBe("liveness 7");
    prober.stop();
    expect(prober.ready).toBe(false);
  });
});
