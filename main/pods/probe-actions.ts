/**
 * One check of a container, as probes make it: exec, httpGet, tcpSocket, grpc. Messages are worded like the kubelet's,
 * since alerts and people match on them. HTTP and gRPC run over a connection the container's target opens.
 * https://kubernetes.io/docs/concepts/workloads/pods/probes/
 */
import { request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders } from "node:http";
import { connect as http2Connect } from "node:http2";
import type { Duplex } from "node:stream";
import { connect as tlsConnect } from "node:tls";
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { Container, EphemeralContainer, GRPCAction, HTTPGetAction, Probe } from "../contract/kubernetes-api.generated.ts";
import { type ContainerTarget, resolvePort, runCommand, unlessAborted } from "./pod-target.ts";

export type CheckResult =
  | { readonly outcome: "success"; readonly warning?: string }
  | { readonly outcome: "failure"; readonly output: string }
  /** The check itself could not be made; the result is thrown away. */
  | { readonly outcome: "error"; readonly output: string };

const USER_AGENT = "kube-probe/1.35";
const MAXIMUM_REDIRECTS = 10;

/** Makes one check within `timeoutSeconds`. Never rejects. */
export async function check(probe: Probe, container: Container | EphemeralContainer, target: ContainerTarget, signal: AbortSignal): Promise<CheckResult> {
  const seconds = probe.timeoutSeconds ?? 1;
  const limited = AbortSignal.any([signal, AbortSignal.timeout(seconds * 1000)]);
  try {
    if (probe.exec !== undefined) {
      const command = probe.exec.command ?? [];
      try {
        const { exitCode, output } = await runCommand(target, command, limited);
        return exitCode === 0 ? { outcome: "success" } : { outcome: "failure", output };
      } catch (error) {
        if (limited.aborted && !signal.aborted) return { outcome: "failure", output: `command timed out: "${command.join(" ")}" timed out after ${seconds}s` };
        return { outcome: "error", output: messageOf(error) };
      }
    }
    if (probe.httpGet !== undefined) return await checkHttp(probe.httpGet, container, target, limited);
    if (probe.tcpSocket !== undefined) {
      const port = resolvePort(container, probe.tcpSocket.port);
      const host = probe.tcpSocket.host;
      try {
        (await target.dial(port, host === "" ? undefined : host, limited)).destroy();
        return { outcome: "success" };
      } catch (error) {
        return { outcome: "failure", output: `dial tcp ${host ?? target.address}:${port}: ${timeoutOr(error, limited)}` };
      }
    }
    if (probe.grpc !== undefined) return await checkGrpc(probe.grpc, target, limited);
    return { outcome: "error", output: "missing probe handler" };
  } catch (error) {
    return { outcome: "error", output: messageOf(error) };
  }
}

function timeoutOr(error: unknown, signal: AbortSignal): string {
  return signal.aborted ? "i/o timeout" : messageOf(error);
}

/** The answer of one HTTP GET as httpGet probes and hooks make it; the body is at most 10 KiB. */
export async function httpGet(
  action: HTTPGetAction,
  container: Container | EphemeralContainer,
  target: ContainerTarget,
  path: string,
  signal: AbortSignal,
): Promise<{ readonly status: number; readonly location: string | undefined; readonly body: string }> {
  const port = resolvePort(container, action.port);
  const secure = action.scheme?.toUpperCase() === "HTTPS";
  const host = action.host === undefined || action.host === "" ? undefined : action.host;
  const connection = await target.dial(port, host, signal);
  // Certificates are not verified: neither are the kubelet's, whose probes people rely on.
  const stream: Duplex = secure ? tlsConnect({ socket: connection, rejectUnauthorized: false, servername: headerOf(action, "host")?.split(":")[0] ?? "" }) : connection;
  try {
    const headers: OutgoingHttpHeaders = { "User-Agent": USER_AGENT, Accept: "*/*", Connection: "close", Host: `${host ?? target.address}:${port}` };
    for (const { name, value } of action.httpHeaders ?? []) {
      const existing = Object.keys(headers).find((known) => known.toLowerCase() === name.toLowerCase());
      if (existing !== undefined) delete headers[existing];
      // An empty Accept or User-Agent means none at all.
      if (value !== "") headers[name] = value;
    }
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = httpRequest({ method: "GET", path, headers, createConnection: () => stream, signal }, resolve);
      request.on("error", reject);
      stream.on("error", reject);
      request.end();
    });
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of response as AsyncIterable<Buffer>) {
      chunks.push(chunk.subarray(0, 10_240 - size));
      size += chunk.length;
      if (size >= 10_240) break;
    }
    return { status: response.statusCode ?? 0, location: response.headers.location, body: Buffer.concat(chunks).toString("utf8") };
  } finally {
    stream.destroy();
    connection.destroy();
  }
}

function headerOf(action: HTTPGetAction, name: string): string | undefined {
  return action.httpHeaders?.find((header) => header.name.toLowerCase() === name)?.value;
}

