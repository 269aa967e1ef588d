/**
 * Real interfaces, netfilter rules and name servers of this machine (needs root): what reaches whom, and that nothing is
 * left. The side-cars' sandbox is a process in a network namespace of its own, as Docker's pause container is.
 */
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { silentLogger } from "../../contract/logger.ts";
import { identify, killProcess, runProgram } from "../processes.ts";
import type { PodNetworkRequest } from "../virtual-machine.ts";
import { createPodNetworks } from "./pod-networks.ts";

const isRoot = process.getuid?.() === 0;
const children: ChildProcess[] = [];
let dataDirectory = "";
let before = "";

function request(id: string, more: Partial<PodNetworkRequest> = {}): PodNetworkRequest {
  return { id, hostname: `pod-${id.slice(0, 4)}`, nameservers: [], searchDomains: [], hostAliases: [], sidecarPorts: [], hostPorts: [], ...more };
}

async function machineState(): Promise<string> {
  const commands = [
    ["ip", ["-brief", "link"]],
    ["ip", ["route", "show", "table", "all"]],
    ["ip", ["rule"]],
    ["iptables-save", []],
  ] as const;
  const outputs = await Promise.all(commands.map(([program, args]) => runProgram(program, args)));
  const text = outputs.map(({ stdout }) => stdout).join("\n");
  // Counters and times differ always, other tests' interfaces sometimes.
  return `${text
    .replace(/^#.*$/gm, "")
    .replace(/\[\d+:\d+\]/g, "")
    .split("\n")
    .filter((line) => !/pd[ts][0-9a-f]{8}|PODYARD-|unreachable 10\.|docker|DOCKER|br-|veth/.test(line))
    .join("\n")}\nforward ${await readFile("/proc/sys/net/ipv4/ip_forward", "utf8")}`;
}

/** What is ours on this machine, but for the data directory: nothing, once the last network went. */
async function ownTraces(ids: readonly string[]): Promise<readonly string[]> {
  const { subnet } = JSON.parse(await readFile(join(dataDirectory, "networks/subnet.json"), "utf8")) as { subnet: string };
  const interfaces = (await readdir("/sys/class/net")).filter((name) => ids.some((id) => name.endsWith(id.slice(0, 8))));
  const processes: string[] = [];
  for (const name of (await readdir("/proc")).filter((entry) => /^\d+$/.test(entry))) {
    const line = await readFile(`/proc/${name}/cmdline`, "utf8").catch(() => "");
    if (line.includes(dataDirectory)) processes.push(line.replaceAll("\0", " "));
  }
  const tag = createHash("sha256").update(join(dataDirectory, "networks")).digest("hex").slice(0, 8);
  const rules = (await runProgram("iptables-save", [])).stdout.split("\n").filter((line) => line.includes(`PODYARD-${tag}`));
  const routes = (await runProgram("ip", ["route", "show", "type", "unreachable"])).stdout.split("\n").filter((line) => line.includes(subnet));
  return [...interfaces, ...processes, ...rules, ...routes];
}

/** A process that holds a network namespace. */
async function sandbox(): Promise<number> {
  const child = spawn("unshare", ["--net", "sh", "-c", "echo up; exec sleep 600"], { stdio: ["ignore", "pipe", "ignore"] });
  children.push(child);
  await once(child.stdout, "data");
  if (child.pid === undefined) throw new Error("unshare did not start");
  return child.pid;
}

