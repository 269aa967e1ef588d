/**
 * Exec through our helper (native/pause/main.go): arguments reach the process as exact bytes, its PID comes back in front
 * of its output, so that it can be killed when the client goes away (the Docker API has no call for either), and a
 * terminal has its size before the program runs.
 */
import type { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { PodyardError, messageOf } from "../contract/errors.ts";
import type { Logger } from "../contract/logger.ts";
import type { ExecRequest, ProcessExit, ProcessSession, TerminalSize } from "../contract/streams.ts";
import { helperPath } from "./container-options.ts";
import { pathName, type EngineClient } from "./engine-client.ts";
import { engineError, request } from "./engine-connection.ts";
import { createInput, createOutput, deliver, endOutput, readOutput } from "./process-streams.ts";

/** Below the kernel's limit of 128 KiB for one argument after base64. */
const pieceBytes = 90 * 1024;
const preambleBytes = "podyard-pid:0000000000;".length;

/**
 * Docker's default detach keys (ctrl-p ctrl-q) would swallow what a user types, and there is no way to have none: so a
 * sequence that nobody types.
 */
export const unlikelyDetachKeys = "ctrl-@,ctrl-],ctrl-@,ctrl-_,ctrl-@,ctrl-^,ctrl-@";

const createdSchema = z.object({ Id: z.string() });
const execSchema = z.object({ Running: z.boolean(), ExitCode: z.number().nullable() });

export async function execInContainer(docker: EngineClient, id: string, exec: ExecRequest, logger: Logger): Promise<ProcessSession> {
  const action = `execute in container ${id.slice(0, 12)}`;
  if (exec.argv.length === 0) throw new PodyardError("InvalidArgument", `Cannot ${action}: no command given`);
  if (exec.argv.some((argument) => argument.includes(0))) throw new PodyardError("InvalidArgument", `Cannot ${action}: an argument holds a NUL byte`);
  if (exec.signal?.aborted === true) throw new PodyardError("Cancelled", `Cancelled: ${action}`);
  const terminal = exec.terminal !== undefined;
  const execId = await request(action, () =>
    createExec(docker, id, {
      Cmd: [helperPath, "exec", ...helperArguments(exec)],
      AttachStdin: exec.stdin,
      AttachStdout: true,
      AttachStderr: !terminal,
      Tty: terminal,
      DetachKeys: unlikelyDetachKeys,
      Env: Object.entries(exec.environment ?? {}).map(([name, value]) => `${name}=${value}`),
      ...(exec.workingDirectory === undefined ? {} : { WorkingDir: exec.workingDirectory }),
    }),
  );
  const socket = await request(action, () => startExec(docker, execId, terminal));
  return createSession({ docker, execId, id, action, logger, socket, terminal, stdin: exec.stdin, signal: exec.signal });
}

interface SessionOptions {
  readonly docker: EngineClient;
  readonly execId: string;
  readonly id: string;
  readonly action: string;
  readonly logger: Logger;
  readonly socket: Socket;
  readonly terminal: boolean;
  readonly stdin: boolean;
  readonly signal: AbortSignal | undefined;
}

function createSession(options: SessionOptions): ProcessSession {
  const { docker, execId, id, action, logger, socket, terminal } = options;
  const output = createOutput(terminal);
  const started = Promise.withResolvers<number>();
  started.promise.catch(() => undefined);
  const stdin = options.stdin ? createInput(socket, started.promise) : undefined;
  let hasEnded = false;
  let resizing: Promise<unknown> = started.promise;
  let disposal: Promise<void> | undefined;

  async function pump(): Promise<ProcessExit> {
    let preamble = Buffer.alloc(0);
    let isStarted = false;
    try {
      for await (const frame of readOutput(socket, terminal)) {
        let { data } = frame;
        if (!isStarted && frame.stream === "stdout") {
          const missing = preambleBytes - preamble.length;
          preamble = Buffer.concat([preamble, data.subarray(0, missing)]);
          data = data.subarray(missing);
          if (preamble.length < preambleBytes) continue;
          const match = /^podyard-pid:(\d{10});$/.exec(preamble.toString("latin1"));
          if (match === null) throw startError(preamble, data);
          isStarted = true;
          started.resolve(Number(match[1]));
        }
        if (data.length > 0) await deliver(output, { ...frame, data });
      }
      if (!isStarted) throw startError(preamble);
      return { exitCode: await exitCodeOf(docker, execId, action) };
    } catch (error) {
      // The process itself may have ended well while its output could not be read: then its end is what counts less.
      const failure = error instanceof PodyardError ? error : engineError(error, action);
      started.reject(failure);
      throw failure;
    } finally {
      hasEnded = true;
      options.signal?.removeEventListener("abort", abort);
      endOutput(output);
      stdin?.destroy();
      socket.destroy();
    }
  }

  function startError(...parts: readonly Buffer[]): PodyardError {
    const text = Buffer.concat([...parts])
      .toString()
      .trim();
    return new PodyardError(
      disposal === undefined ? "Internal" : "Cancelled",
      text === "" ? `Cannot ${action}: the process was not started` : `Cannot ${action}: ${text}`,
    );
  }

  async function dispose(): Promise<void> {
    if (hasEnded) return;
    // A reader that went away must not hold the pump.
    output.stdout.destroy();
    output.stderr?.destroy();
    try {
      await killProcess(docker, id, await started.promise);
      // A process that waits for a broken disk cannot be killed; its client is gone all the same.
      await Promise.race([exit.catch(() => undefined), delay(10_000, undefined, { ref: false })]);
    } catch (error) {
      if (!hasEnded) logger.warn("could not kill the process of a client that went away", { container: id, error: messageOf(error) });
    } finally {
      socket.destroy();
    }
  }

  const exit = pump();
  exit.catch(() => undefined);
  const session: ProcessSession = {
    stdin,
    stdout: output.stdout,
    stderr: output.stderr,
    exit,
    resize(size) {
      // One after the other, so that the last one asked for is the last one made.
      resizing = resizing.then(() => (hasEnded ? undefined : resizeExec(docker, execId, size))).catch(() => undefined);
    },
    [Symbol.asyncDispose]() {
      disposal ??= dispose();
      return disposal;
    },
  };
  const abort = (): void => void session[Symbol.asyncDispose]();
  options.signal?.addEventListener("abort", abort, { once: true });
  if (options.signal?.aborted === true) abort();
  return session;
}

function helperArguments(exec: ExecRequest): string[] {
  const result = exec.stdin ? [] : ["-null"];
  if (exec.terminal !== undefined) result.push(`-size=${exec.terminal.columns}x${exec.terminal.rows}`);
  for (const argument of exec.argv) {
    result.push(`=${argument.subarray(0, pieceBytes).toString("base64")}`);
    for (let start = pieceBytes; start < argument.length; start += pieceBytes)
      result.push(`+${argument.subarray(start, start + pieceBytes).toString("base64")}`);
  }
  return result;
}

async function createExec(docker: EngineClient, id: string, body: Readonly<Record<string, unknown>>): Promise<string> {
  return createdSchema.parse(await docker.ask({ method: "POST", path: `/containers/${pathName(id)}/exec`, body })).Id;
}

function startExec(docker: EngineClient, execId: string, terminal: boolean): Promise<Socket> {
  return docker.hijack({ method: "POST", path: `/exec/${pathName(execId)}/start`, body: { Detach: false, Tty: terminal } });
}

/** The output's end may come before the engine noted the exit. */
async function exitCodeOf(docker: EngineClient, execId: string, action: string): Promise<number> {
  for (let pause = 5; ; pause = Math.min(pause * 2, 500)) {
    const { Running, ExitCode } = execSchema.parse(await request(action, () => docker.ask({ method: "GET", path: `/exec/${pathName(execId)}/json` })));
    if (!Running && ExitCode !== null) return ExitCode;
    await delay(pause);
  }
}

async function resizeExec(docker: EngineClient, execId: string, size: TerminalSize): Promise<void> {
  await docker.ask({ method: "POST", path: `/exec/${pathName(execId)}/resize`, query: { h: size.rows, w: size.columns } });
}

/**
 * Kills the session of the process from within its PID namespace: as the container's own user, which needs no capability;
 * then as root for a process that changed its user; then with all capabilities for a container that dropped them.
 */
async function killProcess(docker: EngineClient, id: string, processId: number): Promise<void> {
  const attempts = [{}, { User: "0:0" }, { User: "0:0", Privileged: true }];
  for (const attempt of attempts) {
    if ((await runHelper(docker, id, ["kill", String(processId)], attempt)) === 0) return;
  }
  throw new PodyardError("Internal", `Cannot kill process ${processId} of container ${id.slice(0, 12)}`);
}

async function runHelper(docker: EngineClient, id: string, argv: readonly string[], as: { readonly User?: string; readonly Privileged?: boolean }): Promise<number> {
  const action = `run the helper in container ${id.slice(0, 12)}`;
  const execId = await request(action, () => createExec(docker, id, { Cmd: [helperPath, ...argv], AttachStdout: true, AttachStderr: true, ...as }));
  const socket = await request(action, () => startExec(docker, execId, false));
  socket.resume();
  await new Promise<void>((resolve) => void socket.once("close", resolve).once("error", () => resolve()));
  return exitCodeOf(docker, execId, action);
}
