/** The server's end of a byte stream: joins a WebSocket with a process session, each direction waiting for the slower side. */
import { once } from "node:events";
import type { Readable } from "node:stream";
import type { WebSocket } from "ws";
import { PodyardError } from "../contract/errors.ts";
import type { ProcessSession } from "../contract/streams.ts";
import { bytesOf, channel, errorBody, largestPiece, message, parseJson, resizeMessageSchema, validate, type ExitMessage } from "./protocol.ts";

/** Runs until the session has ended or the client left. `open` gets the client's request. */
export async function serveStream(socket: WebSocket, open: (request: unknown, signal: AbortSignal) => Promise<ProcessSession>): Promise<void> {
  const left = new AbortController();
  socket.once("close", () => left.abort());
  const inbox = createInbox(socket);
  let session: ProcessSession;
  try {
    session = await open(await inbox.first(left.signal), left.signal);
  } catch (error) {
    await sendText(socket, { error: errorBody(error) });
    socket.close(1000);
    return;
  }
  try {
    await using _ = session;
    if (left.signal.aborted) return;
    inbox.listen(inputOf(socket, session));
    await sendText(socket, { result: { stdin: session.stdin !== undefined, stderr: session.stderr !== undefined } });
    const exit = await Promise.race([finished(socket, session), once(left.signal, "abort")]);
    if (left.signal.aborted || Array.isArray(exit)) return;
    await send(socket, message(channel.exit, Buffer.from(JSON.stringify(exit))));
  } finally {
    socket.close(1000);
  }
}

interface Message {
  readonly data: Buffer;
  readonly isBinary: boolean;
}

interface Inbox {
  /** The request. Errors: InvalidArgument, Timeout, Cancelled. */
  first(signal: AbortSignal): Promise<unknown>;
  listen(receiver: (message: Message) => void): void;
}

/** Keeps messages while nobody listens. The socket is paused then, so that these are the rest of one packet at most. */
function createInbox(socket: WebSocket): Inbox {
  const waiting: Message[] = [];
  let receiver: ((message: Message) => void) | undefined;
  const arrived = Promise.withResolvers<void>();
  socket.on("message", (value, isBinary) => {
    const received = { data: bytesOf(value), isBinary };
    if (receiver !== undefined) {
      receiver(received);
      return;
    }
    waiting.push(received);
    socket.pause();
    arrived.resolve();
  });
  return {
    async first(signal) {
      const patience = AbortSignal.any([signal, AbortSignal.timeout(30_000)]);
      patience.addEventListener("abort", () => arrived.reject(new PodyardError(signal.aborted ? "Cancelled" : "Timeout", "No request came")), { once: true });
      await arrived.promise;
      const request = waiting.shift();
      if (request === undefined || request.isBinary) throw new PodyardError("InvalidArgument", "The first message must be the request as text");
      return parseJson(request.data.toString(), "request");
    },
    listen(next) {
      receiver = next;
      for (const received of waiting.splice(0)) next(received);
      socket.resume();
    },
  };
}

async function finished(socket: WebSocket, session: ProcessSession): Promise<ExitMessage> {
  try {
    const [exit] = await Promise.all([
      session.exit,
      copy(session.stdout, channel.stdout, socket),
      session.stderr === undefined ? undefined : copy(session.stderr, channel.stderr, socket),
    ]);
    return exit;
  } catch (error) {
    return { error: errorBody(error) };
  }
}

async function copy(from: Readable, channelByte: number, socket: WebSocket): Promise<void> {
  for await (const value of from) {
    const chunk: Buffer = value;
    for (let start = 0; start < chunk.length; start += largestPiece) await send(socket, message(channelByte, chunk.subarray(start, start + largestPiece)));
  }
}

function inputOf(socket: WebSocket, session: ProcessSession): (message: Message) => void {
  const { stdin } = session;
  let isFull = false;
  // A process that ended first: what is still typed goes nowhere.
  stdin?.on("error", () => undefined);
  const resume = (): void => {
    if (isFull) socket.resume();
    isFull = false;
  };
  stdin?.on("drain", resume).on("close", resume);
  return ({ data: framed, isBinary }) => {
    if (!isBinary) {
      socket.close(1003, "binary messages only");
      return;
    }
    const data = framed.subarray(1);
    switch (framed[0]) {
      case channel.stdin:
        if (stdin !== undefined && stdin.writable && !stdin.write(data) && !isFull) {
          isFull = true;
          socket.pause();
        }
        break;
      case channel.stdinEnd:
        stdin?.end();
        break;
      case channel.resize:
        try {
          session.resize(validate(resizeMessageSchema, parseJson(data.toString(), "resize"), "resize"));
        } catch (error) {
          socket.close(1008, errorBody(error).message.slice(0, 100));
        }
        break;
      default:
        socket.close(1008, "unknown channel");
    }
  };
}

/** So much may wait for the network: enough to keep it busy, whatever one message's round through the event loop costs. */
const highWaterMark = 256 * 1024;

/** Settles at once while little waits to be sent, else when this message has left: one slow client holds only its own source. */
export function send(socket: WebSocket, data: Buffer | string): Promise<void> {
  if (socket.bufferedAmount < highWaterMark) {
    socket.send(data, () => undefined);
    return Promise.resolve();
  }
  return new Promise((resolve) => socket.send(data, () => resolve()));
}

async function sendText(socket: WebSocket, value: unknown): Promise<void> {
  await send(socket, JSON.stringify(value));
}
