/**
 * The frames between host and guest supervisor, and the schemas of what the supervisor answers: a guest is hostile, so
 * nothing of it is used unchecked. One byte of kind, four bytes of length (big endian), the payload; client to supervisor
 * on the channel's stdin, supervisor to client on its stderr. Both outputs begin with a preamble, since the start-up files
 * of a login shell may print before us. The other side is native/supervisor/frame.go.
 */
import { Transform } from "node:stream";
import { z } from "zod";
import { PodyardError } from "../../contract/errors.ts";

export const preamble = Buffer.from("\0podyard-supervisor-1\0", "latin1");

export const toSupervisor = { header: 0x48, input: 0x49, end: 0x45, resize: 0x52, signal: 0x4b } as const;
export const fromSupervisor = { output: 0x4f, error: 0x53, credit: 0x43, info: 0x4e, exit: 0x58, failure: 0x46, answer: 0x41 } as const;

/** So many bytes of stdin may be on their way without the supervisor having passed them on. Same constant there. */
export const inputWindow = 2 * 1024 * 1024;

const maximumFrame = 4 * 1024 * 1024;
const maximumNoise = 1024 * 1024;

export interface Frame {
  readonly kind: number;
  readonly payload: Buffer;
}

/** Thrown by {@link readFrames} when no supervisor spoke at all; `noise` is what was printed instead. */
export class NoSupervisorError extends Error {
  readonly noise: string;

  constructor(noise: string) {
    super("the guest's supervisor did not answer");
    this.noise = noise;
  }
}

export function encodeFrame(kind: number, payload: Buffer): Buffer {
  const frame = Buffer.allocUnsafe(5 + payload.length);
  frame.writeUInt8(kind, 0);
  frame.writeUInt32BE(payload.length, 1);
  payload.copy(frame, 5);
  return frame;
}

/**
 * The frames of a stream. The first one has kind 0: the preamble was seen. Output comes in the pieces in which it arrives,
 * not gathered to its frame. Errors: NoSupervisorError; Corrupt.
 */
export async function* readFrames(source: AsyncIterable<Buffer>): AsyncGenerator<Frame, void, void> {
  let rest: Buffer = Buffer.alloc(0);
  let started = false;
  /** The frame whose head was read but not all of its payload. */
  let open: { readonly kind: number; left: number } | undefined;
  for await (const chunk of source) {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    if (!started) {
      const position = rest.indexOf(preamble);
      if (position < 0) {
        if (rest.length > maximumNoise) throw new NoSupervisorError("more than a mebibyte of text");
        continue;
      }
      started = true;
      rest = rest.subarray(position + preamble.length);
      yield { kind: 0, payload: Buffer.alloc(0) };
    }
    for (;;) {
      if (open === undefined) {
        if (rest.length < 5) break;
        open = { kind: rest.readUInt8(0), left: rest.readUInt32BE(1) };
        if (open.left > maximumFrame) throw new PodyardError("Corrupt", `the guest's supervisor sent a frame of ${open.left} bytes, more than the ${maximumFrame} allowed`);
        rest = rest.subarray(5);
      }
      const isOutput = open.kind === fromSupervisor.output || open.kind === fromSupervisor.error;
      if (rest.length < open.left && !(isOutput && rest.length > 0)) break;
      const payload = rest.subarray(0, open.left);
      rest = rest.subarray(payload.length);
      open.left -= payload.length;
      const { kind, left } = open;
      if (left === 0) open = undefined;
      yield { kind, payload };
    }
  }
  if (!started) throw new NoSupervisorError(rest.subarray(0, 2000).toString("utf8").trim());
}

/** Passes on what follows the preamble. */
export function createPreambleFilter(): Transform {
  let held: Buffer | undefined = Buffer.alloc(0);
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      if (held === undefined) return done(null, chunk);
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      const position = held.indexOf(preamble);
      if (position < 0) {
        // Keeps what may be the beginning of a preamble; the noise before it has no use.
        held = held.subarray(Math.max(0, held.length - preamble.length));
        return done();
      }
      const rest = held.subarray(position + preamble.length);
      held = undefined;
      return rest.length > 0 ? done(null, rest) : done();
    },
  });
}

const exitCode = z.number().int().min(0).max(255);
const signal = z.number().int().min(1).max(127).optional();

export const exitSchema = z.object({ exitCode, signal });

export const infoSchema = z.object({ terminal: z.boolean(), stdin: z.boolean() });

export const failureSchema = z.object({
  code: z.enum(["InvalidArgument", "Conflict", "Unavailable", "Unsupported", "MissingPrerequisite", "Corrupt", "Timeout", "Internal"]),
  message: z.string().max(4096),
  fix: z.string().max(1024).optional(),
});

const date = z.iso.datetime({ offset: true }).transform((text) => new Date(text));

export const stateSchema = z.discriminatedUnion("state", [
  z.object({ state: z.literal("absent") }),
  z.object({ state: z.literal("running"), processId: z.number().int().positive(), startedAt: date }),
  z.object({ state: z.literal("exited"), startedAt: date, finishedAt: date, exitCode, signal, terminationMessage: z.string().max(16384).optional() }),
]);

export const statisticsSchema = z.object({ memoryUsedBytes: z.number().nonnegative(), memoryTotalBytes: z.number().positive() });

/** The JSON of a frame, checked. Errors: Corrupt. */
export function parsePayload<Output>(schema: z.ZodType<Output>, payload: Buffer): Output {
  try {
    return schema.parse(JSON.parse(payload.toString("utf8")));
  } catch (error) {
    throw new PodyardError("Corrupt", "the guest's supervisor sent an answer that cannot be read", { cause: error });
  }
}

export function failureOf(payload: Buffer): PodyardError {
  const { code, message, fix } = parsePayload(failureSchema, payload);
  return new PodyardError(code, message, fix === undefined ? {} : { fix });
}
