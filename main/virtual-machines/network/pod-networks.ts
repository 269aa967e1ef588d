/**
 * Pod networks on Linux, routed rather than bridged: a persistent tap whose guest side owns podIP, a veth whose far end in
 * the side-cars' namespace owns sidecarIP, and a /32 route of the host to each. A Docker restart replaces the side-cars'
 * namespace, so nothing of the guest's may live in it; the tap survives both that and the host.
 *
 * The guest believes its whole subnet is on its link (every DHCP client understands that) and the host answers ARP for
 * all of it (proxy_arp). State is DATA_DIR/networks: one record per Pod, written before the first interface exists.
 */
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { z } from "zod";
import { PodyardError, messageOf } from "../../contract/errors.ts";
import type { Logger } from "../../contract/logger.ts";
import { readRecord, writeRecord } from "../../records/atomic-file.ts";
import { runProgram } from "../processes.ts";
import type { PodNetwork, PodNetworkRequest, PodNetworks } from "../virtual-machine.ts";
import { applyFirewall, othersForward, removeFirewall } from "./firewall.ts";
import { exists, ipBatch, refuseOwnNamespace, writeSettings } from "./interfaces.ts";
import { ensureNameServer, nameServerArguments, stopNameServer } from "./name-server.ts";
import type { NameServerConfiguration } from "./name-server.ts";
import { addressesOf, blockCount, chooseSubnet, formatSubnet, netmaskOf, nextBlock, overlaps, parseSubnet } from "./subnet.ts";
import type { Subnet } from "./subnet.ts";

export interface PodNetworksOptions {
  readonly dataDirectory: string;
  readonly logger: Logger;
  /** A network such as 10.150.16.0/20, or "auto" (the default): a free /20 of 10.128.0.0–10.239.255.255, kept once chosen. */
  readonly subnet?: string;
}

const protocolSchema = z.enum(["TCP", "UDP", "SCTP"]);

const recordSchema = z.object({
  block: z.number().int().nonnegative(),
  network: z.object({ id: z.string(), podIP: z.string(), sidecarIP: z.string(), gatewayIP: z.string(), macAddress: z.string(), interfaceName: z.string() }),
  request: z.object({
    id: z.string(),
    hostname: z.string(),
    nameservers: z.array(z.string()),
    searchDomains: z.array(z.string()),
    hostAliases: z.array(z.object({ ip: z.string(), hostnames: z.array(z.string()) })),
    sidecarPorts: z.array(z.object({ port: z.number(), protocol: protocolSchema })),
    hostPorts: z.array(z.object({ hostPort: z.number(), hostIP: z.string().exactOptional(), port: z.number(), protocol: protocolSchema })),
  }),
});

type NetworkRecord = z.infer<typeof recordSchema>;

const subnetSchema = z.object({ subnet: z.string(), lastBlock: z.number().int(), forwardingBefore: z.string().optional() });

type SubnetRecord = z.infer<typeof subnetSchema>;

/** A route nobody prefers: it keeps packets to absent Pods off the default route, and shows other hosts the subnet is taken. */
const reservationMetric = 4278198272;

const forwardingSwitch = "/proc/sys/net/ipv4/ip_forward";

export function createPodNetworks(options: PodNetworksOptions): PodNetworks {
  return new LinuxPodNetworks(options);
}

