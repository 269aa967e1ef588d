/**
 * exec and attach over SPDY: the client opens one stream per channel, named by the header `streamtype`, and waits for each
 * reply; once all it announced in the query are open, the command starts.
 * Versions: 2 is the base, 3 added `resize`, 4 a JSON status on the error stream; 1 is served as 2.
 * Model: k8s.io/kubelet pkg/cri/streaming/remotecommand/httpstream.go (1.35).
 */
import { finished } from "node:stream/promises";
import type { Duplex } from "node:stream";
import { PodyardError } from "../../contract/errors.ts";
import { encodeStatus } from "../remote-command.ts";
import type { RemoteCommandChannels, RemoteCommandFlags } from "../remote-command.ts";
import { SpdyConnection } from "./connection.ts";
import type { SpdyStream } from "./stream.ts";

export const remoteCommandProtocols = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] as const;

const streamTypes = ["error", "stdin", "stdout", "stderr", "resize"] as const;
type StreamType = (typeof streamTypes)[number];

export interface SpdyRemoteCommandOptions {
  readonly socket: Duplex;
  readonly head: Buffer;
  /** One of {@link remoteCommandProtocols}. */
  readonly protocol: string;
  readonly flags: RemoteCommandFlags;
  /** How long the client may take to open its streams, in milliseconds. */
  readonly streamCreationTimeout: number;
}

/** Waits until the client opened its streams. Rejects with Timeout or Unavailable, the connection then being closed. */
export async function openSpdyChannels(options: SpdyRemoteCommandOptions): Promise<RemoteCommandChannels> {
  const expected = expectedStreams(options.flags, options.protocol);
  const streams = new Map<StreamType, SpdyStream>();
  const { promise: complete, resolve, reject } = Promise.withResolvers<void>();
  const connection = new SpdyConnection({
    socket: options.socket,
    head: options.head,
    maximumStreams: streamTypes.length,
    accepts(headers) {
      const type = headers.get("streamtype");
      return expected.some((candidate) => candidate === type && !streams.has(candidate));
    },
    onStream(stream) {
      const type = expected.find((candidate) => candidate === stream.headers.get("streamtype"));
      if (type === undefined) return;
      streams.set(type, stream);
      stream.on("error", () => undefined);
      if (type !== "stdin" && type !== "resize") stream.resume(); // the client only ends these
      if (streams.size === expected.length) resolve();
    },
  });
  const timer = setTimeout(() => reject(new PodyardError("Timeout", "timed out waiting for client to create streams")), options.streamCreationTimeout);
  const onClosed = (): void => reject(new PodyardError("Unavailable", "the client closed the connection before it had opened its streams"));
  connection.closed.addEventListener("abort", onClosed);
  try {
    if (connection.closed.aborted) onClosed();
    await complete;
  } catch (error) {
    connection.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
    connection.closed.removeEventListener("abort", onClosed);
  }

  return {
    stdin: streams.get("stdin"),
    stdout: streams.get("stdout"),
    stderr: streams.get("stderr"),
    resizes: streams.get("resize"),
    closed: connection.closed,
    async finish(status) {
      streams.get("error")?.write(encodeStatus(status, options.protocol === "v4.channel.k8s.io"));
      await Promise.allSettled([...streams.values()].map((stream) => finished(stream.end(), { readable: false, signal: connection.closed })));
      connection.close();
    },
  };
}

function expectedStreams(flags: RemoteCommandFlags, protocol: string): readonly StreamType[] {
  const knowsResize = protocol === "v4.channel.k8s.io" || protocol === "v3.channel.k8s.io";
  return streamTypes.filter((type) => {
    switch (type) {
      case "error":
        return true;
      case "resize":
        return flags.terminal && knowsResize;
      default:
        return flags[type];
    }
  });
}
