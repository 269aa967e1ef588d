/**
 * A guest over SSH: every call is one channel that runs one subcommand of the supervisor. What can be repeated without
 * harm is repeated over a new connection; an exec is not.
 */
import { randomBytes } from "node:crypto";
import { open } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, messageOf, PodyardError } from "../../contract/errors.ts";
import type { Logger } from "../../contract/logger.ts";
import type { AttachRequest, ExecRequest, ProcessSession } from "../../contract/streams.ts";
import type { Guest, GuestMount, MainProcessSpecification, MainProcessState } from "../guest.ts";
import type { VirtualMachine } from "../virtual-machine.ts";
import type { SshConnections, StartServer } from "./ssh-connections.ts";
import { connectionLost, noSupervisor, readAnswer, startSupervisor } from "./supervisor-channel.ts";
import type { SupervisorChannel } from "./supervisor-channel.ts";
import { installSupervisor } from "./supervisor-installation.ts";
import type { Installation, SupervisorBinary } from "./supervisor-installation.ts";
import { createPreambleFilter, failureOf, fromSupervisor, infoSchema, NoSupervisorError, parsePayload, stateSchema, statisticsSchema } from "./supervisor-protocol.ts";
import { clampSize, createSession } from "./supervisor-session.ts";

export interface SshGuestOptions {
  readonly machine: Pick<VirtualMachine, "state">;
  readonly connections: SshConnections;
  readonly binaries: () => Promise<readonly SupervisorBinary[]>;
  readonly logger: Logger;
}

type ExitedState = Extract<MainProcessState, { state: "exited" }>;

const readyRetry = 250;
const shortestPause = 250;
const longestPause = 5_000;
const repeats = 3;

