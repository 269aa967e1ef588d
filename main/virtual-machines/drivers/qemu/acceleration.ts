/**
 * KVM or not. The device node alone proves nothing: under some hypervisors it runs firmware, but a kernel never gets
 * further. So KVM is used only after a kernel printed something on the serial line under it, once per boot of the machine
 * and version of kernel and QEMU; the verdict is kept on disk. Nothing here can fail a start: without a proof it is TCG.
 */
import { spawn } from "node:child_process";
import { access, constants, readFile } from "node:fs/promises";
import { release } from "node:os";
import { z } from "zod";
import { messageOf } from "../../../contract/errors.ts";
import type { Logger } from "../../../contract/logger.ts";
import { readRecord, writeRecord } from "../../../records/atomic-file.ts";
import { environmentWithSystemPath } from "../../processes.ts";
import type { Accelerator } from "./arguments.ts";

export interface Acceleration {
  readonly accelerator: Accelerator;
  readonly note: string | undefined;
  /** False while no kernel was at hand to try: the first machine's disk will be. */
  readonly isProven: boolean;
}

export interface AccelerationOptions {
  readonly program: string;
  readonly version: string;
  readonly architecture: "amd64" | "arm64";
  readonly recordPath: string;
  /** A bootable raw disk whose kernel prints on the serial line. */
  readonly probeDisk: string | undefined;
  readonly logger: Logger;
}

const recordSchema = z.object({ key: z.string(), accelerator: z.enum(["kvm", "tcg"]), note: z.string().optional() });

const probeMilliseconds = 10_000;

export async function bootId(): Promise<string> {
  return (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
}

export async function decideAcceleration(options: AccelerationOptions): Promise<Acceleration> {
  const unusable = await access("/dev/kvm", constants.R_OK | constants.W_OK).then(
    () => undefined,
    (error: NodeJS.ErrnoException) => error.code ?? "unknown error",
  );
  if (unusable !== undefined) {
    const reason = unusable === "ENOENT" ? "/dev/kvm does not exist" : "/dev/kvm may not be opened";
    return { accelerator: "tcg", note: `Machines run without hardware acceleration, many times slower: ${reason}.`, isProven: true };
  }
  const key = [await bootId(), release(), options.version].join(" ");
  const known = await readRecord(options.recordPath, recordSchema, options.logger);
  if (known?.key === key) return { accelerator: known.accelerator, note: known.note, isProven: true };

  const source = await probeSource(options);
  if (source === undefined) return { accelerator: "tcg", note: "KVM is tried with the first machine.", isProven: false };
  const started = performance.now();
  const failure = await probe(options, source).catch((error: unknown) => messageOf(error));
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const note = failure === undefined ? undefined : `Machines run without hardware acceleration, many times slower: /dev/kvm exists, but ${failure}.`;
  const verdict = { key, accelerator: failure === undefined ? ("kvm" as const) : ("tcg" as const), ...(note !== undefined && { note }) };
  options.logger.info(note ?? `KVM works (a kernel printed under it within ${seconds} s).`);
  await writeRecord(options.recordPath, verdict).catch((error: unknown) =>
    options.logger.warn("The verdict on KVM could not be kept.", { error: messageOf(error) }),
  );
  return { accelerator: verdict.accelerator, note, isProven: true };
}

/** The machine's own kernel needs no disk and prints within a second; else any disk that boots. */
async function probeSource(options: AccelerationOptions): Promise<readonly string[] | undefined> {
  const kernel = `/boot/vmlinuz-${release()}`;
  if (
    await access(kernel, constants.R_OK).then(
      () => true,
      () => false,
    )
  )
    return ["-kernel", kernel, "-append", "console=ttyS0 console=ttyAMA0 earlyprintk=serial panic=-1"];
  if (options.probeDisk === undefined || options.architecture !== "amd64") return undefined;
  return ["-snapshot", "-drive", `if=virtio,format=raw,file.locking=off,file=${options.probeDisk.replaceAll(",", ",,")}`];
}

/** Undefined if a kernel printed; else why not. */
function probe(options: AccelerationOptions, source: readonly string[]): Promise<string | undefined> {
  const machine = options.architecture === "amd64" ? "q35" : "virt,gic-version=max";
  const args = [
    "-no-user-config",
    "-nodefaults",
    "-no-reboot",
    "-display",
    "none",
    "-machine",
    machine,
    "-accel",
    "kvm",
    "-cpu",
    "host",
    "-m",
    "256",
    "-serial",
    "stdio",
    ...source,
  ];
  return new Promise((resolve, reject) => {
    const child = spawn(options.program, args, { stdio: ["ignore", "pipe", "pipe"], env: environmentWithSystemPath() });
    let messages = "";
    const timer = setTimeout(() => finish(`no kernel printed anything under it within ${probeMilliseconds / 1000} s`), probeMilliseconds);
    const finish = (failure: string | undefined): void => {
      clearTimeout(timer);
      child.kill("SIGKILL");
      resolve(failure);
    };
    child.stdout.once("data", () => finish(undefined));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (messages = (messages + text).slice(-300)));
    child.once("error", reject);
    child.once("close", () => finish(`QEMU ended under it: ${messages.trim().split("\n").at(-1)?.replace(/\.+$/, "") ?? "no message"}`));
  });
}
