/**
 * A real registry for tests: Debian's docker-registry on a free loopback port, with its own storage, optionally with
 * htpasswd authentication and TLS. It dies with its parent (`setpriv --pdeathsig`), also when that is killed.
 */
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";

export interface RegistryOptions {
  readonly htpasswd?: { readonly user: string; readonly password: string };
  readonly tls?: boolean;
  /** Default: any free one. */
  readonly port?: number;
}

export interface TestRegistry extends AsyncDisposable {
  /** `127.0.0.1:port`. */
  readonly host: string;
  readonly port: number;
  /** PEM of the certificate, with TLS. */
  readonly certificate: string | undefined;
  /** Where the blobs are, so that a test can damage one. */
  readonly storageDirectory: string;
  /** Ends the process and keeps the storage; {@link start} brings it back on the same port. */
  stop(): Promise<void>;
  start(): Promise<void>;
}

const run = promisify(execFile);
const startMilliseconds = 15_000;

export async function startRegistry(options: RegistryOptions = {}): Promise<TestRegistry> {
  const directory = await mkdtemp(join(tmpdir(), "podyard-registry-"));
  const storageDirectory = join(directory, "storage");
  await mkdir(storageDirectory);
  const port = options.port ?? (await freePort());
  const certificate = options.tls === true ? await makeCertificate(directory) : undefined;
  await writeFile(join(directory, "config.yml"), await configurationFor(options, directory, storageDirectory, port), { mode: 0o600 });
  let child: ChildProcess | undefined;
  const start = async (): Promise<void> => {
    if (child === undefined) child = await startProcess(directory, port);
  };
  const stop = async (): Promise<void> => {
    const running = child;
    child = undefined;
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return;
    const exit = once(running, "exit");
    running.kill("SIGKILL");
    await exit;
  };
  const dispose = async (): Promise<void> => {
    await stop();
    await rm(directory, { recursive: true, force: true });
  };
  try {
    await start();
  } catch (error) {
    await dispose();
    throw error;
  }
  return { host: `127.0.0.1:${port}`, port, certificate, storageDirectory, start, stop, [Symbol.asyncDispose]: dispose };
}

/** Path of a blob's bytes in the registry's storage. */
export function blobPath(registry: TestRegistry, digest: string): string {
  const hex = digest.slice("sha256:".length);
  return join(registry.storageDirectory, "docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex, "data");
}

export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function configurationFor(options: RegistryOptions, directory: string, storageDirectory: string, port: number): Promise<string> {
  const lines = [
    "version: 0.1",
    "log: {level: error, accesslog: {disabled: true}}",
    `storage: {filesystem: {rootdirectory: ${JSON.stringify(storageDirectory)}}, delete: {enabled: true}}`,
    "http:",
    `  addr: 127.0.0.1:${port}`,
  ];
  if (options.tls === true) lines.push(`  tls: {certificate: ${JSON.stringify(join(directory, "tls.crt"))}, key: ${JSON.stringify(join(directory, "tls.key"))}}`);
  if (options.htpasswd !== undefined) {
    const { stdout } = await run("htpasswd", ["-nbB", "-C", "4", options.htpasswd.user, options.htpasswd.password]);
    const path = join(directory, "htpasswd");
    await writeFile(path, stdout, { mode: 0o600 });
    lines.push(`auth: {htpasswd: {realm: podyard-test, path: ${JSON.stringify(path)}}}`);
  }
  return `${lines.join("\n")}\n`;
}

async function startProcess(directory: string, port: number): Promise<ChildProcess> {
  const child = spawn("setpriv", ["--pdeathsig", "KILL", "docker-registry", "serve", join(directory, "config.yml")], { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    if (errors.length < 4000) errors += text;
  });
  let failure: Error | undefined;
  child.on("error", (error) => (failure = error));
  const deadline = Date.now() + startMilliseconds;
  while (!(await canConnect(port))) {
    if (failure !== undefined || child.exitCode !== null) throw new Error(`docker-registry did not start: ${failure?.message ?? errors}`);
    if (Date.now() > deadline) {
      child.kill("SIGKILL");
      throw new Error(`docker-registry did not listen within ${startMilliseconds / 1000} s: ${errors}`);
    }
    await delay(50);
  }
  return child;
}

async function canConnect(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect(port, "127.0.0.1");
  socket.on("connect", () => resolve(true));
  socket.on("error", () => resolve(false));
  const isOpen = await promise;
  socket.destroy();
  return isOpen;
}

async function makeCertificate(directory: string): Promise<string> {
  const certificate = join(directory, "tls.crt");
  const subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
  await run("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-keyout", join(directory, "tls.key"), "-out", certificate, ...subject]);
  return readFile(certificate, "utf8");
}