class LinuxPodNetworks implements PodNetworks {
  readonly #directory: string;
  readonly #subnetPath: string;
  readonly #logger: Logger;
  readonly #wantedSubnet: Subnet | undefined;
  readonly #tag: string;
  /** Interfaces carry this as their alias, so that a sweep knows ours from another host's. */
  readonly #alias: string;
  #records: Map<string, NetworkRecord> | undefined;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(options: PodNetworksOptions) {
    this.#directory = join(resolve(options.dataDirectory), "networks");
    this.#subnetPath = join(this.#directory, "subnet.json");
    this.#logger = options.logger;
    this.#wantedSubnet = options.subnet === undefined || options.subnet === "auto" ? undefined : parseSubnet(options.subnet);
    this.#tag = createHash("sha256").update(this.#directory).digest("hex").slice(0, 8);
    this.#alias = `podyard:${this.#tag}`;
  }

  ensure(request: PodNetworkRequest): Promise<PodNetwork> {
    return this.#exclusively(() => this.#ensure(request));
  }

  async find(id: string): Promise<PodNetwork | undefined> {
    return (await this.#exclusively(() => this.#load())).get(id)?.network;
  }

  attachSidecars(id: string, processId: number): Promise<void> {
    return this.#exclusively(() => this.#attachSidecars(id, processId));
  }

  remove(id: string): Promise<void> {
    return this.#exclusively(() => this.#remove(id));
  }

  sweep(keep: ReadonlySet<string>): Promise<void> {
    return this.#exclusively(() => this.#sweep(keep));
  }

  async #ensure(request: PodNetworkRequest): Promise<PodNetwork> {
    if (!/^[0-9a-f]{8,64}$/.test(request.id))
      throw new PodyardError("InvalidArgument", `The network's id is "${request.id}"; expected at least 8 lower-case hexadecimal digits.`);
    const records = await this.#load();
    const known = records.get(request.id);
    for (const [id, other] of records) {
      if (id !== request.id && other.network.interfaceName === tapName(request.id))
        throw new PodyardError("Conflict", `The ids ${request.id} and ${id} begin with the same 8 characters.`);
    }
    await this.#checkHostPorts(request, records);
    const subnet = await this.#ensureSubnet(records);
    const record: NetworkRecord = known === undefined ? await this.#allocate(request, subnet, records) : { ...known, request: copyOf(request) };
    // Refused values must be refused before anything exists.
    nameServerArguments(this.#nameServer(record, subnet));
    if (known === undefined) await writeRecord(this.#subnetPath, { ...(await this.#subnetRecord()), lastBlock: record.block });
    if (JSON.stringify(known) !== JSON.stringify(record)) await writeRecord(this.#recordPath(request.id), record);
    records.set(request.id, record);

    await this.#enableForwarding();
    const isNew = await this.#ensureTap(record.network, subnet);
    await Promise.all([
      applyFirewall(this.#tag, formatSubnet(subnet), [...records.values()].map(firewallPod)),
      // It is bound to the interface itself, not to its name.
      ensureNameServer(this.#nameServer(record, subnet), isNew),
    ]);
    return record.network;
  }

  async #allocate(request: PodNetworkRequest, subnet: Subnet, records: ReadonlyMap<string, NetworkRecord>): Promise<NetworkRecord> {
    const block = (await this.#blockInUse(tapName(request.id), subnet)) ?? nextBlock(subnet, new Set([...records.values()].map((record) => record.block)), this.#lastBlock);
    const addresses = addressesOf(subnet, block);
    if (addresses === undefined) throw new PodyardError("Internal", `Block ${block} has no addresses.`);
    this.#lastBlock = block;
    // 52:54:00 is what QEMU itself uses: locally administered, unicast.
    const digits = createHash("sha256").update(`${this.#tag}/${request.id}`).digest("hex");
    const macAddress = ["52", "54", "00", digits.slice(0, 2), digits.slice(2, 4), digits.slice(4, 6)].join(":");
    return { block, request: copyOf(request), network: { id: request.id, ...addresses, macAddress, interfaceName: tapName(request.id) } };
  }

  #lastBlock = 0;

  /** A guest keeps its address also when the record of it could not be read: the interface still has it. */
  async #blockInUse(interfaceName: string, subnet: Subnet): Promise<number | undefined> {
    const gatewayIP = (await this.#ownAddresses()).get(interfaceName);
    if (gatewayIP === undefined) return undefined;
    for (let block = 0; block < blockCount(subnet); block++) if (addressesOf(subnet, block)?.gatewayIP === gatewayIP) return block;
    return undefined;
  }

  /** Our side's addresses, by interface. */
  async #ownAddresses(): Promise<ReadonlyMap<string, string>> {
    const own = await this.#ownInterfaces();
    if (own.length === 0) return new Map();
    const { stdout } = await runProgram("ip", ["-json", "-4", "address", "show"]);
    const interfaces = z.array(z.object({ ifname: z.string().optional(), addr_info: z.array(z.object({ local: z.string().optional() })).optional() })).parse(JSON.parse(stdout));
    return new Map(interfaces.flatMap(({ ifname = "", addr_info: [first] = [] }) => (own.includes(ifname) && first?.local !== undefined ? [[ifname, first.local] as const] : [])));
  }

  /** The subnet of our interfaces, if its record was lost while they are there. */
  async #subnetInUse(): Promise<Subnet | undefined> {
    const [address] = (await this.#ownAddresses()).values();
    if (address === undefined) return undefined;
    const reserved = (await this.#routes()).find((route) => route.metric === reservationMetric && overlaps(parseSubnet(route.dst), parseSubnet(address)));
    return reserved === undefined ? undefined : parseSubnet(reserved.dst);
  }

  /** Chosen once; again only while no Pod uses it and the machine meanwhile routes it elsewhere (a VPN came up). */
  async #ensureSubnet(records: ReadonlyMap<string, NetworkRecord>): Promise<Subnet> {
    const saved = await this.#subnetRecord();
    this.#lastBlock = Math.max(this.#lastBlock, saved?.lastBlock ?? 0);
    const inUse = saved === undefined || records.size === 0 ? await this.#subnetInUse() : undefined;
    if (saved === undefined && inUse !== undefined) await writeRecord(this.#subnetPath, { subnet: formatSubnet(inUse), lastBlock: 0 } satisfies SubnetRecord);
    const current = saved === undefined ? inUse : parseSubnet(saved.subnet);
    if (current !== undefined && (records.size > 0 || inUse !== undefined)) return this.#reserve(current);
    const foreign = await this.#foreignSubnets();
    const isFree = (subnet: Subnet): boolean => !foreign.some((used) => used.prefix > 0 && overlaps(used, subnet));
    if (this.#wantedSubnet !== undefined && !isFree(this.#wantedSubnet)) {
      throw new PodyardError("Conflict", `The subnet ${formatSubnet(this.#wantedSubnet)} is already routed on this machine.`, {
        fix: "Set another subnet, or auto.",
      });
    }
    const subnet = this.#wantedSubnet ?? (current !== undefined && isFree(current) ? current : chooseSubnet(this.#tag, foreign));
    await writeRecord(this.#subnetPath, { ...saved, subnet: formatSubnet(subnet), lastBlock: saved?.lastBlock ?? 0 } satisfies SubnetRecord);
    return this.#reserve(subnet);
  }

  async #reserve(subnet: Subnet): Promise<Subnet> {
    await ipBatch([`route replace unreachable ${formatSubnet(subnet)} metric ${reservationMetric}`]);
    return subnet;
  }

  async #subnetRecord(): Promise<SubnetRecord | undefined> {
    return readRecord(this.#subnetPath, subnetSchema, this.#logger);
  }

  /** What the machine routes already, without our own. */
  async #foreignSubnets(): Promise<readonly Subnet[]> {
    const routes = await this.#routes();
    const own = (await this.#subnetRecord())?.subnet;
    return routes
      .filter((route) => route.dst !== "default" && !(route.metric === reservationMetric && route.dst === own))
      .flatMap((route) => (/^[0-9.]+(\/\d+)?$/.test(route.dst) ? [parseSubnet(route.dst)] : []));
  }

  /** A tap of this name that another data directory left behind goes; one that a guest holds open stays. Errors: Conflict. */
  async #releaseForeign(interfaceName: string): Promise<void> {
    const read = async (file: string): Promise<string> => (await readFile(`/sys/class/net/${interfaceName}/${file}`, "utf8").catch(() => "")).trim();
    const alias = await read("ifalias");
    // Without a name it may be all that a crash left of this very network.
    if (alias === "" || alias === this.#alias) return;
    if ((await read("carrier")) === "1") throw new PodyardError("Conflict", `The interface ${interfaceName} is in use by another host of this machine (${alias}).`);
    await runProgram("ip", ["link", "delete", "dev", interfaceName], { allowed: [1] });
  }

  async #routes() {
    const { stdout } = await runProgram("ip", ["-json", "-4", "route", "show", "table", "all"]);
    return z.array(z.object({ dst: z.string(), dev: z.string().optional(), type: z.string().optional(), metric: z.number().optional() })).parse(JSON.parse(stdout));
  }

  /** True if the tap did not exist. */
  async #ensureTap(network: PodNetwork, subnet: Subnet): Promise<boolean> {
    const { interfaceName, gatewayIP, podIP } = network;
    await this.#releaseForeign(interfaceName);
    const isNew = !(await exists(`/sys/class/net/${interfaceName}`));
    if (isNew && !(await exists("/dev/net/tun"))) throw new PodyardError("MissingPrerequisite", "/dev/net/tun does not exist.", { fix: "modprobe tun" });
    await ipBatch([
      ...(isNew ? [`tuntap add dev ${interfaceName} mode tap user ${process.getuid?.() ?? 0}`] : []),
      `link set dev ${interfaceName} alias ${this.#alias}`,
      `address replace ${gatewayIP}/32 dev ${interfaceName}`,
      `link set dev ${interfaceName} up`,
      `route replace ${podIP}/32 dev ${interfaceName} src ${gatewayIP}`,
      // Known, so not asked for: no second of waiting while the guest boots, and nothing for it to spoof.
      `neighbour replace ${podIP} lladdr ${network.macAddress} dev ${interfaceName} nud permanent`,
    ]);
    await writeSettings(interfaceName, {
      "ipv6/conf/*/disable_ipv6": "1",
      "ipv4/conf/*/proxy_arp": "1",
      "ipv4/conf/*/forwarding": "1",
      "ipv4/neigh/*/proxy_delay": "0",
    });
    this.#logger.debug(`The network of ${network.id} is up.`, { podIP, subnet: formatSubnet(subnet) });
    return isNew;
  }

  async #attachSidecars(id: string, processId: number): Promise<void> {
    const record = (await this.#load()).get(id);
    if (record === undefined) throw new PodyardError("NotFound", `There is no network ${id}.`);
    await refuseOwnNamespace(processId);
    const { sidecarIP, gatewayIP } = record.network;
    const outside = sidecarInterfaceName(id);
    const inNamespace = (args: readonly string[], input?: string) =>
      runProgram("nsenter", ["--target", String(processId), "--net", "ip", ...args], input === undefined ? {} : { input });
    const { stdout } = await inNamespace(["-json", "address", "show"]);
    const interfaces = z
      .array(z.object({ ifname: z.string().optional(), addr_info: z.array(z.object({ local: z.string().optional() })).optional() }))
      .parse(JSON.parse(stdout || "[]"));
    const inside = interfaces.find((link) => link.ifname === "eth0");
    const isOurs = inside?.addr_info?.some((address) => address.local === sidecarIP) === true;
    const isPlumbed = isOurs && (await exists(`/sys/class/net/${outside}`));
    if (!isPlumbed) {
      // The far end of an interrupted attempt, or of a sandbox that Docker has replaced.
      if (await exists(`/sys/class/net/${outside}`)) await ipBatch([`link delete dev ${outside}`]);
      else if (inside !== undefined)
        throw new PodyardError("Conflict", `The sandbox of ${id} already has an interface eth0.`, { fix: 'Create it with the network mode "none".' });
      await ipBatch([`link add ${outside} type veth peer name eth0 netns ${processId}`]);
    }
    await writeSettings(outside, { "ipv6/conf/*/disable_ipv6": "1", "ipv4/conf/*/forwarding": "1" });
    await ipBatch([
      `link set dev ${outside} alias ${this.#alias}`,
      `address replace ${gatewayIP}/32 dev ${outside}`,
      `link set dev ${outside} up`,
      `route replace ${sidecarIP}/32 dev ${outside} src ${gatewayIP}`,
    ]);
    const lines = [
      "link set dev lo up",
      `address replace ${sidecarIP}/32 dev eth0`,
      "link set dev eth0 up",
      `route replace ${gatewayIP}/32 dev eth0 scope link src ${sidecarIP}`,
      `route replace default via ${gatewayIP} dev eth0 src ${sidecarIP}`,
    ];
    await inNamespace(["-batch", "-"], `${lines.join("\n")}\n`);
  }

  async #remove(id: string): Promise<void> {
    const records = await this.#load();
    if (!records.has(id)) return;
    await this.#dismantle(id);
    records.delete(id);
    await this.#settle(records);
    // The record goes last: a crash before this repeats the removal.
    await rm(this.#recordPath(id), { force: true });
  }

  async #dismantle(id: string): Promise<void> {
    await stopNameServer(this.#pidPath(id));
    for (const name of [sidecarInterfaceName(id), tapName(id)])
      if (await exists(`/sys/class/net/${name}`)) await runProgram("ip", ["link", "delete", "dev", name], { allowed: [1] });
    await rm(this.#leasePath(id), { force: true });
  }

  /** Rules for those that are left; with none left, nothing of ours remains on the machine. */
  async #settle(records: ReadonlyMap<string, NetworkRecord>): Promise<void> {
    const saved = await this.#subnetRecord();
    // Also when it was lost: our chains are found by their name.
    if (saved === undefined) return removeFirewall(this.#tag);
    if (records.size > 0) return applyFirewall(this.#tag, saved.subnet, [...records.values()].map(firewallPod));
    await removeFirewall(this.#tag);
    await runProgram("ip", ["route", "delete", "unreachable", saved.subnet, "metric", String(reservationMetric)], { allowed: [1, 2] });
    if (saved.forwardingBefore === "0" && !(await othersForward(this.#tag))) await writeFile(forwardingSwitch, "0");
    await writeRecord(this.#subnetPath, { subnet: saved.subnet, lastBlock: saved.lastBlock } satisfies SubnetRecord);
  }

  async #enableForwarding(): Promise<void> {
    const value = (await readFile(forwardingSwitch, "utf8")).trim();
    if (value === "1") return;
    const saved = await this.#subnetRecord();
    if (saved !== undefined) await writeRecord(this.#subnetPath, { ...saved, forwardingBefore: value });
    await writeFile(forwardingSwitch, "1").catch((error: unknown) => {
      throw new PodyardError("MissingPrerequisite", `IPv4 forwarding is off and cannot be turned on: ${messageOf(error)}.`, {
        fix: "sysctl -w net.ipv4.ip_forward=1",
      });
    });
  }

  async #sweep(keep: ReadonlySet<string>): Promise<void> {
    const records = await this.#load();
    for (const id of [...records.keys()].filter((name) => !keep.has(name))) await this.#remove(id);
    // Whom the caller keeps but we do not know lost its record: its interface is still a guest's.
    const expected = new Set([...records.keys(), ...keep].flatMap((id) => [tapName(id), sidecarInterfaceName(id)]));
    for (const name of await this.#ownInterfaces()) if (!expected.has(name)) await runProgram("ip", ["link", "delete", "dev", name], { allowed: [1] });
    for (const file of await readdir(this.#directory).catch(() => [])) {
      const id = /^([0-9a-f]{8,64})\.(pid|leases)$/.exec(file)?.[1];
      if (id !== undefined && !records.has(id) && !keep.has(id)) await this.#dismantle(id);
    }
    if (records.size === 0 && keep.size === 0) await this.#settle(records);
  }

  async #ownInterfaces(): Promise<readonly string[]> {
    const names = (await readdir("/sys/class/net")).filter((name) => /^pd[ts][0-9a-f]{8}$/.test(name));
    const aliases = await Promise.all(names.map((name) => readFile(`/sys/class/net/${name}/ifalias`, "utf8").catch(() => "")));
    return names.filter((_, index) => aliases[index]?.trim() === this.#alias);
  }

  /** Errors: Conflict, naming who has the port. */
  async #checkHostPorts(request: PodNetworkRequest, records: ReadonlyMap<string, NetworkRecord>): Promise<void> {
    const isSame = (a: string | undefined, b: string | undefined): boolean => isAnyAddress(a) || isAnyAddress(b) || a === b;
    const own = records.get(request.id)?.request.hostPorts ?? [];
    for (const wanted of request.hostPorts) {
      for (const [id, other] of records) {
        if (
          id === request.id ||
          !other.request.hostPorts.some((port) => port.hostPort === wanted.hostPort && port.protocol === wanted.protocol && isSame(port.hostIP, wanted.hostIP))
        )
          continue;
        throw new PodyardError("Conflict", `hostPort ${wanted.hostPort}/${wanted.protocol} is taken by the Pod ${other.request.hostname}.`);
      }
      const isHeld = own.some((port) => port.hostPort === wanted.hostPort && port.protocol === wanted.protocol);
      if (wanted.protocol === "TCP" && !isHeld && (await isListening(wanted.hostPort, isAnyAddress(wanted.hostIP) ? undefined : wanted.hostIP))) {
        throw new PodyardError("Conflict", `hostPort ${wanted.hostPort}/TCP is taken by a process of this machine.`);
      }
    }
  }

  async #load(): Promise<Map<string, NetworkRecord>> {
    if (this.#records !== undefined) return this.#records;
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const records = new Map<string, NetworkRecord>();
    for (const file of await readdir(this.#directory)) {
      const id = /^([0-9a-f]{8,64})\.json$/.exec(file)?.[1];
      if (id === undefined) continue;
      const record = await readRecord(join(this.#directory, file), recordSchema, this.#logger);
      if (record !== undefined) records.set(id, record);
    }
    return (this.#records = records);
  }

  #nameServer(record: NetworkRecord, subnet: Subnet): NameServerConfiguration {
    const { request, network } = record;
    const [networkBase = ""] = formatSubnet(subnet).split("/");
    return { ...network, ...request, networkBase, netmask: netmaskOf(subnet), pidFile: this.#pidPath(request.id), leaseFile: this.#leasePath(request.id) };
  }

  #recordPath(id: string): string {
    return join(this.#directory, `${id}.json`);
  }

  #pidPath(id: string): string {
    return join(this.#directory, `${id}.pid`);
  }

  #leasePath(id: string): string {
    return join(this.#directory, `${id}.leases`);
  }

  /** Addresses and rules are computed from all records: one change at a time. */
  #exclusively<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(action);
    this.#queue = result.catch(() => undefined);
    return result;
  }
}

function tapName(id: string): string {
  return `pdt${id.slice(0, 8)}`;
}

function sidecarInterfaceName(id: string): string {
  return `pds${id.slice(0, 8)}`;
}

function firewallPod(record: NetworkRecord) {
  const { network, request } = record;
  return { ...network, ...request, tapName: network.interfaceName, sidecarInterfaceName: sidecarInterfaceName(request.id) };
}

/** The request as plain data of our own. */
function copyOf(request: PodNetworkRequest): NetworkRecord["request"] {
  return recordSchema.shape.request.parse(structuredClone(request));
}

function isAnyAddress(address: string | undefined): boolean {
  return address === undefined || address === "" || address === "0.0.0.0";
}

async function isListening(port: number, host: string | undefined): Promise<boolean> {
  return new Promise((done) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => done(error.code === "EADDRINUSE"));
    server.listen({ port, host: host ?? "0.0.0.0", exclusive: true }, () => server.close(() => done(false)));
  });
}
