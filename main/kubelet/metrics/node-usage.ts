/** What the node as a whole uses, and how it is measured on this host: with what Node offers on every system, plus /proc on Linux. */
import { readFile, statfs } from "node:fs/promises";
import { cpus, freemem, totalmem, uptime } from "node:os";

/** Cumulative CPU in nanoseconds, memory and disk in bytes. */
export interface NodeUsage {
  readonly startTime: Date;
  readonly time: Date;
  readonly cpuNanoseconds: number;
  readonly cpuNanocores: number;
  readonly memoryWorkingSetBytes: number;
  readonly memoryUsageBytes: number;
  readonly memoryAvailableBytes: number;
  readonly memoryTotalBytes: number;
  readonly cpuCores: number;
  readonly swap: { readonly usedBytes: number; readonly availableBytes: number } | undefined;
  /** Of the state directory and of the image cache. */
  readonly fileSystem: FileSystemUsage;
  readonly imageFileSystem: FileSystemUsage;
}

export interface FileSystemUsage {
  readonly availableBytes: number;
  readonly capacityBytes: number;
  readonly usedBytes: number;
  readonly inodes: number;
  readonly inodesFree: number;
}

/** Measures this host at every call. CPU in nanocores is over the time since the call before (or since boot). */
export function createHostUsage(directories: { readonly state: string; readonly images: string }): () => Promise<NodeUsage> {
  const startTime = new Date(Date.now() - uptime() * 1000);
  let previous = { milliseconds: startTime.getTime(), cpuNanoseconds: 0 };

  return async () => {
    const [memory, fileSystem, imageFileSystem] = await Promise.all([readMemory(), readFileSystem(directories.state), readFileSystem(directories.images)]);
    const time = new Date();
    const cpuNanoseconds = readCpuNanoseconds();
    const elapsed = Math.max(1, time.getTime() - previous.milliseconds);
    const cpuNanocores = Math.max(0, Math.round(((cpuNanoseconds - previous.cpuNanoseconds) / elapsed) * 1000));
    previous = { milliseconds: time.getTime(), cpuNanoseconds };
    return { startTime, time, cpuNanoseconds, cpuNanocores, cpuCores: cpus().length, ...memory, fileSystem, imageFileSystem };
  };
}

function readCpuNanoseconds(): number {
  return cpus().reduce((sum, { times }) => sum + (times.user + times.nice + times.sys + times.irq) * 1e6, 0);
}

type MemoryUsage = Pick<NodeUsage, "memoryWorkingSetBytes" | "memoryUsageBytes" | "memoryAvailableBytes" | "memoryTotalBytes" | "swap">;

async function readMemory(): Promise<MemoryUsage> {
  const total = totalmem();
  if (process.platform !== "linux") {
    const used = total - freemem();
    return { memoryTotalBytes: total, memoryUsageBytes: used, memoryWorkingSetBytes: used, memoryAvailableBytes: total - used, swap: undefined };
  }
  const text = await readFile("/proc/meminfo", "utf8");
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s+([0-9]+) kB`, "m").exec(text)?.[1] ?? 0) * 1024;
  const available = field("MemAvailable");
  const swapFree = field("SwapFree");
  return {
    memoryTotalBytes: total,
    memoryUsageBytes: total - field("MemFree"),
    memoryWorkingSetBytes: total - available,
    memoryAvailableBytes: available,
    swap: { usedBytes: field("SwapTotal") - swapFree, availableBytes: swapFree },
  };
}

async function readFileSystem(directory: string): Promise<FileSystemUsage> {
  const usage = await statfs(directory);
  return {
    availableBytes: usage.bavail * usage.bsize,
    capacityBytes: usage.blocks * usage.bsize,
    usedBytes: (usage.blocks - usage.bfree) * usage.bsize,
    inodes: usage.files,
    inodesFree: usage.ffree,
  };
}
