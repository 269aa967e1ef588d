/**
 * One dnsmasq(8) per Pod: DHCP for the guest (its one address, with an infinite lease) and DNS for guest and side-cars.
 * It puts itself into the background once its sockets are bound, so its exit code says whether it works; it outlives the
 * host. It is ours if its command line is the one we would start: nothing needs remembering, and a change restarts it.
 */
import { readFile, rm } from "node:fs/promises";
import { isIP } from "node:net";
import { PodyardError } from "../../contract/errors.ts";
import { commandLineOf, identify, killProcess, runProgram } from "../processes.ts";

export interface NameServerConfiguration {
  readonly interfaceName: string;
  readonly networkBase: string;
  readonly netmask: string;
  readonly gatewayIP: string;
  readonly podIP: string;
  readonly sidecarIP: string;
  readonly macAddress: string;
  readonly hostname: string;
  readonly nameservers: readonly string[];
  readonly searchDomains: readonly string[];
  readonly hostAliases: readonly { readonly ip: string; readonly hostnames: readonly string[] }[];
  readonly pidFile: string;
  readonly leaseFile: string;
}

/** Errors: InvalidArgument naming the value, since a comma or newline would be read as configuration. */
export function nameServerArguments(configuration: NameServerConfiguration): readonly string[] {
  const { gatewayIP, podIP, sidecarIP, searchDomains } = configuration;
  checkName("hostname", configuration.hostname);
  for (const domain of searchDomains) checkName("dnsConfig.searches", domain);
  for (const address of configuration.nameservers) checkAddress("dnsConfig.nameservers", address);
  const records = configuration.hostAliases.flatMap(({ ip, hostnames }) => {
    checkAddress("hostAliases.ip", ip);
    return hostnames.map((name) => `--host-record=${checkName("hostAliases.hostnames", name)},${ip}`);
  });
  const [firstDomain] = searchDomains;
  return [
    "--conf-file=/dev/null",
    `--pid-file=${configuration.pidFile}`,
    "--bind-interfaces",
    `--interface=${configuration.interfaceName}`,
    "--except-interface=lo",
    "--no-hosts",
    `--dhcp-range=${configuration.networkBase},static,${configuration.netmask},infinite`,
    `--dhcp-host=${configuration.macAddress},${podIP},${configuration.hostname},infinite`,
    `--dhcp-leasefile=${configuration.leaseFile}`,
    `--dhcp-option=option:router,${gatewayIP}`,
    `--dhcp-option=option:dns-server,${gatewayIP}`,
    ...(firstDomain === undefined ? [] : [`--dhcp-option=option:domain-name,${firstDomain}`, `--dhcp-option=option:domain-search,${searchDomains.join(",")}`]),
    "--dhcp-authoritative",
    "--dhcp-rapid-commit",
    "--no-ping",
    "--quiet-dhcp",
    "--local=/pod.internal/",
    `--host-record=vm.pod.internal,${podIP}`,
    `--host-record=sidecars.pod.internal,${sidecarIP}`,
    `--host-record=${configuration.hostname},${podIP}`,
    ...records,
    ...(configuration.nameservers.length > 0 ? ["--no-resolv", ...configuration.nameservers.map((server) => `--server=${server}`)] : []),
  ];
}

/** Starts it unless it runs with just these arguments. Errors: MissingPrerequisite, InvalidArgument, Unavailable. */
export async function ensureNameServer(configuration: NameServerConfiguration, restart: boolean): Promise<void> {
  const args = nameServerArguments(configuration);
  const running = await findNameServer(configuration.pidFile);
  if (running !== undefined) {
    if (!restart && running.args.length === args.length && running.args.every((value, index) => value === args[index])) return;
    await killProcess(running.identity);
  }
  try {
    await runProgram("dnsmasq", args);
  } catch (error) {
    if (error instanceof PodyardError && error.code === "MissingPrerequisite") throw error;
    throw new PodyardError("Unavailable", `The DHCP and DNS server of ${configuration.podIP} does not start.`, { cause: error });
  }
}

export async function stopNameServer(pidFile: string): Promise<void> {
  const running = await findNameServer(pidFile);
  if (running !== undefined) await killProcess(running.identity);
  await rm(pidFile, { force: true });
}

async function findNameServer(
  pidFile: string,
): Promise<{ readonly identity: { readonly processId: number; readonly startTime: number }; readonly args: readonly string[] } | undefined> {
  const processId = Number((await readFile(pidFile, "utf8").catch(() => "")).trim());
  if (!Number.isInteger(processId) || processId <= 1) return undefined;
  const identity = identify(processId);
  const [program = "", ...args] = await commandLineOf(processId);
  // The id in the file may have been given to another process since.
  if (identity === undefined || !program.endsWith("dnsmasq") || !args.includes(`--pid-file=${pidFile}`)) return undefined;
  return { identity, args };
}

function checkName(field: string, name: string): string {
  const isName =
    name.length <= 253 &&
    name
      .replace(/\.$/, "")
      .split(".")
      .every((label) => /^[A-Za-z0-9_][A-Za-z0-9_-]{0,62}$/.test(label));
  if (!isName) throw new PodyardError("InvalidArgument", `${field} is "${name.slice(0, 80)}"; expected a DNS name.`);
  return name;
}

function checkAddress(field: string, address: string): void {
  if (isIP(address) === 0) throw new PodyardError("InvalidArgument", `${field} is "${address.slice(0, 80)}"; expected an IP address.`);
}
