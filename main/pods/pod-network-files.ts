/**
 * What a Pod's containers find in /etc/hosts and /etc/resolv.conf, and its hostname. Pure; the sync loop gives the DNS
 * part to the Pod's network and the files to the side-cars.
 * https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
 */
import { isIP } from "node:net";
import type { HostAlias, Pod, PodDNSConfigOption } from "../contract/kubernetes-api.generated.ts";

export interface PodDns {
  /** DNS servers to forward to, as PodNetworkRequest wants them; empty = the host's own resolver. */
  readonly nameservers: readonly string[];
  readonly searchDomains: readonly string[];
  /** `ndots:5`, … */
  readonly options: readonly string[];
  /** Warning events about the Pod: MissingClusterDNS, DNSConfigForming. */
  readonly events: readonly { readonly reason: string; readonly message: string }[];
}

export interface PodHostname {
  readonly hostname: string;
  /** `subdomain.namespace.svc.cluster.local`, or empty. */
  readonly domain: string;
  /** What `hostname` prints inside: the full name with setHostnameAsFQDN. */
  readonly shown: string;
}

const maximumNameservers = 3;
const maximumSearchDomains = 32;
const maximumSearchCharacters = 2048;

/** Hostname and domain by hostnameOverride, hostname, subdomain and setHostnameAsFQDN. */
export function hostnameOf(pod: Pod, clusterDomain: string): PodHostname {
  const spec = pod.spec;
  if (spec?.hostnameOverride !== undefined) {
    const hostname = shorten(spec.hostnameOverride);
    return { hostname, domain: "", shown: hostname };
  }
  const hostname = shorten(spec?.hostname || pod.metadata?.name || "pod");
  const domain = spec?.subdomain ? `${spec.subdomain}.${pod.metadata?.namespace ?? "default"}.svc.${clusterDomain}` : "";
  const full = `${hostname}.${domain}`;
  return { hostname, domain, shown: spec?.setHostnameAsFQDN === true && domain !== "" && full.length <= 64 ? full : hostname };
}

/** Names that belong into the hosts file of the guest (`self` = podIP) or of the side-cars (`self` = sidecarIP). */
export function hostEntries(
  pod: Pod,
  hostname: PodHostname,
  addresses: { readonly self: string; readonly podIP: string; readonly sidecarIP: string },
): readonly { readonly ip: string; readonly names: readonly string[] }[] {
  const own = hostname.domain === "" ? [hostname.hostname] : [`${hostname.hostname}.${hostname.domain}`, hostname.hostname];
  return [
    { ip: addresses.self, names: own },
    { ip: addresses.podIP, names: ["vm.pod.internal"] },
    { ip: addresses.sidecarIP, names: ["sidecars.pod.internal"] },
    ...(pod.spec?.hostAliases ?? []).map(({ ip, hostnames = [] }: HostAlias) => ({ ip, names: hostnames })),
  ].filter(({ ip, names }) => isHostsField(ip) && names.length > 0 && names.every(isHostsField));
}

/** The text of /etc/hosts, with the kubelet's header so that programs which look for it see a managed file. */
export function hostsContent(entries: readonly { readonly ip: string; readonly names: readonly string[] }[]): string {
  const fixed = [
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "fe00::0\tip6-mcastprefix",
    "fe00::1\tip6-allnodes",
    "fe00::2\tip6-allrouters",
  ];
  return ["# Kubernetes-managed hosts file.", ...fixed, ...entries.map(({ ip, names }) => `${ip}\t${names.join("\t")}`), ""].join("\n");
}

