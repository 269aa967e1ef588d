/** The driver's parts that need no QEMU: what a trace means, the command line, the protocol, the console's fan-out. */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import type { VirtualMachineSpecification } from "../../virtual-machine.ts";
import { qemuArguments } from "./arguments.ts";
import { causeFromTrace, didRun, exitOf } from "./exit-cause.ts";
import { machinePaths } from "./paths.ts";
import { QmpClient } from "./qmp.ts";
import { SerialConsole } from "./serial-console.ts";

const started = "runstate_set current_run_state 6 (prelaunch) new_state 9 (running)\n";
const ended = "runstate_set current_run_state 9 (running) new_state 11 (shutdown)\n";

describe("the reason of a machine's end", () => {
  it.each([
    ["", "killed", false],
    [started, "killed", true],
    [`${started}qemu_system_shutdown_request reason=6\n${ended}`, "guest-power-off", true],
    [`${started}${ended}`, "guest-reset", true],
    [`${started}runstate_set current_run_state 9 (running) new_state 15 (guest-panicked)\nqemu_system_shutdown_request reason=8\n`, "guest-panic", true],
    [`${started}qemu_system_shutdown_request reason=2\n${ended}`, "killed", true],
    [`${started}runstate_set current_run_state 9 (running) new_state 4 (paused)\n`, "killed", true],
  ])("of the trace %j is %s", (trace, cause, ran) => {
    expect(causeFromTrace(trace)).toBe(cause);
    expect(didRun(trace)).toBe(ran);
  });

  it("becomes the exit code that container 0 reports", () => {
    const codes = (["guest-power-off", "guest-panic", "killed"] as const).map((cause) => exitOf(cause, new Date(0)).exitCode);
    expect(codes).toEqual([0, 1, 137]);
    expect(exitOf("failed-to-start", new Date(0), "No disk.").message).toBe("The machine did not start. No disk.");
  });
});

describe("QEMU's command line", () => {
  const paths = machinePaths("/data, 1/machines", "/run/podyard", "0123456789ab");
  const specification: VirtualMachineSpecification = {
    id: "0123456789ab",
    name: "default/a,readonly=on",
    labels: {},
    cpuCount: 2,
    memoryBytes: (1 << 30) + 1,
    image: { digest: "sha256:0", diskPath: "/cache/disk", diskSize: 1, operatingSystem: "linux" },
    network: {
      id: "0123456789ab",
      podIP: "10.1.0.2",
      sidecarIP: "10.1.0.3",
      gatewayIP: "10.1.0.1",
      macAddress: "52:54:00:01:02:03",
      interfaceName: "pdt01234567",
    },
    sharedPaths: [],
  };
  const host = { architecture: "amd64", accelerator: "tcg", firmwarePath: undefined, isRoot: true, hasVhostNet: true } as const;

  it("does not let a comma become an option", () => {
    const args = qemuArguments(specification, paths, host);
    expect(args).toContain("guest=default/a,,readonly=on,debug-threads=on");
    expect(args.join(" ")).toContain("logfile=/data,, 1/machines/");
  });

  it("rounds memory up to a MiB and keeps guest and QEMU confined", () => {
    const args = qemuArguments(specification, paths, host);
    expect(args).toContain("size=1025M");
    expect(args).toContain("memory-backend-memfd,id=memory,share=on,size=1025M");
    expect(args[args.indexOf("-runas") + 1]).toBe("nobody");
    expect(args.some((argument) => argument.startsWith("on,obsolete=deny,spawn=deny"))).toBe(true);
  });

  it("has a volume device only where there are volumes, and the kernel's network path only with KVM", () => {
    const bare = qemuArguments(specification, paths, host).join(" ");
    expect(bare).not.toContain("vhost");
    const full = qemuArguments({ ...specification, sharedPaths: [{ hostPath: "/x", readOnly: true }] }, paths, { ...host, accelerator: "kvm" }).join(" ");
    expect(full).toContain("vhost-user-fs-pci,chardev=volumes,tag=podyard");
    expect(full).toContain("vhost=on");
    expect(full).toContain("-cpu host");
  });

  it("takes the virt machine and its firmware on arm64", () => {
    const args = qemuArguments(specification, paths, { ...host, architecture: "arm64", firmwarePath: "/firmware.fd" });
    expect(args).toContain("virt,memory-backend=memory,gic-version=max");
    expect(args).toContain("/firmware.fd");
    expect(args).not.toContain("VGA");
  });
});

