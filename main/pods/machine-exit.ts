/** How container 0 ended, in the status's terms: from its machine's exit, or from why its guest could not be brought up. Pure. */
import { hasCode, messageOf, PodyardError, sentenceWithFix } from "../contract/errors.ts";
import type { ContainerStateTerminated } from "../contract/kubernetes-api.generated.ts";
import type { VirtualMachine, VirtualMachineExit } from "../virtual-machines/virtual-machine.ts";

export function terminatedMachine(exit: VirtualMachineExit, startedAt: Date | undefined): ContainerStateTerminated {
  const reason = exit.cause === "volume-server-lost" ? "VolumeServerLost" : exit.cause === "failed-to-start" ? "ContainerCannotRun" : exit.exitCode === 0 ? "Completed" : "Error";
  return {
    exitCode: exit.exitCode,
    reason,
    ...(exit.message === "" || exit.exitCode === 0 ? {} : { message: exit.message }),
    ...(startedAt === undefined ? {} : { startedAt: startedAt.toISOString() }),
    finishedAt: exit.finishedAt.toISOString(),
  };
}

/** How the attempt ended when the guest could not be brought up. */
export function terminatedBy(error: unknown, machine: Pick<VirtualMachine, "startedAt">): ContainerStateTerminated {
  // startMainProcess reports an executable that is missing (127) or cannot be run (126).
  const cannotRun = hasCode(error, "InvalidArgument");
  const exitCode = cannotRun ? (/permission|not executable|126/i.test(messageOf(error)) ? 126 : 127) : 1;
  return {
    exitCode,
    reason: cannotRun ? "ContainerCannotRun" : "Error",
    message: sentenceOf(error),
    ...(machine.startedAt === undefined ? {} : { startedAt: machine.startedAt.toISOString() }),
    finishedAt: new Date().toISOString(),
  };
}

/** The sentence with its fix. */
export function sentenceOf(error: unknown): string {
  return sentenceWithFix(messageOf(error), error instanceof PodyardError ? error.fix : undefined);
}

/** `registry/repository` of a reference. */
export function repositoryOf(reference: string): string {
  const name = reference.split("@")[0] ?? reference;
  const colon = name.lastIndexOf(":");
  return colon > name.lastIndexOf("/") ? name.slice(0, colon) : name;
}
