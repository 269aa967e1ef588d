/** Where a machine's files are. Sockets stand apart in a short directory: the kernel takes 107 bytes of socket path. */
import { join } from "node:path";
import { PodyardError } from "../../../contract/errors.ts";

export interface MachinePaths {
  readonly directory: string;
  readonly record: string;
  /** Written once: what a record that cannot be read is made from again while its process runs. */
  readonly specification: string;
  readonly overlay: string;
  readonly consoleLog: string;
  /** QEMU's own messages, and virtiofsd's. */
  readonly log: string;
  readonly trace: string;
  /** Held by the QEMU process for as long as it lives. */
  readonly lock: string;
  /** Where virtiofsd sees the shared paths, in its own mount namespace; always empty to everybody else. */
  readonly share: string;
  readonly qmpSocket: string;
  readonly serialSocket: string;
  readonly screenSocket: string;
  readonly volumeSocket: string;
}

export function machinePaths(machinesDirectory: string, runtimeDirectory: string, id: string): MachinePaths {
  const directory = join(machinesDirectory, id);
  const socket = (name: string): string => join(runtimeDirectory, `${id.slice(0, 8)}-${name}.sock`);
  return {
    directory,
    record: join(directory, "record.json"),
    specification: join(directory, "specification.json"),
    overlay: join(directory, "overlay.qcow2"),
    consoleLog: join(directory, "console.log"),
    log: join(directory, "qemu.log"),
    trace: join(directory, "qemu.trace"),
    lock: join(directory, "lock"),
    share: join(directory, "share"),
    qmpSocket: socket("qmp"),
    serialSocket: socket("serial"),
    screenSocket: socket("screen"),
    volumeSocket: socket("volume"),
  };
}

/** Matches the names of {@link machinePaths}'s sockets; the group is the first 8 characters of the id. */
export const socketName = /^([0-9a-f]{8})-(?:qmp|serial|screen|volume)\.sock$/;

/** Errors: InvalidArgument. */
export function checkSocketPaths(paths: MachinePaths): void {
  const longest = paths.serialSocket;
  if (Buffer.byteLength(longest) > 100) {
    throw new PodyardError("InvalidArgument", `The socket path ${longest} has ${Buffer.byteLength(longest)} bytes; at most 100 are possible.`, {
      fix: "Set XDG_RUNTIME_DIR to a shorter path.",
    });
  }
}
