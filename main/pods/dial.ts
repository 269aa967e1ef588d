/** TCP connections from the host: to side-cars and to the hosts that probes name. */
import { connect, type Socket } from "node:net";
import { PodyardError } from "../contract/errors.ts";
import { abortError } from "./pod-target.ts";

/** Resolves when connected. Errors: Unavailable (`connect: connection refused`, …), Timeout, Cancelled. */
export async function connectTo(host: string, port: number, signal?: AbortSignal): Promise<Socket> {
  const socket = connect({ host, port });
  return await new Promise<Socket>((resolve, reject) => {
    const onAbort = () => {
      socket.destroy();
      if (signal !== undefined) reject(abortError(signal));
    };
    socket.once("connect", () => {
      signal?.removeEventListener("abort", onAbort);
      socket.off("error", onError);
      socket.setNoDelay(true);
      resolve(socket);
    });
    const onError = (error: NodeJS.ErrnoException) => {
      signal?.removeEventListener("abort", onAbort);
      reject(new PodyardError("Unavailable", error.code === "ECONNREFUSED" ? "connect: connection refused" : `connect: ${error.message}`));
    };
    socket.once("error", onError);
    if (signal?.aborted === true) onAbort();
    else signal?.addEventListener("abort", onAbort, { once: true });
  });
}
