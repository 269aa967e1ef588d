/** Finds the running host of a data directory and talks to it; Ctrl-C cancels what was asked. */
import { PodyardError } from "../contract/errors.ts";
import type { HostApi } from "../contract/host-api.ts";
import type { GatewayClient } from "../gateway/client.ts";
import { dataDirectory } from "../settings/directories.ts";
import { ExitCode } from "./terminal.ts";

export type HostClient = GatewayClient<HostApi>;

/** Runs an action with the host of `--data-dir`. Errors: Unavailable if none runs. */
export async function withHost(options: { readonly dataDir?: string }, action: (host: HostClient, signal: AbortSignal) => Promise<void>): Promise<void> {
  const directory = dataDirectory(options.dataDir, process.env);
  // Only here: the client and the schemas are most of what a command loads, and help, completion or `run` need neither.
  const [{ hostApi }, { connectGateway }] = await Promise.all([import("../contract/host-api.ts"), import("../gateway/client.ts")]);
  await using host = await connectGateway(hostApi, { dataDirectory: directory });
  await withInterrupt((signal) => action(host, signal));
}

/** The first Ctrl-C aborts the signal, so that the action can clean up; the second ends the process. */
export async function withInterrupt(action: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController();
  const interrupt = (): void => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort(new PodyardError("Cancelled", "interrupted"));
  };
  process.on("SIGINT", interrupt);
  try {
    await action(controller.signal);
  } catch (error) {
    if (controller.signal.aborted) throw new ExitCode(130);
    throw error;
  } finally {
    process.off("SIGINT", interrupt);
  }
}
