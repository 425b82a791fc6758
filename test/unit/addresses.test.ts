import type { NetworkInterfaceInfo } from 'node:os';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { AddressWatch, guessAddresses, listAddresses } from '../../lib/cluster/discovery/addresses.js';
import {
  hostsAround,
  inNetworkOf,
  isDialable,
  isLocalAddress,
  isPrivateIPv4,
  isTailscaleAddress,
  type OwnAddress,
  plainAddress,
} from '../../lib/cluster/discovery/ip.js';

afterEach(() => {
  vi.useRealTimers();
});

function entry(cidr: string, internal = false): NetworkInterfaceInfo {
  const [address = ''] = cidr.split('/');
  const common = { address, netmask: '', mac: '', internal, cidr };
  return address.includes(':') ? { ...common, family: 'IPv6', scopeid: 0 } : { ...common, family: 'IPv4' };
}

const LOOPBACK = { lo: [entry('127.0.0.1/8', true), entry('::1/128', true)] };

describe('kinds of addresses', () => {
  it.each([
    ['192.168.43.1', true, true, true],
    ['10.255.0.9', true, true, true],
    ['172.31.1.1', true, true, true],
    ['172.32.1.1', false, false, true],
    ['100.64.0.1', false, true, true],
    ['100.128.0.1', false, false, true],
    ['169.254.9.9', false, true, true],
    ['8.8.8.8', false, false, true],
    ['127.0.0.1', false, false, false],
    ['0.0.0.0', false, false, false],
    ['224.0.0.251', false, false, false],
    ['255.255.255.255', false, false, false],
    ['fd00::2', false, true, true],
    ['fd7a:115c:a1e0::5', false, true, true],
    ['2606:4700::1', false, false, true],
    ['fe80::1', false, false, false],
    ['fd00::2%wlan0', false, false, false],
    ['::1', false, false, false],
    ['ff02::fb', false, false, false],
    ['phone.local', false, false, false],
    ['', false, false, false],
  ])('%s: private %s, local %s, dialable %s', (address, isPrivate, isLocal, dialable) => {
    expect([isPrivateIPv4(address), isLocalAddress(address), isDialable(address)]).toEqual([
      isPrivate,
      isLocal,
      dialable,
    ]);
  });

  it('knows Tailscale, networks and mapped addresses', () => {
    expect(['100.100.1.2', 'fd7a:115c:a1e0::1', '192.168.0.1', 'fd00::1'].map(isTailscaleAddress)).toEqual([
      true,
      true,
      false,
      false,
    ]);
    const own = { address: '192.168.43.1', prefix: 24 };
    expect(['192.168.43.77', '192.168.44.1', 'fd00::1', 'x'].map((each) => inNetworkOf(own, each))).toEqual([
      true,
      false,
      false,
      false,
    ]);
    expect(plainAddress('::ffff:10.0.0.1')).toBe('10.0.0.1');
    expect(plainAddress('fd00::1')).toBe('fd00::1');
  });

  it('counts the hosts around an address, at most a /24', () => {
    const hosts = hostsAround({ address: '192.168.43.7', prefix: 24 });
    expect(hosts).toHaveLength(253);
    expect(hosts[0]).toBe('192.168.43.1');
    expect(hosts.at(-1)).toBe('192.168.43.254');
    expect(hosts).not.toContain('192.168.43.7');
    expect(hostsAround({ address: '10.1.2.3', prefix: 8 })).toEqual(hostsAround({ address: '10.1.2.3', prefix: 24 }));
    expect(hostsAround({ address: '172.20.10.2', prefix: 28 })).toHaveLength(13);
    expect(hostsAround({ address: '10.0.0.1', prefix: 30 })).toEqual(['10.0.0.2']);
    expect(hostsAround({ address: '10.0.0.1', prefix: 31 })).toEqual(['10.0.0.0']);
    expect(hostsAround({ address: '100.64.0.1', prefix: 32 })).toEqual([]);
    // Above 2^31 signed arithmetic would go wrong.
    expect(hostsAround({ address: '223.255.255.1', prefix: 30 })).toEqual(['223.255.255.2']);
  });
});