export function createSshGuest({ machine, connections, binaries, logger }: SshGuestOptions): Guest {
  let installing: Promise<Installation> | undefined;
  const lifetime = new AbortController();

  const installation = (signal?: AbortSignal): Promise<Installation> => {
    installing ??= binaries()
      .then((built) => installSupervisor((command) => connections.openChannel(command, lifetime.signal), built))
      .catch((error: unknown) => {
        installing = undefined;
        throw error;
      });
    return signal === undefined ? installing : whileAllowed(installing, signal);
  };

  /** Starts a subcommand and waits until it speaks. If the binary is gone (the guest was reset), it is put there again. */
  const start = async (subcommand: string, header: unknown, signal?: AbortSignal): Promise<SupervisorChannel> => {
    for (let attempt = 0; ; attempt += 1) {
      const { path } = await installation(signal);
      const channel = await connections.openChannel(`exec ${path} ${subcommand}`, signal);
      try {
        return await whileAllowed(startSupervisor(channel, header), signal, () => channel.close());
      } catch (error) {
        if (!(error instanceof NoSupervisorError)) throw error;
        installing = undefined;
        if (attempt > 0) throw noSupervisor(error);
        logger.info("The guest's supervisor did not answer; it is installed again", { said: error.noise.slice(0, 200) });
      }
    }
  };

  const startServer: StartServer = async (openChannel) => {
    const { path } = await installation();
    const name = `serve-${randomBytes(6).toString("hex")}`;
    const channel = await openChannel(`exec ${path} serve ${name}`);
    channel.resume();
    const supervisor = await startSupervisor(channel, undefined);
    const { value: frame } = await supervisor.frames.next();
    if (frame?.kind === fromSupervisor.failure) throw failureOf(frame.payload);
    if (frame?.kind !== fromSupervisor.answer) throw connectionLost();
    return `${path.slice(0, path.lastIndexOf("/"))}/${name}`;
  };

  /** The fast way: a stream to a supervisor that runs already; undefined if there is none. */
  const startOverStream = async (header: unknown, signal?: AbortSignal): Promise<SupervisorChannel | undefined> => {
    const channel = await connections.openStream(startServer, signal);
    if (channel === undefined) return undefined;
    try {
      return await whileAllowed(startSupervisor(channel, header), signal, () => channel.close());
    } catch (error) {
      // Whether the header arrived is not known, so this exec is not tried again.
      if (error instanceof NoSupervisorError) throw connectionLost(error);
      throw error;
    }
  };

  const callOnce = async (subcommand: string, header: unknown, signal?: AbortSignal): Promise<Buffer> => {
    const supervisor = await start(subcommand, header, signal);
    supervisor.channel.resume();
    try {
      return await whileAllowed(readAnswer(supervisor), signal, () => supervisor.close());
    } finally {
      supervisor.close();
    }
  };

  /** For subcommands that may run twice. */
  const call = async (subcommand: string, header?: unknown): Promise<Buffer> => {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await callOnce(subcommand, header, lifetime.signal);
      } catch (error) {
        lifetime.signal.throwIfAborted();
        if (attempt >= repeats || !hasCode(error, "Unavailable")) throw error;
        await delay(shortestPause * attempt, undefined, { signal: lifetime.signal });
      }
    }
  };

  /** Repeats work that a broken connection interrupts, until it is done, final or given up. */
  const persist = async <Result>(what: string, outer: AbortSignal, work: (signal: AbortSignal, progress: () => void) => Promise<Result>): Promise<Result> => {
    const signal = AbortSignal.any([outer, lifetime.signal]);
    let pause = shortestPause;
    for (;;) {
      signal.throwIfAborted();
      try {
        return await work(signal, () => (pause = shortestPause));
      } catch (error) {
        signal.throwIfAborted();
        if (!hasCode(error, "Unavailable")) throw error;
        if (machine.state === "stopped") throw new PodyardError("Unavailable", "the virtual machine is stopped", { cause: error });
        logger.debug(`${what}: the guest is away, trying again`, { reason: messageOf(error), pause });
        await delay(pause * (0.75 + Math.random() / 2), undefined, { signal });
        pause = Math.min(longestPause, pause * 2);
      }
    }
  };

  return {
    async waitReady(outer) {
      const signal = AbortSignal.any([outer, lifetime.signal]);
      for (;;) {
        signal.throwIfAborted();
        try {
          await connections.connect(signal);
          await installation(signal);
          connections.prepareStreams(startServer);
          return;
        } catch (error) {
          signal.throwIfAborted();
          if (!hasCode(error, "Unavailable")) throw error;
          logger.debug("The guest is not ready yet", { reason: messageOf(error) });
          await delay(readyRetry, undefined, { signal });
        }
      }
    },

    async mount(mounts: readonly GuestMount[]) {
      for (const { mountPath } of mounts) {
        if (!mountPath.startsWith("/") || mountPath.includes("\0")) throw new PodyardError("InvalidArgument", `mountPath ${JSON.stringify(mountPath)} is not an absolute path`);
      }
      if (mounts.length > 0) await call("mount", mounts);
    },

    async configure(configuration) {
      await call("configure", configuration);
    },

    async exec(request: ExecRequest): Promise<ProcessSession> {
      const header = {
        argv: encodeArguments(request.argv),
        environment: checkEnvironment(request.environment ?? {}),
        stdin: request.stdin,
        ...(request.terminal === undefined ? {} : { terminal: { columns: clampSize(request.terminal.columns), rows: clampSize(request.terminal.rows) } }),
        ...(request.workingDirectory === undefined ? {} : { workingDirectory: request.workingDirectory }),
      };
      const supervisor = (await startOverStream(header, request.signal)) ?? (await start("exec", header, request.signal));
      return createSession(supervisor, { stdin: request.stdin, terminal: request.terminal !== undefined, ...(request.signal === undefined ? {} : { signal: request.signal }) });
    },

    async startMainProcess(specification: MainProcessSpecification) {
      const { userId: loginId } = await installation();
      const { userId, groupId, terminal } = specification;
      const elevated = loginId !== 0 && ((userId !== undefined && userId !== loginId) || groupId !== undefined);
      await call(elevated ? "run elevated" : "run", {
        attempt: specification.attempt,
        argv: encodeArguments(specification.argv),
        environment: checkEnvironment(specification.environment),
        workingDirectory: specification.workingDirectory ?? "",
        createDirectory: true,
        stdin: specification.stdin,
        stdinOnce: specification.stdinOnce,
        ...(terminal ? { terminal: { columns: 80, rows: 24 } } : {}),
        ...(userId === undefined ? {} : { userId }),
        ...(groupId === undefined ? {} : { groupId }),
        terminationMessagePath: specification.terminationMessagePath,
      });
    },

    async mainProcess() {
      return stateOf(await call("state"));
    },

    async waitMainProcess(outer) {
      return await persist<ExitedState>("wait", outer, async (signal) => {
        const state = stateOf(await callOnce("wait", undefined, signal));
        if (state.state !== "exited") throw new PodyardError("Corrupt", `the guest's supervisor stopped waiting while the process was ${state.state}`);
        return state;
      });
    },

    async signalMainProcess(signalNumber) {
      if (!Number.isInteger(signalNumber) || signalNumber < 1 || signalNumber > 64) throw new PodyardError("InvalidArgument", `signal ${signalNumber} is not between 1 and 64`);
      try {
        await call("signal", { signal: signalNumber });
      } catch (error) {
        // A process that ended meanwhile has what the signal was for.
        if (!hasCode(error, "Conflict")) throw error;
      }
    },

    async attach(request: AttachRequest) {
      const { stdin, stdout, stderr } = request;
      const supervisor = await start("attach", { stdin, stdout, stderr }, request.signal);
      const { value: frame } = await whileAllowed(supervisor.frames.next(), request.signal, () => supervisor.close());
      if (frame?.kind !== fromSupervisor.info) {
        supervisor.close();
        throw frame?.kind === fromSupervisor.failure ? failureOf(frame.payload) : new PodyardError("Unavailable", "the guest's supervisor ended the attachment at once");
      }
      const { terminal } = parsePayload(infoSchema, frame.payload);
      return createSession(supervisor, { stdin, terminal, ...(request.signal === undefined ? {} : { signal: request.signal }) });
    },

    async resizeMainTerminal(columns, rows) {
      await call("resize", { columns: clampSize(columns), rows: clampSize(rows) });
    },

    async copyOutput(logFile, outer) {
      const file = await open(logFile, "a", 0o600);
      try {
        await persist("copy of the output", outer, async (signal, progress) => {
          const supervisor = await start("logs", { offset: (await file.stat()).size, follow: true }, signal);
          try {
            await whileAllowed(appendOutput(supervisor, file, progress), signal, () => supervisor.close());
          } finally {
            supervisor.close();
          }
        });
      } finally {
        await file.close();
      }
    },

    async shutDown() {
      await callOnce("shutdown", undefined, lifetime.signal);
    },

    async statistics() {
      try {
        return parsePayload(statisticsSchema, await callOnce("statistics", undefined, lifetime.signal));
      } catch (error) {
        logger.debug("The guest gives no statistics", { reason: messageOf(error) });
        return undefined;
      }
    },

    async [Symbol.asyncDispose]() {
      lifetime.abort(new PodyardError("Cancelled", "the guest's connection was closed"));
      await connections[Symbol.asyncDispose]();
    },
  };
}

