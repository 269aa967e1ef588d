/**
 * Makes a screen connection view-only: lets a viewer's handshake, pixel format, encoding and update requests through and
 * drops key (4), pointer (5) and cut-text (6) messages. It parses the client's half of RFB and refuses what it does not
 * know, since skipping a message of unknown length would let input hide inside it.
 * https://datatracker.ietf.org/doc/html/rfc6143#section-7.5
 */
import { Duplex, Transform, type TransformCallback } from "node:stream";
import { PodyardError } from "../contract/errors.ts";

const SECURITY_NONE = 1;
const SECURITY_VNC = 2;
/** A cut text or an encoding list above this is not a viewer's. */
const LARGEST_MESSAGE = 1 << 20;

type Stage = "version" | "security" | "challenge" | "init" | "messages";

/** The client-to-server half: pass bytes in, get the permitted ones out. Throws PodyardError Forbidden on unknown messages. */
export class RfbViewOnlyFilter {
  #pending: Buffer = Buffer.alloc(0);
  #stage: Stage = "version";
  #minorVersion = 8;
  /** Bytes of a dropped message still to come. */
  #skip = 0;

  push(chunk: Buffer): Buffer {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    const passed: Buffer[] = [];
    for (;;) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, this.#pending.length);
        this.#skip -= skipped;
        this.#pending = this.#pending.subarray(skipped);
        if (this.#skip > 0) break;
      }
      const length = this.#stage === "messages" ? this.#message() : this.#handshake();
      if (length === undefined) break;
      if (length > 0) passed.push(this.#take(length));
    }
    return Buffer.concat(passed);
  }

  #take(length: number): Buffer {
    const taken = this.#pending.subarray(0, length);
    this.#pending = this.#pending.subarray(length);
    return taken;
  }

  /** Bytes to pass, or undefined if more are needed. */
  #handshake(): number | undefined {
    const available = this.#pending.length;
    switch (this.#stage) {
      case "version": {
        if (available < 12) return undefined;
        const match = /^RFB 003\.(\d{3})\n$/.exec(this.#pending.toString("latin1", 0, 12));
        if (match === null) throw new PodyardError("Forbidden", "The screen's viewer does not speak RFB 3.x.");
        this.#minorVersion = Number(match[1]);
        // Before 3.7 the server alone chooses the security type; ours offers none or VNC only from 3.7 on.
        if (this.#minorVersion < 7) throw new PodyardError("Unsupported", "A view-only screen needs a viewer that speaks RFB 3.7 or 3.8.");
        this.#stage = "security";
        return 12;
      }
      case "security": {
        const type = this.#pending[0];
        if (type === undefined) return undefined;
        if (type !== SECURITY_NONE && type !== SECURITY_VNC) throw new PodyardError("Forbidden", `A view-only screen does not allow RFB security type ${type}.`);
        this.#stage = type === SECURITY_VNC ? "challenge" : "init";
        return 1;
      }
      case "challenge":
        if (available < 16) return undefined;
        this.#stage = "init";
        return 16;
      default:
        if (available < 1) return undefined;
        this.#stage = "messages";
        // Shared, always: a mere viewer must not throw out whoever is connected.
        this.#pending = Buffer.concat([Buffer.from([1]), this.#pending.subarray(1)]);
        return 1;
    }
  }

  /** Bytes to pass, 0 if a message was dropped, undefined if more are needed. */
  #message(): number | undefined {
    const available = this.#pending.length;
    const type = this.#pending[0];
    switch (type) {
      case undefined:
        return undefined;
      case 0: // SetPixelFormat
        return available < 20 ? undefined : 20;
      case 2: {
        // SetEncodings
        if (available < 4) return undefined;
        const length = 4 + 4 * this.#pending.readUInt16BE(2);
        return available < length ? undefined : length;
      }
      case 3: // FramebufferUpdateRequest
        return available < 10 ? undefined : 10;
      case 4: // KeyEvent
        return this.#drop(8);
      case 5: // PointerEvent
        return this.#drop(6);
      case 6: {
        // ClientCutText; a negative length announces the extended form of that many bytes.
        if (available < 8) return undefined;
        const length = Math.abs(this.#pending.readInt32BE(4));
        if (length > LARGEST_MESSAGE) throw new PodyardError("Forbidden", `A clipboard message of ${length} bytes is too long.`);
        return this.#drop(8 + length);
      }
      case 150: // EnableContinuousUpdates
        return available < 10 ? undefined : 10;
      case 248: {
        // ClientFence
        if (available < 9) return undefined;
        const length = 9 + (this.#pending[8] ?? 0);
        return available < length ? undefined : length;
      }
      case 255: {
        // QEMU: extended key event (0) is input; audio (1) is not.
        if (available < 2) return undefined;
        if (this.#pending[1] === 0) return this.#drop(12);
        if (this.#pending[1] !== 1) throw unknownMessage(type);
        if (available < 4) return undefined;
        return this.#pending.readUInt16BE(2) === 2 ? (available < 10 ? undefined : 10) : 4;
      }
      default:
        throw unknownMessage(type);
    }
  }

  #drop(length: number): 0 {
    this.#skip = length;
    return 0;
  }
}

function unknownMessage(type: number): PodyardError {
  return new PodyardError("Forbidden", `A view-only screen does not allow RFB message type ${type}.`);
}

/** Wraps a screen connection so that the viewer's input never reaches it. */
export function viewOnly(screen: Duplex): Duplex {
  const filter = new RfbViewOnlyFilter();
  const input = new Transform({
    transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback) {
      try {
        done(null, filter.push(chunk));
      } catch (error) {
        done(error instanceof Error ? error : new Error(String(error)));
      }
    },
  });
  const destroy = (error?: Error | null) => {
    screen.destroy(error ?? undefined);
    input.destroy(error ?? undefined);
  };
  input.on("error", destroy);
  screen.on("error", destroy);
  screen.on("close", () => input.destroy());
  input.pipe(screen);
  const filtered = Duplex.from({ writable: input, readable: screen });
  filtered.on("close", () => destroy());
  return filtered;
}
