/** What kind of address a numeric address is. */
import { BlockList, isIPv4, isIPv6 } from 'node:net';

/** An address of this device with the length of its network's prefix. */
export interface OwnAddress {
  readonly address: string;
  readonly prefix: number;
}

function ranges(family: 'ipv4' | 'ipv6', ...networks: readonly [string, number][]): (address: string) => boolean {
  const list = new BlockList();
  for (const [network, prefix] of networks) list.addSubnet(network, prefix, family);
  const isFamily = family === 'ipv4' ? isIPv4 : isIPv6;
  return (address) => isFamily(address) && !address.includes('%') && list.check(address, family);
}

/** 10/8, 172.16/12 and 192.168/16: networks that somebody runs at home or on a phone. */
export const isPrivateIPv4 = ranges('ipv4', ['10.0.0.0', 8], ['172.16.0.0', 12], ['192.168.0.0', 16]);

const isLinkLocalIPv4 = ranges('ipv4', ['169.254.0.0', 16]);
const isUniqueLocalIPv6 = ranges('ipv6', ['fc00::', 7]);
const isGlobalIPv6 = ranges('ipv6', ['2000::', 3]);
const isUnusableIPv4 = ranges('ipv4', ['0.0.0.0', 8], ['127.0.0.0', 8], ['224.0.0.0', 3]);
const isTailscaleIPv4 = ranges('ipv4', ['100.64.0.0', 10]);
const isTailscaleIPv6 = ranges('ipv6', ['fd7a:115c:a1e0::', 48]);

export function isTailscaleAddress(address: string): boolean {
  return isTailscaleIPv4(address) || isTailscaleIPv6(address);
}

/** Whether the address can only belong to a network nearby, and not to a machine somewhere on the internet. */
export function isLocalAddress(address: string): boolean {
  return (
    isPrivateIPv4(address) || isLinkLocalIPv4(address) || isTailscaleAddress(address) || isUniqueLocalIPv6(address)
  );
}

/**
 * Whether another device can dial it as it stands. IPv6 link-local addresses are none of these: they need the name of
 * an interface of the device that dials.
 */
export function isDialable(address: string): boolean {
  return isIPv4(address) ? !isUnusableIPv4(address) : isUniqueLocalIPv6(address) || isGlobalIPv6(address);
}

export function isLoopback(address: string): boolean {
  return address === '::1' || (isIPv4(address) && address.startsWith('127.'));
}

/** An IPv4 address that a socket of both families reports as `::ffff:a.b.c.d`, as itself. */
export function plainAddress(address: string): string {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1];
  return mapped !== undefined && isIPv4(mapped) ? mapped : address;
}

/** Whether the address lies in the network of an address of this device. */
export function inNetworkOf(own: OwnAddress, address: string): boolean {
  const family = isIPv4(own.address) ? 'ipv4' : 'ipv6';
  if (family === 'ipv4' ? !isIPv4(address) : !isIPv6(address) || address.includes('%')) return false;
  const list = new BlockList();
  list.addSubnet(own.address, own.prefix, family);
  return list.check(address, family);
}

/** The other hosts of an IPv4 network, those of the /24 around the address when the network is larger. */
export function hostsAround({ address, prefix }: OwnAddress): string[] {
  const own = toNumber(address);
  const size = 2 ** (32 - Math.min(Math.max(prefix, 24), 32));
  const first = own - (own % size);
  const hosts: string[] = [];
  // The first address names the network and the last one is its broadcast, except where there are only two.
  const [from, to] = size > 2 ? [first + 1, first + size - 2] : [first, first + size - 1];
  for (let host = from; host <= to; host++) if (host !== own) hosts.push(toAddress(host));
  return hosts;
}

function toNumber(address: string): number {
  return address.split('.').reduce((sum, byte) => sum * 256 + Number(byte), 0);
}

function toAddress(value: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join('.');
}