describe("over a socket", () => {
  let directory = "";
  let server: Server | undefined;
  const sockets: Socket[] = [];

  async function listen(onConnection: (socket: Socket) => void): Promise<string> {
    directory = await mkdtemp(join(tmpdir(), "podyard-socket-"));
    const path = join(directory, "s");
    server = createServer((socket) => {
      sockets.push(socket);
      socket.on("error", () => undefined);
      onConnection(socket);
    }).listen(path);
    await once(server, "listening");
    return path;
  }

  afterEach(async () => {
    for (const socket of sockets.splice(0)) socket.destroy();
    server?.close();
    await rm(directory, { recursive: true, force: true });
  });

  const greeting = '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n';

  it("QMP matches answers to commands whatever their order, and passes on events", async () => {
    const events: string[] = [];
    const path = await listen((socket) => {
      socket.write(greeting);
      socket.on("data", (data) => {
        for (const line of data.toString().trim().split("\n")) {
          const { id, execute } = JSON.parse(line) as { id: number; execute: string };
          if (execute === "qmp_capabilities") socket.write(`{"return": {}, "id": ${id}}\r\n{"event": "STOP", "timestamp": {}}\r\nnot json\r\n`);
          else if (execute === "stop") socket.write(`{"error": {"class": "GenericError", "desc": "no"}, "id": ${id}}\r\n`);
          else setTimeout(() => socket.write(`{"return": {"status": "running", "running": true}, "id": ${id}}\r\n`), 20);
        }
      });
    });
    const client = await QmpClient.connect(path, (event) => events.push(event), 2000);
    const [status, stop] = await Promise.allSettled([client.status(), client.command("stop")]);
    expect(status).toMatchObject({ value: "running" });
    expect(stop).toMatchObject({ reason: { code: "Conflict", message: "QEMU refused: no" } });
    expect(events).toEqual(["STOP"]);
    const pending = expect(client.command("system_powerdown")).rejects.toMatchObject({ code: "Unavailable" });
    sockets[0]?.destroy();
    await client.closed;
    await pending;
    await expect(client.command("cont")).rejects.toMatchObject({ code: "Unavailable" });
  });

  it("QMP gives up on a socket that says nothing or does not exist", async () => {
    const path = await listen(() => undefined);
    await expect(QmpClient.connect(path, () => undefined, 50)).rejects.toMatchObject({ code: "Timeout" });
    await expect(QmpClient.connect(`${path}-missing`, () => undefined, 50)).rejects.toMatchObject({ code: "Unavailable" });
  });

  it("the console serves all clients from one connection, and a silent reader holds up nobody", async () => {
    let received = "";
    let connections = 0;
    const path = await listen((socket) => {
      connections += 1;
      socket.on("data", (data) => (received += data.toString()));
    });
    const serial = new SerialConsole(path);
    const [reader, sleeper] = [await serial.open(), await serial.open()];
    expect(connections).toBe(1);
    let bytes = 0;
    reader.on("data", (chunk: Buffer) => (bytes += chunk.length));
    const [socket] = sockets;
    for (let index = 0; index < 64; index++) {
      const chunk = Buffer.alloc(64 << 10, "x");
      if (socket?.write(chunk) === false) await once(socket, "drain");
    }
    await expect.poll(() => bytes).toBe(4 << 20);
    expect(sleeper.readableLength).toBeLessThanOrEqual(1 << 20);
    reader.write("a");
    sleeper.write("b");
    await expect.poll(() => received).toMatch(/^(ab|ba)$/);
    reader.destroy();
    sleeper.destroy();
    await once(socket ?? serverSocketMissing(), "close");
    const again = await serial.open();
    expect(connections).toBe(2);
    again.destroy();
  });
});

function serverSocketMissing(): never {
  throw new Error("nobody connected");
}
