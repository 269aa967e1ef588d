/** Attach to a container's main process. Leaving detaches only; the exit is the container's. */
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import type { AttachRequest, ProcessExit, ProcessSession } from "../contract/streams.ts";
import { unlikelyDetachKeys } from "./container-exec.ts";
import type { InspectedContainer } from "./container-info.ts";
import { pathName, type EngineClient } from "./engine-client.ts";
import { engineError, request } from "./engine-connection.ts";
import { createInput, createOutput, deliver, endOutput, readOutput } from "./process-streams.ts";

const waitSchema = z.object({ StatusCode: z.number() });

/** Errors: NotFound, Conflict (it does not run; or stdin asked for and the container has none). */
export async function attachToContainer(docker: EngineClient, container: InspectedContainer, attach: AttachRequest): Promise<ProcessSession> {
  const { info, terminal } = container;
  const action = `attach to container "${info.name}"`;
  if (info.state !== "running") throw new PodyardError("Conflict", `Cannot ${action}: it is ${info.state}, not running`);
  if (attach.signal?.aborted === true) throw new PodyardError("Cancelled", `Cancelled: ${action}`);
  const useStdin = attach.stdin && container.stdin;
  const path = `/containers/${pathName(info.id)}`;
  const query = { stream: true, stdin: useStdin, stdout: attach.stdout, stderr: attach.stderr && !terminal, logs: false, detachKeys: unlikelyDetachKeys };
  const socket = await request(action, () => docker.hijack({ method: "POST", path: `${path}/attach`, query }));
  const output = createOutput(terminal);
  const stdin = useStdin ? createInput(socket, Promise.resolve()) : undefined;
  const detached = new AbortController();
  let resizing: Promise<unknown> = Promise.resolve();

  async function pump(): Promise<ProcessExit> {
    try {
      for await (const frame of readOutput(socket, terminal)) await deliver(output, frame);
      if (detached.signal.aborted) return { exitCode: 0 };
      const answer = await request(action, () => docker.ask({ method: "POST", path: `${path}/wait`, signal: detached.signal }));
      return { exitCode: waitSchema.parse(answer).StatusCode };
    } catch (error) {
      if (detached.signal.aborted) return { exitCode: 0 };
      throw engineError(error, action);
    } finally {
      attach.signal?.removeEventListener("abort", detach);
      endOutput(output);
      stdin?.destroy();
      socket.destroy();
    }
  }

  function detach(): void {
    detached.abort();
    output.stdout.destroy();
    output.stderr?.destroy();
    socket.destroy();
  }

  const exit = pump();
  exit.catch(() => undefined);
  attach.signal?.addEventListener("abort", detach, { once: true });
  return {
    stdin,
    stdout: output.stdout,
    stderr: output.stderr,
    exit,
    resize(size) {
      resizing = resizing.then(() => (detached.signal.aborted ? undefined : docker.ask({ method: "POST", path: `${path}/resize`, query: { h: size.rows, w: size.columns } }))).catch(() => undefined);
    },
    async [Symbol.asyncDispose]() {
      detach();
      await exit.catch(() => undefined);
    },
  };
}
