/**
 * Netfilter rules of all Pods of one data directory, in chains of our own (named by a hash of that directory) which
 * replace themselves as a whole in one iptables-restore: nobody else's rule is touched, and repeating is harmless.
 * Ours stands first in FORWARD because Docker sets that chain's policy to DROP. See iptables-extensions(8).
 */
import { runProgram } from "../processes.ts";

export interface FirewallPod {
  readonly podIP: string;
  readonly sidecarIP: string;
  readonly gatewayIP: string;
  readonly tapName: string;
  readonly sidecarInterfaceName: string;
  readonly sidecarPorts: readonly { readonly port: number; readonly protocol: "TCP" | "UDP" | "SCTP" }[];
  readonly hostPorts: readonly {
    readonly hostPort: number;
    readonly hostIP?: string | undefined;
    readonly port: number;
    readonly protocol: "TCP" | "UDP" | "SCTP";
  }[];
}

interface ChainNames {
  readonly forward: string;
  readonly input: string;
  readonly translate: string;
  readonly masquerade: string;
}

function chainNames(tag: string): ChainNames {
  return { forward: `PODYARD-${tag}-FORWARD`, input: `PODYARD-${tag}-INPUT`, translate: `PODYARD-${tag}-DNAT`, masquerade: `PODYARD-${tag}-SNAT` };
}

function jumpsOf(chains: ChainNames): readonly { readonly table: "filter" | "nat"; readonly from: string; readonly to: string }[] {
  return [
    { table: "filter", from: "FORWARD", to: chains.forward },
    { table: "filter", from: "INPUT", to: chains.input },
    { table: "nat", from: "PREROUTING", to: chains.translate },
    { table: "nat", from: "OUTPUT", to: chains.translate },
    { table: "nat", from: "POSTROUTING", to: chains.masquerade },
  ];
}

/** The contents of our chains. Pure. */
export function rulesOf(tag: string, subnet: string, pods: readonly FirewallPod[]): { readonly filter: readonly string[]; readonly nat: readonly string[] } {
  const chains = chainNames(tag);
  const filter: string[] = [];
  const nat: string[] = [];
  for (const pod of pods) {
    // A guest speaks with its own address only; 0.0.0.0 is how it asks for that address.
    filter.push(
      `-A ${chains.forward} -i ${pod.tapName} ! -s ${pod.podIP} -j DROP`,
      `-A ${chains.forward} -i ${pod.sidecarInterfaceName} ! -s ${pod.sidecarIP} -j DROP`,
    );
    filter.push(`-A ${chains.input} -i ${pod.tapName} -s 0.0.0.0 -p udp --dport 67 -j ACCEPT`);
    filter.push(
      `-A ${chains.input} -i ${pod.tapName} ! -s ${pod.podIP} -j DROP`,
      `-A ${chains.input} -i ${pod.sidecarInterfaceName} ! -s ${pod.sidecarIP} -j DROP`,
    );
    // A host's own firewall must not cut its guests off from DHCP and DNS.
    for (const name of [pod.tapName, pod.sidecarInterfaceName]) {
      for (const protocol of ["udp", "tcp"]) filter.push(`-A ${chains.input} -i ${name} -d ${pod.gatewayIP} -p ${protocol} --dport 53 -j ACCEPT`);
    }
    filter.push(`-A ${chains.input} -i ${pod.tapName} -p udp --dport 67 -j ACCEPT`);
    for (const { port, protocol } of pod.sidecarPorts) {
      const name = protocol.toLowerCase();
      nat.push(`-A ${chains.translate} -d ${pod.podIP} -p ${name} -m ${name} --dport ${port} -j DNAT --to-destination ${pod.sidecarIP}:${port}`);
    }
    for (const { hostPort, hostIP, port, protocol } of pod.hostPorts) {
      const name = protocol.toLowerCase();
      const isSidecars = pod.sidecarPorts.some((declared) => declared.port === port && declared.protocol === protocol);
      const destination = hostIP !== undefined && hostIP !== "" && hostIP !== "0.0.0.0" ? `-d ${hostIP} ` : "! -d 127.0.0.0/8 ";
      nat.push(
        `-A ${chains.translate} ${destination}-p ${name} -m ${name} --dport ${hostPort} -m addrtype --dst-type LOCAL ` +
          `-j DNAT --to-destination ${isSidecars ? pod.sidecarIP : pod.podIP}:${port}`,
      );
    }
    // Who reaches itself by way of the host would otherwise get answers from an address it never asked.
    for (const address of [pod.podIP, pod.sidecarIP]) nat.push(`-A ${chains.masquerade} -s ${address} -d ${address} -j SNAT --to-source ${pod.gatewayIP}`);
  }
  filter.push(`-A ${chains.forward} -s ${subnet} -j ACCEPT`, `-A ${chains.forward} -d ${subnet} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`);
  filter.push(`-A ${chains.forward} -d ${subnet} -m conntrack --ctstate DNAT -j ACCEPT`);
  nat.push(`-A ${chains.masquerade} -s ${subnet} ! -d ${subnet} -j MASQUERADE`);
  return { filter, nat };
}

