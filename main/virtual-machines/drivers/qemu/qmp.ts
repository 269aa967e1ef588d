/**
 * The QEMU Machine Protocol (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html): one JSON object per line over a
 * unix socket; a greeting, then commands with an id, their answers, and events in between. QEMU serves one client at a
 * time, so a new host gets through once the old one is gone.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";
import { createInterface } from "node:readline";
import { z } from "zod";
import { PodyardError } from "../../../contract/errors.ts";

const messageSchema = z.union([
  z.object({ QMP: z.object({ version: z.object({ qemu: z.object({ major: z.number(), minor: z.number(), micro: z.number() }) }) }) }),
  z.object({ event: z.string(), data: z.record(z.string(), z.unknown()).optional() }),
  z.object({ return: z.unknown(), id: z.number().optional() }),
  z.object({ error: z.object({ class: z.string(), desc: z.string() }), id: z.number().optional() }),
]);

const statusSchema = z.object({ status: z.string(), running: z.boolean() });

interface Waiter {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class QmpClient {
  /** Settles when the connection is gone, for whatever reason. Never rejects. */
  readonly closed: Promise<void>;
  readonly #socket: Socket;
  readonly #waiters = new Map<number, Waiter>();
  readonly #onEvent: (name: string) => void;
  #nextId = 1;
  #greeted: () => void = () => undefined;
  #isClosed = false;

  private constructor(socket: Socket, onEvent: (name: string) => void) {
    this.#socket = socket;
    this.#onEvent = onEvent;
    socket.on("error", () => undefined);
    this.closed = new Promise((resolve) => {
      socket.once("close", () => {
        this.#isClosed = true;
        for (const waiter of this.#waiters.values()) waiter.reject(new PodyardError("Unavailable", "QEMU closed its control connection."));
        this.#waiters.clear();
        resolve();
      });
    });
    const lines = createInterface({ input: socket, crlfDelay: Infinity });
    lines.on("line", (line) => this.#receive(line));
    // It repeats the socket's errors, which `closed` already tells of.
    lines.on("error", () => undefined);
  }

  /** Connects and negotiates. Errors: Unavailable (no socket, or another client is served and the time is up). */
  static async connect(path: string, onEvent: (name: string) => void, timeoutMilliseconds: number): Promise<QmpClient> {
    const socket = connect({ path });
    const lost = new Promise<never>((_, reject) => {
      socket.on("error", (error) => reject(new PodyardError("Unavailable", `QEMU's control socket ${path} does not answer.`, { cause: error })));
      socket.once("close", () => reject(new PodyardError("Unavailable", `QEMU closed its control socket ${path}.`)));
      setTimeout(() => reject(new PodyardError("Timeout", `QEMU's control socket ${path} is silent.`)), timeoutMilliseconds).unref();
    });
    lost.catch(() => undefined);
    const client = new QmpClient(socket, onEvent);
    try {
      await Promise.race([new Promise<void>((resolve) => (client.#greeted = resolve)), lost]);
      await Promise.race([client.command("qmp_capabilities"), lost]);
      return client;
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  /** Errors: Unavailable (connection lost), Timeout (10 s), Conflict (QEMU refused, with its sentence). */
  command(name: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.#isClosed) return Promise.reject(new PodyardError("Unavailable", "QEMU's control connection is closed."));
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.#settle(id, (waiter) => waiter.reject(new PodyardError("Timeout", `QEMU did not answer ${name} within 10 s.`))),
        10_000,
      );
      this.#waiters.set(id, {
        resolve: (value) => (clearTimeout(timer), resolve(value)),
        reject: (error) => (clearTimeout(timer), reject(error)),
      });
      this.#socket.write(`${JSON.stringify({ execute: name, ...(args && { arguments: args }), id })}\n`);
    });
  }

  async status(): Promise<string> {
    return statusSchema.parse(await this.command("query-status")).status;
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(line: string): void {
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      return;
    }
    const { data: message } = messageSchema.safeParse(value);
    if (message === undefined) return;
    if ("QMP" in message) this.#greeted();
    else if ("event" in message) this.#onEvent(message.event);
    else if ("error" in message) this.#settle(message.id, (waiter) => waiter.reject(new PodyardError("Conflict", `QEMU refused: ${message.error.desc}`)));
    else this.#settle(message.id, (waiter) => waiter.resolve(message.return));
  }

  #settle(id: number | undefined, settle: (waiter: Waiter) => void): void {
    const waiter = id === undefined ? undefined : this.#waiters.get(id);
    if (id === undefined || waiter === undefined) return;
    this.#waiters.delete(id);
    settle(waiter);
  }
}
