/**
 * How a command finds the running host: `gateway.json` in the data directory (0600), written atomically by the host. A file
 * whose process is gone, or whose PID is another process today, counts as none.
 */
import { execFile } from "node:child_process";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { z } from "zod";
import { PodyardError } from "../contract/errors.ts";
import { writeAtomically } from "../records/atomic-file.ts";
import { newToken } from "./access.ts";

const discoverySchema = z.object({ socket: z.string(), pid: z.number().int().positive(), startTime: z.string(), token: z.string().min(1) });

export type Discovery = z.infer<typeof discoverySchema>;

const fileOf = (dataDirectory: string): string => join(dataDirectory, "gateway.json");
const tokenFileOf = (dataDirectory: string): string => join(dataDirectory, "gateway-token");

export async function writeDiscovery(dataDirectory: string, discovery: Discovery): Promise<void> {
  await writeAtomically(fileOf(dataDirectory), JSON.stringify(discovery));
}

/** Removes the file if it is this process's. */
export async function removeDiscovery(dataDirectory: string, pid: number): Promise<void> {
  if ((await readFileOf(dataDirectory))?.pid === pid) await rm(fileOf(dataDirectory), { force: true });
}

/** The running host's, or undefined if none runs. */
export async function findGateway(dataDirectory: string): Promise<Discovery | undefined> {
  const discovery = await readFileOf(dataDirectory);
  if (discovery === undefined) return undefined;
  return (await processStartTime(discovery.pid)) === discovery.startTime ? discovery : undefined;
}

/** Errors: Unavailable. */
export async function requireHost(dataDirectory: string): Promise<Discovery> {
  const discovery = await findGateway(dataDirectory);
  if (discovery === undefined)
    throw new PodyardError("Unavailable", `No host is running with data directory ${dataDirectory}`, {
      fix: "Start one with podyard run, or name its data directory with --data-dir.",
    });
  return discovery;
}

/** Errors: Conflict if another process is this directory's host. */
export async function refuseSecondHost(dataDirectory: string): Promise<void> {
  const running = await findGateway(dataDirectory);
  if (running === undefined || running.pid === process.pid) return;
  throw new PodyardError("Conflict", `A host (process ${running.pid}) runs already with data directory ${dataDirectory}`, { fix: "Stop it, or choose another with --data-dir." });
}

/** The host's token, kept over restarts so that an open page stays valid. */
export async function ensureToken(dataDirectory: string): Promise<string> {
  await mkdir(dataDirectory, { recursive: true, mode: 0o700 });
  const known = await readFile(tokenFileOf(dataDirectory), "utf8").catch(() => "");
  if (/^[\w-]{43}$/.test(known)) return known;
  const token = newToken();
  await writeAtomically(tokenFileOf(dataDirectory), token);
  return token;
}

/**
 * When a process started, in a form that only serves comparison; undefined if there is none. Linux: ticks since boot with the
 * boot's ID; elsewhere what `ps` says.
 */
export async function processStartTime(pid: number): Promise<string | undefined> {
  if (process.platform === "linux") {
    try {
      const text = await readFile(`/proc/${pid}/stat`, "utf8");
      // The command's name (field 2) may hold blanks and parentheses.
      const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
      if (fields[0] === "Z" || fields[19] === undefined) return undefined;
      return `${(await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim()}/${fields[19]}`;
    } catch {
      return undefined;
    }
  }
  const answer = await promisify(execFile)("/bin/ps", ["-o", "lstart=", "-p", String(pid)], { env: { LC_ALL: "C", TZ: "UTC" } }).catch(() => undefined);
  const text = answer?.stdout.trim() ?? "";
  return text === "" ? undefined : text;
}

async function readFileOf(dataDirectory: string): Promise<Discovery | undefined> {
  try {
    const parsed = discoverySchema.safeParse(JSON.parse(await readFile(fileOf(dataDirectory), "utf8")));
    return parsed.success ? parsed.data : undefined;
  } catch {
    return undefined;
  }
}
