/**
 * Builds the disk of the test guest from Debian packages: a raw, sparse disk that stock firmware boots, which answers SSH
 * a few seconds after that even without hardware acceleration. MBR, a FAT partition with syslinux (BIOS) or systemd-boot
 * (UEFI, arm64), kernel and a tiny initramfs, and an ext4 root file system. No loop device, no mount, no root needed.
 * The result is cached by a hash of this folder: an unchanged folder costs nothing.
 *
 *   node test/guest/build.ts [--architecture amd64|arm64] [--output build/guest] [--force]
 */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, copyFile, cp, mkdir, open, readFile, readdir, rename, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { parseArgs, promisify } from "node:util";

const run = promisify(execFile);

export type GuestArchitecture = "amd64" | "arm64";

export interface GuestDisk {
  readonly diskPath: string;
  readonly architecture: GuestArchitecture;
  /** False if the cached disk was returned. */
  readonly built: boolean;
  readonly logins: readonly { readonly user: string; readonly password: string; readonly shell: string }[];
  /** The line that the serial console shows once SSH answers. */
  readonly readyMarker: string;
}

export const guestLogins = [
  { user: "root", password: "podyard", shell: "/bin/sh" },
  { user: "fish", password: "podyard", shell: "/usr/bin/fish" },
] as const;

export const guestReadyMarker = "podyard-guest ready";

const source = import.meta.dirname;

const packages = [
  "busybox-static",
  "dash",
  "openssh-server",
  "openssh-sftp-server",
  "openssh-client",
  "fish",
  "fish-common",
  "sudo",
  "micro-httpd",
  "libc6",
  "libc-bin",
  "libcrypt1",
  "libpam0g",
  "libpam-modules",
  "libssl3",
  "libselinux1",
  "libaudit1",
  "libcap-ng0",
  "libcom-err2",
  "libgssapi-krb5-2",
  "libkrb5-3",
  "libkrb5support0",
  "libk5crypto3",
  "libkeyutils1",
  "libsystemd0",
  "liblzma5",
  "liblz4-1",
  "libzstd1",
  "libgcrypt20",
  "libgpg-error0",
  "libcap2",
  "libwrap0",
  "libnsl2",
  "libtirpc3",
  "libpcre2-8-0",
  "libpcre2-32-0",
  "zlib1g",
  "libtinfo6",
  "libstdc++6",
  "libgcc-s1",
  "libbsd0",
  "libmd0",
  "libedit2",
  "ncurses-base",
];

const earlyModules = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];
const lateModules = [
  "virtio-rng",
  "failover",
  "net_failover",
  "virtio_net",
  "button",
  "evdev",
  "fuse",
  "virtiofs",
  "pvpanic",
  "pvpanic-pci",
  "virtio_console",
  "overlay",
  "virtio_input",
];

/** Files that only people read; without them the disk is half the size. */
const pruned = [
  "usr/share/doc",
  "usr/share/man",
  "usr/share/locale",
  "usr/share/lintian",
  "usr/lib/x86_64-linux-gnu/gconv",
  "usr/lib/aarch64-linux-gnu/gconv",
  "usr/share/fish/man",
  "usr/share/fish/tools",
  "usr/share/fish/completions",
  "usr/share/bug",
  "usr/share/doc-base",
  "usr/lib/systemd",
  "lib/systemd",
];

const sectorSize = 512;
const bootStart = 2048; // sectors: 1 MiB, the usual alignment
const bootSectors = (48 << 20) / sectorSize;
const rootStart = bootStart + bootSectors;
const rootSectors = (200 << 20) / sectorSize;

