/** What a host may leave on the machine: processes, sockets, mounts, interfaces, packet-filter rules, namespaces. */
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";

export interface MachineState {
  readonly processes: readonly string[];
  readonly mounts: readonly string[];
  readonly interfaces: readonly string[];
  readonly rules: readonly string[];
  readonly routes: readonly string[];
  readonly sockets: readonly string[];
  readonly namespaces: readonly string[];
}

/** Sorted lists, so that two states can be compared; counters and the kernel's own volatile entries are left out. */
export function machineState(): MachineState {
  const lines = (command: string, args: readonly string[]): readonly string[] => execFileSync(command, args, { encoding: "utf8" }).split("\n").filter(Boolean);
  return {
    processes: processes().sort(),
    mounts: readFileSync("/proc/self/mountinfo", "utf8").split("\n").filter(Boolean).map((line) => line.split(" ").slice(3, 5).join(" ")).sort(),
    interfaces: lines("ip", ["-o", "link"]).map((line) => line.split(/[:@]/)[1]?.trim() ?? "").sort(),
    rules: lines("iptables-save", []).filter((line) => !line.startsWith("#")).map((line) => line.replace(/\[\d+:\d+\]/, "")).sort(),
    routes: lines("ip", ["route"]).map((line) => line.trim()).sort(),
    sockets: readFileSync("/proc/net/unix", "utf8").split("\n").flatMap((line) => line.trim().split(/\s+/)[7] ?? []).filter((path, index, all) => /podyard/.test(path) && all.indexOf(path) === index).sort(),
    namespaces: lines("ip", ["netns", "list"]),
  };
}

/** Programs that a host starts; others come and go without us. */
function processes(): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const [program = ""] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
        return /(qemu-system|virtiofsd|dnsmasq|dockerd|containerd|podyard)/.test(program) ? [program] : [];
      } catch {
        return [];
      }
    });
}