/** Resolves when the supervisor says that this was all: an end of the stream alone may be a broken connection. */
async function appendOutput(supervisor: SupervisorChannel, file: FileHandle, progress: () => void): Promise<void> {
  const output = supervisor.channel.pipe(createPreambleFilter());
  const answer = readAnswer(supervisor);
  // Awaited below, after the bytes; until then its failure is nobody's surprise.
  answer.catch(() => {});
  for await (const chunk of output as AsyncIterable<Buffer>) {
    await file.appendFile(chunk);
    progress();
  }
  await answer;
}

function stateOf(payload: Buffer): MainProcessState {
  const answer = parsePayload(stateSchema, payload);
  if (answer.state !== "exited") return answer;
  const { exitCode, signal, startedAt, finishedAt, terminationMessage } = answer;
  return {
    state: "exited",
    startedAt,
    finishedAt,
    exit: signal === undefined ? { exitCode } : { exitCode, signal },
    ...(terminationMessage === undefined ? {} : { terminationMessage }),
  };
}

function encodeArguments(argv: readonly Buffer[]): readonly string[] {
  if (argv.length === 0) throw new PodyardError("InvalidArgument", "the command is empty");
  const position = argv.findIndex((argument) => argument.includes(0));
  if (position >= 0) throw new PodyardError("InvalidArgument", `argument ${position} of the command contains a zero byte, which no process can receive`);
  return argv.map((argument) => argument.toString("base64"));
}

function checkEnvironment(environment: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  for (const [name, value] of Object.entries(environment)) {
    if (name === "" || /[=\0]/.test(name) || value.includes("\0")) throw new PodyardError("InvalidArgument", `the environment variable ${JSON.stringify(name)} has a name or value that no process can receive`);
  }
  return environment;
}

/** The promise's value, unless the signal aborts first; `abandon` then ends what the promise waits for. */
async function whileAllowed<Value>(promise: Promise<Value>, signal?: AbortSignal, abandon?: () => void): Promise<Value> {
  if (signal === undefined) return await promise;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = (): void => {
    abandon?.();
    reject(signal.reason);
  };
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}