/** The path of an HTTPGetAction as it is sent. */
export function pathOf(action: HTTPGetAction): string {
  const path = action.path ?? "";
  return path.startsWith("/") ? path : `/${path}`;
}

async function checkHttp(action: HTTPGetAction, container: Container | EphemeralContainer, target: ContainerTarget, signal: AbortSignal): Promise<CheckResult> {
  const port = resolvePort(container, action.port);
  const scheme = (action.scheme ?? "HTTP").toLowerCase();
  const host = action.host === undefined || action.host === "" ? target.address : action.host;
  let url = new URL(`${scheme}://${host.includes(":") ? `[${host}]` : host}:${port}${pathOf(action)}`);
  try {
    for (let redirects = 0; ; redirects++) {
      const { status, location } = await httpGet({ ...action, port: Number(url.port) || (url.protocol === "https:" ? 443 : 80), scheme: url.protocol.slice(0, -1) }, container, target, url.pathname + url.search, signal);
      if (status >= 300 && status < 400 && location !== undefined) {
        const next = new URL(location, url);
        if (next.hostname !== url.hostname) return { outcome: "success", warning: `Probe terminated redirects, Response body: ${location}` };
        if (redirects >= MAXIMUM_REDIRECTS) return { outcome: "failure", output: `Get "${url.href}": stopped after ${MAXIMUM_REDIRECTS} redirects` };
        url = next;
        continue;
      }
      return status >= 200 && status < 400 ? { outcome: "success" } : { outcome: "failure", output: `HTTP probe failed with statuscode: ${status}` };
    }
  } catch (error) {
    const cause = signal.aborted ? "context deadline exceeded (Client.Timeout exceeded while awaiting headers)" : `dial tcp ${host}:${port}: ${messageOf(error)}`;
    return { outcome: "failure", output: `Get "${url.href}": ${cause}` };
  }
}

/** grpc.health.v1.Health/Check by hand: a length-prefixed HealthCheckRequest{1: service}, answered by HealthCheckResponse{1: status}. */
async function checkGrpc(action: GRPCAction, target: ContainerTarget, signal: AbortSignal): Promise<CheckResult> {
  const authority = `${target.address}:${action.port}`;
  let connection: Duplex;
  try {
    connection = await target.dial(action.port, undefined, signal);
  } catch {
    return { outcome: "failure", output: `timeout: failed to connect service "${authority}" within the probe's timeout` };
  }
  const client = http2Connect(`http://${authority}`, { createConnection: () => connection });
  try {
    const answer = new Promise<{ readonly grpcStatus: string; readonly grpcMessage: string; readonly body: Buffer }>((resolve, reject) => {
      client.on("error", reject);
      const stream = client.request({ ":method": "POST", ":path": "/grpc.health.v1.Health/Check", "content-type": "application/grpc", te: "trailers", "user-agent": USER_AGENT });
      let grpcStatus = "";
      let grpcMessage = "";
      const chunks: Buffer[] = [];
      let size = 0;
      const read = (headers: Readonly<Record<string, string | string[] | number | undefined>>) => {
        grpcStatus = String(headers["grpc-status"] ?? grpcStatus);
        grpcMessage = decodeURIComponent(String(headers["grpc-message"] ?? grpcMessage));
      };
      stream.on("response", read);
      stream.on("trailers", read);
      stream.on("data", (chunk: Buffer) => {
        size += chunk.length;
        if (size > 65_536) stream.destroy(new PodyardError("Unavailable", "the health answer is too long"));
        else chunks.push(chunk);
      });
      stream.on("error", reject);
      stream.on("end", () => resolve({ grpcStatus, grpcMessage, body: Buffer.concat(chunks) }));
      const service = Buffer.from(action.service ?? "");
      const message = service.length === 0 ? Buffer.alloc(0) : Buffer.concat([Buffer.from([0x0a]), variableInteger(service.length), service]);
      const frame = Buffer.alloc(5);
      frame.writeUInt32BE(message.length, 1);
      stream.end(Buffer.concat([frame, message]));
    });
    const { grpcStatus, grpcMessage, body } = await unlessAborted(answer, signal);
    if (grpcStatus !== "0") {
      if (grpcStatus === "12") return { outcome: "failure", output: "this server does not implement the grpc health protocol (grpc.health.v1.Health)" };
      return { outcome: "failure", output: `service unhealthy: rpc error: code = ${grpcStatus} desc = ${grpcMessage}` };
    }
    // Field 1, varint; absent = 0 = UNKNOWN.
    const status = body[5] === 0x08 ? (body[6] ?? 0) : 0;
    if (status === 1) return { outcome: "success" };
    return { outcome: "failure", output: `service unhealthy (responded with "${["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"][status] ?? status}")` };
  } catch (error) {
    return { outcome: "failure", output: signal.aborted ? "timeout: health rpc did not complete within the probe's timeout" : messageOf(error) };
  } finally {
    client.destroy();
    connection.destroy();
  }
}

function variableInteger(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 0x80) {
    bytes.push((rest & 0x7f) | 0x80);
    rest = Math.floor(rest / 128);
  }
  bytes.push(rest);
  return Buffer.from(bytes);
}
