import { describe, expect, it } from "vitest";
import { rulesOf } from "./firewall.ts";
import type { FirewallPod } from "./firewall.ts";

const pod: FirewallPod = {
  podIP: "10.1.0.2",
  sidecarIP: "10.1.0.3",
  gatewayIP: "10.1.0.1",
  tapName: "pdt01234567",
  sidecarInterfaceName: "pds01234567",
  sidecarPorts: [{ port: 53, protocol: "UDP" }],
  hostPorts: [
    { hostPort: 2222, port: 22, protocol: "TCP" },
    { hostPort: 5353, hostIP: "192.0.2.9", port: 53, protocol: "UDP" },
  ],
};

describe("netfilter rules", () => {
  it("lets a Pod send under its own addresses only, before anything is accepted", () => {
    const { filter } = rulesOf("tag", "10.1.0.0/20", [pod]);
    const drop = filter.indexOf("-A PODYARD-tag-FORWARD -i pdt01234567 ! -s 10.1.0.2 -j DROP");
    const accept = filter.indexOf("-A PODYARD-tag-FORWARD -s 10.1.0.0/20 -j ACCEPT");
    expect(drop).toBeGreaterThanOrEqual(0);
    expect(accept).toBeGreaterThan(drop);
  });

  it("sends side-cars' ports to the side-cars and the rest of podIP to the guest", () => {
    const { nat } = rulesOf("tag", "10.1.0.0/20", [pod]);
    expect(nat.filter((rule) => rule.includes("DNAT"))).toEqual([
      "-A PODYARD-tag-DNAT -d 10.1.0.2 -p udp -m udp --dport 53 -j DNAT --to-destination 10.1.0.3:53",
      "-A PODYARD-tag-DNAT ! -d 127.0.0.0/8 -p tcp -m tcp --dport 2222 -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.1.0.2:22",
      "-A PODYARD-tag-DNAT -d 192.0.2.9 -p udp -m udp --dport 5353 -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.1.0.3:53",
    ]);
  });

  it("keeps the source address between Pods and hides it outside", () => {
    const { nat } = rulesOf("tag", "10.1.0.0/20", [pod]);
    expect(nat.at(-1)).toBe("-A PODYARD-tag-SNAT -s 10.1.0.0/20 ! -d 10.1.0.0/20 -j MASQUERADE");
  });
});
