import { describe, expect, it } from "vitest";
import { addressesOf, blockCount, chooseSubnet, formatSubnet, netmaskOf, nextBlock, overlaps, parseSubnet } from "./subnet.ts";

describe("subnets", () => {
  it.each([
    ["10.150.16.7/20", "10.150.16.0/20", "255.255.240.0"],
    ["192.0.2.1", "192.0.2.1/32", "255.255.255.255"],
    ["0.0.0.0/0", "0.0.0.0/0", "0.0.0.0"],
  ])("reads %s as %s", (text, canonical, netmask) => {
    expect(formatSubnet(parseSubnet(text))).toBe(canonical);
    expect(netmaskOf(parseSubnet(text))).toBe(netmask);
  });

  it.each(["10.0.0/8", "10.0.0.0/33", "fd00::/8", "10.0.0.0/x"])("refuses %s and names it", (text) => {
    expect(() => parseSubnet(text)).toThrow(text);
  });

  it.each([
    ["10.0.0.0/8", "10.150.16.0/20", true],
    ["10.150.16.0/20", "10.150.31.255/32", true],
    ["10.150.16.0/20", "10.150.32.0/20", false],
  ])("%s and %s overlap: %s", (a, b, expected) => {
    expect(overlaps(parseSubnet(a), parseSubnet(b))).toBe(expected);
    expect(overlaps(parseSubnet(b), parseSubnet(a))).toBe(expected);
  });

  it("chooses the same subnet for the same seed, and another when that is routed", () => {
    const first = chooseSubnet("seed", [parseSubnet("0.0.0.0/0")]);
    expect(chooseSubnet("seed", [])).toEqual(first);
    const second = chooseSubnet("seed", [first]);
    expect(overlaps(first, second)).toBe(false);
    expect(() => chooseSubnet("seed", [parseSubnet("10.0.0.0/8")])).toThrow("routed elsewhere");
  });

  it("never gives out an address that ends in .0 or .255, nor one twice", () => {
    const subnet = parseSubnet("10.150.16.0/20");
    const seen = new Set<string>();
    const used = new Set<number>();
    let last = 0;
    for (;;) {
      try {
        last = nextBlock(subnet, used, last);
      } catch (error) {
        expect(String(error)).toContain("no free address");
        break;
      }
      used.add(last);
      for (const address of Object.values(addressesOf(subnet, last) ?? {})) {
        expect(address).not.toMatch(/\.(0|255)$/);
        expect(seen.has(address)).toBe(false);
        seen.add(address);
      }
    }
    expect(used.size).toBe(blockCount(subnet) - 16);
  });

  it("gives a freed block out last", () => {
    const subnet = parseSubnet("10.150.16.0/20");
    expect(nextBlock(subnet, new Set(), 5)).toBe(6);
    expect(nextBlock(subnet, new Set([6, 7]), 5)).toBe(8);
  });
});
