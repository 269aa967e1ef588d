/** The machine's network interfaces, by ip(8) and /proc/sys/net; changes go in batches, since each process costs more than each change. */
import { access, constants, writeFile } from "node:fs/promises";
import { PodyardError } from "../../contract/errors.ts";
import { runProgram } from "../processes.ts";

/** Plumbing our own namespace would cut the machine off. Errors: InvalidArgument, NotFound. */
export async function refuseOwnNamespace(processId: number): Promise<void> {
  const [own, other] = await Promise.all([namespaceOf("self"), namespaceOf(String(processId))]);
  if (other === undefined) throw new PodyardError("NotFound", `There is no process ${processId}.`);
  if (own === other) throw new PodyardError("InvalidArgument", `Process ${processId} is in the host's network namespace; expected a sandbox of its own.`);
}

async function namespaceOf(process: string): Promise<string | undefined> {
  return runProgram("readlink", [`/proc/${process}/ns/net`], { allowed: [1] }).then(({ stdout }) => stdout.trim() || undefined);
}

export async function ipBatch(lines: readonly string[]): Promise<void> {
  await runProgram("ip", ["-batch", "-"], { input: `${lines.join("\n")}\n` });
}

/** Settings of one interface; those the kernel does not have (no IPv6) are passed over. */
export async function writeSettings(interfaceName: string, settings: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, value] of Object.entries(settings)) {
    await writeFile(`/proc/sys/net/${name.replace("*", interfaceName)}`, value).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") throw error;
    });
  }
}

export async function exists(path: string): Promise<boolean> {
  return access(path, constants.F_OK).then(
    () => true,
    () => false,
  );
}
