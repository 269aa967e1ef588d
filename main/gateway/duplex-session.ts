/** A connection without a process behind it (a screen, a port, a serial console) as a session, so that all streams are served alike. */
import type { Duplex } from "node:stream";
import { finished } from "node:stream/promises";
import type { ProcessSession, TerminalSize } from "../contract/streams.ts";

/** The exit settles with 0 when the other side closed the connection. */
export function sessionOfDuplex(connection: Duplex, resize: (size: TerminalSize) => void = () => undefined): ProcessSession {
  const exit = finished(connection, { writable: false }).then(() => ({ exitCode: 0 }));
  exit.catch(() => undefined);
  return {
    stdin: connection,
    stdout: connection,
    stderr: undefined,
    resize,
    exit,
    async [Symbol.asyncDispose]() {
      connection.destroy();
    },
  };
}
