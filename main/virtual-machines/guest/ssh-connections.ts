/**
 * The connections to one guest. One is enough most of the time; another is opened when the first carries 8 channels
 * (sshd's MaxSessions is 10 by default) or the server refuses one more, and closed when it has idled for a while.
 */
import type { Channel, ClientChannel } from "ssh2";
import { messageOf, PodyardError } from "../../contract/errors.ts";
import type { Logger } from "../../contract/logger.ts";
import { ChannelRefusedError, ConnectionBrokenError, openConnection } from "./ssh-connection.ts";
import type { SshConnection, SshConnectionOptions } from "./ssh-connection.ts";

const channelsPerConnection = 8;
const maximumConnections = 32;
const idleTime = 30_000;
const attempts = 4;

interface Entry {
  readonly connection: SshConnection;
  limit: number;
  /** Of the supervisor that serves execs over this connection; undefined as long as, or since, there is none. */
  socketPath: string | undefined;
  isServerStarted: boolean;
  idle: NodeJS.Timeout | undefined;
}

export interface SshConnections extends AsyncDisposable {
  /** Makes sure that there is a connection. Errors as {@link openConnection}. */
  connect(signal?: AbortSignal): Promise<void>;
  /** Runs a command on a channel of its own, which the caller closes. Errors as {@link openConnection}; Unavailable. */
  openChannel(command: string, signal?: AbortSignal): Promise<ClientChannel>;
  /** Has `startServer` start a server for the connection in use, once, in the background. */
  prepareStreams(startServer: StartServer): void;
  /** A stream to that server, undefined while there is none; then openChannel() is the way. */
  openStream(startServer: StartServer, signal?: AbortSignal): Promise<Channel | undefined>;
}

/** Starts a server over a connection, for its lifetime, and gives its socket's path. */
export type StartServer = (openChannel: (command: string) => Promise<ClientChannel>) => Promise<string>;

export function createConnections(options: SshConnectionOptions & { readonly logger: Logger }): SshConnections {
  const entries = new Set<Entry>();
  const lifetime = new AbortController();
  let connecting: Promise<Entry> | undefined;

  const usable = (): Entry | undefined => {
    for (const entry of entries) if (entry.connection.isOpen && entry.connection.channelCount < entry.limit) return entry;
    return undefined;
  };

  const connect = async (): Promise<Entry> => {
    if (entries.size >= maximumConnections) throw new PodyardError("Unavailable", `${entries.size} SSH connections to the guest are in use; no more are opened`);
    const connection = await openConnection(options, lifetime.signal);
    const entry: Entry = { connection, limit: channelsPerConnection, socketPath: undefined, isServerStarted: false, idle: undefined };
    entries.add(entry);
    void connection.closed.then(() => {
      clearTimeout(entry.idle);
      entries.delete(entry);
      options.logger.debug("SSH connection to the guest ended", { connections: entries.size });
    });
    return entry;
  };

  // All who need a connection wait for the same attempt; one of them giving up does not end it.
  const acquire = async (signal?: AbortSignal): Promise<Entry> => {
    signal?.throwIfAborted();
    const present = usable();
    if (present !== undefined) return present;
    connecting ??= connect().finally(() => (connecting = undefined));
    return signal === undefined ? connecting : await abortable(connecting, signal);
  };

  const serve = (entry: Entry, startServer: StartServer): void => {
    if (entry.isServerStarted) return;
    entry.isServerStarted = true;
    startServer((command) => entry.connection.openChannel(command)).then(
      (socketPath) => (entry.socketPath = socketPath),
      (error: unknown) => options.logger.debug("Execs take a session each: no server for them could be started", { reason: messageOf(error) }),
    );
  };

  const restWhenIdle = (entry: Entry): void => {
    clearTimeout(entry.idle);
    if (entry.connection.channelCount > 0 || entries.size < 2 || entry.isServerStarted) return;
    entry.idle = setTimeout(() => {
      if (entry.connection.channelCount === 0 && entries.size > 1) void entry.connection[Symbol.asyncDispose]();
    }, idleTime);
    entry.idle.unref();
  };

  return {
    async connect(signal) {
      await acquire(signal);
    },
    async openChannel(command, signal) {
      let failure: unknown;
      for (let attempt = 0; attempt < attempts; attempt += 1) {
        const entry = await acquire(signal);
        clearTimeout(entry.idle);
        try {
          const channel = await entry.connection.openChannel(command);
          channel.once("close", () => restWhenIdle(entry));
          return channel;
        } catch (error) {
          failure = error;
          if (error instanceof ChannelRefusedError) {
            entry.limit = Math.max(0, Math.min(entry.limit, entry.connection.channelCount));
            // A server that takes no channel at all on a fresh connection will not take one on the next either.
            if (entry.limit === 0) void entry.connection[Symbol.asyncDispose]();
          } else if (!(error instanceof ConnectionBrokenError)) {
            throw error;
          }
        }
      }
      throw new PodyardError("Unavailable", "the guest's SSH server opens no channel", { cause: failure });
    },
    prepareStreams(startServer) {
      for (const entry of entries) if (entry.connection.isOpen) return serve(entry, startServer);
    },
    async openStream(startServer, signal) {
      signal?.throwIfAborted();
      const open = [...entries].filter((entry) => entry.connection.isOpen);
      const entry = open.find(({ socketPath }) => socketPath !== undefined);
      if (entry?.socketPath === undefined) {
        if (open[0] !== undefined) serve(open[0], startServer);
        return undefined;
      }
      try {
        return await entry.connection.openStream(entry.socketPath);
      } catch (error) {
        // Forwarding is forbidden, the server is gone or the connection is: all the same, a session will do.
        entry.socketPath = undefined;
        options.logger.debug("An exec takes a session: its server does not answer", { reason: messageOf(error) });
        return undefined;
      }
    },
    async [Symbol.asyncDispose]() {
      lifetime.abort();
      await connecting?.catch(() => {});
      await Promise.all([...entries].map((entry) => entry.connection[Symbol.asyncDispose]()));
    },
  };
}

async function abortable<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = (): void => reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