/** Makes netfilter hold exactly these rules for the tag; idempotent. Errors: MissingPrerequisite. */
export async function applyFirewall(tag: string, subnet: string, pods: readonly FirewallPod[]): Promise<void> {
  const chains = chainNames(tag);
  const rules = rulesOf(tag, subnet, pods);
  const present = await savedRules();
  const text = (["filter", "nat"] as const).map((table) => {
    const own = table === "filter" ? [chains.forward, chains.input] : [chains.translate, chains.masquerade];
    const jumps = jumpsOf(chains)
      .filter((jump) => jump.table === table)
      .flatMap(({ from, to }) => repairJump(present, table, from, to));
    return [`*${table}`, ...own.map((chain) => `:${chain} - [0:0]`), ...rules[table], ...jumps, "COMMIT"].join("\n");
  });
  await restore(`${text.join("\n")}\n`);
}

/** Removes our chains; idempotent. */
export async function removeFirewall(tag: string): Promise<void> {
  const chains = chainNames(tag);
  const present = await savedRules();
  const sections = (["filter", "nat"] as const).flatMap((table) => {
    const lines = present.get(table) ?? [];
    const own = (table === "filter" ? [chains.forward, chains.input] : [chains.translate, chains.masquerade]).filter((chain) =>
      lines.some((line) => line.startsWith(`:${chain} `)),
    );
    if (own.length === 0) return [];
    const jumps = jumpsOf(chains)
      .filter((jump) => jump.table === table)
      .flatMap(({ from, to }) => lines.filter((line) => line === `-A ${from} -j ${to}`));
    return [
      `*${table}`,
      ...own.map((chain) => `:${chain} - [0:0]`),
      ...jumps.map((line) => line.replace("-A", "-D")),
      ...own.map((chain) => `-X ${chain}`),
      "COMMIT",
    ];
  });
  if (sections.length > 0) await restore(`${sections.join("\n")}\n`);
}

/** True if another Podyard or a Docker engine has chains here, and so may count on forwarding. */
export async function othersForward(tag: string): Promise<boolean> {
  const lines = [...(await savedRules()).values()].flat();
  return lines.some((line) => /^:(PODYARD-|DOCKER)/.test(line) && !line.startsWith(`:PODYARD-${tag}-`));
}

function repairJump(present: ReadonlyMap<string, readonly string[]>, table: string, from: string, to: string): readonly string[] {
  const rules = (present.get(table) ?? []).filter((line) => line.startsWith(`-A ${from} `));
  const jump = `-A ${from} -j ${to}`;
  // First only where a policy or another's DROP would come before us.
  const isRight = rules.filter((rule) => rule === jump).length === 1 && (table === "nat" || isFirstOfOurs(rules, jump));
  if (isRight) return [];
  return [...rules.filter((rule) => rule === jump).map((rule) => rule.replace("-A", "-D")), `-I ${from} 1 -j ${to}`];
}

/** Other Podyard hosts' jumps may stand before ours: they pass on what is not theirs. */
function isFirstOfOurs(rules: readonly string[], jump: string): boolean {
  return rules.slice(0, rules.indexOf(jump)).every((rule) => rule.includes(" -j PODYARD-"));
}

async function savedRules(): Promise<ReadonlyMap<string, readonly string[]>> {
  const tables = new Map<string, string[]>();
  const results = await Promise.all(["filter", "nat"].map((table) => runProgram("iptables-save", ["-t", table])));
  let current: string[] = [];
  for (const line of results.flatMap(({ stdout }) => stdout.split("\n"))) {
    if (line.startsWith("*")) tables.set(line.slice(1), (current = []));
    else if (line.startsWith(":") || line.startsWith("-A")) current.push(line.trimEnd());
  }
  return tables;
}

async function restore(text: string): Promise<void> {
  await runProgram("iptables-restore", ["--noflush", "--wait", "10"], { input: text });
}
