/**
 * Whether the kernel's out-of-memory killer struck in a container. Docker learns it from an event of its shim and loses that
 * when the container ends at once (seen with 20.10: one in ten under load); the kernel's own line is then still there.
 * https://www.kernel.org/doc/Documentation/ABI/testing/dev-kmsg
 */
import { closeSync, constants, openSync, readSync } from "node:fs";

/** False too where the log cannot be read: no Linux, no right to, or an engine on another machine. */
export function kernelKilledForMemory(containerId: string): boolean {
  let file: number;
  try {
    file = openSync("/dev/kmsg", constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return false;
  }
  try {
    const record = Buffer.alloc(16 * 1024);
    // One read is one record; EAGAIN is the end. Bounded, since other programs write meanwhile.
    for (let count = 0; count < 100_000; count += 1) {
      const length = readRecord(file, record);
      if (length === "overwritten") continue;
      if (length === "end") return false;
      if (isMemoryKill(record.toString("latin1", 0, length), containerId)) return true;
    }
    return false;
  } finally {
    closeSync(file);
  }
}

/** `oom-kill:constraint=CONSTRAINT_MEMCG,…,task_memcg=/docker/<id>,task=…` (Linux 4.19 and later). */
export function isMemoryKill(record: string, containerId: string): boolean {
  return record.includes("oom-kill:constraint=CONSTRAINT_MEMCG") && /task_memcg=([^,]*)/.exec(record)?.[1]?.includes(containerId) === true;
}

function readRecord(file: number, buffer: Buffer): number | "end" | "overwritten" {
  try {
    const length = readSync(file, buffer);
    return length === 0 ? "end" : length;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPIPE" ? "overwritten" : "end";
  }
}
