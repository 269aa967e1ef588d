/**
 * The two directions of a hijacked connection (exec, attach) as Node streams. One pump reads the connection and waits for
 * whoever is slower; stdin's end half-closes the connection, which is EOF for the process.
 */
import type { Socket } from "node:net";
import { PassThrough, Writable } from "node:stream";
import { readFrames, writeWithBackPressure, type Frame } from "./multiplexed-stream.ts";

export interface ProcessOutput {
  readonly stdout: PassThrough;
  readonly stderr: PassThrough | undefined;
}

export function createOutput(terminal: boolean): ProcessOutput {
  return { stdout: new PassThrough(), stderr: terminal ? undefined : new PassThrough() };
}

/** Pieces of output, from a raw (terminal) or a multiplexed connection. */
export async function* readOutput(socket: Socket, terminal: boolean): AsyncGenerator<Frame, void> {
  if (!terminal) {
    yield* readFrames(socket);
    return;
  }
  for await (const data of socket) yield { stream: "stdout", data, last: true };
}

export async function deliver(output: ProcessOutput, frame: Frame): Promise<void> {
  await writeWithBackPressure(frame.stream === "stderr" ? (output.stderr ?? output.stdout) : output.stdout, frame.data);
}

export function endOutput(output: ProcessOutput): void {
  output.stdout.end();
  output.stderr?.end();
}

/**
 * Writes into the connection once `open` is settled. A process that closed its stdin swallows the rest, as a pipe would with
 * SIGPIPE ignored.
 */
export function createInput(socket: Socket, open: Promise<unknown>): Writable {
  async function write(chunk: Buffer, callback: () => void): Promise<void> {
    try {
      await open;
      if (!socket.destroyed && !socket.writableEnded) await writeWithBackPressure(socket, chunk);
    } catch {
      // The session's exit tells what happened.
    }
    callback();
  }
  async function end(callback: () => void): Promise<void> {
    try {
      await open;
      if (!socket.destroyed) socket.end();
    } catch {
      // As above.
    }
    callback();
  }
  return new Writable({
    highWaterMark: 64 * 1024,
    write: (chunk: Buffer, _encoding, callback) => void write(chunk, callback),
    final: (callback) => void end(callback),
  });
}
