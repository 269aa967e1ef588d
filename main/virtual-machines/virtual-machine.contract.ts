/**
 * What every driver must do, run against each of them with a real guest (drivers/qemu/qemu.e2e.test.ts, and the like on a
 * Mac). Behaviours tagged `lifecycle` need nothing of the guest but that it boots; those tagged `guest` log in over SSH.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "ssh2";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { SharedPath, VirtualMachine, VirtualMachineDriver, VirtualMachineSpecification } from "./virtual-machine.ts";

export interface ContractFixture extends AsyncDisposable {
  readonly login: { readonly username: string; readonly password: string };
  /** The serial console's line that says the guest is up; undefined where there is none to look at. */
  readonly readyMarker: string;
  /** Empty, removed afterwards. */
  readonly scratchDirectory: string;
  /** Mounts the share `podyard` of the guest at /tmp/share. */
  readonly mountCommand: string;
  readonly panicCommand: string;
  /** A driver on the same directories, as a host makes after its start. */
  openDriver(): VirtualMachineDriver;
  specification(id: string, sharedPaths?: readonly SharedPath[]): Promise<VirtualMachineSpecification>;
  /** Creates and starts a machine in a process of its own, and kills that process with SIGKILL. */
  startAndCrash(specification: VirtualMachineSpecification): Promise<void>;
  /** Ends the machine's own process (or its volume server's) as an out-of-memory killer would. */
  killOutside(id: string, which: "machine" | "volume-server"): Promise<void>;
  /** Names of what still exists for the id: processes, sockets, files. */
  traces(id: string): Promise<readonly string[]>;
}

const bootMilliseconds = 90_000;

