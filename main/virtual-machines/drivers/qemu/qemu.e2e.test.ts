/** The contract, against QEMU with the test guest (needs root, QEMU, /dev/net/tun), and what is QEMU's alone. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { buildGuestDisk, guestReadyMarker } from "../../../../test/guest/build.ts";
import { silentLogger } from "../../../contract/logger.ts";
import { createPodNetworks } from "../../network/pod-networks.ts";
import { identify, killProcess } from "../../processes.ts";
import type { SharedPath, VirtualMachineDriver, VirtualMachineSpecification } from "../../virtual-machine.ts";
import { describeVirtualMachineContract } from "../../virtual-machine.contract.ts";
import type { ContractFixture } from "../../virtual-machine.contract.ts";
import { createQemuDriver } from "./driver.ts";

const isRoot = process.getuid?.() === 0;
const guestDirectory = join(import.meta.dirname, "../../../../build/guest");

/** Runs the part that will crash: the driver in a process of its own, from the same sources. */
const crashingHost = `
const { createQemuDriver } = await import(process.argv[1]);
const { silentLogger } = await import(process.argv[2]);
const { specification, options } = JSON.parse(process.argv[3]);
const machine = await createQemuDriver({ ...options, logger: silentLogger }).create(specification);
await machine.start();
process.stdout.write("started\\n");
setInterval(() => undefined, 1000);
`;

const startingHost = `
const { createQemuDriver } = await import(process.argv[1]);
const { silentLogger } = await import(process.argv[2]);
const { options } = JSON.parse(process.argv[3]);
const [machine] = await createQemuDriver({ ...options, logger: silentLogger }).adopt();
process.stdout.write("starting\\n");
await machine.start();
setInterval(() => undefined, 1000);
`;

