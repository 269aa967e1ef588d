/**
 * Virtual machines on Linux by QEMU: detached processes that outlive the host, an overlay over the cached image for each,
 * and a directory DATA_DIR/machines/ID that tells everything about them. Same contract as the macOS driver
 * (virtual-machine.contract.ts).
 */
import { access, mkdir, readdir, rm, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { PodyardError, hasCode, messageOf } from "../../../contract/errors.ts";
import type { Logger } from "../../../contract/logger.ts";
import { readRecord, writeRecord } from "../../../records/atomic-file.ts";
import { findProcess, runProgram } from "../../processes.ts";
import type { DriverFacts, VirtualMachine, VirtualMachineDriver, VirtualMachineSpecification } from "../../virtual-machine.ts";
import { bootId, decideAcceleration } from "./acceleration.ts";
import type { Acceleration } from "./acceleration.ts";
import { qemuArguments, qemuProgram } from "./arguments.ts";
import { QemuMachine } from "./machine.ts";
import { checkSocketPaths, machinePaths, socketName } from "./paths.ts";
import type { MachinePaths } from "./paths.ts";
import { machineOriginSchema, machineRecordSchema } from "./record.ts";
import type { MachineRecord } from "./record.ts";
import { findVolumeServer } from "./volume-server.ts";

export interface QemuDriverOptions {
  readonly dataDirectory: string;
  /** Short, 0700: sockets live here. */
  readonly runtimeDirectory: string;
  readonly logger: Logger;
  /** "auto" (the default) uses KVM once a kernel has been seen to run under it. */
  readonly acceleration?: "auto" | "kvm" | "tcg";
  /** Where the verdict on KVM is kept; DATA_DIR/acceleration.json by default. */
  readonly accelerationRecord?: string;
  /** A bootable raw disk to try KVM with when this machine's own kernel is not in /boot; else the first machine's disk is tried. */
  readonly probeDisk?: string;
}

/** The first with -action and pvpanic-pci. */
const oldestVersion = 6;

/** UEFI firmware for arm64: Debian and Ubuntu, Fedora, Arch. */
const firmwarePaths = [
  "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
  "/usr/share/edk2/aarch64/QEMU_EFI.fd",
  "/usr/share/edk2-armvirt/aarch64/QEMU_EFI.fd",
  "/usr/share/edk2/aarch64/QEMU_CODE.fd",
];

export function createQemuDriver(options: QemuDriverOptions): VirtualMachineDriver {
  return new QemuDriver(options);
}

class QemuDriver implements VirtualMachineDriver {
  readonly #options: QemuDriverOptions;
  readonly #machinesDirectory: string;
  readonly #runtimeDirectory: string;
  readonly #logger: Logger;
  readonly #architecture = process.arch === "arm64" ? ("arm64" as const) : ("amd64" as const);
  readonly #machines = new Map<string, QemuMachine>();
  readonly #found = new Map<string, Promise<unknown>>();
  #version: Promise<string> | undefined;
  #acceleration: Promise<Acceleration> | undefined;

  constructor(options: QemuDriverOptions) {
    this.#options = options;
    this.#machinesDirectory = join(resolve(options.dataDirectory), "machines");
    this.#runtimeDirectory = resolve(options.runtimeDirectory);
    this.#logger = options.logger;
    if (this.#machinesDirectory.includes(","))
      throw new PodyardError("InvalidArgument", `The data directory ${options.dataDirectory} contains a comma, which virtiofsd cannot take.`);
  }

  async facts(): Promise<DriverFacts> {
    const problems: { message: string; fix: string }[] = [];
    const note = (error: unknown): undefined => {
      problems.push({ message: messageOf(error), fix: hasCode(error, "MissingPrerequisite", "Unsupported") ? (error.fix ?? "") : "" });
    };
    const version = (await this.#findVersion().catch(note)) ?? "";
    await Promise.all(["qemu-img", "ip", "iptables", "dnsmasq"].map((program) => this.#findOnce(program, () => runProgram(program, [program === "ip" ? "-V" : "--version"])).catch(note)));
    if ((await this.#findOnce("virtiofsd", findVolumeServer).catch(note)) === undefined)
      problems.push({
        message: "virtiofsd, which serves volumes to guests, is not installed.",
        fix: "apt-get install virtiofsd (Debian 12: qemu-system-common)",
      });
    if (!(await exists("/dev/net/tun"))) problems.push({ message: "/dev/net/tun does not exist, so guests can have no network.", fix: "modprobe tun" });
    if (process.getuid?.() !== 0)
      problems.push({
        message: "Podyard does not run as root, so it cannot make network interfaces and mounts.",
        fix: "Run podyard as root, or give it CAP_NET_ADMIN and CAP_SYS_ADMIN.",
      });
    if (this.#architecture === "arm64" && (await this.#firmware()) === undefined)
      problems.push({ message: "The UEFI firmware for arm64 machines is not installed.", fix: "apt-get install qemu-efi-aarch64" });
    const acceleration = version === "" ? { accelerator: "tcg", note: undefined } : await this.#decideAcceleration(this.#options.probeDisk);
    return {
      name: "qemu",
      version,
      operatingSystem: "linux",
      architecture: this.#architecture,
      accelerator: acceleration.accelerator,
      acceleratorNote: acceleration.note,
      problems,
    };
  }

  async create(specification: VirtualMachineSpecification): Promise<VirtualMachine> {
    await this.#check(specification);
    const paths = this.#pathsOf(specification.id);
    checkSocketPaths(paths);
    if (this.#machines.has(specification.id) || (await exists(paths.record)))
      throw new PodyardError("AlreadyExists", `There is already a machine ${specification.id}.`);
    if ((await exists(paths.directory)) && (await processOf(paths)) !== undefined) {
      throw new PodyardError("Conflict", `The process of ${specification.name} runs, but its record was lost.`, { fix: "Shut the guest down from within; then the machine starts anew." });
    }
    await mkdir(paths.directory, { recursive: true, mode: 0o700 });
    // Parsing also copies: the record must not change with the caller's object.
    const record = machineRecordSchema.parse({ version: 1, state: "created", specification: structuredClone(specification), createdAt: new Date() });
    await writeRecord(paths.record, record);
    await writeRecord(paths.specification, { specification: record.specification, createdAt: record.createdAt });
    const machine = this.#open(record);
    this.#machines.set(specification.id, machine);
    try {
      await machine.prepareDisk();
    } catch (error) {
      await machine.delete();
      if (/No space left/i.test(messageOf(error)))
        throw new PodyardError("NoSpace", `There is no space left for the disk of ${specification.name}.`, { cause: error });
      throw error;
    }
    return machine;
  }

  async adopt(): Promise<readonly VirtualMachine[]> {
    const found: QemuMachine[] = [];
    for (const id of await this.#directories()) {
      if (this.#machines.has(id)) continue;
      const paths = this.#pathsOf(id);
      // A machine that is being deleted has no record; one whose record is damaged does.
      const isRecorded = await exists(paths.record);
      const record = (await readRecord(paths.record, machineRecordSchema, this.#logger)) ?? (isRecorded ? await this.#recover(paths) : undefined);
      if (record === undefined) continue;
      const machine = this.#open(record);
      this.#machines.set(id, machine);
      found.push(machine);
    }
    await Promise.all(found.map((machine) => machine.reconnect()));
    return [...this.#machines.values()];
  }

  /** A record of what is known without it; {@link QemuMachine.reconnect} finds the process, or how it ended. */
  async #recover(paths: MachinePaths): Promise<MachineRecord | undefined> {
    const origin = await readRecord(paths.specification, machineOriginSchema, this.#logger);
    if (origin === undefined) return undefined;
    const record = machineRecordSchema.parse({ version: 1, state: "starting", ...origin, bootId: await bootId() });
    await writeRecord(paths.record, record);
    return record;
  }

  async sweep(keep: ReadonlySet<string>): Promise<void> {
    const known = new Set(await this.#directories());
    for (const id of known) {
      const paths = this.#pathsOf(id);
      if (this.#machines.has(id) || keep.has(id) || (await exists(paths.record))) continue;
      // Its record was unreadable and set aside: as long as its process runs, it is somebody's machine.
      if ((await processOf(paths)) !== undefined) continue;
      await rm(paths.directory, { recursive: true, force: true });
      known.delete(id);
    }
    const prefixes = new Set([...known, ...keep, ...this.#machines.keys()].map((id) => id.slice(0, 8)));
    for (const name of await readdir(this.#runtimeDirectory).catch(() => [])) {
      const prefix = socketName.exec(name)?.[1];
      if (prefix !== undefined && !prefixes.has(prefix)) await rm(join(this.#runtimeDirectory, name), { force: true });
    }
  }

  #open(record: MachineRecord): QemuMachine {
    const { id } = record.specification;
    return new QemuMachine(record, {
      paths: this.#pathsOf(id),
      logger: this.#logger,
      commandLine: (specification) => this.#commandLine(specification),
      onDeleted: () => this.#machines.delete(id),
    });
  }

  async #commandLine(specification: VirtualMachineSpecification): Promise<readonly string[]> {
    await this.#findVersion();
    const { accelerator } = await this.#decideAcceleration(this.#options.probeDisk ?? specification.image.diskPath);
    const host = {
      architecture: this.#architecture,
      accelerator,
      firmwarePath: this.#architecture === "arm64" ? await this.#firmware() : undefined,
      isRoot: process.getuid?.() === 0,
      hasVhostNet: await exists("/dev/vhost-net"),
    };
    return [qemuProgram(this.#architecture), ...qemuArguments(specification, this.#pathsOf(specification.id), host)];
  }

  /** What was found once is not asked for again (facts are wanted at every start of a machine); what is missing may come. */
  #findOnce(name: string, find: () => Promise<unknown>): Promise<unknown> {
    const known = this.#found.get(name);
    if (known !== undefined) return known;
    const found = find();
    this.#found.set(name, found);
    const forget = (): void => void this.#found.delete(name);
    found.then((value) => (value === undefined ? forget() : undefined), forget);
    return found;
  }

  /** Errors: MissingPrerequisite, Unsupported. */
  #findVersion(): Promise<string> {
    const program = qemuProgram(this.#architecture);
    this.#version ??= runProgram(program, ["--version"]).then(({ stdout }) => {
      const [, version = "", major = "0"] = /version ((\d+)\.\S*)/.exec(stdout) ?? [];
      if (Number(major) < oldestVersion) {
        throw new PodyardError("Unsupported", `${program} is version ${version}; expected ${oldestVersion}.0 or newer.`, {
          fix: "Install a newer QEMU.",
        });
      }
      return version;
    });
    // Somebody may install it while we run.
    this.#version.catch(() => (this.#version = undefined));
    return this.#version;
  }

  async #decideAcceleration(probeDisk: string | undefined): Promise<Acceleration> {
    const wanted = this.#options.acceleration ?? "auto";
    if (wanted !== "auto")
      return { accelerator: wanted, note: wanted === "tcg" ? "Hardware acceleration is off by configuration." : undefined, isProven: true };
    this.#acceleration ??= this.#findVersion().then((version) =>
      decideAcceleration({
        program: qemuProgram(this.#architecture),
        version,
        architecture: this.#architecture,
        recordPath: this.#options.accelerationRecord ?? join(resolve(this.#options.dataDirectory), "acceleration.json"),
        probeDisk,
        logger: this.#logger,
      }),
    );
    const decided = await this.#acceleration.catch((error: unknown) => ({ accelerator: "tcg" as const, note: messageOf(error), isProven: false }));
    if (!decided.isProven) this.#acceleration = undefined;
    return decided;
  }

  async #firmware(): Promise<string | undefined> {
    for (const path of firmwarePaths) if (await exists(path)) return path;
    return undefined;
  }

  /** Errors: InvalidArgument, Unsupported. */
  async #check(specification: VirtualMachineSpecification): Promise<void> {
    const { id, cpuCount, memoryBytes, image, network } = specification;
    if (!/^[0-9a-f]{8,64}$/.test(id))
      throw new PodyardError("InvalidArgument", `The machine's id is "${id}"; expected at least 8 lower-case hexadecimal digits.`);
    for (const other of await this.#directories()) {
      if (other !== id && other.slice(0, 8) === id.slice(0, 8))
        throw new PodyardError("InvalidArgument", `The ids ${id} and ${other} begin with the same 8 characters.`);
    }
    if (!Number.isInteger(cpuCount) || cpuCount < 1 || cpuCount > 255)
      throw new PodyardError("InvalidArgument", `cpuCount is ${cpuCount}; expected a whole number from 1 to 255.`);
    if (!(memoryBytes >= 64 << 20)) throw new PodyardError("InvalidArgument", `memoryBytes is ${memoryBytes}; expected at least 64 MiB.`);
    if (image.operatingSystem !== "linux") throw new PodyardError("Unsupported", `The image is for ${image.operatingSystem}; this host runs linux machines.`);
    if (image.architecture !== undefined && image.architecture !== this.#architecture)
      throw new PodyardError("Unsupported", `The image is for ${image.architecture}; this host runs ${this.#architecture} machines.`);
    if ((await stat(image.diskPath).catch(() => undefined))?.isFile() !== true)
      throw new PodyardError("InvalidArgument", `The image's disk ${image.diskPath} is not a file.`);
    if (!/^[A-Za-z0-9_-]{1,15}$/.test(network.interfaceName))
      throw new PodyardError("InvalidArgument", `network.interfaceName is "${network.interfaceName}"; expected the name of a tap.`);
  }

  async #directories(): Promise<readonly string[]> {
    return (await readdir(this.#machinesDirectory).catch(() => [])).filter((name) => /^[0-9a-f]{8,64}$/.test(name));
  }

  #pathsOf(id: string) {
    return machinePaths(this.#machinesDirectory, this.#runtimeDirectory, id);
  }
}

/** The machine's QEMU, whatever is recorded of it. */
function processOf(paths: MachinePaths) {
  return findProcess((argument) => argument.includes(paths.qmpSocket));
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
