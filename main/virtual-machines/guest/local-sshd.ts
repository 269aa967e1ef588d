/**
 * For tests: a real OpenSSH server that stands in for a guest. It runs in PID, mount and UTS namespaces of its own with
 * private /run, /var/lib, /etc/passwd and /etc/hosts, so that users, daemons and files of a test are all gone with it.
 * Needs root, openssh-server, sudo and fish.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import type { AddressInfo, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import type { VirtualMachine } from "../virtual-machine.ts";

const run = promisify(execFile);

export const password = "correct horse battery staple";

export interface LocalSshd extends AsyncDisposable {
  readonly directory: string;
  readonly port: number;
  /** Logs in as root and as every user. */
  readonly privateKey: string;
  /** As seen from outside the namespace. */
  readonly processId: number;
  /** Breaks every connection made through machine.dial(). */
  dropConnections(): void;
  readonly connectionCount: () => number;
  readonly machine: VirtualMachine;
  /** Runs a command inside the namespaces, as root. */
  inside(...command: readonly string[]): Promise<string>;
  replaceHostKey(): Promise<void>;
}

/** Login users besides root: name and shell. `fishy` may use sudo without a password. */
export const users = { plain: "/bin/sh", bash: "/bin/bash", fishy: "/usr/bin/fish" } as const;

export const supervisorDirectory = join(import.meta.dirname, "../../../build/supervisor");

/** `streams`: whether it forwards to unix sockets, as sshd does unless told otherwise. */
export async function startLocalSshd({ streams = true }: { readonly streams?: boolean } = {}): Promise<LocalSshd> {
  await run(process.execPath, [join(import.meta.dirname, "../../../native/supervisor/build.mjs"), supervisorDirectory]);
  const directory = await mkdtemp(join(tmpdir(), "podyard-sshd-"));
  const port = await findFreePort();
  for (const name of ["host", "host2", "client"]) await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", join(directory, name)]);
  await writeAccounts(directory);
  await writeConfiguration(directory, port, "host", streams);
  let server = await startServer(directory, port);
  const sockets = new Set<Socket>();

  const dial = async (_port: number, signal?: AbortSignal): Promise<Socket> => {
    const socket = connect({ host: "127.0.0.1", port, ...(signal === undefined ? {} : { signal }) });
    await once(socket, "connect");
    socket.setNoDelay(true);
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    return socket;
  };
  return {
    directory,
    port,
    privateKey: await readFile(join(directory, "client"), "utf8"),
    get processId() {
      return server.processId;
    },
    dropConnections: () => sockets.forEach((socket) => socket.destroy()),
    connectionCount: () => sockets.size,
    machine: { dial, state: "running", specification: { name: "test/local-sshd" } } as unknown as VirtualMachine,
    async inside(...command) {
      return (await run("nsenter", ["--target", String(server.processId), "--mount", "--uts", "--pid", ...command])).stdout;
    },
    async replaceHostKey() {
      await server.stop();
      await writeConfiguration(directory, port, "host2", streams);
      server = await startServer(directory, port);
    },
    async [Symbol.asyncDispose]() {
      await server.stop();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

async function startServer(directory: string, port: number): Promise<{ readonly processId: number; stop(): Promise<void> }> {
  const mounts = [
    "mount -t tmpfs tmpfs /run",
    "mkdir -m 755 /run/sshd",
    // sshd reads it as the user, who may not enter our directory.
    `install -m 644 ${directory}/client.pub /run/sshd/keys`,
    "mount -t tmpfs tmpfs /var/lib",
    "mount -t tmpfs tmpfs /home",
    ...["passwd", "group", "shadow", "sudoers", "hosts", "hostname"].map((name) => `mount --bind ${directory}/${name} /etc/${name}`),
    ...Object.keys(users).map((name, index) => `install -d -o ${2001 + index} -g ${2001 + index} /home/${name}`),
  ];
  const script = `set -e; ${mounts.join("; ")}; exec /usr/sbin/sshd -D -e -f ${directory}/sshd_config`;
  const child = spawn("unshare", ["--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script], { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.on("data", (chunk: Buffer) => (errors = (errors + chunk.toString()).slice(-4000)));
  const exited = once(child, "exit");
  const deadline = Date.now() + 15_000;
  while (!(await answers(port))) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`sshd did not start: ${errors}`);
    await delay(20);
  }
  const children = await readFile(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
  return {
    processId: Number(children.trim().split(" ")[0]),
    async stop() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}

async function writeAccounts(directory: string): Promise<void> {
  const { stdout: hash } = await run("openssl", ["passwd", "-6", password]);
  const accounts = Object.entries(users).map(([name, shell], index) => ({ name, shell, id: 2001 + index }));
  const add = async (file: string, lines: readonly string[]): Promise<void> => {
    await writeFile(join(directory, file), `${(await readFile(`/etc/${file}`, "utf8")).trimEnd()}\n${lines.join("\n")}\n`, { mode: file === "shadow" ? 0o600 : 0o644 });
  };
  await add("passwd", accounts.map(({ name, shell, id }) => `${name}:x:${id}:${id}::/home/${name}:${shell}`));
  await add("group", accounts.map(({ name, id }) => `${name}:x:${id}:`));
  await add("shadow", accounts.map(({ name }) => `${name}:${hash.trim()}:19000:0:99999:7:::`));
  await writeFile(join(directory, "sudoers"), "fishy ALL=(ALL) NOPASSWD: ALL\n", { mode: 0o440 });
  await writeFile(join(directory, "hosts"), "127.0.0.1\tlocalhost\n");
  await writeFile(join(directory, "hostname"), "before\n");
}

async function writeConfiguration(directory: string, port: number, hostKey: string, streams: boolean): Promise<void> {
  await mkdir(directory, { recursive: true });
  const lines = [
    `Port ${port}`,
    "ListenAddress 127.0.0.1",
    `HostKey ${directory}/${hostKey}`,
    `AuthorizedKeysFile /run/sshd/keys`,
    "PidFile none",
    "StrictModes no",
    "UsePAM no",
    "PermitRootLogin yes",
    "PasswordAuthentication yes",
    "MaxStartups 100",
    `AllowStreamLocalForwarding ${streams ? "yes" : "no"}`,
  ];
  await writeFile(join(directory, "sshd_config"), `${lines.join("\n")}\n`);
}

async function findFreePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

async function answers(port: number): Promise<boolean> {
  const socket = connect(port, "127.0.0.1");
  try {
    await once(socket, "data");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