describe('listAddresses', () => {
  it('takes what others can dial, IPv4 first', () => {
    const wlan0 = [entry('fe80::1/64'), entry('fd00::2/64'), entry('192.168.1.5/24')];
    const interfaces = { ...LOOPBACK, wlan0, tailscale0: [entry('100.70.1.2/32')], none: undefined };
    expect(listAddresses(() => interfaces)).toEqual([
      { address: '100.70.1.2', prefix: 32 },
      { address: '192.168.1.5', prefix: 24 },
      { address: 'fd00::2', prefix: 64 },
    ]);
  });

  it('takes loopback when there is nothing else', () => {
    expect(listAddresses(() => LOOPBACK).map(({ address }) => address)).toEqual(['127.0.0.1', '::1']);
  });
});

describe('guessAddresses', () => {
  it('finds the address that a route begins at, without sending', async () => {
    expect(await guessAddresses([])).toEqual([]);
    // Loopback has a route everywhere, and is nothing that others can dial.
    expect(await guessAddresses(['127.0.0.1', '::1'])).toEqual([]);
    const mine = listAddresses().filter(({ address }) => isDialable(address));
    for (const { address } of mine) {
      expect((await guessAddresses([address])).map((own) => own.address)).toContain(address);
    }
  });

  it('assumes a /24', async () => {
    for (const { address, prefix } of await guessAddresses(['1.1.1.1', '2606:4700:4700::1111'])) {
      expect(prefix).toBe(address.includes(':') ? 64 : 24);
    }
  });
});

describe('AddressWatch', () => {
  it('tells addresses at the first look and when they change, and nothing after close()', async () => {
    vi.useFakeTimers();
    let interfaces: Record<string, NetworkInterfaceInfo[]> = { wlan0: [entry('192.168.1.5/24')] };
    const watch = new AddressWatch({ interfaces: () => interfaces });
    const told: string[][] = [];
    watch.on('change', (addresses) => told.push(addresses.map(({ address }) => address)));
    await watch.poll();
    await vi.advanceTimersByTimeAsync(20_000);
    expect(told).toEqual([['192.168.1.5']]);
    interfaces = { wlan0: [entry('192.168.43.9/24')] };
    await vi.advanceTimersByTimeAsync(5000);
    expect(told).toEqual([['192.168.1.5'], ['192.168.43.9']]);
    watch.close();
    interfaces = {};
    await vi.advanceTimersByTimeAsync(5000);
    await watch.poll();
    expect(told).toHaveLength(2);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('guesses where the system does not list them, sweeping the usual networks rarely', async () => {
    vi.useFakeTimers();
    const asked: number[] = [];
    let broken = false;
    let answer: OwnAddress[] = [{ address: '192.168.157.23', prefix: 24 }];
    const watch = new AddressWatch({
      interfaces: () => {
        throw Object.assign(new Error('uv_interface_addresses returned Unknown system error 13'), { errno: 13 });
      },
      guess: async (destinations) => {
        if (broken) throw new Error('EMFILE');
        asked.push(destinations.length);
        return answer;
      },
    });
    await watch.poll();
    expect(watch.addresses).toEqual(answer);
    await vi.advanceTimersByTimeAsync(4000 * 8);
    expect(asked.filter((count) => count > 200)).toHaveLength(2);
    expect(asked.filter((count) => count < 20)).toHaveLength(7);
    broken = true;
    await vi.advanceTimersByTimeAsync(8000);
    expect(watch.addresses).toEqual(answer);
    broken = false;
    answer = [];
    await vi.advanceTimersByTimeAsync(4000);
    expect(watch.addresses).toEqual([{ address: '127.0.0.1', prefix: 8 }]);
    watch.close();
  });
});
