/**
 * Puts the supervisor into the guest: finds out what the guest is, uploads the binary for it once (its name carries its
 * hash), has the upload verify itself by SHA-256, then renames it into place.
 *
 * The commands go through the login user's shell, so they are plain words and single quotes only, without backslash,
 * exclamation mark or line end, which sh, bash, zsh, fish and csh all read the same way.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { text } from "node:stream/consumers";
import type { ClientChannel } from "ssh2";
import { PodyardError } from "../../contract/errors.ts";

export interface SupervisorBinary {
  readonly target: SupervisorTarget;
  readonly path: string;
  readonly sha256: string;
}

const targets = ["linux-amd64", "linux-arm64", "darwin-arm64"] as const;
export type SupervisorTarget = (typeof targets)[number];

/** What `uname -s`/`uname -m` say on each. */
const unamePatterns: Readonly<Record<SupervisorTarget, string>> = {
  "linux-amd64": "Linux/x86_64|Linux/amd64",
  "linux-arm64": "Linux/aarch64|Linux/arm64",
  "darwin-arm64": "Darwin/arm64",
};

export interface Installation {
  /** Absolute path in the guest, of letters that no shell interprets. */
  readonly path: string;
  readonly userId: number;
}

type OpenChannel = (command: string, signal?: AbortSignal) => Promise<ClientChannel>;

/** Reads and hashes what is built; targets that are not built are left out. */
export async function readSupervisorBinaries(directory: string): Promise<readonly SupervisorBinary[]> {
  const found: SupervisorBinary[] = [];
  for (const target of targets) {
    const path = join(directory, `podyard-supervisor-${target}`);
    const content = await readFile(path).catch((error: unknown) => {
      if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
      throw new PodyardError("Internal", `the supervisor ${path} cannot be read`, { cause: error });
    });
    if (content !== undefined) found.push({ target, path, sha256: createHash("sha256").update(content).digest("hex") });
  }
  return found;
}

/** Idempotent. Errors: Unsupported (no binary for this guest, no usable directory), Corrupt (upload damaged), Unavailable. */
export async function installSupervisor(openChannel: OpenChannel, binaries: readonly SupervisorBinary[], signal?: AbortSignal): Promise<Installation> {
  const probed = parseProbe(await run(openChannel, probeCommand(binaries), undefined, signal));
  const binary = binaries.find(({ target }) => target === probed.target);
  if (binary === undefined) {
    throw new PodyardError("Unsupported", `there is no supervisor for a guest of ${probed.system}; there is one for ${binaries.map(({ target }) => target).join(", ") || "nothing"}`, {
      fix: "Build it with: node native/supervisor/build.mjs",
    });
  }
  if (probed.directory === "") {
    throw new PodyardError("Unsupported", "the guest has no directory in which its login user may keep and run a file (/var/lib/podyard, /run/podyard or ~/.podyard)", {
      fix: "Give the login user a writable home directory that is not mounted noexec",
    });
  }
  const path = `${probed.directory}/${fileName(binary)}`;
  if (!probed.present) {
    const said = await run(openChannel, uploadCommand(path, binary.sha256), binary.path, signal);
    if (!said.includes("PODYARD installed")) {
      throw new PodyardError("Corrupt", `the supervisor could not be put to ${path} in the guest${said.trim() === "" ? "" : `: ${JSON.stringify(said.trim().slice(0, 300))}`}`);
    }
  }
  return { path, userId: probed.userId };
}

function fileName({ sha256 }: SupervisorBinary): string {
  return `supervisor-${sha256.slice(0, 16)}`;
}

/** One round trip: what the guest is, a private directory where a file can run, and whether ours is there already. */
function probeCommand(binaries: readonly SupervisorBinary[]): string {
  const cases = binaries.map((binary) => `${unamePatterns[binary.target]}) t=${binary.target}; n=${fileName(binary)};;`).join(" ");
  const script = [
    "umask 077",
    "s=$(uname -s)/$(uname -m)",
    "u=$(id -u)",
    "t=none",
    "n=none",
    `case $s in ${cases} esac`,
    'case $u/$s in 0/*) set /var/lib/podyard /run/podyard /root/.podyard;; */Darwin*) set /var/tmp/podyard-$u;; *) set "$HOME/.podyard" /var/tmp/podyard-$u;; esac',
    "f=",
    "p=absent",
    // Ours, no link, and on a file system that runs programs (/run is often noexec): an empty file is an empty script.
    'for d; do mkdir -p "$d" 2>/dev/null; if [ -d "$d" ] && [ -O "$d" ]; then if [ -h "$d" ]; then continue; fi; chmod 700 "$d"',
    'if [ -x "$d/$n" ]; then f=$d; p=present; break; fi',
    'e="$d/probe.$$"; if : > "$e" && chmod 700 "$e" && "$e"; then f=$d; fi 2>/dev/null; rm -f "$e"; if [ "$f" ]; then break; fi; fi; done',
    'echo "PODYARD probe $t $s $u $p $f"',
  ];
  return `sh -c '${script.join("; ")}'`;
}

function uploadCommand(path: string, sha256: string): string {
  const temporary = `${path}.$$`;
  return `sh -c 'umask 077; if cat > ${temporary} && chmod 700 ${temporary} && ${temporary} verify ${sha256} && mv -f ${temporary} ${path}; then echo PODYARD installed; else rm -f ${temporary}; fi'`;
}

interface Probe {
  readonly target: string;
  readonly system: string;
  readonly userId: number;
  readonly present: boolean;
  readonly directory: string;
}

export function parseProbe(output: string): Probe {
  const match = /^PODYARD probe (\S+) (\S+) (\d{1,10}) (present|absent) ?(.*)$/m.exec(output);
  if (match === null) {
    throw new PodyardError("Unavailable", `the guest's login shell did not run a command; it said ${JSON.stringify(output.trim().slice(0, 300))}`, {
      fix: "Give the login user a working shell (sh, bash, zsh, fish or csh)",
    });
  }
  const [, target = "", system = "", userId = "", present = "", directory = ""] = match;
  if (!/^[A-Za-z0-9/._-]*$/.test(directory)) {
    throw new PodyardError("Unsupported", `the login user's home directory in the guest, ${JSON.stringify(directory)}, has characters that shells interpret`);
  }
  return { target, system, userId: Number(userId), present: present === "present", directory };
}

/** Runs a shell command with a file as stdin and gives what it printed, both streams. */
async function run(openChannel: OpenChannel, command: string, inputFile: string | undefined, signal?: AbortSignal): Promise<string> {
  const channel = await openChannel(command, signal);
  channel.on("error", () => {});
  const close = (): void => channel.close();
  signal?.addEventListener("abort", close, { once: true });
  try {
    const outputs = Promise.all([text(channel), text(channel.stderr)]);
    if (inputFile === undefined) channel.end();
    else await Promise.race([pipeline(createReadStream(inputFile), channel, { end: true }), outputs]).catch(() => {});
    const [output, errors] = await outputs;
    signal?.throwIfAborted();
    return `${output}\n${errors}`;
  } finally {
    signal?.removeEventListener("abort", close);
    channel.close();
  }
}
