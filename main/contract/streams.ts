/**
 * The byte streams that pass through the host: exec, attach, logs, port-forward, screens. They are Node streams, so that
 * back-pressure reaches from the guest to kubectl; nothing here buffers without bound.
 */
import type { Duplex, Readable, Writable } from "node:stream";

export interface TerminalSize {
  readonly columns: number;
  readonly rows: number;
}

/** How a process ended. Exit codes are 0–255; a process ended by signal n reports 128+n. */
export interface ProcessExit {
  readonly exitCode: number;
  readonly signal?: number;
}

/** A process started by exec, or a container's main process seen through attach. */
export interface ProcessSession extends AsyncDisposable {
  /** Ending it is EOF for the process. Undefined if stdin was not asked for. */
  readonly stdin: Writable | undefined;
  readonly stdout: Readable;
  /** Undefined with a terminal, where the process has only one output. */
  readonly stderr: Readable | undefined;
  resize(size: TerminalSize): void;
  /**
   * Settles after the process ended and its output was read to the end. Rejects with a PodyardError if the process could
   * not be started or the connection was lost. For attach it also settles when the client's side is detached.
   */
  readonly exit: Promise<ProcessExit>;
  // [Symbol.asyncDispose]: the client went away. An exec'd process is killed, an attached one is only detached.
}

export interface ExecRequest {
  /** Bytes, since an argument need not be UTF-8. */
  readonly argv: readonly Buffer[];
  readonly stdin: boolean;
  /** Absent = no terminal. The size is the first one; {columns: 80, rows: 24} if the client sent none. */
  readonly terminal?: TerminalSize;
  readonly environment?: Readonly<Record<string, string>>;
  readonly workingDirectory?: string;
  readonly signal?: AbortSignal;
}

export interface AttachRequest {
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly signal?: AbortSignal;
}

/** As PodLogOptions of core/v1. `follow` ends when the container ends. */
export interface LogRequest {
  readonly follow: boolean;
  readonly previous: boolean;
  readonly timestamps: boolean;
  readonly sinceTime?: Date;
  readonly tailLines?: number;
  readonly limitBytes?: number;
  readonly stream?: "All" | "Stdout" | "Stderr";
  readonly signal?: AbortSignal;
}

/** A connection without a process behind it (a screen, a port, a serial console) as a session; it ends with 0 when the other side closes. */
export function sessionOfDuplex(connection: Duplex): ProcessSession {
  const exit = new Promise<ProcessExit>((resolve, reject) => {
    connection.once("end", () => resolve({ exitCode: 0 }));
    connection.once("close", () => resolve({ exitCode: 0 }));
    connection.once("error", reject);
  });
  // Whoever awaits the exit sees the error; one that nobody awaits is no crash of the host.
  exit.catch(() => undefined);
  return {
    stdin: connection,
    stdout: connection,
    stderr: undefined,
    resize() {},
    exit,
    async [Symbol.asyncDispose]() {
      connection.destroy();
    },
  };
}

export type { Duplex, Readable, Writable };
