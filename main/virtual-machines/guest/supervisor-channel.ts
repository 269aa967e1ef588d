/**
 * One SSH channel with one run of the supervisor at its other end: the frames it sends, the frames it gets, its stdout.
 */
import { Readable } from "node:stream";
import type { Channel, ClientChannel } from "ssh2";
import { PodyardError } from "../../contract/errors.ts";
import { encodeFrame, failureOf, fromSupervisor, readFrames, toSupervisor } from "./supervisor-protocol.ts";
import type { Frame, NoSupervisorError } from "./supervisor-protocol.ts";

export interface SupervisorChannel {
  readonly channel: Channel;
  /** stdout as it is, from its preamble on; undefined where it comes as frames. */
  readonly stdout: Readable | undefined;
  /** What follows the preamble. Ends with the channel, also when the connection breaks. */
  readonly frames: AsyncGenerator<Frame, void, void>;
  /** Settles when the bytes were handed to SSH (its window had room), or will never be. */
  send(kind: number, payload: Buffer): Promise<void>;
  close(): void;
}

/**
 * Sends the header and waits until the supervisor speaks. A session channel has stdout and frames apart, a stream to the
 * supervisor's socket has all in frames. Errors: NoSupervisorError.
 */
export async function startSupervisor(channel: Channel, header: unknown): Promise<SupervisorChannel> {
  const closed = new Promise<void>((resolve) => channel.once("close", () => resolve()));
  // Errors of a channel end it; whoever reads the frames sees that.
  channel.on("error", () => {});
  const session = isSession(channel) ? channel : undefined;
  if (session === undefined) discardErrors(channel);
  const supervisor: SupervisorChannel = {
    channel,
    stdout: session,
    frames: readFrames(session === undefined ? channel : session.stderr),
    send(kind, payload) {
      if (!channel.writable) return Promise.resolve();
      const written = new Promise<void>((resolve) => channel.write(encodeFrame(kind, payload), () => resolve()));
      // ssh2 drops a write that waits for window when the channel closes, without a word.
      return Promise.race([written, closed]);
    },
    close() {
      channel.close();
      // The close event comes after the last byte was read.
      channel.resume();
      session?.stderr.resume();
    },
  };
  if (header !== undefined) void supervisor.send(toSupervisor.header, Buffer.from(JSON.stringify(header)));
  try {
    await supervisor.frames.next();
    return supervisor;
  } catch (error) {
    supervisor.close();
    throw error;
  }
}

function isSession(channel: Channel): channel is ClientChannel {
  return "type" in channel && channel.type === "session";
}

/** ssh2 gives every channel of a client a stderr, and waits for its end. */
function discardErrors(channel: Channel): void {
  if ("stderr" in channel && channel.stderr instanceof Readable) channel.stderr.resume();
}

/** The one answer of a subcommand that has nothing else to say. */
export async function readAnswer(supervisor: SupervisorChannel): Promise<Buffer> {
  for await (const frame of supervisor.frames) {
    if (frame.kind === fromSupervisor.answer) return frame.payload;
    if (frame.kind === fromSupervisor.failure) throw failureOf(frame.payload);
  }
  throw connectionLost();
}

export function connectionLost(cause?: unknown): PodyardError {
  return new PodyardError("Unavailable", "the SSH connection to the guest was lost", { cause });
}

/** The sentence for a guest whose shell printed something else than our supervisor would. */
export function noSupervisor(error: NoSupervisorError): PodyardError {
  const said = error.noise === "" ? "nothing" : JSON.stringify(error.noise.slice(0, 300));
  return new PodyardError("Unavailable", `the guest's supervisor did not start; the login shell said ${said}`, {
    cause: error,
    fix: "Give the login user a working shell, and let its start-up files leave stdin alone",
  });
}
