/**
 * virtiofsd: one per machine, for all its shared paths. They are bind-mounted as 0, 1, 2… in a mount namespace that only
 * this process has: nothing is mounted on the host, so nothing is left behind and no clean-up can reach into a volume.
 * Two implementations are in use, QEMU's own in C (up to 7.2, Debian 12) and its successor in Rust; their flags differ.
 */
import { spawn } from "node:child_process";
import { access, constants, mkdir, open, rm } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { PodyardError } from "../../../contract/errors.ts";
import { environmentWithSystemPath, identify, runProgram } from "../../processes.ts";
import type { ProcessIdentity } from "../../processes.ts";
import type { SharedPath } from "../../virtual-machine.ts";
import type { MachinePaths } from "./paths.ts";

export interface VolumeServerProgram {
  readonly path: string;
  readonly kind: "c" | "rust";
}

const candidates = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd"];

export async function findVolumeServer(): Promise<VolumeServerProgram | undefined> {
  for (const path of candidates) {
    const isThere = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (!isThere) continue;
    const { stdout } = await runProgram(path, ["--version"]);
    return { path, kind: stdout.startsWith("virtiofsd version") ? "c" : "rust" };
  }
  return undefined;
}

/** $1 = share; then `ro|rw PATH` pairs, `--`, and the server's command. */
const mountAndServe = `
set -e
share=$1; shift
mount -t tmpfs -o size=1m,mode=755 tmpfs "$share"
index=0
while [ "$1" != -- ]; do
  if [ -d "$2" ]; then mkdir "$share/$index"; else : >"$share/$index"; fi
  if [ "$1" = ro ]; then
    mount --bind "$2" "$share/$index"
    mount -o remount,bind,ro "$share/$index"
  else
    mount --rbind "$2" "$share/$index"
  fi
  index=$((index + 1))
  shift 2
done
shift
mount -o remount,ro "$share"
exec "$@"
`;

export interface StartedVolumeServer {
  readonly identity: ProcessIdentity;
  /** Settles when it ended. */
  readonly exited: Promise<void>;
}

/** Resolves when it listens. Errors: MissingPrerequisite, InvalidArgument (a path is missing), Internal with what it printed. */
export async function startVolumeServer(sharedPaths: readonly SharedPath[], paths: MachinePaths, signal?: AbortSignal): Promise<StartedVolumeServer> {
  const program = await findVolumeServer();
  if (program === undefined)
    throw new PodyardError("MissingPrerequisite", "virtiofsd, which serves volumes to guests, is not installed.", {
      fix: "apt-get install virtiofsd (Debian 12: qemu-system-common)",
    });
  for (const { hostPath } of sharedPaths) {
    await access(hostPath).catch((error: unknown) => {
      throw new PodyardError("InvalidArgument", `The shared path ${hostPath} does not exist.`, { cause: error });
    });
  }
  await mkdir(paths.share, { recursive: true, mode: 0o700 });
  await rm(paths.volumeSocket, { force: true });
  const log = await open(paths.log, "a", 0o600);
  try {
    const mounts = sharedPaths.flatMap(({ hostPath, readOnly }) => [readOnly ? "ro" : "rw", hostPath]);
    const command = [program.path, `--socket-path=${paths.volumeSocket}`, ...flagsOf(program.kind, paths.share)];
    const child = spawn("unshare", ["--mount", "--propagation", "private", "sh", "-c", mountAndServe, "sh", paths.share, ...mounts, "--", ...command], {
      detached: true,
      cwd: "/",
      stdio: ["ignore", log.fd, log.fd],
      env: environmentWithSystemPath(),
    });
    const exited = new Promise<void>((resolve) => child.once("close", () => resolve()).once("error", () => resolve()));
    child.unref();
    let hasExited = false;
    void exited.then(() => (hasExited = true));
    const identity = child.pid === undefined ? undefined : identify(child.pid);
    if (identity === undefined) throw new PodyardError("Internal", "virtiofsd could not be spawned.", { fix: `Its messages are in ${paths.log}.` });
    const deadline = Date.now() + 15_000;
    while (!(await isSocketThere(paths.volumeSocket))) {
      if (hasExited || Date.now() > deadline || signal?.aborted === true) {
        if (!hasExited) process.kill(-identity.processId, "SIGKILL");
        throw new PodyardError(signal?.aborted === true ? "Cancelled" : "Internal", "virtiofsd did not start.", { fix: `Its messages are in ${paths.log}.` });
      }
      await delay(10);
    }
    return { identity, exited };
  } finally {
    await log.close();
  }
}

function flagsOf(kind: VolumeServerProgram["kind"], share: string): readonly string[] {
  // `auto` lets the guest cache for a second: changes made on the host (a rotated Secret) appear by themselves.
  if (kind === "c") return ["-f", "-o", `source=${share}`, "-o", "sandbox=namespace", "-o", "cache=auto", "-o", "xattr", "-o", "log_level=warn"];
  return ["--shared-dir", share, "--sandbox", "namespace", "--cache", "auto", "--xattr", "--log-level", "warn"];
}

async function isSocketThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
