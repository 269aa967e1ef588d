/**
 * postStart and preStop: exec, httpGet, tcpSocket, sleep. A handler that fails throws one sentence for the container's event.
 * https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/
 */
import { messageOf, PodyardError } from "../contract/errors.ts";
import type { Container, EphemeralContainer, LifecycleHandler } from "../contract/kubernetes-api.generated.ts";
import { abortError, type ContainerTarget, pause, resolvePort, runCommand } from "./pod-target.ts";
import { httpGet, pathOf } from "./probe-actions.ts";

/** Resolves when the handler succeeded. Errors: Internal (it failed), Timeout and Cancelled (by the signal). */
export async function runHook(handler: LifecycleHandler, container: Container | EphemeralContainer, target: ContainerTarget, signal: AbortSignal): Promise<void> {
  if (handler.exec !== undefined) {
    const command = handler.exec.command ?? [];
    try {
      const { exitCode, output } = await runCommand(target, command, signal);
      if (exitCode !== 0) throw new PodyardError("Internal", `command '${command.join(" ")}' exited with ${exitCode}: ${output}`);
    } catch (error) {
      throw failure(`Exec lifecycle hook ([${command.join(", ")}]) for Container "${container.name}" failed`, error, signal);
    }
    return;
  }
  if (handler.httpGet !== undefined) {
    const action = handler.httpGet;
    try {
      const { status, body } = await httpGet(action, container, target, pathOf(action), signal);
      if (status < 200 || status >= 400) throw new PodyardError("Internal", `HTTP status ${status}: ${body.slice(0, 1024)}`);
    } catch (error) {
      throw failure(`HTTP lifecycle hook (${pathOf(action)}) for Container "${container.name}" failed`, error, signal);
    }
    return;
  }
  if (handler.tcpSocket !== undefined) {
    try {
      const host = handler.tcpSocket.host;
      (await target.dial(resolvePort(container, handler.tcpSocket.port), host === "" ? undefined : host, signal)).destroy();
    } catch (error) {
      throw failure(`TCP lifecycle hook for Container "${container.name}" failed`, error, signal);
    }
    return;
  }
  if (handler.sleep !== undefined) {
    await pause(handler.sleep.seconds * 1000, signal);
    if (signal.aborted) throw failure(`Sleep lifecycle hook for Container "${container.name}" did not finish`, abortError(signal), signal);
  }
}

function failure(sentence: string, error: unknown, signal: AbortSignal): PodyardError {
  const reason = signal.aborted ? abortError(signal) : error;
  return new PodyardError(reason instanceof PodyardError ? reason.code : "Internal", `${sentence} - error: ${messageOf(reason)}`);
}
