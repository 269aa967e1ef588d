/**
 * QEMU's command line for a machine. Pure. No defaults of QEMU's, no configuration of the user's: what is listed here is
 * all there is. See https://www.qemu.org/docs/master/system/invocation.html
 */
import type { VirtualMachineSpecification } from "../../virtual-machine.ts";
import { tracedEvents } from "./exit-cause.ts";
import type { MachinePaths } from "./paths.ts";

export type Accelerator = "kvm" | "tcg";

export interface QemuHost {
  readonly architecture: "amd64" | "arm64";
  readonly accelerator: Accelerator;
  /** UEFI for arm64, which has no built-in firmware. */
  readonly firmwarePath: string | undefined;
  readonly isRoot: boolean;
  readonly hasVhostNet: boolean;
}

export function qemuProgram(architecture: "amd64" | "arm64"): string {
  return architecture === "amd64" ? "qemu-system-x86_64" : "qemu-system-aarch64";
}

export function qemuArguments(specification: VirtualMachineSpecification, paths: MachinePaths, host: QemuHost): readonly string[] {
  const { network } = specification;
  const isX86 = host.architecture === "amd64";
  return [
    ["-name", `guest=${escapeCommas(specification.name)},debug-threads=on`],
    ["-no-user-config", "-nodefaults"],
    // Guests are hostile: QEMU may neither start programs nor keep root once its files and devices are open.
    ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"],
    host.isRoot ? ["-runas", "nobody"] : [],
    ["-machine", isX86 ? "q35,memory-backend=memory,vmport=off" : "virt,memory-backend=memory,gic-version=max"],
    ["-accel", host.accelerator === "kvm" ? "kvm" : "tcg,thread=multi,tb-size=256"],
    ["-cpu", host.accelerator === "kvm" ? "host" : "max"],
    ["-smp", `cpus=${specification.cpuCount}`],
    ["-m", `size=${Math.ceil(specification.memoryBytes / (1 << 20))}M`],
    // virtiofsd reads and writes the guest's memory, so it must be shareable.
    ["-object", `memory-backend-memfd,id=memory,share=on,size=${Math.ceil(specification.memoryBytes / (1 << 20))}M`],
    host.firmwarePath === undefined ? [] : ["-bios", host.firmwarePath],
    ["-rtc", "base=utc"],
    ["-boot", "menu=off,strict=on"],
    // A guest's restart ends the machine: the next one is a fresh clone.
    ["-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown"],
    ["-D", paths.trace, ...tracedEvents.flatMap((event) => ["-trace", `enable=${event}`])],
    // The overlay dies with the machine, so nobody needs it flushed to the platter.
    ["-blockdev", JSON.stringify({ driver: "file", "node-name": "overlay", filename: paths.overlay, cache: { "no-flush": true } })],
    ["-blockdev", JSON.stringify({ driver: "qcow2", "node-name": "disk", file: "overlay", discard: "unmap", cache: { "no-flush": true } })],
    ["-device", "virtio-blk-pci,drive=disk,bootindex=1,serial=podyard"],
    ["-netdev", `tap,id=network,ifname=${network.interfaceName},script=no,downscript=no${host.accelerator === "kvm" && host.hasVhostNet ? ",vhost=on" : ""}`],
    ["-device", `virtio-net-pci,netdev=network,mac=${network.macAddress},romfile=`],
    ["-object", "rng-random,id=entropy,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=entropy"],
    specification.sharedPaths.length === 0
      ? []
      : ["-chardev", `socket,id=volumes,path=${escapeCommas(paths.volumeSocket)}`, "-device", "vhost-user-fs-pci,chardev=volumes,tag=podyard,queue-size=1024"],
    ["-chardev", `socket,id=serial,path=${escapeCommas(paths.serialSocket)},server=on,wait=off,logfile=${escapeCommas(paths.consoleLog)},logappend=on`],
    ["-serial", "chardev:serial"],
    ["-chardev", `socket,id=control,path=${escapeCommas(paths.qmpSocket)},server=on,wait=off`, "-mon", "chardev=control,mode=control"],
    ["-display", "none", "-vnc", `unix:${escapeCommas(paths.screenSocket)},share=force-shared`],
    isX86 ? ["-device", "VGA"] : ["-device", "virtio-gpu-pci", "-device", "virtio-keyboard-pci"],
    ["-device", "virtio-tablet-pci"],
    ["-device", "pvpanic-pci"],
  ].flat();
}

/** In QEMU's option strings a comma within a value is written twice. */
function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}
