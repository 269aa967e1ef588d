/** The client's end of a byte stream: a WebSocket as a process session, each direction waiting for the slower side. */
import { PassThrough, Writable } from "node:stream";
import type { WebSocket } from "ws";
import { PodyardError } from "../contract/errors.ts";
import type { ProcessExit, ProcessSession } from "../contract/streams.ts";
import { bytesOf, channel, envelopeSchema, errorOfBody, exitMessageSchema, largestPiece, message, openedSchema, parseJson } from "./protocol.ts";
import { send } from "./stream-server.ts";

/** Sends the request and waits until the host has the stream. Errors: the host's, or Unavailable. */
export async function openStream(socket: WebSocket, request: unknown, signal: AbortSignal | undefined): Promise<ProcessSession> {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const opened = Promise.withResolvers<{ readonly stdin: boolean; readonly stderr: boolean }>();
  const ended = Promise.withResolvers<ProcessExit>();
  opened.promise.catch(() => undefined);
  ended.promise.catch(() => undefined);
  let isDisposed = false;

  const fail = (error: PodyardError): void => {
    opened.reject(error);
    ended.reject(error);
  };

  const full = new Set<PassThrough>();
  function deliver(target: PassThrough, data: Buffer): void {
    if (target.destroyed || target.write(data) || full.has(target)) return;
    full.add(target);
    socket.pause();
    const resume = (): void => {
      target.off("drain", resume).off("close", resume);
      full.delete(target);
      if (full.size === 0) socket.resume();
    };
    target.on("drain", resume).on("close", resume);
  }

  function receive(data: Buffer, isBinary: boolean): void {
    if (!isBinary) {
      const answer = envelopeSchema.parse(parseJson(data.toString(), "answer"));
      if ("error" in answer) fail(errorOfBody(answer.error));
      else opened.resolve(openedSchema.parse(answer.result));
      return;
    }
    switch (data[0]) {
      case channel.stdout:
        deliver(stdout, data.subarray(1));
        break;
      case channel.stderr:
        deliver(stderr, data.subarray(1));
        break;
      case channel.exit: {
        const exit = exitMessageSchema.parse(parseJson(data.subarray(1).toString(), "exit"));
        if ("error" in exit) ended.reject(errorOfBody(exit.error));
        else ended.resolve(exit.signal === undefined ? { exitCode: exit.exitCode } : { exitCode: exit.exitCode, signal: exit.signal });
        break;
      }
    }
  }

  socket.on("message", (value, isBinary) => {
    try {
      receive(bytesOf(value), isBinary);
    } catch (error) {
      fail(new PodyardError("Internal", "The host sent what the contract does not know", { cause: error }));
      socket.terminate();
    }
  });
  socket.resume();
  socket.once("close", () => {
    signal?.removeEventListener("abort", dispose);
    fail(isDisposed ? new PodyardError("Cancelled", "The stream was closed") : new PodyardError("Unavailable", "The connection to the host was lost"));
    stdout.end();
    stderr.end();
    if (stdin !== undefined) stdin.destroy();
  });

  function dispose(): void {
    isDisposed = true;
    stdout.destroy();
    stderr.destroy();
    if (socket.readyState !== socket.CLOSED) socket.terminate();
  }
  let stdin: Writable | undefined;
  signal?.addEventListener("abort", dispose, { once: true });
  if (signal?.aborted === true) dispose();
  await send(socket, JSON.stringify(request));
  const { stdin: hasStdin, stderr: hasStderr } = await opened.promise;
  stdin = hasStdin ? createInput(socket) : undefined;
  if (!hasStderr) stderr.end();
  return {
    stdin,
    stdout,
    stderr: hasStderr ? stderr : undefined,
    exit: ended.promise,
    resize(size) {
      socket.send(message(channel.resize, Buffer.from(JSON.stringify(size))), () => undefined);
    },
    async [Symbol.asyncDispose]() {
      dispose();
    },
  };
}

/** Nothing fails here: a lost connection is told by the session's exit. */
function createInput(socket: WebSocket): Writable {
  async function write(chunk: Buffer, callback: () => void): Promise<void> {
    for (let start = 0; start < chunk.length; start += largestPiece) await send(socket, message(channel.stdin, chunk.subarray(start, start + largestPiece)));
    callback();
  }
  async function end(callback: () => void): Promise<void> {
    await send(socket, message(channel.stdinEnd));
    callback();
  }
  return new Writable({
    highWaterMark: largestPiece,
    write: (chunk: Buffer, _encoding, callback) => void write(chunk, callback),
    final: (callback) => void end(callback),
  });
}
