import { describe, expect, it } from 'vitest';
import { tailscalePeers } from '../../lib/cluster/discovery/tailscale.js';

const peers = (status: unknown): Promise<readonly string[]> =>
  tailscalePeers(undefined, async () => (typeof status === 'string' ? status : JSON.stringify(status)));

const peer = (Online: unknown, TailscaleIPs: unknown): object => ({
  ID: 'n1',
  HostName: 'fold',
  OS: 'android',
  Online,
  TailscaleIPs,
  CurAddr: '203.0.113.7:41641',
});

describe('tailscalePeers', () => {
  it('takes one address of each device that is online, IPv4 where there is one', async () => {
    const status = {
      Version: '1.80.0',
      BackendState: 'Running',
      Self: peer(true, ['100.70.0.1', 'fd7a:115c:a1e0::1']),
      Peer: {
        'nodekey:a': peer(true, ['fd7a:115c:a1e0::2', '100.70.0.2']),
        'nodekey:b': peer(false, ['100.70.0.3']),
        'nodekey:c': peer(true, ['fd7a:115c:a1e0::4']),
        'nodekey:d': peer(true, null),
        'nodekey:e': peer(undefined, ['100.70.0.6']),
      },
    };
    expect(await peers(status)).toEqual(['100.70.0.2', 'fd7a:115c:a1e0::4']);
  });

  it('asks the tool as it is documented', async () => {
    const asked: unknown[] = [];
    await tailscalePeers(undefined, async (file, args) => {
      asked.push(file, args);
      return '{}';
    });
    expect(asked).toEqual(['tailscale', ['status', '--json']]);
  });

  it.each([
    ['stopped', { BackendState: 'Stopped', Peer: { a: peer(true, ['100.70.0.2']) } }],
    ['without peers', { BackendState: 'Running', Peer: null }],
    ['no JSON', 'Tailscale is stopped.'],
    ['another shape', { BackendState: 'Running', Peer: [1, 2] }],
    ['no object', 'null'],
    ['addresses of the internet', { BackendState: 'Running', Peer: { a: peer(true, ['8.8.8.8', '192.168.1.1']) } }],
  ])('has none when the answer is %s', async (_name, status) => {
    expect(await peers(status)).toEqual([]);
  });

  it('has none without the tool', async () => {
    expect(
      await tailscalePeers(undefined, async () => {
        throw Object.assign(new Error('spawn tailscale ENOENT'), { code: 'ENOENT' });
      }),
    ).toEqual([]);
    const path = process.env.PATH;
    process.env.PATH = '/nonexistent';
    try {
      expect(await tailscalePeers()).toEqual([]);
    } finally {
      process.env.PATH = path;
    }
  });
});
