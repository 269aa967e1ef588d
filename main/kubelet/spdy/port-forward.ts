/**
 * port-forward over SPDY: for every TCP connection the client opens a pair of streams, `error` and `data`, with the headers
 * `port` and `requestid`; very old clients send no request id, theirs is derived from the stream ids. Many pairs come and
 * go on one connection.
 * Model: k8s.io/kubelet pkg/cri/streaming/portforward/httpstream.go (1.35).
 */
import type { Duplex } from "node:stream";
import { forwardPort, parsePort } from "../port-forward.ts";
import type { PortForwardTarget } from "../port-forward.ts";
import { SpdyConnection } from "./connection.ts";
import type { SpdyHeaders } from "./header-block.ts";
import type { SpdyStream } from "./stream.ts";

export const portForwardProtocols = ["portforward.k8s.io"] as const;

/** Streams open at a time on one connection, two for each forwarded one. */
const maximumStreams = 2000;

export interface SpdyPortForwardOptions {
  readonly socket: Duplex;
  readonly head: Buffer;
  readonly target: PortForwardTarget;
  /** How long the second stream of a pair may take, in milliseconds. */
  readonly streamCreationTimeout: number;
}

interface HalfPair {
  readonly stream: SpdyStream;
  readonly timer: NodeJS.Timeout;
}

/** Serves the connection until the client closes it. */
export async function servePortForward(options: SpdyPortForwardOptions): Promise<void> {
  const halves = new Map<string, HalfPair>();
  const connection = new SpdyConnection({
    socket: options.socket,
    head: options.head,
    maximumStreams,
    accepts(headers, id) {
      const type = headers.get("streamtype");
      if (parsePort(headers.get("port") ?? "") === undefined || (type !== "data" && type !== "error")) return false;
      return halves.get(requestIdOf(headers, id))?.stream.headers.get("streamtype") !== type;
    },
    onStream(stream) {
      stream.on("error", () => undefined);
      const requestId = requestIdOf(stream.headers, stream.id);
      const other = halves.get(requestId);
      if (other === undefined) {
        halves.set(requestId, { stream, timer: setTimeout(() => giveUp(requestId), options.streamCreationTimeout) });
        stream.once("close", () => halves.get(requestId)?.stream === stream && forget(requestId));
        return;
      }
      forget(requestId);
      const isData = stream.headers.get("streamtype") === "data";
      void servePair(isData ? stream : other.stream, isData ? other.stream : stream);
    },
  });

  if (!connection.closed.aborted) await new Promise<void>((resolve) => connection.closed.addEventListener("abort", () => resolve(), { once: true }));
  for (const requestId of halves.keys()) forget(requestId);

  function forget(requestId: string): void {
    clearTimeout(halves.get(requestId)?.timer);
    halves.delete(requestId);
  }

  function giveUp(requestId: string): void {
    const stream = halves.get(requestId)?.stream;
    forget(requestId);
    stream?.destroy();
  }

  async function servePair(data: SpdyStream, error: SpdyStream): Promise<void> {
    error.resume(); // the client only ends it
    const port = parsePort(data.headers.get("port") ?? "") ?? 0;
    const closed = new AbortController();
    data.once("close", () => closed.abort());
    if (data.destroyed) closed.abort();
    const message = await forwardPort(options.target, port, data, closed.signal);
    if (message !== undefined) error.write(message);
    error.end(() => error.destroy());
    data.destroy();
  }
}

function requestIdOf(headers: SpdyHeaders, streamId: number): string {
  const requestId = headers.get("requestid") ?? "";
  if (requestId !== "") return requestId;
  return String(headers.get("streamtype") === "data" ? streamId - 2 : streamId);
}
