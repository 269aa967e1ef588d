/**
 * What both carriers of port-forward share: one connection to a port of the Pod, joined to the client's data channel.
 * Model: k8s.io/kubelet pkg/cri/streaming/portforward (1.35).
 */
import type { Duplex } from "node:stream";
import { pipeline } from "node:stream/promises";
import { messageOf } from "../contract/errors.ts";

export interface PortForwardTarget {
  /** For messages: the Pod's name and UID. */
  readonly podName: string;
  readonly podUid: string;
  dial(port: number, signal: AbortSignal): Promise<Duplex>;
}

/**
 * Dials and copies both ways until both ended, or one broke. Returns the kubelet's sentence if the port could not be
 * dialled. A connection that breaks later is only reset: kubectl ends the whole port-forward over any message.
 */
export async function forwardPort(target: PortForwardTarget, port: number, client: Duplex, signal: AbortSignal): Promise<string | undefined> {
  let connection: Duplex;
  try {
    connection = await target.dial(port, signal);
  } catch (error) {
    return `error forwarding port ${port} to pod ${target.podName}, uid ${target.podUid}: ${messageOf(error)}`;
  }
  connection.on("error", () => undefined); // `pipeline` reports it; this one is for errors after that
  if (client.destroyed) connection.destroy();
  await Promise.allSettled([pipeline(connection, client), pipeline(client, connection)]);
  connection.destroy();
  return undefined;
}

/** A port as the headers and queries carry it: decimal, 1–65535. */
export function parsePort(text: string): number | undefined {
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : undefined;
}
