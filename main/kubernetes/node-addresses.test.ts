import type { NetworkInterfaceInfo } from "node:os";
import { describe, expect, it } from "vitest";
import { chooseAddresses, isRoutable } from "./node-addresses.ts";

const entry = (address: string): NetworkInterfaceInfo =>
  address.includes(":")
    ? { address, family: "IPv6", internal: address === "::1", netmask: "", mac: "", cidr: null, scopeid: 0 }
    : { address, family: "IPv4", internal: address.startsWith("127."), netmask: "", mac: "", cidr: null };

describe("the node's address", () => {
  it("is not of a bridge, tap, container, tunnel or link-local", () => {
    const interfaces = {
      lo0: [entry("127.0.0.1"), entry("::1")],
      bridge100: [entry("192.168.64.1")],
      docker0: [entry("172.17.0.1")],
      "br-0123": [entry("172.18.0.1")],
      tap0: [entry("10.88.0.1")],
      veth12: [entry("10.88.0.2")],
      utun3: [entry("100.64.0.1")],
      awdl0: [entry("fe80::1")],
      en0: [entry("fe80::2"), entry("169.254.3.4"), entry("192.0.2.7"), entry("2001:db8::7")],
    };
    expect(chooseAddresses(interfaces, "192.0.2.7")).toEqual(["192.0.2.7"]);
    expect(chooseAddresses(interfaces)).toEqual(["192.0.2.7"]);
  });

  it("is the one towards the cluster, even on a bridge", () => {
    const interfaces = { eth0: [entry("192.0.2.7")], eth1: [entry("198.51.100.7")], virbr0: [entry("203.0.113.1")] };
    expect(chooseAddresses(interfaces, "198.51.100.7")).toEqual(["198.51.100.7"]);
    expect(chooseAddresses(interfaces, "203.0.113.1")).toEqual(["203.0.113.1"]);
    expect(chooseAddresses(interfaces, "203.0.113.99")).toEqual(["192.0.2.7"]);
  });

  it("is IPv6 only where there is nothing else, and missing without network", () => {
    expect(chooseAddresses({ eth0: [entry("2001:db8::7"), entry("fe80::7")] })).toEqual(["2001:db8::7"]);
    expect(chooseAddresses({ lo: [entry("127.0.0.1")] })).toEqual([]);
  });

  it.each([
    ["192.0.2.1", true],
    ["10.0.0.1", true],
    ["127.0.0.1", false],
    ["169.254.1.1", false],
    ["224.0.0.1", false],
    ["0.0.0.0", false],
    ["2001:db8::1", true],
    ["fd00::1", true],
    ["fe80::1", false],
    ["febf::1", false],
    ["::1", false],
    ["::", false],
    ["example.com", false],
  ])("%s can be reached by others: %s", (address, expected) => expect(isRoutable(address)).toBe(expected));
});
