/**
 * Which of the host's addresses the cluster may use: what the API server dials for logs and exec and what Pods see as
 * host IP. Bridges and taps of VMs and Docker, tunnels and link-local addresses are no use to others; temporary IPv6
 * addresses come and go, and each change would cost a new serving certificate.
 */
import { createSocket } from "node:dgram";
import { networkInterfaces } from "node:os";
import type { NetworkInterfaceInfo } from "node:os";
import { isIP } from "node:net";

export type Interfaces = Readonly<Record<string, readonly NetworkInterfaceInfo[] | undefined>>;

/** Docker and libvirt bridges, VM taps, CNI devices; on macOS also vmnet bridges, AirDrop, VPN tunnels, USB to the phone. */
const foreignInterface = /^(lo\d*|docker|br-|bridge\d{3}|virbr|veth|tap|tun|vnet|vmnet|vmenet|macvtap|cni|flannel|cali|cilium|kube|pod|utun|awdl|llw|ap\d|anpi|gif|stf|ipsec|wg|zt|tailscale|feth)/;

/**
 * The addresses to publish, best first: the one used towards the cluster, then others of the same family. IPv6 only where
 * there is no IPv4.
 */
export function chooseAddresses(interfaces: Interfaces, preferred?: string): readonly string[] {
  const all = Object.entries(interfaces).flatMap(([name, entries]) => (entries ?? []).map((entry) => ({ name, ...entry })));
  const usable = all.filter((entry) => !entry.internal && isRoutable(entry.address) && (entry.address === preferred || !foreignInterface.test(entry.name)));
  const addresses = usable.map((entry) => entry.address);
  const ordered = preferred !== undefined && addresses.includes(preferred) ? [preferred, ...addresses.filter((address) => address !== preferred)] : addresses;
  const family = ordered.some((address) => isIP(address) === 4) ? 4 : 6;
  return [...new Set(ordered.filter((address) => isIP(address) === family))].slice(0, 1);
}

/** The host's current addresses to publish. `server` is the URL of the API server. */
export async function currentAddresses(server: string): Promise<readonly string[]> {
  return chooseAddresses(networkInterfaces(), await localAddressTowards(new URL(server).hostname.replace(/^\[|\]$/g, "")));
}

/** Not loopback, link-local, multicast or unspecified: what the API server accepts as a kubelet's address. */
export function isRoutable(address: string): boolean {
  if (isIP(address) === 4) return !/^(0\.|127\.|169\.254\.|22[4-9]\.|2[34]\d\.|255\.)/.test(address);
  return isIP(address) === 6 && !/^(::1?$|fe[89ab]|ff)/i.test(address);
}

/** The source address the system would use; no packet is sent. Undefined if there is no route or no such name. */
async function localAddressTowards(host: string): Promise<string | undefined> {
  // A cluster on loopback says nothing about our address; the documentation network takes the default route.
  const target = isIP(host) !== 0 && !isRoutable(host) ? "192.0.2.1" : host;
  const socket = createSocket(isIP(target) === 6 ? "udp6" : "udp4");
  const { promise, resolve } = Promise.withResolvers<string | undefined>();
  socket.once("error", () => resolve(undefined));
  try {
    socket.connect(9, target, () => resolve(socket.address().address));
    return await promise;
  } catch {
    return undefined;
  } finally {
    socket.close();
  }
}
