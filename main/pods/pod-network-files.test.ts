import { describe, expect, test } from "vitest";
import type { Pod, PodSpec } from "../contract/kubernetes-api.generated.ts";
import { dnsOf, hostEntries, hostnameOf, hostsContent, resolvConfContent } from "./pod-network-files.ts";

const hostFile = "# comment\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch old.example\nsearch corp.example. .\noptions edns0 trust-ad\n";
const cluster = { servers: ["10.96.0.10"], domain: "cluster.local" };
const podOf = (spec: Partial<PodSpec> = {}, name = "p"): Pod => ({ metadata: { name, namespace: "ns", uid: "u" }, spec: { containers: [], ...spec } });

describe("the hostname", () => {
  test.each<[string, Partial<PodSpec>, string, string, string]>([
    ["is the Pod's name", {}, "p", "", "p"],
    ["may be given", { hostname: "h" }, "h", "", "h"],
    ["has a domain with a subdomain", { subdomain: "s" }, "p", "s.ns.svc.cluster.local", "p"],
    ["may be shown in full", { hostname: "h", subdomain: "s", setHostnameAsFQDN: true }, "h", "s.ns.svc.cluster.local", "h.s.ns.svc.cluster.local"],
    ["may be overridden altogether", { hostname: "h", subdomain: "s", hostnameOverride: "a.b.c" }, "a.b.c", "", "a.b.c"],
  ])("%s", (_, spec, hostname, domain, shown) => {
    expect(hostnameOf(podOf(spec), "cluster.local")).toEqual({ hostname, domain, shown });
  });

  test("has at most 63 characters and no dash at the end", () => {
    expect(hostnameOf(podOf({}, `${"a".repeat(62)}-b`), "x").hostname).toBe("a".repeat(62));
  });
});

test("/etc/hosts has the Pod's own names, its two halves and the aliases, and no line of a hostile manifest", () => {
  const pod = podOf({
    hostname: "h",
    subdomain: "s",
    hostAliases: [
      { ip: "1.2.3.4", hostnames: ["foo", "bar"] },
      { ip: "5.6.7.8", hostnames: ["evil\n6.6.6.6 bank"] },
    ],
  });
  const entries = hostEntries(pod, hostnameOf(pod, "c"), { self: "10.1.0.6", podIP: "10.1.0.5", sidecarIP: "10.1.0.6" });
  expect(hostsContent(entries).split("\n").slice(7)).toEqual([
    "10.1.0.6\th.s.ns.svc.c\th",
    "10.1.0.5\tvm.pod.internal",
    "10.1.0.6\tsidecars.pod.internal",
    "1.2.3.4\tfoo\tbar",
    "",
  ]);
  expect(hostsContent(entries)).toMatch(/^# Kubernetes-managed hosts file\.\n127\.0\.0\.1\tlocalhost\n/);
});

describe("DNS", () => {
  test.each<[string, Partial<PodSpec>, typeof cluster | undefined, readonly string[], readonly string[], readonly string[], readonly string[]]>([
    [
      "ClusterFirst asks the cluster",
      { dnsPolicy: "ClusterFirst" },
      cluster,
      ["10.96.0.10"],
      ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
      ["ndots:5"],
      [],
    ],
    ["ClusterFirst without a cluster falls back on the host, with an event", {}, undefined, [], ["corp.example"], ["edns0", "trust-ad"], ["MissingClusterDNS"]],
    ["Default asks the host", { dnsPolicy: "Default" }, cluster, [], ["corp.example"], ["edns0", "trust-ad"], []],
    [
      "Default with servers of its own keeps the host's",
      { dnsPolicy: "Default", dnsConfig: { nameservers: ["1.1.1.1"] } },
      cluster,
      ["127.0.0.53", "9.9.9.9", "1.1.1.1"],
      ["corp.example"],
      ["edns0", "trust-ad"],
      [],
    ],
    [
      "None takes nothing but dnsConfig",
      { dnsPolicy: "None", dnsConfig: { nameservers: ["1.1.1.1"], searches: ["my.example"], options: [{ name: "ndots", value: "2" }, { name: "edns0" }] } },
      cluster,
      ["1.1.1.1"],
      ["my.example"],
      ["ndots:2", "edns0"],
      [],
    ],
    [
      "dnsConfig adds and overrides",
      { dnsConfig: { nameservers: ["10.96.0.10", "8.8.8.8"], searches: ["corp.example", "x.example"], options: [{ name: "ndots", value: "1" }] } },
      cluster,
      ["10.96.0.10", "8.8.8.8"],
      ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "x.example"],
      ["ndots:1"],
      [],
    ],
    [
      "more than three servers are cut, with an event",
      { dnsPolicy: "None", dnsConfig: { nameservers: ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"] } },
      undefined,
      ["1.1.1.1", "1.1.1.2", "1.1.1.3"],
      [],
      [],
      ["DNSConfigForming"],
    ],
    [
      "what is no address or domain never reaches a server's configuration",
      { dnsPolicy: "None", dnsConfig: { nameservers: ["1.1.1.1", "x\nserver=/#/6.6.6.6"], searches: ["ok.example", "a b"] } },
      undefined,
      ["1.1.1.1"],
      ["ok.example"],
      [],
      [],
    ],
  ])("%s", (_, spec, clusterDns, nameservers, searchDomains, options, events) => {
    const dns = dnsOf(podOf(spec), clusterDns, hostFile);
    expect([dns.nameservers, dns.searchDomains, dns.options, dns.events.map(({ reason }) => reason)]).toEqual([nameservers, searchDomains, options, events]);
  });

  test("a search line that is too long is cut, with an event", () => {
    const dns = dnsOf(
      podOf({ dnsPolicy: "None", dnsConfig: { nameservers: ["1.1.1.1"], searches: Array.from({ length: 40 }, (_, index) => `s${index}.example`) } }),
      undefined,
      "",
    );
    expect(dns.searchDomains).toHaveLength(32);
    expect(dns.events[0]?.message).toMatch(/^Search Line limits were exceeded, some search paths have been omitted, the applied search line is: s0\.example /);
  });

  test("resolv.conf names the Pod's own resolver where the host's, or its loopback, is meant", () => {
    expect(resolvConfContent({ nameservers: [], searchDomains: ["a", "b"], options: ["ndots:5"] }, "10.1.0.1")).toBe(
      "nameserver 10.1.0.1\nsearch a b\noptions ndots:5\n",
    );
    expect(resolvConfContent({ nameservers: ["127.0.0.53", "9.9.9.9"], searchDomains: [], options: [] }, "10.1.0.1")).toBe(
      "nameserver 10.1.0.1\nnameserver 9.9.9.9\n",
    );
  });
});