async function openFixture(): Promise<ContractFixture> {
  const disk = await buildGuestDisk({ outputDirectory: guestDirectory });
  const base = await mkdtemp(join(tmpdir(), "podyard-qemu-"));
  const directories = { dataDirectory: join(base, "data"), runtimeDirectory: join(base, "run") };
  const scratchDirectory = join(base, "scratch");
  await mkdir(scratchDirectory, { recursive: true });
  const networks = createPodNetworks({ dataDirectory: directories.dataDirectory, logger: silentLogger });
  const options = { ...directories, accelerationRecord: join(guestDirectory, "acceleration.json"), probeDisk: disk.diskPath };
  const openDriver = (): VirtualMachineDriver => createQemuDriver({ ...options, logger: silentLogger });
  return {
    login: { username: "root", password: "podyard" },
    readyMarker: guestReadyMarker,
    scratchDirectory,
    mountCommand: "mkdir -p /tmp/share && mount -t virtiofs podyard /tmp/share",
    panicCommand: "echo c >/proc/sysrq-trigger",
    openDriver,
    async specification(id: string, sharedPaths: readonly SharedPath[] = []): Promise<VirtualMachineSpecification> {
      const network = await networks.ensure({
        id,
        hostname: `vm-${id.slice(0, 4)}`,
        nameservers: [],
        searchDomains: ["pods.example"],
        hostAliases: [],
        sidecarPorts: [],
        hostPorts: [],
      });
      const image = { digest: "sha256:0", diskPath: disk.diskPath, diskSize: 0, operatingSystem: "linux" as const };
      return { id, name: `default/${id}`, labels: { test: "contract" }, cpuCount: 1, memoryBytes: 256 << 20, image, network, sharedPaths };
    },
    async startAndCrash(specification) {
      const modules = [join(import.meta.dirname, "driver.ts"), join(import.meta.dirname, "../../../contract/logger.ts")];
      const child = spawn(process.execPath, ["--input-type=module", "-e", crashingHost, ...modules, JSON.stringify({ specification, options })], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const exited = once(child, "exit");
      const started = await Promise.race([once(child.stdout, "data"), exited.then(() => undefined)]);
      if (started === undefined) throw new Error("the host did not start the machine");
      child.kill("SIGKILL");
      await exited;
    },
    async killOutside(id, which) {
      const record = JSON.parse(await readFile(join(directories.dataDirectory, "machines", id, "record.json"), "utf8")) as Record<
        string,
        { processId: number }
      >;
      const identity = identify(record[which === "machine" ? "qemu" : "volumeServer"]?.processId ?? 0);
      if (identity === undefined) throw new Error(`the ${which} of ${id} does not run`);
      await killProcess(identity);
    },
    async traces(id) {
      const files = (await readdir(join(directories.dataDirectory, "machines")).catch(() => [])).filter((name) => name === id);
      const sockets = (await readdir(directories.runtimeDirectory)).filter((name) => name.startsWith(id.slice(0, 8)));
      return [...files, ...sockets, ...(await processesOf(directories.runtimeDirectory, id))];
    },
    async [Symbol.asyncDispose]() {
      for (const machine of await openDriver().adopt()) await machine.delete();
      await networks.sweep(new Set());
      await rm(base, { recursive: true, force: true });
    },
  };
}

async function processesOf(runtimeDirectory: string, id: string): Promise<readonly string[]> {
  const found: string[] = [];
  for (const entry of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const line = await readFile(`/proc/${entry}/cmdline`, "utf8").catch(() => "");
    if (line.includes(join(runtimeDirectory, id.slice(0, 8)))) found.push(`process ${entry}`);
  }
  return found;
}

if (isRoot) describeVirtualMachineContract("The QEMU driver", openFixture);

describe.runIf(isRoot)("the QEMU driver", () => {
  const directories: string[] = [];

  async function openDriver(
    more: { readonly runtimeDirectory?: string } = {},
  ): Promise<{ readonly driver: VirtualMachineDriver; readonly dataDirectory: string; readonly runtimeDirectory: string }> {
    const base = await mkdtemp(join(tmpdir(), "podyard-qemu-"));
    directories.push(base);
    const options = { dataDirectory: join(base, "data"), runtimeDirectory: join(base, "run"), acceleration: "tcg" as const, ...more };
    await mkdir(options.runtimeDirectory, { recursive: true });
    return { driver: createQemuDriver({ ...options, logger: silentLogger }), ...options };
  }

  const network = {
    id: "0a0a0a0aaa",
    podIP: "192.0.2.2",
    sidecarIP: "192.0.2.3",
    gatewayIP: "192.0.2.1",
    macAddress: "52:54:00:00:00:01",
    interfaceName: "pdtmissing",
  };

  async function anySpecification(): Promise<VirtualMachineSpecification> {
    const { diskPath } = await buildGuestDisk({ outputDirectory: guestDirectory });
    const image = { digest: "sha256:0", diskPath, diskSize: 0, operatingSystem: "linux" as const };
    return { id: network.id, name: "default/a,b", labels: {}, cpuCount: 1, memoryBytes: 128 << 20, image, network, sharedPaths: [] };
  }

  afterAll(async () => {
    for (const directory of directories) await rm(directory, { recursive: true, force: true });
  });

  it("knows its version and finds nothing missing on this machine", async () => {
    const { driver } = await openDriver();
    expect(await driver.facts()).toMatchObject({
      name: "qemu",
      version: expect.stringMatching(/^\d+\.\d+/),
      operatingSystem: "linux",
      accelerator: "tcg",
      problems: [],
    });
  });

  it("refuses socket paths that the kernel would cut", async () => {
    const { driver } = await openDriver({ runtimeDirectory: join(tmpdir(), `podyard-${"x".repeat(100)}`) });
    directories.push(join(tmpdir(), `podyard-${"x".repeat(100)}`));
    await expect(driver.create(await anySpecification())).rejects.toMatchObject({ code: "InvalidArgument", message: expect.stringContaining("at most 100") });
  });

  it("reports QEMU's own words when it ends at once, and leaves nothing running", async () => {
    const { driver } = await openDriver();
    const machine = await driver.create(await anySpecification());
    await writeFile(join(directories.at(-1) ?? "", "data/machines/0a0a0a0aaa/overlay.qcow2"), "not a disk");
    await expect(machine.start()).rejects.toMatchObject({ code: "Internal", message: expect.stringContaining("qcow2") });
    expect(machine.exit).toMatchObject({ cause: "failed-to-start" });
    await machine.delete();
  });

  it.each([0, 60, 120, 200, 300, 450, 700])("finds everything again if the host is killed %i ms into a start", { timeout: 60_000 }, async (milliseconds) => {
    const { driver, dataDirectory, runtimeDirectory } = await openDriver();
    const specification = { ...(await anySpecification()), sharedPaths: [{ hostPath: dataDirectory.replace(/data$/, ""), readOnly: true }] };
    await driver.create(specification);
    const modules = [join(import.meta.dirname, "driver.ts"), join(import.meta.dirname, "../../../contract/logger.ts")];
    const options = { dataDirectory, runtimeDirectory, acceleration: "tcg" };
    const child = spawn(process.execPath, ["--input-type=module", "-e", startingHost, ...modules, JSON.stringify({ options })], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const exited = once(child, "exit");
    await once(child.stdout, "data");
    setTimeout(() => child.kill("SIGKILL"), milliseconds);
    await exited;

    const [machine] = await createQemuDriver({ dataDirectory, runtimeDirectory, acceleration: "tcg", logger: silentLogger }).adopt();
    expect(machine?.state).toMatch(/^(created|running)$/);
    await machine?.start();
    expect(machine?.state).toBe("running");
    expect((await processesOf(runtimeDirectory, network.id)).length).toBeGreaterThanOrEqual(2);
    await machine?.delete();
    expect(await processesOf(runtimeDirectory, network.id)).toEqual([]);
    expect(await readdir(runtimeDirectory)).toEqual([]);
  });

  it("sets an unreadable record aside and leaves the directory to whoever runs in it", async () => {
    const { driver, dataDirectory, runtimeDirectory } = await openDriver();
    const directory = join(dataDirectory, "machines/0b0b0b0bbb");
    await mkdir(directory, { recursive: true });
    await writeFile(join(directory, "record.json"), '{"version":9}');
    await writeFile(join(runtimeDirectory, "0c0c0c0c-qmp.sock"), "");
    // Stands for the QEMU of that machine: something whose command line names its socket.
    const script = spawn("sh", ["-c", 'read line; exit "$1"', "sh", join(runtimeDirectory, "0b0b0b0b-qmp.sock")], { stdio: ["pipe", "ignore", "ignore"] });
    await once(script, "spawn");
    expect(await driver.adopt()).toEqual([]);
    await driver.sweep(new Set());
    expect((await readdir(directory)).some((name) => name.startsWith("record.json.unreadable-"))).toBe(true);
    expect(await readdir(runtimeDirectory)).toEqual([]);
    script.stdin.end();
    await once(script, "exit");
    await driver.sweep(new Set());
    expect(await readdir(join(dataDirectory, "machines"))).toEqual([]);
  });
});
