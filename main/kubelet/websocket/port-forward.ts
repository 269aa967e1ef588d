/**
 * port-forward over a WebSocket, legacy form: the ports are in the query, channel 2n carries the data of port n and 2n+1 its
 * errors; the first message on each is the port, 16 bits, little-endian.
 * Model: k8s.io/kubelet pkg/cri/streaming/portforward/websocket.go (1.35).
 */
import { Duplex } from "node:stream";
import { forwardPort } from "../port-forward.ts";
import type { PortForwardTarget } from "../port-forward.ts";
import { acceptWebSocket } from "./channels.ts";
import type { WebSocketUpgrade } from "./remote-command.ts";

export const portForwardSubprotocols = ["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] as const;
/** Channel numbers are one byte (255 is taken), in the base64 form one digit. */
export const maximumPorts = { binary: 127, base64: 5 } as const;

/** Serves the ports until all connections ended or the client closes. */
export async function serveWebSocketPortForward(upgrade: WebSocketUpgrade, ports: readonly number[], target: PortForwardTarget): Promise<void> {
  const channels = await acceptWebSocket(upgrade.request, upgrade.socket, upgrade.head, upgrade.protocol);
  await Promise.all(
    ports.map(async (port, index) => {
      const reader = channels.reader(2 * index);
      const writer = channels.writer(2 * index);
      const errors = channels.writer(2 * index + 1);
      const data = Duplex.from({ readable: reader, writable: writer });
      for (const stream of [reader, writer, errors, data]) stream.on("error", () => undefined);
      channels.closed.addEventListener("abort", () => data.destroy(), { once: true });
      const portBytes = Buffer.from([port & 0xff, port >>> 8]);
      writer.write(portBytes);
      errors.write(portBytes);
      // The client cannot end a channel, so the connection is over when the Pod's side is.
      data.once("finish", () => channels.endReader(2 * index));
      const message = await forwardPort(target, port, data, channels.closed);
      if (message !== undefined) errors.write(message);
      await new Promise<void>((resolve) => errors.end(() => resolve()));
    }),
  );
  channels.close();
}
