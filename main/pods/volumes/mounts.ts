/**
 * The few mounts that volumes need on Linux: tmpfs for emptyDir in memory, and bind mounts that pin a checked subPath.
 * All through mount(8) and umount(8); what is mounted is read from the kernel, never remembered.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { PodyardError } from "../../contract/errors.ts";

/** CAP_SYS_ADMIN. */
const administerSystem = 21n;

/** Whether this process may mount at all: root alone does not say, a container's root may not. */
export function canMount(): boolean {
  if (process.platform !== "linux" || process.getuid?.() !== 0) return false;
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return ((BigInt(`0x${effective}`) >> administerSystem) & 1n) === 1n;
}

/** Mount points at or below a directory, deepest and latest first, so that they can be unmounted in this order. */
export async function mountsBelow(directory: string): Promise<readonly string[]> {
  if (process.platform !== "linux") return [];
  return parseMountPoints(await readFile("/proc/self/mountinfo", "utf8"))
    .filter((point) => point === directory || point.startsWith(`${directory}/`))
    .reverse()
    .sort((left, right) => right.length - left.length);
}

/** The mount points of a mountinfo file, in its order. https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo-information-about-mounts */
export function parseMountPoints(mountinfo: string): readonly string[] {
  return mountinfo
    .split("\n")
    .map((line) => line.split(" ")[4])
    .filter((point) => point !== undefined)
    .map((point) => point.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))));
}

/** Mounts a tmpfs of that many bytes, writable for all as an emptyDir is. */
export async function mountMemory(directory: string, bytes: number): Promise<void> {
  await run("mount", ["-t", "tmpfs", "-o", `size=${Math.max(4096, Math.floor(bytes))},mode=0777,nosuid,nodev`, "podyard", directory]);
}

/** Binds what an open descriptor refers to (not its path) onto an existing file or directory. */
export async function bindDescriptor(descriptor: number, target: string): Promise<void> {
  // The child sees the descriptor as 3; unresolved, the kernel follows the magic link to the very place that was checked.
  await run("mount", ["--no-canonicalize", "--bind", "/proc/self/fd/3", target], descriptor);
}

/** Unmounts everything at or below a directory. Errors: Conflict (busy). */
export async function unmountBelow(directory: string): Promise<void> {
  for (const point of await mountsBelow(directory)) await run("umount", ["--no-canonicalize", point]);
  // A bind mount is not told apart by its device number: whoever deletes next relies on there being none.
  const left = await mountsBelow(directory);
  if (left.length > 0) throw new PodyardError("Conflict", `${left.join(", ")} is still mounted`);
}

function run(command: string, parameters: readonly string[], descriptor?: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, parameters, { stdio: ["ignore", "ignore", "pipe", ...(descriptor === undefined ? [] : [descriptor])] });
    let output = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (output = (output + text).slice(0, 2000)));
    child.once("error", (error) => reject(new PodyardError("MissingPrerequisite", `${command} could not be run`, { cause: error })));
    child.once("close", (code) => (code === 0 ? resolve() : reject(new PodyardError("Conflict", `${command} failed: ${output.trim()}`))));
  });
}
