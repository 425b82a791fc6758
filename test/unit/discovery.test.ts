import type { NetworkInterfaceInfo } from 'node:os';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Discovery, type DiscoveryOptions, listeningAddresses } from '../../lib/cluster/discovery/discovery.js';
import type { ScanResult } from '../../lib/cluster/discovery/scan.js';

const open: Discovery[] = [];
beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(async () => {
  for (const each of open.splice(0)) await each.close();
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

function interfaces(...cidrs: string[]): NodeJS.Dict<NetworkInterfaceInfo[]> {
  const entries = cidrs.map((cidr) => {
    const [address = ''] = cidr.split('/');
    return { address, netmask: '', mac: '', internal: false, cidr, family: 'IPv4' as const };
  });
  return { wlan0: entries };
}

interface Scene {
  discovery: Discovery;
  /** `source host:port`, in order. */
  candidates: string[];
  addresses: (readonly string[])[];
  warnings: string[];
  /** Hosts that were connected to, a list for each scan of 253. */
  scanned: string[];
  cidrs: string[];
  known: string[];
  tailnet: string[];
}

function start(options: Partial<DiscoveryOptions> = {}, answer: (host: string) => ScanResult = () => 'closed'): Scene {
  const scene: Omit<Scene, 'discovery'> = {
    candidates: [],
    addresses: [],
    warnings: [],
    scanned: [],
    cidrs: ['192.168.43.7/24'],
    known: [],
    tailnet: [],
  };
  const discovery = Discovery.start({
    tag: '0123abcd',
    port: 60000,
    peers: [],
    mdns: false,
    scan: 'auto',
    tailscale: false,
    known: () => scene.known,
    ...options,
    system: {
      watch: { interfaces: () => interfaces(...scene.cidrs) },
      connect: async (host) => {
        scene.scanned.push(host);
        return answer(host);
      },
      tailscalePeers: async () => scene.tailnet,
      platform: 'linux',
      ...options.system,
    },
  });
  open.push(discovery);
  discovery.on('candidate', ({ host, port }, source) => scene.candidates.push(`${source} ${host}:${port}`));
  discovery.on('addresses', (addresses) => scene.addresses.push(addresses));
  discovery.on('warning', (line) => scene.warnings.push(line));
  return Object.assign(scene, { discovery });
}

const SCAN = 253;

describe('Discovery', () => {
  it('tells its addresses and offers the peers it was given, again and again', async () => {
    const scene = start({
      scan: false,
      peers: [
        { host: 'phone.local', port: 1 },
        { host: '10.0.0.1', port: 2 },
      ],
    });
    await scene.discovery.settled();
    expect(scene.addresses).toEqual([['192.168.43.7']]);
    expect(scene.candidates).toEqual(['peer phone.local:1', 'peer 10.0.0.1:2']);
    await vi.advanceTimersByTimeAsync(10_500);
    expect(scene.candidates).toHaveLength(6);
    expect(scene.scanned).toEqual([]);
  });

  it('scans at the start and then with growing pauses', async () => {
    const scene = start({}, (host) => (host === '192.168.43.99' ? 'open' : 'closed'));
    await scene.discovery.settled();
    expect(scene.candidates).toEqual(['scan 192.168.43.99:60000']);
    const at: number[] = [];
    for (let second = 1; second <= 200; second++) {
      const before = scene.scanned.length;
      await vi.advanceTimersByTimeAsync(1000);
      if (scene.scanned.length > before) at.push(second);
    }
    expect(at).toEqual([5, 15, 35, 75, 135, 195]);
    expect(scene.scanned).toHaveLength(7 * SCAN);
  });

  it('scans the new network when its address changes, and starts over', async () => {
    const scene = start();
    await scene.discovery.settled();
    await vi.advanceTimersByTimeAsync(20_000);
    scene.scanned.length = 0;
    scene.cidrs = ['192.168.99.7/24'];
    await vi.advanceTimersByTimeAsync(4000);
    expect(scene.addresses.at(-1)).toEqual(['192.168.99.7']);
    expect(scene.scanned).toHaveLength(SCAN);
    expect(scene.scanned.every((host) => host.startsWith('192.168.99.'))).toBe(true);
    await vi.advanceTimersByTimeAsync(5000);
    expect(scene.scanned).toHaveLength(2 * SCAN);
  });

  it('scans private networks only', async () => {
    const scene = start();
    scene.cidrs = ['8.8.4.4/24', '100.70.0.2/32', '169.254.3.3/16', '10.1.2.3/16'];
    await scene.discovery.settled();
    expect(scene.scanned).toHaveLength(SCAN);
    expect(scene.scanned.every((host) => host.startsWith('10.1.2.'))).toBe(true);
  });

  it.each<[string, string, NodeJS.Platform, 'auto' | true, number]>([
    ['rests where it is connected', '192.168.43.7/24', 'linux', 'auto', 0],
    ['goes on as the first host, which may be the hotspot', '192.168.43.1/24', 'linux', 'auto', SCAN - 1],
    ['goes on on a phone, whose hotspot has any address', '192.168.43.7/24', 'android', 'auto', SCAN - 1],
    ['goes on when it always should', '192.168.43.7/24', 'linux', true, SCAN - 1],
  ])('%s', async (_name, cidr, platform, scan, hosts) => {
    const scene = start({ scan, system: { platform, watch: { interfaces: () => interfaces(cidr) } } });
    scene.known.push('192.168.43.50');
    await scene.discovery.settled();
    expect(scene.scanned).toHaveLength(hosts);
    expect(scene.scanned).not.toContain('192.168.43.50');
    scene.known.length = 0;
    await vi.advanceTimersByTimeAsync(5000);
    expect(scene.scanned.length).toBe(hosts + SCAN);
  });

  it('warns once when the system does not let it connect', async () => {
    const scene = start({}, () => 'denied');
    await scene.discovery.settled();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(scene.warnings).toEqual([expect.stringMatching(/192\.168\.43\.7.*permission/)]);
  });

  it('scans and tells nothing of networks it does not listen in', async () => {
    const scene = start({ host: '127.0.0.1' });
    await scene.discovery.settled();
    expect(scene.addresses).toEqual([['127.0.0.1']]);
    expect(scene.scanned).toEqual([]);
  });

  it('offers the devices of the tailnet', async () => {
    const scene = start({ tailscale: true, scan: false, scanPort: 61000 });
    scene.tailnet.push('100.70.0.2', '100.70.0.3');
    scene.known.push('100.70.0.3');
    await scene.discovery.settled();
    expect(scene.candidates).toEqual(['tailscale 100.70.0.2:61000']);
    await vi.advanceTimersByTimeAsync(61_000);
    expect(scene.candidates).toHaveLength(2);
  });

  it('settles within 5 seconds, whatever hangs', async () => {
    const scene = start({ system: { connect: () => new Promise(() => {}) } });
    let settled = false;
    void scene.discovery.settled().then(() => {
      settled = true;
    });
    await vi.advanceTimersByTimeAsync(4900);
    expect(settled).toBe(false);
    await vi.advanceTimersByTimeAsync(200);
    expect(settled).toBe(true);
  });

  it('says nothing after it was closed, also when that is at once', async () => {
    const scene = start({ peers: [{ host: '10.0.0.1', port: 2 }], tailscale: true });
    const second = start({ peers: [{ host: '10.0.0.1', port: 2 }] });
    await scene.discovery.close();
    await scene.discovery.close();
    await scene.discovery.settled();
    await vi.advanceTimersByTimeAsync(120_000);
    expect([scene.candidates, scene.addresses, scene.scanned]).toEqual([[], [], []]);
    const { length } = second.scanned;
    await second.discovery.close();
    await vi.advanceTimersByTimeAsync(120_000);
    expect(second.scanned).toHaveLength(length);
  });
});

describe('listeningAddresses', () => {
  const own = [
    { address: '192.168.43.7', prefix: 24 },
    { address: 'fd00::2', prefix: 64 },
  ];
  it.each([
    [undefined, ['192.168.43.7', 'fd00::2']],
    ['0.0.0.0', ['192.168.43.7']],
    ['::', ['192.168.43.7', 'fd00::2']],
    ['127.0.0.1', ['127.0.0.1']],
    ['localhost', ['127.0.0.1']],
    ['192.168.43.7', ['192.168.43.7']],
    ['192.168.43.8', ['192.168.43.8']],
    ['::1', ['::1']],
    ['phone.local', ['192.168.43.7', 'fd00::2']],
  ])('listening on %s', (host, addresses) => {
    expect(listeningAddresses(own, host).map(({ address }) => address)).toEqual(addresses);
  });
});
