/**
 * The contract over HTTP and WebSocket, for a page that the host's gateway served: the session cookie is the token. Events
 * resume after the last one seen, so that nothing is missed while the host restarts.
 */
import type { z } from "zod";
import type { HostApi, HostEvent } from "../../main/contract/host-api.ts";

type Calls = HostApi["calls"];

export class HostError extends Error {
  readonly code: string;
  readonly fix: string | undefined;
  constructor(code: string, message: string, fix: string | undefined) {
    super(message);
    this.code = code;
    this.fix = fix;
  }
}

export interface HostClient {
  call<Name extends keyof Calls>(name: Name, request: z.input<Calls[Name]["request"]>): Promise<z.output<Calls[Name]["response"]>>;
  /** Calls back for each event and whenever the connection comes or goes. Returns the unsubscriber. */
  subscribe(onEvent: (event: HostEvent) => void, onConnection: (connected: boolean) => void): () => void;
}

export function createHostClient(location: { readonly origin: string }): HostClient {
  return {
    async call(name, request) {
      const response = await fetch(`${location.origin}/api/${name}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(request) });
      const body = (await response.json()) as { result?: never; error?: { code: string; message: string; fix?: string } };
      if (body.error !== undefined) throw new HostError(body.error.code, body.error.message, body.error.fix);
      return body.result as never;
    },
    subscribe(onEvent, onConnection) {
      let since: number | undefined;
      let socket: WebSocket | undefined;
      let closed = false;
      let delay = 250;
      const connect = (): void => {
        const url = new URL("/api/events", location.origin.replace(/^http/, "ws"));
        if (since !== undefined) url.searchParams.set("since", String(since));
        socket = new WebSocket(url);
        socket.addEventListener("open", () => {
          delay = 250;
          onConnection(true);
        });
        socket.addEventListener("message", (message) => {
          const { sequence, event } = JSON.parse(String(message.data)) as { sequence: number; event: HostEvent };
          since = sequence;
          onEvent(event);
        });
        socket.addEventListener("close", () => {
          if (closed) return;
          onConnection(false);
          setTimeout(connect, delay);
          delay = Math.min(delay * 2, 5000);
        });
      };
      connect();
      return () => {
        closed = true;
        socket?.close();
      };
    },
  };
}
