/**
 * What the host is and how it does, as the Node object tells it: identity once, load every time. On macOS the numbers come
 * from sysctl, since `free` memory says nothing there: the kernel's own pressure level does.
 */
import { execFile } from "node:child_process";
import { readFile, stat, statfs } from "node:fs/promises";
import { arch, cpus, freemem, release, totalmem } from "node:os";
import { promisify } from "node:util";
import type { NodeSystemInfo } from "../contract/kubernetes-api.generated.ts";

const execute = promisify(execFile);

export interface Measurement {
  readonly cpus: number;
  readonly memoryBytes: number;
  /** Undefined on macOS, where `isMemoryCritical` tells. */
  readonly memoryAvailableBytes: number | undefined;
  readonly isMemoryCritical: boolean;
  readonly diskBytes: number;
  readonly diskAvailableBytes: number;
  readonly inodes: number;
  readonly inodesFree: number;
  /** The images' file system, if it is another one. */
  readonly imageDisk?: FileSystem;
  /** Undefined where the system does not say. */
  readonly processes: { readonly current: number; readonly maximum: number } | undefined;
}

export interface FileSystem {
  readonly diskBytes: number;
  readonly diskAvailableBytes: number;
  readonly inodes: number;
  readonly inodesFree: number;
}

export type HostInfo = Pick<NodeSystemInfo, "architecture" | "bootID" | "kernelVersion" | "machineID" | "operatingSystem" | "osImage" | "systemUUID"> & {
  /** `Apple M2 Pro`, for the label. */
  readonly cpuModel: string;
};

/** `directory` is where Pods' disks are, `imageDirectory` where the images they begin as. */
export async function measureHost(directory: string, imageDirectory = directory): Promise<Measurement> {
  const [disk, imageDisk, device, imageDevice, load] = await Promise.all([
    fileSystemOf(directory),
    fileSystemOf(imageDirectory),
    deviceOf(directory),
    deviceOf(imageDirectory),
    process.platform === "darwin" ? measureDarwin() : measureLinux(),
  ]);
  return { cpus: cpus().length, memoryBytes: totalmem(), ...load, ...disk, ...(device !== imageDevice && { imageDisk }) };
}

async function fileSystemOf(directory: string): Promise<FileSystem> {
  const { blocks, bavail, bsize, files, ffree } = await statfs(directory);
  return { diskBytes: blocks * bsize, diskAvailableBytes: bavail * bsize, inodes: files, inodesFree: ffree };
}

async function deviceOf(directory: string): Promise<number> {
  return (await stat(directory)).dev;
}

/** Identity of host and boot. What the system does not tell is "". */
export async function identifyHost(): Promise<HostInfo> {
  const architecture = arch() === "x64" ? "amd64" : arch();
  const common = { architecture, kernelVersion: release(), operatingSystem: process.platform, cpuModel: cpus()[0]?.model.trim() ?? "" };
  if (process.platform === "darwin") {
    const [bootID, version, registry] = await Promise.all([
      output("/usr/sbin/sysctl", ["-n", "kern.bootsessionuuid"]),
      output("/usr/bin/sw_vers", ["-productVersion"]),
      output("/usr/sbin/ioreg", ["-rd1", "-c", "IOPlatformExpertDevice"]),
    ]);
    const uuid = /"IOPlatformUUID" = "([^"]+)"/.exec(registry)?.[1] ?? "";
    return { ...common, bootID: bootID.trim(), osImage: `macOS ${version.trim()}`.trim(), machineID: uuid, systemUUID: uuid };
  }
  const [bootID, machineID, systemUUID, osRelease] = await Promise.all(
    ["/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/sys/class/dmi/id/product_uuid", "/etc/os-release"].map((path) => readFile(path, "utf8").catch(() => "")),
  );
  const osImage = /^PRETTY_NAME="?([^"\n]*)"?$/m.exec(osRelease ?? "")?.[1] ?? "Linux";
  return { ...common, bootID: bootID?.trim() ?? "", machineID: machineID?.trim() ?? "", systemUUID: (systemUUID?.trim() || machineID?.trim()) ?? "", osImage };
}

type Load = Pick<Measurement, "memoryAvailableBytes" | "isMemoryCritical" | "processes">;

async function measureLinux(): Promise<Load> {
  const [loadAverage, pidMaximum] = await Promise.all(["/proc/loadavg", "/proc/sys/kernel/pid_max"].map((path) => readFile(path, "utf8").catch(() => "")));
  const current = Number(/\/(\d+) /.exec(loadAverage ?? "")?.[1]);
  const maximum = Number(pidMaximum?.trim());
  // On Linux this is MemAvailable, not MemFree.
  return { memoryAvailableBytes: freemem(), isMemoryCritical: false, processes: current > 0 && maximum > 0 ? { current, maximum } : undefined };
}

async function measureDarwin(): Promise<Load> {
  const answer = await output("/usr/sbin/sysctl", ["kern.memorystatus_vm_pressure_level", "kern.num_tasks", "kern.maxproc"]);
  const value = (name: string): number => Number(new RegExp(`^${name.replaceAll(".", "\\.")}: (\\d+)$`, "m").exec(answer)?.[1]);
  const [current, maximum] = [value("kern.num_tasks"), value("kern.maxproc")];
  // 1 normal, 2 warning, 4 critical (sys/kern_memorystatus.h).
  return { memoryAvailableBytes: undefined, isMemoryCritical: value("kern.memorystatus_vm_pressure_level") >= 4, processes: current > 0 && maximum > 0 ? { current, maximum } : undefined };
}

async function output(program: string, args: readonly string[]): Promise<string> {
  return execute(program, args, { timeout: 5000 }).then(
    ({ stdout }) => stdout,
    () => "",
  );
}
