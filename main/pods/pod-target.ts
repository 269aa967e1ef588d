/**
 * What probes and hooks may do to a container: run a command in it and connect to its ports. Container 0 answers through
 * its guest and machine, a side-car through the engine and the side-cars' address; the rest of the code does not care.
 */
import type { Duplex } from "node:stream";
import { PodyardError } from "../contract/errors.ts";
import type { Container, EphemeralContainer, IntOrString } from "../contract/kubernetes-api.generated.ts";
import type { ExecRequest, ProcessSession } from "../contract/streams.ts";

export interface ContainerTarget {
  exec(request: ExecRequest): Promise<ProcessSession>;
  /** A TCP connection to a port of the container, or of another host when the probe or hook names one. */
  dial(port: number, host: string | undefined, signal: AbortSignal): Promise<Duplex>;
  /** The address as messages shall name it. */
  readonly address: string;
}

export interface CommandResult {
  readonly exitCode: number;
  /** stdout and stderr as they came, at most 10 KiB. */
  readonly output: string;
}

const OUTPUT_LIMIT = 10 * 1024;

/** Runs a command to its end. Errors: as exec; Timeout or Cancelled by the signal. */
export async function runCommand(target: ContainerTarget, command: readonly string[], signal: AbortSignal): Promise<CommandResult> {
  await using session = await target.exec({ argv: command.map((argument) => Buffer.from(argument)), stdin: false, signal });
  const chunks: Buffer[] = [];
  let size = 0;
  const collect = (chunk: Buffer) => {
    // What exceeds the limit is read and dropped, so that the command does not block on a full pipe.
    if (size < OUTPUT_LIMIT) chunks.push(chunk.subarray(0, OUTPUT_LIMIT - size));
    size += chunk.length;
  };
  session.stdout.on("data", collect);
  session.stderr?.on("data", collect);
  const exit = await unlessAborted(session.exit, signal);
  return { exitCode: exit.exitCode, output: Buffer.concat(chunks).toString("utf8") };
}

/** The number of a port given by number or by the name of a declared port. Errors: InvalidArgument. */
export function resolvePort(container: Container | EphemeralContainer, port: IntOrString): number {
  const number = typeof port === "number" || /^\d+$/.test(port) ? Number(port) : container.ports?.find((declared) => declared.name === port)?.containerPort;
  if (number === undefined || !Number.isInteger(number) || number < 1 || number > 65535) {
    throw new PodyardError("InvalidArgument", `couldn't find port: ${JSON.stringify(port)} of container ${container.name}`);
  }
  return number;
}

/** The promise, or a rejection as soon as the signal aborts; the promise itself goes on unobserved. */
export async function unlessAborted<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  if (signal.aborted) {
    promise.catch(() => {});
    throw abortError(signal);
  }
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(abortError(signal));
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    if (onAbort !== undefined) signal.removeEventListener("abort", onAbort);
  }
}

export function abortError(signal: AbortSignal): PodyardError {
  const timedOut = signal.reason instanceof DOMException && signal.reason.name === "TimeoutError";
  return new PodyardError(timedOut ? "Timeout" : "Cancelled", timedOut ? "The operation timed out." : "The operation was cancelled.");
}

/** Waits; resolves early, without error, when the signal aborts. */
export async function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted === true) return;
  await new Promise<void>((resolve) => {
    const finish = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", finish);
      resolve();
    };
    const timer = setTimeout(finish, Math.min(milliseconds, 2 ** 31 - 1));
    signal?.addEventListener("abort", finish, { once: true });
  });
}

/** As `pause`, and looks at the condition whenever something has changed: no longer true, it resolves at once. */
export async function pauseWhile(holds: () => boolean, milliseconds: number, signal: AbortSignal, changed: () => AbortSignal): Promise<void> {
  const end = Date.now() + milliseconds;
  for (let left = milliseconds; left > 0 && holds() && !signal.aborted; left = end - Date.now()) await pause(left, AbortSignal.any([signal, changed()]));
}