/** Builds the disk, or returns the cached one. Errors: whatever tool failed, with its output. */
export async function buildGuestDisk(options: {
  readonly architecture?: GuestArchitecture;
  readonly outputDirectory: string;
  readonly force?: boolean;
}): Promise<GuestDisk> {
  const architecture = options.architecture ?? (process.arch === "arm64" ? "arm64" : "amd64");
  const output = resolve(options.outputDirectory);
  const diskPath = join(output, architecture === "amd64" ? "disk.raw" : `disk-${architecture}.raw`);
  const description = { diskPath, architecture, logins: guestLogins, readyMarker: guestReadyMarker };
  const hash = await hashOfInputs(architecture);
  const stampPath = `${diskPath}.inputs`;
  if (options.force !== true && (await readFile(stampPath, "utf8").catch(() => "")) === hash && (await exists(diskPath)))
    return { ...description, built: false };

  const work = join(output, `work-${architecture}-${process.pid}`);
  await rm(work, { recursive: true, force: true });
  await mkdir(work, { recursive: true });
  try {
    const disk = join(work, "disk.raw");
    await assemble(architecture, work, join(output, "packages"), disk);
    await rm(stampPath, { force: true });
    await rename(disk, diskPath);
    await writeFile(stampPath, hash);
    await writeFile(join(output, "README"), readme(description));
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return { ...description, built: true };
}

async function assemble(architecture: GuestArchitecture, work: string, packageCache: string, disk: string): Promise<void> {
  const kernelPackage = await resolveKernelPackage(architecture);
  const bootPackages = architecture === "amd64" ? ["syslinux", "syslinux-common", "mtools", "dosfstools"] : ["mtools", "dosfstools"];
  const files = await download(packageCache, architecture, [...packages, kernelPackage]);
  const tools = join(work, "tools");
  const kernel = join(work, "kernel");
  const root = join(work, "root");
  for (const file of (await download(packageCache, hostArchitecture(), bootPackages)).values()) await extract(file, tools);
  if (architecture === "arm64") for (const file of (await download(packageCache, architecture, ["systemd-boot-efi"])).values()) await extract(file, tools);
  for (const [name, file] of files) await extract(file, name === kernelPackage ? kernel : root);

  const release = (await readdir(join(kernel, "boot"))).find((name) => name.startsWith("vmlinuz-"))?.slice("vmlinuz-".length);
  if (release === undefined) throw new Error(`${kernelPackage} contains no kernel.`);
  const modules = await findModules(join(kernel, "lib/modules", release));
  await finishRoot(root, modules, release);
  const initramfs = await buildInitramfs(work, root, modules);

  await writeFile(disk, "");
  await truncate(disk, (rootStart + rootSectors) * sectorSize);
  await buildRootFileSystem(work, root, disk);
  await buildBootPartition(architecture, { work, tools, disk, initramfs, kernel: join(kernel, "boot", `vmlinuz-${release}`) });
}

/** The meta package names the newest kernel; its modules must match, so both come from that one package. */
async function resolveKernelPackage(architecture: GuestArchitecture): Promise<string> {
  const { stdout } = await run("apt-cache", [...aptOptions(architecture), "depends", `linux-image-cloud-${architecture}`]);
  const name = /Depends: (linux-image-\S+?)(:\S+)?\s/.exec(stdout)?.[1];
  if (name === undefined) throw new Error(`apt knows no linux-image-cloud-${architecture}; run apt-get update.`);
  return name;
}

async function download(cache: string, architecture: GuestArchitecture, names: readonly string[]): Promise<ReadonlyMap<string, string>> {
  const directory = join(cache, architecture);
  await mkdir(directory, { recursive: true });
  const find = async (): Promise<Map<string, string>> => {
    const present = await readdir(directory);
    return new Map(
      names.flatMap((name) => present.filter((file) => file.startsWith(`${name}_`)).map((file): [string, string] => [name, join(directory, file)])),
    );
  };
  const found = await find();
  const needed = names.filter((name) => !found.has(name));
  if (needed.length === 0) return found;
  await run("apt-get", [...aptOptions(architecture), "-o", "APT::Sandbox::User=root", "download", ...needed], { cwd: directory, maxBuffer: 1 << 24 });
  const complete = await find();
  const absent = names.filter((name) => !complete.has(name));
  if (absent.length > 0) throw new Error(`apt-get download did not deliver ${absent.join(", ")}.`);
  return complete;
}

function hostArchitecture(): GuestArchitecture {
  return process.arch === "arm64" ? "arm64" : "amd64";
}

function aptOptions(architecture: GuestArchitecture): readonly string[] {
  return architecture === hostArchitecture() ? [] : ["-o", `APT::Architecture=${architecture}`, "-o", `APT::Architectures=${architecture}`];
}

/** As `dpkg-deb -x`, but through the /bin → /usr/bin links of a merged system. */
async function extract(packageFile: string, directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  await run("sh", ["-ec", 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --no-same-owner -p', "sh", packageFile, directory]);
}

async function findModules(directory: string): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  for (const entry of await readdir(directory, { recursive: true })) {
    if (entry.endsWith(".ko")) found.set(entry.slice(entry.lastIndexOf("/") + 1, -".ko".length), join(directory, entry));
  }
  return found;
}

async function copyModules(modules: ReadonlyMap<string, string>, names: readonly string[], directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  for (const name of names) {
    const path = modules.get(name);
    if (path === undefined) throw new Error(`The kernel package has no module ${name}.`);
    await copyFile(path, join(directory, `${name}.ko`));
  }
}

async function finishRoot(root: string, modules: ReadonlyMap<string, string>, release: string): Promise<void> {
  for (const path of pruned) await rm(join(root, path), { recursive: true, force: true });
  // Debian's busybox-static contains /bin/busybox alone; its applets fill every name that no other package took.
  for (const directory of ["bin", "sbin", "lib", "lib64"]) await mergeIntoUsr(root, directory);
  // dash, not busybox, is /bin/sh: busybox's shell prefers its own applets to what PATH says, and so would never find our poweroff.
  await rm(join(root, "bin/sh"), { force: true });
  await symlink("dash", join(root, "bin/sh"));
  const { stdout } = await run(join(root, "bin/busybox"), ["--list-full"]).catch(() => run("busybox", ["--list-full"]));
  for (const applet of stdout.split("\n").filter((line) => line !== "")) {
    const path = join(root, applet);
    await mkdir(join(path, ".."), { recursive: true });
    if (!(await exists(path))) await symlink("/bin/busybox", path);
  }
  for (const directory of ["proc", "sys", "dev", "run", "tmp", "root", "home/fish", "mnt", "var/log", "var/tmp", "var/empty", "Volumes", "srv"]) {
    await mkdir(join(root, directory), { recursive: true });
  }
  await chmod(join(root, "tmp"), 0o1777);
  await chmod(join(root, "root"), 0o700);
  await rm(join(root, "etc/ssh"), { recursive: true, force: true });
  await cp(join(source, "root"), root, { recursive: true, force: true });
  await chmod(join(root, "etc/shadow"), 0o600);
  for (const file of ["etc/sudoers", "etc/sudoers.d/podyard"]) await chmod(join(root, file), 0o440);
  for (const name of ["poweroff", "halt", "reboot"]) {
    await rm(join(root, "sbin", name), { force: true });
    await symlink("power-off", join(root, "sbin", name));
  }
  await copyModules(modules, lateModules, join(root, "lib/modules", release));
  await run("ldconfig", ["-r", root]).catch(() => undefined);
}

/** Moves `root/bin` and the like into `root/usr/bin` and leaves a link, as every Debian since 12 has it. */
async function mergeIntoUsr(root: string, directory: string): Promise<void> {
  const from = join(root, directory);
  const to = join(root, "usr", directory);
  await mkdir(to, { recursive: true });
  if (await exists(from)) {
    await cp(from, to, { recursive: true, verbatimSymlinks: true });
    await rm(from, { recursive: true });
  }
  await symlink(`usr/${directory}`, from);
}

async function buildInitramfs(work: string, root: string, modules: ReadonlyMap<string, string>): Promise<string> {
  const tree = join(work, "initramfs");
  for (const directory of ["bin", "dev", "root"]) await mkdir(join(tree, directory), { recursive: true });
  await copyFile(join(root, "usr/bin/busybox"), join(tree, "bin/busybox"));
  await copyFile(join(source, "initramfs-init"), join(tree, "init"));
  await copyModules(modules, earlyModules, join(tree, "modules"));
  const file = join(work, "initramfs.cpio");
  // Not compressed: reading 3 MiB from the disk is cheaper than decompressing them without acceleration.
  await run("sh", ["-ec", 'cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet >"$2"', "sh", tree, file]);
  return file;
}

async function buildRootFileSystem(work: string, root: string, disk: string): Promise<void> {
  const script = [
    'mke2fs -q -F -t ext4 -O ^has_journal,^metadata_csum,^64bit -m 0 -E root_owner=0:0,lazy_itable_init=1,nodiscard -U 6f647961-7264-4775-a573-74726f6f7400 -L podyard-root -d "$1" "$2" "$3"',
    // The owner is set here, since without root every file in the tree belongs to whoever builds.
    "printf 'sif /home/fish uid 1000\\nsif /home/fish gid 1000\\n' | debugfs -w -f - \"$2\" >/dev/null 2>&1",
  ].join("\n");
  const partition = join(work, "root.ext4");
  const asRoot = process.getuid?.() === 0 ? [] : ["unshare", "--map-root-user"];
  const [command, ...rest] = [...asRoot, "sh", "-ec", script, "sh", root, partition, `${(rootSectors * sectorSize) / 1024}k`];
  if (command === undefined) return;
  await run(command, rest);
  await copyInto(partition, disk, rootStart);
}

async function buildBootPartition(
  architecture: GuestArchitecture,
  input: { readonly work: string; readonly tools: string; readonly disk: string; readonly initramfs: string; readonly kernel: string },
): Promise<void> {
  const partition = join(input.work, "boot.fat");
  const bin = join(input.tools, "usr/bin");
  const environment = {
    ...process.env,
    PATH: `${bin}:${join(input.tools, "sbin")}:${join(input.tools, "usr/sbin")}:${process.env["PATH"] ?? ""}`,
    MTOOLS_SKIP_CHECK: "1",
  };
  await writeFile(partition, "");
  await truncate(partition, bootSectors * sectorSize);
  await run("mkfs.vfat", ["-F", "32", "-i", "706f6479", "-n", "PODYARD", "-h", String(bootStart), partition], { env: environment });
  const add = async (file: string, name: string): Promise<unknown> => run("mcopy", ["-i", partition, file, `::/${name}`], { env: environment });
  await add(input.kernel, "vmlinuz");
  await add(input.initramfs, "initrd");
  const console = architecture === "amd64" ? "console=tty0 console=ttyS0,115200" : "console=tty0 console=ttyAMA0,115200";
  const commandLine = `${console} loglevel=4 net.ifnames=0 mitigations=off tsc=reliable no_timer_check random.trust_cpu=on audit=0 cryptomgr.notests panic=-1 oops=panic`;
  const configuration = join(input.work, "boot.cfg");
  if (architecture === "amd64") {
    await writeFile(configuration, `DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND ${commandLine}\n`);
    await add(configuration, "syslinux.cfg");
    await run("syslinux", ["--install", partition], { env: environment });
  } else {
    await writeFile(configuration, `title Podyard test guest\nlinux /vmlinuz\ninitrd /initrd\noptions ${commandLine}\n`);
    await run("mmd", ["-i", partition, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries"], { env: environment });
    await add(configuration, "loader/entries/podyard.conf");
    await add(join(input.tools, "usr/lib/systemd/boot/efi/systemd-bootaa64.efi"), "EFI/BOOT/BOOTAA64.EFI");
  }
  await copyInto(partition, input.disk, bootStart);
  await writeMasterBootRecord(input.disk, architecture === "amd64" ? await readFile(join(input.tools, "usr/lib/syslinux/mbr/mbr.bin")) : Buffer.alloc(0));
}

/** Boot code in the first 440 bytes, four 16-byte entries from 446: flag, CHS (unused), type, CHS, first sector, count. */
async function writeMasterBootRecord(disk: string, bootCode: Buffer): Promise<void> {
  const record = Buffer.alloc(sectorSize);
  bootCode.copy(record, 0, 0, 440);
  record.writeUInt32LE(0x706f6479, 440);
  const entries = [
    { flag: 0x80, type: bootCode.length > 0 ? 0x0c : 0xef, start: bootStart, count: bootSectors },
    { flag: 0, type: 0x83, start: rootStart, count: rootSectors },
  ];
  for (const [index, entry] of entries.entries()) {
    const offset = 446 + index * 16;
    record.set([entry.flag, 0xfe, 0xff, 0xff, entry.type, 0xfe, 0xff, 0xff], offset);
    record.writeUInt32LE(entry.start, offset + 8);
    record.writeUInt32LE(entry.count, offset + 12);
  }
  record.writeUInt16LE(0xaa55, 510);
  const file = await open(disk, "r+");
  await file.write(record, 0, record.length, 0);
  await file.close();
}

/** Copies a partition to its place and keeps it sparse. */
async function copyInto(partition: string, disk: string, startSector: number): Promise<void> {
  await run("dd", [`if=${partition}`, `of=${disk}`, "bs=64k", `seek=${startSector * sectorSize}`, "oflag=seek_bytes", "conv=notrunc,sparse", "status=none"]);
}

async function hashOfInputs(architecture: GuestArchitecture): Promise<string> {
  const hash = createHash("sha256").update(architecture);
  const names = await readdir(source, { recursive: true, withFileTypes: true });
  for (const path of names
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()) {
    hash.update(`\0${path.slice(source.length)}\0${(await stat(path)).mode}\0`).update(await readFile(path));
  }
  return hash.digest("hex");
}

function readme(disk: Omit<GuestDisk, "built">): string {
  const logins = disk.logins.map(({ user, password, shell }) => `  ${user} / ${password}  (${shell})`).join("\n");
  return `Test guest (${disk.architecture}), built by test/guest/build.ts. Never publish it: the passwords are known.\n\nLogins over SSH, port 22 (\`fish\` has sudo without a password):\n${logins}\n\nThe serial console prints "${disk.readyMarker}" once SSH answers, and offers a root shell.\n`;
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { architecture: { type: "string" }, output: { type: "string", default: "build/guest" }, force: { type: "boolean" } },
  });
  if (values.architecture !== undefined && values.architecture !== "amd64" && values.architecture !== "arm64") {
    process.stderr.write(`--architecture is ${values.architecture}; expected amd64 or arm64.\n`);
    process.exit(2);
  }
  const disk = await buildGuestDisk({
    outputDirectory: values.output,
    ...(values.architecture && { architecture: values.architecture }),
    ...(values.force && { force: true }),
  });
  process.stdout.write(`${disk.diskPath} (${disk.built ? "built" : "unchanged"})\n`);
}
