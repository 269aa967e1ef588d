/**
 * exec, attach and port-forward: checks what can be checked while an HTTP status can still be sent, then upgrades to SPDY
 * or to a WebSocket. The caller is already authorised when a handler runs.
 */
import { TLSSocket } from "node:tls";
import type { Duplex } from "node:stream";
import type { PodRuntime } from "../../pods/pod-runtime.ts";
import { HttpError } from "../http.ts";
import type { KubeletRoute, RequestContext } from "../http.ts";
import { parsePort } from "../port-forward.ts";
import type { PortForwardTarget } from "../port-forward.ts";
import { runRemoteCommand } from "../remote-command.ts";
import type { RemoteCommand, RemoteCommandChannels, RemoteCommandFlags } from "../remote-command.ts";
import { acceptSpdyUpgrade, negotiateSpdyProtocol } from "../spdy/handshake.ts";
import { portForwardProtocols, servePortForward } from "../spdy/port-forward.ts";
import { openSpdyChannels, remoteCommandProtocols } from "../spdy/remote-command.ts";
import { requestedProtocols } from "../websocket/channels.ts";
import { maximumPorts, portForwardSubprotocols, serveWebSocketPortForward } from "../websocket/port-forward.ts";
import { openWebSocketChannels, remoteCommandSubprotocols } from "../websocket/remote-command.ts";
import { findContainer, findPod, podKeyOf } from "./pod-lookup.ts";

export interface StreamingOptions {
  readonly pods: PodRuntime;
  /** A stream without a byte for so long is closed, in milliseconds. The kubelet has 4 h. */
  readonly idleTimeout: number;
  /** How long a SPDY client may take to open its streams, in milliseconds. The kubelet has 30 s. */
  readonly streamCreationTimeout: number;
}

export function streamRoutes(options: StreamingOptions): readonly Omit<KubeletRoute, "subresources">[] {
  const route = (pattern: string, handle: KubeletRoute["handle"]): Omit<KubeletRoute, "subresources"> => ({
    methods: ["GET", "POST"],
    pattern,
    isLongRunning: true,
    handle,
  });
  return [
    route("/exec/{namespace}/{pod}/{container}", (context) => serveRemoteCommand("exec", options, context)),
    route("/exec/{namespace}/{pod}/{uid}/{container}", (context) => serveRemoteCommand("exec", options, context)),
    route("/attach/{namespace}/{pod}/{container}", (context) => serveRemoteCommand("attach", options, context)),
    route("/attach/{namespace}/{pod}/{uid}/{container}", (context) => serveRemoteCommand("attach", options, context)),
    route("/portForward/{namespace}/{pod}", (context) => servePortForwardRequest(options, context)),
    route("/portForward/{namespace}/{pod}/{uid}", (context) => servePortForwardRequest(options, context)),
  ];
}

async function serveRemoteCommand(kind: RemoteCommand["kind"], options: StreamingOptions, context: RequestContext): Promise<void> {
  const requested = parseFlags(context);
  const key = podKeyOf(context.parameters);
  const containerName = context.parameters["container"] ?? "";
  const pod = findPod(options.pods, key);
  if (pod === undefined) throw new HttpError(404, "pod does not exist");
  const container = findContainer(pod, containerName);
  // 500 is the kubelet's status for this; kubectl shows `unable to upgrade connection:` and the sentence.
  if (container === undefined) throw new HttpError(500, `container not found ("${containerName}")`);
  const argv = context.query.bytes("command");
  if (kind === "exec" && argv.length === 0) throw new HttpError(400, "you must specify at least one command for the container");

  const command: RemoteCommand = {
    kind,
    start: (size, signal) =>
      kind === "exec"
        ? options.pods.exec(key, containerName, { argv, stdin: requested.stdin, ...(size === undefined ? {} : { terminal: size }), signal })
        : options.pods.attach(key, containerName, { stdin: requested.stdin, stdout: requested.stdout, stderr: requested.stderr, signal }),
  };
  const channels = await openChannels(options, context, requested);
  await runRemoteCommand(command, requested, channels);
}

/** With a terminal there is no separate stderr; asking for it is ignored. */
function parseFlags({ query }: RequestContext): RemoteCommandFlags {
  const isSet = (name: string): boolean => query.get(name) === "1";
  const terminal = isSet("tty");
  const flags = { stdin: isSet("input"), stdout: isSet("output"), stderr: isSet("error") && !terminal, terminal };
  if (!flags.stdin && !flags.stdout && !flags.stderr) throw new HttpError(400, "you must specify at least 1 of stdin, stdout, stderr");
  return flags;
}