export function describeVirtualMachineContract(name: string, open: () => Promise<ContractFixture>): void {
  describe(`${name} keeps the contract of virtual machines`, { timeout: 180_000 }, () => {
    let fixture: ContractFixture;
    let driver: VirtualMachineDriver;
    const created: VirtualMachine[] = [];

    beforeAll(async () => {
      fixture = await open();
      driver = fixture.openDriver();
    }, 180_000);

    afterEach(async () => {
      for (const machine of created.splice(0)) await machine.delete();
    }, 60_000);

    afterAll(async () => {
      await fixture?.[Symbol.asyncDispose]();
    }, 60_000);

    async function create(id: string, sharedPaths: readonly SharedPath[] = []): Promise<VirtualMachine> {
      const machine = await driver.create(await fixture.specification(id, sharedPaths));
      created.push(machine);
      return machine;
    }

    async function boot(id: string, sharedPaths: readonly SharedPath[] = []): Promise<VirtualMachine> {
      const machine = await create(id, sharedPaths);
      await machine.start();
      await answersSsh(machine);
      return machine;
    }

    async function answersSsh(machine: VirtualMachine): Promise<void> {
      await eventually(async () => {
        const socket = await machine.dial(22, AbortSignal.timeout(3000));
        try {
          expect(await firstBytes(socket, 4, 10_000)).toBe("SSH-");
        } finally {
          socket.destroy();
        }
      }, bootMilliseconds);
    }

    /** Runs a command in the guest; the answer is what it printed, without surrounding white space. */
    async function inGuest(machine: VirtualMachine, command: string): Promise<string> {
      const client = new Client();
      try {
        const sock = await machine.dial(22);
        await new Promise<void>((resolve, reject) =>
          client
            .once("ready", resolve)
            .once("error", reject)
            .connect({ sock, ...fixture.login, readyTimeout: 30_000 }),
        );
        return await new Promise<string>((resolve, reject) => {
          client.exec(command, (error, channel) => {
            if (error) return reject(error);
            let text = "";
            channel.on("data", (chunk: Buffer) => (text += chunk.toString()));
            channel.stderr.on("data", (chunk: Buffer) => (text += chunk.toString()));
            channel.once("close", () => resolve(text.trim()));
          });
        });
      } finally {
        client.on("error", () => undefined).destroy();
      }
    }

    it("[lifecycle] starts a machine that answers at its Pod's address, writes its console's log and counts what it uses", async () => {
      const machine = await create("01a1b2c3aa");
      expect(machine.state).toBe("created");
      expect(machine.startedAt).toBeUndefined();
      await Promise.all([machine.start(), machine.start()]);
      expect(machine.state).toBe("running");
      await answersSsh(machine);
      await eventually(async () => expect(await readFile(machine.consoleLogPath, "utf8")).toContain(fixture.readyMarker), 30_000);
      const statistics = await machine.statistics();
      expect(statistics.cpuNanoseconds).toBeGreaterThan(1e8);
      expect(statistics.memoryWorkingSetBytes).toBeGreaterThan(32 << 20);
      expect(statistics.receivedBytes).toBeGreaterThan(0);
      expect(statistics.transmittedBytes).toBeGreaterThan(0);
      expect(statistics.diskUsedBytes).toBeGreaterThan(0);
      await expect(driver.create(machine.specification)).rejects.toMatchObject({ code: "AlreadyExists" });

      await machine.pause();
      expect(machine.state).toBe("paused");
      const paused = await machine.statistics();
      const whilePaused = async (): Promise<string> => firstBytes(await machine.dial(22, AbortSignal.timeout(1500)), 4, 1500);
      await expect(whilePaused()).rejects.toThrow();
      expect((await machine.statistics()).cpuNanoseconds - paused.cpuNanoseconds).toBeLessThan(5e8);
      await machine.resume();
      expect(machine.state).toBe("running");
      await answersSsh(machine);

      await machine.requestStop();
      expect(await within(machine.stopped, 30_000)).toMatchObject({ cause: "guest-power-off", exitCode: 0 });
      expect(machine.state).toBe("stopped");
      await expect(machine.start()).rejects.toMatchObject({ code: "Conflict" });
      await machine.delete();
      await machine.delete();
      expect(await fixture.traces("01a1b2c3aa")).toEqual([]);
    });

    it("[lifecycle] shows the screen to any number of clients and shares the console's input and output", async () => {
      const machine = await boot("02a1b2c3aa");
      await eventually(async () => expect(await readFile(machine.consoleLogPath, "utf8")).toContain(fixture.readyMarker), 30_000);
      const screens = [await machine.openScreen(), await machine.openScreen()];
      for (const screen of screens) expect(await firstBytes(screen, 12, 10_000)).toMatch(/^RFB 003\.00\d\n$/);
      for (const screen of screens) screen.destroy();
      const [first, second] = [await machine.openConsole(), await machine.openConsole()];
      const seen = [collect(first), collect(second)];
      first.write("echo con''sole-$((40+2))\n");
      for (const text of seen) await eventually(async () => expect(text()).toContain("console-42"), 20_000);
      first.destroy();
      second.write("echo still-$((1+1))\n");
      await eventually(async () => expect(seen[1]?.()).toContain("still-2"), 20_000);
      const ended = new Promise((resolve) => second.once("end", resolve));
      await machine.kill();
      expect(await machine.stopped).toMatchObject({ cause: "killed", exitCode: 137 });
      await ended;
      await machine.kill();
    });

    it("[guest] tells a power-off, a restart and a panic of the guest apart", async () => {
      const [off, reset, panic] = await Promise.all([boot("03a1b2c3aa"), boot("13a1b2c3aa"), boot("23a1b2c3aa")]);
      void inGuest(off, "poweroff").catch(() => undefined);
      void inGuest(reset, "reboot").catch(() => undefined);
      void inGuest(panic, fixture.panicCommand).catch(() => undefined);
      expect(await within(off.stopped, 60_000)).toMatchObject({ cause: "guest-power-off", exitCode: 0 });
      expect(await within(reset.stopped, 60_000)).toMatchObject({ cause: "guest-reset" });
      expect(await within(panic.stopped, 60_000)).toMatchObject({ cause: "guest-panic", exitCode: 1 });
    });

    it("[guest] keeps two machines apart, and gives a Pod's next machine a fresh disk at the same address", async () => {
      const [first, second] = await Promise.all([boot("04a1b2c3aa"), boot("14a1b2c3aa")]);
      expect(first.specification.network.podIP).not.toBe(second.specification.network.podIP);
      await inGuest(first, "echo kept >/root/file; sync");
      const address = await inGuest(first, "ip -4 -o address show dev eth0; cat /sys/class/net/eth0/address");
      expect(address).toContain(first.specification.network.podIP);
      expect(address).toContain(first.specification.network.macAddress);
      expect(await inGuest(second, "cat /root/file || true")).not.toContain("kept");
      expect(await inGuest(first, `nc -w 5 ${second.specification.network.podIP} 22 </dev/null | head -c 4`)).toBe("SSH-");
      expect(await inGuest(first, `nslookup vm.pod.internal`)).toContain(first.specification.network.podIP);
      await first.delete();
      const next = await boot("04a1b2c3aa");
      expect(next.specification.network).toEqual(first.specification.network);
      expect(await inGuest(next, "ls /root; cat /sys/class/net/eth0/address")).toBe(first.specification.network.macAddress);
    });

    it("[guest] shows shared directories and files, refuses writing to those that are read-only, and ends with its volume server", async () => {
      const writable = join(fixture.scratchDirectory, "writable, with a comma");
      const readOnly = join(fixture.scratchDirectory, "read-only");
      const file = join(fixture.scratchDirectory, "file");
      await mkdir(writable);
      await mkdir(readOnly);
      await writeFile(join(readOnly, "token"), "secret");
      await writeFile(file, "single");
      const machine = await boot("05a1b2c3aa", [
        { hostPath: writable, readOnly: false },
        { hostPath: readOnly, readOnly: true },
        { hostPath: file, readOnly: true },
      ]);
      await inGuest(machine, fixture.mountCommand);
      expect(await inGuest(machine, "ls /tmp/share; cat /tmp/share/1/token /tmp/share/2")).toBe("0\n1\n2\nsecretsingle");
      await inGuest(machine, "echo from-guest >/tmp/share/0/file");
      expect(await readFile(join(writable, "file"), "utf8")).toBe("from-guest\n");
      expect(await inGuest(machine, "echo x >/tmp/share/1/token; echo x >/tmp/share/2; echo x >/tmp/share/new")).toMatch(/(Read-only file system[^]*){3}/i);
      await writeFile(join(readOnly, "rotated"), "new");
      await eventually(async () => expect(await inGuest(machine, "cat /tmp/share/1/rotated")).toBe("new"), 10_000);
      await fixture.killOutside("05a1b2c3aa", "volume-server");
      expect(await within(machine.stopped, 30_000)).toMatchObject({ cause: "volume-server-lost" });
      await machine.delete();
      expect(await readFile(join(writable, "file"), "utf8")).toBe("from-guest\n");
    });

    it("[guest] finds its machines again after the host was killed, and what ended those that ended meanwhile", async () => {
      const specifications = [
        await fixture.specification("06a1b2c3aa"),
        await fixture.specification("16a1b2c3aa"),
        await fixture.specification("26a1b2c3aa"),
      ] as const;
      for (const specification of specifications) await fixture.startAndCrash(specification);
      const gone = fixture.openDriver();
      const [running, off, killed] = await adoptAll(gone, specifications);
      for (const machine of [running, off, killed]) expect(machine.state).toBe("running");
      for (const machine of [running, off, killed]) await answersSsh(machine);
      expect(running.specification).toEqual(specifications[0]);
      const console = await running.openConsole();
      const seen = collect(console);
      console.write("echo ad''opted-$((40+2))\n");
      await eventually(async () => expect(seen()).toContain("adopted-42"), 20_000);
      console.destroy();
      // The next host finds what happened while `gone` was not looking: its control connections are closed by ours.
      const fast = inGuest(off, "poweroff").catch(() => undefined);
      await fixture.killOutside("26a1b2c3aa", "machine");
      await fast;
      await eventually(async () => expect((await fixture.traces("16a1b2c3aa")).filter((trace) => trace.startsWith("process"))).toEqual([]), 30_000);
      await within(Promise.all([off.stopped, killed.stopped]), 30_000);

      const later = fixture.openDriver();
      const [stillRunning, wasOff, wasKilled] = await adoptAll(later, specifications);
      created.push(stillRunning, wasOff, wasKilled);
      expect(wasOff.exit).toMatchObject({ cause: "guest-power-off", exitCode: 0 });
      expect(wasKilled.exit).toMatchObject({ cause: "killed", exitCode: 137 });
    });

    it("[guest] learns how a machine ended while no host ran", async () => {
      const specification = await fixture.specification("07a1b2c3aa");
      await fixture.startAndCrash(specification);
      const dial = { dial: driverlessDial(specification) };
      await answersSsh(dial as VirtualMachine);
      void inGuest(dial as VirtualMachine, "poweroff").catch(() => undefined);
      await eventually(async () => expect((await fixture.traces("07a1b2c3aa")).filter((trace) => trace.startsWith("process"))).toEqual([]), 60_000);
      const [machine] = await adoptAll(fixture.openDriver(), [specification]);
      created.push(machine);
      expect(machine.state).toBe("stopped");
      expect(await machine.stopped).toMatchObject({ cause: "guest-power-off", exitCode: 0 });
    });

    it("[lifecycle] says why a machine does not start, and sweeps only what nobody explains", async () => {
      const specification = await fixture.specification("08a1b2c3aa");
      await expect(driver.create({ ...specification, cpuCount: 0 })).rejects.toMatchObject({ code: "InvalidArgument" });
      await expect(driver.create({ ...specification, image: { ...specification.image, diskPath: "/nowhere" } })).rejects.toMatchObject({
        code: "InvalidArgument",
      });
      const missing = await create("18a1b2c3aa", [{ hostPath: join(fixture.scratchDirectory, "missing"), readOnly: true }]);
      await expect(missing.start()).rejects.toMatchObject({ code: "InvalidArgument" });
      expect(await missing.stopped).toMatchObject({ cause: "failed-to-start" });
      const cancelled = await create("28a1b2c3aa");
      await expect(cancelled.start(AbortSignal.abort())).rejects.toMatchObject({ code: "Cancelled" });
      await driver.sweep(new Set());
      expect(await fixture.traces("18a1b2c3aa")).not.toEqual([]);
    });
  });
}

