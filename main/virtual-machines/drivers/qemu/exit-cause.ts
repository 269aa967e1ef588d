/**
 * Why QEMU ended, read from its trace file after the fact, so that the answer is the same whether or not a host was there
 * to hear the QMP event. Two trace events are on (QEMU 7.2: softmmu/trace-events): `qemu_system_shutdown_request reason=N`
 * for power-off, panic and quit, and `runstate_set … new_state N (shutdown)` for every orderly end; a guest reset makes
 * only the second (with -action reboot=shutdown), a killed QEMU neither.
 */
import type { VirtualMachineExit } from "../../virtual-machine.ts";

type Cause = VirtualMachineExit["cause"];

/** enum ShutdownCause of QEMU's QAPI schema (run-state.json), stable since 2.10. */
const causeByReason: Readonly<Record<string, Cause>> = { "6": "guest-power-off", "7": "guest-reset", "8": "guest-panic" };

export const tracedEvents = ["qemu_system_shutdown_request", "runstate_set"] as const;

const sentences: Readonly<Record<Cause, string>> = {
  "guest-power-off": "The guest powered off.",
  "guest-reset": "The guest restarted itself, which ends this machine.",
  "guest-panic": "The guest's kernel panicked.",
  killed: "The machine's process was killed.",
  "volume-server-lost": "The process that serves the machine's volumes ended.",
  "failed-to-start": "The machine did not start.",
};

const exitCodes: Readonly<Record<Cause, number>> = {
  "guest-power-off": 0,
  "guest-reset": 0,
  "guest-panic": 1,
  killed: 137,
  "volume-server-lost": 1,
  "failed-to-start": 128,
};

export function causeFromTrace(trace: string): Cause {
  const reason = [...trace.matchAll(/qemu_system_shutdown_request reason=(\d+)/g)].at(-1)?.[1];
  if (reason !== undefined) return causeByReason[reason] ?? "killed";
  if (/runstate_set .*\(guest-panicked\)$/m.test(trace)) return "guest-panic";
  return /runstate_set .*new_state \d+ \(shutdown\)/.test(trace) ? "guest-reset" : "killed";
}

/** True once the guest's processors ran. */
export function didRun(trace: string): boolean {
  return /runstate_set .*new_state \d+ \(running\)/.test(trace);
}

export function exitOf(cause: Cause, finishedAt: Date, detail?: string): VirtualMachineExit {
  return { cause, exitCode: exitCodes[cause], message: detail === undefined ? sentences[cause] : `${sentences[cause]} ${detail}`, finishedAt };
}
