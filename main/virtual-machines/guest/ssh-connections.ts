/**
 * The connections to one guest. One is enough most of the time; another is opened when the first carries 8 channels
 * (sshd's MaxSessions is 10 by default) or the server refuses one more, and closed when it has idled for a while.
 */
import type { ClientChannel } from "ssh2";
import { PodyardError } from "../../contract/errors.ts";
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
  idle: NodeJS.Timeout | undefined;
}

export interface SshConnections extends AsyncDisposable {
  /** Makes sure that there is a connection. Errors as {@link openConnection}. */
  connect(signal?: AbortSignal): Promise<void>;
  /** Runs a command on a channel of its own, which the caller closes. Errors as {@link openConnection}; Unavailable. */
  openChannel(command: string, signal?: AbortSignal): Promise<ClientChannel>;
}

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
    const entry: Entry = { connection, limit: channelsPerConnection, idle: undefined };
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

  const restWhenIdle = (entry: Entry): void => {
    clearTimeout(entry.idle);
    if (entry.connection.channelCount > 0 || entries.size < 2) return;
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
