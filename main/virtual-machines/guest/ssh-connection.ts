/**
 * One SSH connection to a guest: the transport comes from the driver, the host key is pinned, the login is tried once.
 * A refused login and a changed key are final; everything else may heal (the guest may still be booting).
 */
import type { Duplex } from "node:stream";
import { Client } from "ssh2";
import type { AuthenticationType, Channel, ClientChannel, ConnectConfig, KeyboardInteractiveCallback, Prompt } from "ssh2";
import { messageOf, PodyardError } from "../../contract/errors.ts";
import type { GuestLogin } from "../guest.ts";
import { fingerprint, isSameKey } from "./host-key.ts";
import type { HostKeyPin } from "./host-key.ts";

export interface SshConnectionOptions {
  readonly dial: (port: number, signal: AbortSignal) => Promise<Duplex>;
  readonly login: GuestLogin;
  readonly hostKey: HostKeyPin;
  /** The guest's processor is emulated; decides the order of ciphers. */
  readonly emulated: boolean;
  /** Milliseconds. `greeting`: from the connection to the server's first byte; `ready`: until the login is done. */
  readonly timeouts: { readonly dial: number; readonly greeting: number; readonly ready: number };
}

export interface SshConnection extends AsyncDisposable {
  /** Channels open or being opened. */
  readonly channelCount: number;
  readonly isOpen: boolean;
  /** Settles when the connection is gone. */
  readonly closed: Promise<void>;
  /** Errors: {@link ChannelRefusedError}, {@link ConnectionBrokenError} (nothing was started), PodyardError Unavailable. */
  openChannel(command: string): Promise<ClientChannel>;
  /** A stream to a unix socket of the guest. It takes none of MaxSessions. Errors as openChannel. */
  openStream(socketPath: string): Promise<Channel>;
}

/** The server takes no further channel on this connection (sshd's MaxSessions). */
export class ChannelRefusedError extends Error {}

/** The connection broke before the command was sent, so it is safe to send it over another one. */
export class ConnectionBrokenError extends Error {}

