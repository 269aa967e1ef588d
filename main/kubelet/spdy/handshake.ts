/**
 * The HTTP upgrade to SPDY/3.1: the client lists the stream protocols it speaks in its order of preference, the server
 * takes the first it knows. Go's clients send one header line per protocol, which Node joins with commas.
 * Model: k8s.io/apimachinery pkg/util/httpstream Handshake.
 */
import type { IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";

export const protocolVersionHeader = "x-stream-protocol-version";

export type SpdyNegotiation =
  | { readonly kind: "chosen"; readonly protocol: string }
  | { readonly kind: "missing" } // answered with 400
  | { readonly kind: "unsupported"; readonly requested: readonly string[] }; // answered with 403 and what is supported

export function negotiateSpdyProtocol(request: IncomingMessage, supported: readonly string[]): SpdyNegotiation {
  const header = request.headers[protocolVersionHeader];
  const requested = (Array.isArray(header) ? header.join(",") : (header ?? "")).split(",").flatMap((part) => part.trim() || []);
  if (requested.length === 0) return { kind: "missing" };
  const protocol = requested.find((candidate) => supported.includes(candidate));
  return protocol === undefined ? { kind: "unsupported", requested } : { kind: "chosen", protocol };
}

/** Answers 101. Nothing may follow it before the client's first frame. */
export function acceptSpdyUpgrade(socket: Duplex, protocol: string): void {
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: ${protocol}\r\n\r\n`);
}