async function openChannels(options: StreamingOptions, context: RequestContext, flags: RemoteCommandFlags): Promise<RemoteCommandChannels> {
  const { request } = context;
  if (context.upgrade?.protocol === "websocket") {
    const protocol = chooseSubprotocol(context, remoteCommandSubprotocols);
    const { socket, head } = context.upgrade.take();
    prepareSocket(socket, options.idleTimeout);
    return openWebSocketChannels({ request, socket, head, protocol }, flags);
  }
  const { socket, head, protocol } = upgradeToSpdy(options, context, remoteCommandProtocols);
  return openSpdyChannels({ socket, head, protocol, flags, streamCreationTimeout: options.streamCreationTimeout });
}

async function servePortForwardRequest(options: StreamingOptions, context: RequestContext): Promise<void> {
  const key = podKeyOf(context.parameters);
  const pod = findPod(options.pods, key);
  if (pod === undefined) throw new HttpError(404, "pod does not exist");
  const target: PortForwardTarget = {
    podName: key.name,
    podUid: pod.metadata?.uid ?? "",
    dial: (port, signal) => options.pods.dial(key, port, signal),
  };
  if (context.upgrade?.protocol === "websocket") {
    const protocol = chooseSubprotocol(context, portForwardSubprotocols);
    const ports = parsePorts(context, protocol.includes("base64") ? maximumPorts.base64 : maximumPorts.binary);
    const { socket, head } = context.upgrade.take();
    prepareSocket(socket, options.idleTimeout);
    return serveWebSocketPortForward({ request: context.request, socket, head, protocol }, ports, target);
  }
  const { socket, head } = upgradeToSpdy(options, context, portForwardProtocols);
  await servePortForward({ socket, head, target, streamCreationTimeout: options.streamCreationTimeout });
}

function parsePorts({ query }: RequestContext, maximum: number): readonly number[] {
  if (!query.has("port")) throw new HttpError(400, 'query parameter "port" is required');
  const ports = query.all("port").flatMap((value) => {
    if (value === "") throw new HttpError(400, 'query parameter "port" cannot be empty');
    return value.split(",").map((text) => {
      const port = parsePort(text);
      if (port === undefined) throw new HttpError(400, `unable to parse "${value}" as a port: expected 1 to 65535`);
      return port;
    });
  });
  if (ports.length > maximum) throw new HttpError(400, `${ports.length} ports were asked for, at most ${maximum} fit one WebSocket`);
  return ports;
}

function chooseSubprotocol({ request }: RequestContext, supported: readonly string[]): string {
  const requested = requestedProtocols(request);
  if (requested.length === 0) return "";
  const protocol = requested.find((candidate) => supported.includes(candidate));
  if (protocol === undefined) throw new HttpError(403, `requested protocol(s) are not supported: [${requested.join(" ")}]; supports [${supported.join(" ").trim()}]`);
  return protocol;
}

function upgradeToSpdy(options: StreamingOptions, context: RequestContext, supported: readonly string[]): { socket: Duplex; head: Buffer; protocol: string } {
  if (context.upgrade?.protocol !== "spdy/3.1") throw new HttpError(400, "unable to upgrade: missing upgrade headers in request");
  const negotiation = negotiateSpdyProtocol(context.request, supported);
  switch (negotiation.kind) {
    case "missing":
      throw new HttpError(400, "unable to upgrade: the header X-Stream-Protocol-Version is required");
    case "unsupported":
      throw new HttpError(403, `unable to upgrade: unable to negotiate protocol: client supports [${negotiation.requested.join(" ")}], server accepts [${supported.join(" ")}]`, {
        "X-Accepted-Stream-Protocol-Versions": supported,
      });
    case "chosen": {
      const { socket, head } = context.upgrade.take();
      prepareSocket(socket, options.idleTimeout);
      acceptSpdyUpgrade(socket, negotiation.protocol);
      return { socket, head, protocol: negotiation.protocol };
    }
  }
}

function prepareSocket(socket: Duplex, idleTimeout: number): void {
  if (!(socket instanceof TLSSocket)) return;
  socket.setNoDelay(true);
  socket.setKeepAlive(true, 30_000); // a client whose machine vanished is noticed
  socket.setTimeout(idleTimeout, () => socket.destroy());
}