/** A server in a namespace that sends its caller's address and closes. */
async function serve(processId: number, port: number): Promise<void> {
  const script = `require("net").createServer(s=>s.end(s.remoteAddress)).listen(${port},"0.0.0.0",()=>console.log("up"))`;
  const child = spawn("nsenter", ["--target", String(processId), "--net", process.execPath, "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  await once(child.stdout, "data");
}

async function fetchFrom(host: string, port: number): Promise<string> {
  const socket = connect({ host, port, timeout: 5000 });
  socket.once("timeout", () => socket.destroy(new Error(`no answer from ${host}:${port}`)));
  let text = "";
  for await (const chunk of socket) text += String(chunk);
  return text;
}

async function fetchInside(processId: number, host: string, port: number): Promise<string> {
  return (await runProgram("nsenter", ["--target", String(processId), "--net", "busybox", "nc", "-w", "5", host, String(port)], { allowed: [1] })).stdout;
}

async function lookUp(processId: number, server: string, name: string): Promise<string> {
  const { stdout } = await runProgram("nsenter", ["--target", String(processId), "--net", "busybox", "nslookup", "-type=a", name, server], { allowed: [1] });
  return stdout;
}

describe.runIf(isRoot)("Pod networks on Linux", () => {
  beforeAll(async () => {
    before = await machineState();
    dataDirectory = await mkdtemp(join(tmpdir(), "podyard-networks-"));
  });

  afterEach(async () => {
    await createPodNetworks({ dataDirectory, logger: silentLogger }).sweep(new Set());
    for (const child of children.splice(0)) {
      const identity = child.pid === undefined ? undefined : identify(child.pid);
      if (identity !== undefined) await killProcess(identity);
    }
  });

  afterAll(async () => {
    await rm(dataDirectory, { recursive: true, force: true });
  });

  it("gives each Pod its own addresses, the same to a host that was restarted, and repairs what is missing", async () => {
    const networks = createPodNetworks({ dataDirectory, logger: silentLogger });
    const [first, second] = await Promise.all([networks.ensure(request("a1a1a1a1aa")), networks.ensure(request("b2b2b2b2bb"))]);
    const addresses = [first, second].flatMap((network) => [network.podIP, network.sidecarIP, network.gatewayIP]);
    expect(new Set(addresses).size).toBe(6);
    expect(first.macAddress).not.toBe(second.macAddress);

    await runProgram("ip", ["link", "delete", "dev", first.interfaceName]);
    await runProgram("iptables-save", []);
    const pid = Number(await readFile(join(dataDirectory, "networks/a1a1a1a1aa.pid"), "utf8"));
    const restarted = createPodNetworks({ dataDirectory, logger: silentLogger });
    expect(await restarted.ensure(request("a1a1a1a1aa"))).toEqual(first);
    expect(await restarted.find("b2b2b2b2bb")).toEqual(second);
    expect((await runProgram("ip", ["route", "get", first.podIP])).stdout).toContain(first.interfaceName);
    expect(Number(await readFile(join(dataDirectory, "networks/a1a1a1a1aa.pid"), "utf8"))).not.toBe(pid);

    await restarted.remove("a1a1a1a1aa");
    await restarted.remove("b2b2b2b2bb");
    expect(await ownTraces(["a1a1a1a1", "b2b2b2b2"])).toEqual([]);
    expect(await machineState()).toBe(before);
  });

  it("resolves the Pod's names, its aliases and its host name for the side-cars, and forwards the rest", async () => {
    const networks = createPodNetworks({ dataDirectory, logger: silentLogger });
    const hostAliases = [{ ip: "192.0.2.77", hostnames: ["database.example", "db"] }];
    const network = await networks.ensure(request("c3c3c3c3cc", { hostname: "web-0", hostAliases, searchDomains: ["default.svc.cluster.local"] }));
    const pid = await sandbox();
    await networks.attachSidecars("c3c3c3c3cc", pid);
    await networks.attachSidecars("c3c3c3c3cc", pid);
    expect(await lookUp(pid, network.gatewayIP, "vm.pod.internal")).toContain(`Address: ${network.podIP}`);
    expect(await lookUp(pid, network.gatewayIP, "sidecars.pod.internal")).toContain(`Address: ${network.sidecarIP}`);
    expect(await lookUp(pid, network.gatewayIP, "web-0")).toContain(`Address: ${network.podIP}`);
    expect(await lookUp(pid, network.gatewayIP, "db")).toContain("Address: 192.0.2.77");
    expect(await lookUp(pid, network.gatewayIP, "other.pod.internal")).not.toMatch(/Address: (?!.*:53)/);
  });

  it("makes the side-cars' ports answer on podIP for the host, for other Pods and on a host port", async () => {
    const networks = createPodNetworks({ dataDirectory, logger: silentLogger });
    const hostPort = await freePort();
    const network = await networks.ensure(
      request("d4d4d4d4dd", { sidecarPorts: [{ port: 8080, protocol: "TCP" }], hostPorts: [{ hostPort, port: 8080, protocol: "TCP" }] }),
    );
    const other = await networks.ensure(request("e5e5e5e5ee"));
    const [pid, otherPid] = [await sandbox(), await sandbox()];
    await networks.attachSidecars("d4d4d4d4dd", pid);
    await networks.attachSidecars("e5e5e5e5ee", otherPid);
    await serve(pid, 8080);
    expect(await fetchFrom(network.sidecarIP, 8080)).toBe(network.gatewayIP);
    expect(await fetchFrom(network.podIP, 8080)).toBe(network.gatewayIP);
    expect(await fetchInside(otherPid, network.podIP, 8080)).toBe(other.sidecarIP);
    const address = Object.values(networkInterfaces())
      .flat()
      .find((entry) => entry?.family === "IPv4" && !entry.internal && entry.mac !== "00:00:00:00:00:00");
    expect(await fetchFrom(address?.address ?? "", hostPort)).not.toBe("");
    await expect(networks.ensure(request("f6f6f6f6ff", { hostPorts: [{ hostPort, port: 80, protocol: "TCP" }] }))).rejects.toMatchObject({ code: "Conflict" });

    // Docker was restarted: a new sandbox takes the place of the old.
    const replacement = await sandbox();
    await networks.attachSidecars("d4d4d4d4dd", replacement);
    await serve(replacement, 8080);
    expect(await fetchFrom(network.podIP, 8080)).toBe(network.gatewayIP);
  });

  it("lets side-cars out under the host's address, and forwards names to the servers of the Pod", async () => {
    const networks = createPodNetworks({ dataDirectory, logger: silentLogger });
    const upstream = await networks.ensure(request("a0a0a0a0aa", { hostAliases: [{ ip: "192.0.2.78", hostnames: ["upstream.example"] }] }));
    const network = await networks.ensure(request("b0b0b0b0bb", { nameservers: [upstream.gatewayIP] }));
    const [pid, outside] = [await sandbox(), await sandbox()];
    await networks.attachSidecars("b0b0b0b0bb", pid);
    expect(await lookUp(pid, network.gatewayIP, "upstream.example")).toContain("Address: 192.0.2.78");
    await runProgram("ip", ["link", "add", "pdtest-out", "type", "veth", "peer", "name", "eth0", "netns", String(outside)]);
    try {
      await runProgram("ip", ["-batch", "-"], { input: "address add 198.51.100.1/30 dev pdtest-out\nlink set pdtest-out up\n" });
      await runProgram("nsenter", ["--target", String(outside), "--net", "ip", "-batch", "-"], {
        input: "address add 198.51.100.2/30 dev eth0\nlink set eth0 up\n",
      });
      await serve(outside, 80);
      expect(await fetchInside(pid, "198.51.100.2", 80)).toBe("198.51.100.1");
    } finally {
      await runProgram("ip", ["link", "delete", "pdtest-out"], { allowed: [1] });
    }
  });

  it("drops what a side-car sends under another Pod's address", async () => {
    const networks = createPodNetworks({ dataDirectory, logger: silentLogger });
    const victim = await networks.ensure(request("a7a7a7a7aa"));
    const network = await networks.ensure(request("b8b8b8b8bb"));
    const pid = await sandbox();
    await networks.attachSidecars("b8b8b8b8bb", pid);
    const server = createServer((socket) => socket.end("reached"));
    await new Promise<void>((done) => server.listen(0, network.gatewayIP, done));
    const { port } = server.address() as { port: number };
    expect(await fetchInside(pid, network.gatewayIP, port)).toBe("reached");
    await runProgram("nsenter", ["--target", String(pid), "--net", "ip", "address", "add", `${victim.podIP}/32`, "dev", "eth0"]);
    await runProgram("nsenter", ["--target", String(pid), "--net", "ip", "route", "replace", network.gatewayIP, "dev", "eth0", "src", victim.podIP]);
    expect(await fetchInside(pid, network.gatewayIP, port)).toBe("");
    server.close();
  }, 20_000);

  it("refuses the host's own namespace, names that would be configuration, and sets an unreadable record aside", async () => {
    const networks = createPodNetworks({ dataDirectory, logger: silentLogger });
    await networks.ensure(request("c9c9c9c9cc"));
    await expect(networks.attachSidecars("c9c9c9c9cc", process.pid)).rejects.toMatchObject({ code: "InvalidArgument" });
    await expect(networks.ensure(request("d0d0d0d0dd", { searchDomains: ["a,option:router,192.0.2.1"] }))).rejects.toMatchObject({ code: "InvalidArgument" });
    expect(await networks.find("d0d0d0d0dd")).toBeUndefined();
    await writeFile(join(dataDirectory, "networks/c9c9c9c9cc.json"), "{");
    const restarted = createPodNetworks({ dataDirectory, logger: silentLogger });
    expect(await restarted.find("c9c9c9c9cc")).toBeUndefined();
    await restarted.sweep(new Set());
    expect(await ownTraces(["c9c9c9c9"])).toEqual([]);
    expect(await machineState()).toBe(before);
  });
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0);
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  return port;
}
