/**
 * The serial console for any number of clients. QEMU's socket takes one connection, which this holds while somebody
 * looks. A client that does not read loses output, as on a real line, instead of holding up the guest or the others;
 * the whole is in the console's log file.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { PodyardError } from "../../../contract/errors.ts";

const clientBufferBytes = 1 << 20;

export class SerialConsole {
  readonly #path: string;
  readonly #clients = new Set<Duplex>();
  #connection: Promise<Socket> | undefined;

  constructor(path: string) {
    this.#path = path;
  }

  /** Errors: Unavailable. */
  async open(): Promise<Duplex> {
    const socket = await this.#connect();
    const client: Duplex = new Duplex({
      readableHighWaterMark: clientBufferBytes,
      read: () => undefined,
      write: (chunk: Buffer, _encoding, done) => {
        socket.write(chunk, done);
      },
      final: (done) => {
        client.push(null);
        done();
      },
      destroy: (error, done) => {
        this.#clients.delete(client);
        if (this.#clients.size === 0) this.close();
        done(error);
      },
    });
    this.#clients.add(client);
    return client;
  }

  /** Ends the connection and every client's output. */
  close(): void {
    for (const client of this.#clients) client.push(null);
    this.#clients.clear();
    void this.#connection?.then(
      (socket) => socket.destroy(),
      () => undefined,
    );
    this.#connection = undefined;
  }

  #connect(): Promise<Socket> {
    return (this.#connection ??= new Promise((resolve, reject) => {
      const socket = connect({ path: this.#path });
      socket.setMaxListeners(0);
      socket.once("connect", () => resolve(socket));
      socket.on("error", (error) => reject(new PodyardError("Unavailable", "The serial console does not answer.", { cause: error })));
      socket.on("data", (chunk) => {
        for (const client of this.#clients) if (client.readableLength + chunk.length <= clientBufferBytes) client.push(chunk);
      });
      socket.once("close", () => {
        reject(new PodyardError("Unavailable", "The serial console was closed."));
        this.close();
      });
    }));
  }
}
