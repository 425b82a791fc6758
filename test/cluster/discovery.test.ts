import { createServer, type Server } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { type CandidateSource, Discovery, type DiscoveryOptions } from '../../lib/cluster/discovery/discovery.js';
import { until } from '../support/cluster-peers.js';

const TAG = '0123abcd';
/** Not 5353, so that nothing else on this machine hears or is heard. */
const mdnsPort = 40_000 + (process.pid % 20_000);

const open: Discovery[] = [];
const servers: Server[] = [];
afterEach(async () => {
  for (const each of open.splice(0)) await each.close();
  for (const server of servers.splice(0)) await new Promise((resolve) => server.close(resolve));
});

interface Finder {
  readonly discovery: Discovery;
  readonly found: string[];
  readonly warnings: string[];
}

function start(port: number, options: Partial<DiscoveryOptions> = {}): Finder {
  const discovery = Discovery.start({
    tag: TAG,
    port,
    host: '127.0.0.1',
    peers: [],
    mdns: true,
    scan: 'auto',
    tailscale: true,
    known: () => [],
    ...options,
    system: { mdnsPort, tailscalePeers: async () => [], ...options.system },
  });
  open.push(discovery);
  const found: string[] = [];
  const warnings: string[] = [];
  discovery.on('candidate', (address, source: CandidateSource) =>
    found.push(`${source} ${address.host}:${address.port}`),
  );
  discovery.on('warning', (line) => warnings.push(line));
  return { discovery, found, warnings };
}

describe.runIf(process.platform === 'linux')('Discovery on one machine', () => {
  it('lets members of a cluster find each other in either order, and no others', async () => {
    const first = start(60001);
    await first.discovery.settled();
    const second = start(60002);
    const stranger = start(60003, { tag: 'ffffffff' });
    await until('the second finds the first', () => second.found.includes('mdns 127.0.0.1:60001'));
    await until('the first finds the second', () => first.found.includes('mdns 127.0.0.1:60002'));
    await Promise.all([second.discovery.settled(), stranger.discovery.settled()]);
    expect(stranger.found).toEqual([]);
    expect([...first.found, ...second.found].filter((each) => each.includes('60003'))).toEqual([]);
    expect([...first.warnings, ...second.warnings, ...stranger.warnings]).toEqual([]);
  });

  it('finds who listens by a scan, when multicast is off', async () => {
    const server = createServer((socket) => socket.on('error', () => {}).resume());
    servers.push(server);
    // All of 127/8 is this machine's, and stands in for a private network.
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.200', resolve));
    const { port } = server.address() as { port: number };
    const { connectOnce } = await import('../../lib/cluster/discovery/scan.js');
    const entry = { address: '10.77.0.1', cidr: '10.77.0.1/24', family: 'IPv4' as const };
    const finder = start(0, {
      host: undefined,
      mdns: false,
      scanPort: port,
      system: {
        watch: { interfaces: () => ({ wlan0: [{ ...entry, netmask: '', mac: '', internal: false }] }) },
        connect: (host, ...rest) => connectOnce(host.replace('10.77', '127.0'), ...rest),
      },
    });
    await finder.discovery.settled();
    expect(finder.found).toEqual([`scan 10.77.0.200:${port}`]);
  });

  it('works where the system does not list its interfaces', async () => {
    const finder = start(60004, {
      host: undefined,
      scan: false,
      peers: [{ host: '10.0.0.1', port: 60000 }],
      system: {
        watch: {
          interfaces: () => {
            throw new Error('uv_interface_addresses returned Unknown system error 13');
          },
        },
      },
    });
    const addresses: (readonly string[])[] = [];
    finder.discovery.on('addresses', (each) => addresses.push(each));
    await finder.discovery.settled();
    expect(finder.found).toContain('peer 10.0.0.1:60000');
    expect(addresses[0]?.length).toBeGreaterThan(0);
  });
});
