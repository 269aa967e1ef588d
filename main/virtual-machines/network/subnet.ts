/**
 * Addresses: one /20 per data directory inside 10.0.0.0/8, and in it a block of four per Pod (gateway, guest, side-cars,
 * spare). Pure functions. Two hosts on one machine start their search at different places (a hash of the data directory)
 * and see each other's subnets as routes, so they do not meet.
 */
import { createHash } from "node:crypto";
import { isIPv4 } from "node:net";
import { PodyardError } from "../../contract/errors.ts";

export interface Subnet {
  readonly base: number;
  readonly prefix: number;
}

export interface PodAddresses {
  readonly gatewayIP: string;
  readonly podIP: string;
  readonly sidecarIP: string;
}

/** Errors: InvalidArgument. */
export function parseSubnet(text: string): Subnet {
  const [address = "", length = "32"] = text.split("/");
  const prefix = Number(length);
  if (!isIPv4(address) || !Number.isInteger(prefix) || prefix < 0 || prefix > 32) {
    throw new PodyardError("InvalidArgument", `subnet is "${text}"; expected an IPv4 network such as 10.150.16.0/20.`);
  }
  return { base: (toNumber(address) & mask(prefix)) >>> 0, prefix };
}

export function formatSubnet(subnet: Subnet): string {
  return `${toAddress(subnet.base)}/${subnet.prefix}`;
}

export function netmaskOf(subnet: Subnet): string {
  return toAddress(mask(subnet.prefix));
}

export function overlaps(a: Subnet, b: Subnet): boolean {
  const shorter = mask(Math.min(a.prefix, b.prefix));
  return (a.base & shorter) === (b.base & shorter);
}

/** The first /20 of 10.128.0.0–10.239.255.255 that overlaps none of those in use, starting where the seed says. */
export function chooseSubnet(seed: string, inUse: readonly Subnet[]): Subnet {
  const count = 112 * 16;
  const first = createHash("sha256").update(seed).digest().readUInt32BE() % count;
  for (let step = 0; step < count; step++) {
    const candidate = { base: (toNumber("10.128.0.0") + ((first + step) % count) * 4096) >>> 0, prefix: 20 };
    // A default route covers everything and means nothing here.
    if (!inUse.some((used) => used.prefix > 0 && overlaps(used, candidate))) return candidate;
  }
  throw new PodyardError("Conflict", "Every /20 between 10.128.0.0 and 10.239.255.255 is routed elsewhere.", { fix: "Set a subnet in the configuration." });
}

/** How many Pods the subnet holds. */
export function blockCount(subnet: Subnet): number {
  return 2 ** (32 - subnet.prefix) / 4;
}

/** Undefined for blocks whose addresses some systems take for a network's or broadcast address (ending in .255). */
export function addressesOf(subnet: Subnet, block: number): PodAddresses | undefined {
  if (block % 64 === 63) return undefined;
  const first = subnet.base + block * 4;
  return { gatewayIP: toAddress(first + 1), podIP: toAddress(first + 2), sidecarIP: toAddress(first + 3) };
}

/** The next free block after the last one given out: an address comes back as late as possible. */
export function nextBlock(subnet: Subnet, used: ReadonlySet<number>, last: number): number {
  const count = blockCount(subnet);
  for (let step = 1; step <= count; step++) {
    const block = (last + step) % count;
    if (!used.has(block) && addressesOf(subnet, block) !== undefined) return block;
  }
  throw new PodyardError("Conflict", `The subnet ${formatSubnet(subnet)} has no free address for another Pod.`);
}

function toNumber(address: string): number {
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

function toAddress(value: number): string {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 255).join(".");
}

function mask(prefix: number): number {
  return prefix === 0 ? 0 : (0xffffffff << (32 - prefix)) >>> 0;
}