// AES-GCM first: processors have instructions for it, and chacha20-poly1305 is partly JavaScript on our side. An emulated
// processor does those instructions one by one, at half of chacha's speed.
const ciphers = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr", "chacha20-poly1305@openssh.com"] as const;
const emulatedCiphers = ["chacha20-poly1305@openssh.com", "aes128-ctr", "aes256-ctr", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com"] as const;

// pam_nologin and its kin while the guest boots: a refusal that heals.
const bootingBanner = /boot(ing)? up|nologin|not permitted to log in yet|shutting down/i;

/** Errors: Unauthorized (login refused), Forbidden (host key changed), Unavailable (all else), Cancelled. */
export async function openConnection(options: SshConnectionOptions, signal?: AbortSignal): Promise<SshConnection> {
  const pinned = await options.hostKey.read();
  const socket = await dial(options, signal);
  const client = new Client();
  try {
    await logIn(client, socket, options, pinned, signal);
  } catch (error) {
    client.destroy();
    socket.destroy();
    signal?.throwIfAborted();
    throw error;
  }
  return wrap(client, socket);
}

/** The signal that dial() gets is never aborted after it succeeded: a stream bound to it would break then. */
async function dial(options: SshConnectionOptions, signal?: AbortSignal): Promise<Duplex> {
  const controller = new AbortController();
  const abort = (): void => controller.abort();
  const timer = setTimeout(abort, options.timeouts.dial);
  signal?.addEventListener("abort", abort, { once: true });
  try {
    signal?.throwIfAborted();
    return await options.dial(options.login.port, controller.signal);
  } catch (error) {
    signal?.throwIfAborted();
    throw new PodyardError("Unavailable", `the guest does not answer on port ${options.login.port}`, { cause: error });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

async function logIn(client: Client, socket: Duplex, options: SshConnectionOptions, pinned: Buffer | undefined, signal?: AbortSignal): Promise<void> {
  const { login } = options;
  let presented: Buffer | undefined;
  let changed: PodyardError | undefined;
  let banner = "";
  client.on("banner", (text: string) => (banner += text.slice(0, 1000)));
  client.on("keyboard-interactive", (_name: string, _text: string, _language: string, prompts: Prompt[], finish: KeyboardInteractiveCallback) => {
    finish(prompts.map(() => login.password ?? ""));
  });
  const handshake = new Promise<void>((resolve) => client.once("handshake", () => resolve()));
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const greeting = setTimeout(() => reject(new Error(`no SSH server spoke within ${options.timeouts.greeting} ms`)), options.timeouts.greeting);
  const abort = (): void => reject(new Error("aborted"));
  signal?.addEventListener("abort", abort, { once: true });
  client.once("ready", resolve);
  client.once("close", () => reject(new Error("the server closed the connection")));
  client.on("error", reject);
  try {
    client.connect({
      ...credentials(login),
      sock: socket,
      readyTimeout: options.timeouts.ready,
      keepaliveInterval: 15_000,
      keepaliveCountMax: 3,
      algorithms: algorithms(login, options.emulated),
      hostVerifier: (key: Buffer) => {
        presented = key;
        if (pinned === undefined || isSameKey(pinned, key)) return true;
        changed = new PodyardError("Forbidden", `the guest's SSH host key is ${fingerprint(key)}, but this machine's first contact pinned ${fingerprint(pinned)}`, {
          fix: "Restart the container if its image or disk was replaced on purpose; otherwise something else answers at its address",
        });
        return false;
      },
    });
    socket.once("data", () => clearTimeout(greeting));
    await promise;
    await handshake;
    if (pinned === undefined && presented !== undefined) await options.hostKey.write(presented);
  } catch (error) {
    if (changed !== undefined) throw changed;
    if (isLoginRefusal(error) && !bootingBanner.test(banner)) {
      throw new PodyardError("Unauthorized", `the guest refused the SSH login of user ${JSON.stringify(login.user)} with the given ${login.privateKey === undefined ? "password" : "key or password"}`, {
        cause: error,
        fix: "Check the user, password and key that the Pod's Secret or the host's settings give for this image",
      });
    }
    if (isUnusableConfiguration(error)) throw new PodyardError("InvalidArgument", `the SSH login cannot be used: ${messageOf(error)}`, { cause: error });
    throw new PodyardError("Unavailable", "the guest's SSH server is not ready", { cause: error });
  } finally {
    clearTimeout(greeting);
    signal?.removeEventListener("abort", abort);
  }
}

function credentials(login: GuestLogin): ConnectConfig {
  const methods: AuthenticationType[] = [];
  if (login.privateKey !== undefined) methods.push("publickey");
  if (login.password !== undefined) methods.push("password", "keyboard-interactive");
  return {
    username: login.user,
    authHandler: methods,
    ...(login.password === undefined ? {} : { password: login.password, tryKeyboard: true }),
    ...(login.privateKey === undefined ? {} : { privateKey: login.privateKey }),
    ...(login.passphrase === undefined ? {} : { passphrase: login.passphrase }),
  };
}

function algorithms(login: GuestLogin, emulated: boolean): NonNullable<ConnectConfig["algorithms"]> {
  const chosen: Record<string, readonly string[]> = { cipher: emulated ? emulatedCiphers : ciphers };
  if (login.keyExchangeAlgorithms !== undefined && login.keyExchangeAlgorithms.length > 0) chosen["kex"] = login.keyExchangeAlgorithms;
  return chosen;
}

function isLoginRefusal(error: unknown): boolean {
  return error instanceof Error && "level" in error && error.level === "client-authentication";
}

/** ssh2 throws these at once: an unreadable key, a wrong passphrase, an unknown algorithm. */
function isUnusableConfiguration(error: unknown): boolean {
  return error instanceof Error && !("level" in error) && /privateKey|passphrase|[Uu]nsupported algorithm|Invalid username/.test(error.message);
}

function wrap(client: Client, socket: Duplex): SshConnection {
  let channelCount = 0;
  let isOpen = true;
  client.on("error", () => {});
  const closed = new Promise<void>((resolve) => {
    client.once("close", () => {
      isOpen = false;
      resolve();
    });
  });
  // A server that goes away says end first; from then on nothing can be opened.
  client.once("end", () => (isOpen = false));
  const whileOpen = async <Opened extends Channel>(opening: Promise<Opened>): Promise<Opened> => {
    try {
      return await opening;
    } catch (error) {
      if (error instanceof ConnectionBrokenError) {
        isOpen = false;
        client.destroy();
      }
      throw error;
    }
  };
  return {
    get channelCount() {
      return channelCount;
    },
    get isOpen() {
      return isOpen;
    },
    closed,
    async openChannel(command) {
      channelCount += 1;
      try {
        const channel = await whileOpen(request<ClientChannel>((done) => client.exec(command, done)));
        channel.once("close", () => (channelCount -= 1));
        return channel;
      } catch (error) {
        channelCount -= 1;
        throw error;
      }
    },
    openStream: (socketPath) => whileOpen(request<Channel>((done) => client.openssh_forwardOutStreamLocal(socketPath, done))),
    async [Symbol.asyncDispose]() {
      isOpen = false;
      client.end();
      socket.destroy();
      await closed;
    },
  };
}

/** Turns ssh2's errors into ours, by whether the other side may have seen the request. */
function request<Opened>(open: (done: (error: Error | undefined, channel: Opened) => void) => void): Promise<Opened> {
  return new Promise((resolve, reject) => {
    try {
      open((error, channel) => {
        if (error === undefined || error === null) return resolve(channel);
        if ("reason" in error) return reject(new ChannelRefusedError(error.message, { cause: error }));
        // ssh2 says this one only after the request itself went out.
        if (error.message === "Unable to exec") return reject(new PodyardError("Unavailable", "the SSH connection broke while the guest was starting the command", { cause: error }));
        return reject(new ConnectionBrokenError(error.message, { cause: error }));
      });
    } catch (error) {
      reject(new ConnectionBrokenError(messageOf(error), { cause: error }));
    }
  });
}