/** DNS by dnsPolicy and dnsConfig. `hostResolvConf` is the text of the host's file. */
export function dnsOf(pod: Pod, clusterDns: { readonly servers: readonly string[]; readonly domain: string } | undefined, hostResolvConf: string): PodDns {
  const policy = pod.spec?.dnsPolicy ?? "ClusterFirst";
  const host = parseResolvConf(hostResolvConf);
  const events: { reason: string; message: string }[] = [];
  let servers: readonly string[] = [];
  let searches: readonly string[] = host.searchDomains;
  let options: readonly string[] = host.options;
  if (policy === "None") {
    searches = [];
    options = [];
  } else if (policy !== "Default" && clusterDns !== undefined && clusterDns.servers.length > 0) {
    const { domain } = clusterDns;
    servers = clusterDns.servers;
    searches = domain === "" ? searches : [`${pod.metadata?.namespace ?? "default"}.svc.${domain}`, `svc.${domain}`, domain, ...searches];
    options = ["ndots:5"];
  } else if (policy !== "Default") {
    const name = `${pod.metadata?.name ?? ""}_${pod.metadata?.namespace ?? ""}(${pod.metadata?.uid ?? ""})`;
    events.push({
      reason: "MissingClusterDNS",
      message: `pod: "${name}". kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy.`,
    });
  }
  const added = pod.spec?.dnsConfig;
  // With the host's resolver the list stays empty ("ask the host"), unless the Pod adds servers of its own to it.
  const usesHost = policy !== "None" && servers.length === 0;
  if (added?.nameservers !== undefined && added.nameservers.length > 0) servers = unique([...(usesHost ? host.nameservers : servers), ...added.nameservers]);
  // These become lines of a DNS server's configuration: nothing but addresses and domain names may pass.
  servers = servers.filter((server) => isIP(server) !== 0);
  searches = unique([...searches, ...(added?.searches ?? [])]).filter((search) => /^[A-Za-z0-9._-]+$/.test(search));
  if (servers.length > maximumNameservers) {
    servers = servers.slice(0, maximumNameservers);
    events.push({
      reason: "DNSConfigForming",
      message: `Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: ${servers.join(" ")}`,
    });
  }
  const fitting = fitSearches(searches);
  if (fitting.length < searches.length) {
    events.push({
      reason: "DNSConfigForming",
      message: `Search Line limits were exceeded, some search paths have been omitted, the applied search line is: ${fitting.join(" ")}`,
    });
  }
  return { nameservers: servers, searchDomains: fitting, options: mergeOptions(options, added?.options ?? []), events };
}

/** The text of the side-cars' resolv.conf. `resolverIP` answers where the host's resolver is meant or a server is the host's loopback. */
export function resolvConfContent(dns: Pick<PodDns, "nameservers" | "searchDomains" | "options">, resolverIP: string): string {
  const servers = unique((dns.nameservers.length === 0 ? [resolverIP] : dns.nameservers).map((server) => (isLoopback(server) ? resolverIP : server)));
  const lines = servers.map((server) => `nameserver ${server}`);
  if (dns.searchDomains.length > 0) lines.push(`search ${dns.searchDomains.join(" ")}`);
  if (dns.options.length > 0) lines.push(`options ${dns.options.join(" ")}`);
  return `${lines.join("\n")}\n`;
}

export function parseResolvConf(text: string): {
  readonly nameservers: readonly string[];
  readonly searchDomains: readonly string[];
  readonly options: readonly string[];
} {
  const nameservers: string[] = [];
  let searchDomains: readonly string[] = [];
  let options: readonly string[] = [];
  for (const line of text.split("\n")) {
    const [keyword, ...values] = line.trim().split(/\s+/);
    if (keyword === "nameserver" && values[0] !== undefined) nameservers.push(values[0]);
    // The last search line wins; a domain with and without the final dot is one.
    else if (keyword === "search") searchDomains = values.filter((value) => value !== ".").map((value) => value.replace(/\.$/, ""));
    else if (keyword === "options")
      options = mergeOptions(
        options,
        values.map((value) => ({ name: value.split(":")[0] ?? "", value: value.includes(":") ? value.slice(value.indexOf(":") + 1) : undefined })),
      );
  }
  return { nameservers, searchDomains, options };
}

function mergeOptions(
  base: readonly string[],
  added: readonly { readonly name?: PodDNSConfigOption["name"]; readonly value?: string | undefined }[],
): readonly string[] {
  const options = new Map(base.map((option): [string, string] => [option.split(":")[0] ?? "", option]));
  for (const { name = "", value } of added) options.set(name, value === undefined || value === "" ? name : `${name}:${value}`);
  return [...options.values()];
}

/** glibc aborts on a search path above 253 characters; the line as a whole has limits too. */
function fitSearches(searches: readonly string[]): readonly string[] {
  const fitting = searches.slice(0, maximumSearchDomains).filter((search) => search.length <= 253);
  while (fitting.join(" ").length > maximumSearchCharacters) fitting.pop();
  return fitting;
}

/** A hostname has at most 63 characters and ends with neither dash nor dot. */
function shorten(hostname: string): string {
  return hostname.length <= 63 ? hostname : hostname.slice(0, 63).replace(/[-.]+$/, "");
}

/** Keeps a hostile manifest read from a file from adding lines of its own. */
function isHostsField(text: string): boolean {
  return /^[0-9A-Za-z.:%_-]+$/.test(text);
}

function isLoopback(address: string): boolean {
  return address === "::1" || address.startsWith("127.");
}

function unique(list: readonly string[]): readonly string[] {
  return [...new Set(list)];
}
