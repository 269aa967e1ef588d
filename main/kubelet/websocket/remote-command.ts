/**
 * exec and attach over a WebSocket, as dashboards and the JavaScript and Python clients use them: channels 0 stdin, 1 stdout,
 * 2 stderr, 3 error, 4 resize. Version 4 has a JSON status on channel 3, version 5 (which an API server passes on from 1.36)
 * also lets the client end stdin.
 * Model: k8s.io/kubelet pkg/cri/streaming/remotecommand/websocket.go (1.35), KEP-4006.
 */
import type { IncomingMessage } from "node:http";
import { finished } from "node:stream/promises";
import type { Duplex } from "node:stream";
import { encodeStatus } from "../remote-command.ts";
import type { RemoteCommandChannels, RemoteCommandFlags } from "../remote-command.ts";
import { acceptWebSocket } from "./channels.ts";

/** The empty one stands for a client that offers none. */
export const remoteCommandSubprotocols = ["", "channel.k8s.io", "base64.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "v5.channel.k8s.io"] as const;

const channel = { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4 } as const;

export interface WebSocketUpgrade {
  readonly request: IncomingMessage;
  readonly socket: Duplex;
  readonly head: Buffer;
  /** The chosen subprotocol. */
  readonly protocol: string;
}

/** Answers the upgrade and tells the client, by an empty message, that the session is there. */
export async function openWebSocketChannels(upgrade: WebSocketUpgrade, flags: RemoteCommandFlags): Promise<RemoteCommandChannels> {
  const channels = await acceptWebSocket(upgrade.request, upgrade.socket, upgrade.head, upgrade.protocol);
  const stdout = flags.stdout ? channels.writer(channel.stdout) : undefined;
  const stderr = flags.stderr ? channels.writer(channel.stderr) : undefined;
  const error = channels.writer(channel.error);
  const writers = [stdout, stderr, error].filter((writer) => writer !== undefined);
  for (const writer of writers) writer.on("error", () => undefined);
  const stdin = flags.stdin ? channels.reader(channel.stdin) : undefined;
  stdin?.on("error", () => undefined);
  channels.sendEmpty(flags.stdout ? channel.stdout : flags.stderr ? channel.stderr : channel.error);
  return {
    stdin,
    stdout,
    stderr,
    resizes: flags.terminal ? channels.reader(channel.resize) : undefined,
    closed: channels.closed,
    async finish(status) {
      error.write(encodeStatus(status, upgrade.protocol.startsWith("v4.") || upgrade.protocol.startsWith("v5.")));
      await Promise.allSettled(writers.map((writer) => finished(writer.end(), { signal: channels.closed })));
      channels.close();
    },
  };
}