async function adoptAll<const T extends readonly VirtualMachineSpecification[]>(
  driver: VirtualMachineDriver,
  wanted: T,
): Promise<{ [K in keyof T]: VirtualMachine }> {
  const machines = await driver.adopt();
  return wanted.map(({ id }) => {
    const machine = machines.find((candidate) => candidate.specification.id === id);
    if (machine === undefined) throw new Error(`${id} was not adopted`);
    return machine;
  }) as { [K in keyof T]: VirtualMachine };
}

function driverlessDial(specification: VirtualMachineSpecification): VirtualMachine["dial"] {
  return async (port) => {
    const { connect } = await import("node:net");
    const socket = connect({ host: specification.network.podIP, port });
    await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    return socket;
  };
}

async function eventually(check: () => Promise<void>, milliseconds: number): Promise<void> {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await delay(100);
    }
  }
}

async function within<T>(promise: Promise<T>, milliseconds: number): Promise<T> {
  return Promise.race([
    promise,
    delay(milliseconds, undefined, { ref: false }).then(() => Promise.reject(new Error(`nothing happened within ${milliseconds} ms`))),
  ]);
}

async function firstBytes(stream: Duplex, count: number, milliseconds: number): Promise<string> {
  stream.on("error", () => undefined);
  let text = "";
  await within(
    new Promise<void>((resolve, reject) => {
      stream.on("data", (chunk: Buffer) => ((text += chunk.toString("latin1")), text.length >= count && resolve()));
      stream.once("close", () => reject(new Error("closed")));
    }),
    milliseconds,
  ).finally(() => (text.length < count ? stream.destroy() : undefined));
  return text.slice(0, count);
}

function collect(stream: Duplex): () => string {
  let text = "";
  stream.on("data", (chunk: Buffer) => (text += chunk.toString("latin1")));
  return () => text;
}
