import { createServer, type Server } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { connectOnce, type ScanConnect, type ScanResult, scanNetworks } from '../../lib/cluster/discovery/scan.js';

const NETWORK = { address: '192.168.43.1', prefix: 24 };
const servers: Server[] = [];

afterEach(async () => {
  for (const server of servers.splice(0)) await new Promise((resolve) => server.close(resolve));
});

/** What a scan did with a network in which each host answers by this. */
async function scan(
  answer: (host: string, attempt: number) => ScanResult | Promise<ScanResult>,
  options: Partial<Parameters<typeof scanNetworks>[0]> = {},
): Promise<{ tried: string[]; open: string[]; most: number; summary: Awaited<ReturnType<typeof scanNetworks>> }> {
  const tried: string[] = [];
  const open: string[] = [];
  let running = 0;
  let most = 0;
  const connect: ScanConnect = async (host) => {
    tried.push(host);
    most = Math.max(most, ++running);
    await Promise.resolve();
    const result = await answer(host, tried.length);
    running--;
    return result;
  };
  const summary = await scanNetworks({
    networks: [NETWORK],
    port: 60000,
    skip: () => false,
    onOpen: (host) => open.push(host),
    signal: new AbortController().signal,
    connect,
    timeoutMs: 5,
    ...options,
  });
  return { tried, open, most, summary };
}

describe('scanNetworks', () => {
  it('tries every other host once, at most 64 at a time', async () => {
    const { tried, open, most, summary } = await scan((host) => (host.endsWith('.77') ? 'open' : 'closed'));
    expect(new Set(tried).size).toBe(253);
    expect(tried).toHaveLength(253);
    expect(tried).not.toContain('192.168.43.1');
    expect(open).toEqual(['192.168.43.77']);
    expect(most).toBe(64);
    expect(summary).toEqual({ tried: 253, open: 1, denied: [], exhausted: false });
  });

  it('leaves out what is known, and tries a host of two networks once', async () => {
    const { tried } = await scan(() => 'closed', {
      networks: [NETWORK, { address: '192.168.43.2', prefix: 24 }],
      skip: (address) => address === '192.168.43.9',
    });
    expect(tried).not.toContain('192.168.43.9');
    // The second network differs in its own address only.
    expect(tried).toHaveLength(253);
  });

  it('looks at four networks at most', async () => {
    const networks = Array.from({ length: 9 }, (_, i) => ({ address: `10.0.${i}.1`, prefix: 24 }));
    const { tried } = await scan(() => 'closed', { networks });
    expect(tried).toHaveLength(4 * 253);
  });

  it('gives a network up in which this device may not send', async () => {
    const { tried, summary } = await scan((host) => (host.startsWith('192.') ? 'denied' : 'closed'), {
      networks: [NETWORK, { address: '10.0.0.1', prefix: 30 }],
      concurrency: 1,
    });
    expect(tried).toHaveLength(8 + 1);
    expect(summary.denied).toEqual([NETWORK]);
    expect(summary.exhausted).toBe(false);
  });

  it('goes on with fewer at a time when descriptors run out, and forgets no host', async () => {
    let using = 0;
    const { tried, summary } = await scan(async () => {
      if (using >= 5) return 'shortage';
      using++;
      await new Promise((resolve) => setImmediate(resolve));
      using--;
      return 'closed';
    });
    expect(new Set(tried).size).toBe(253);
    expect(summary).toMatchObject({ tried: 253, exhausted: false });
  });

  it('ends when there are none left', async () => {
    const { summary } = await scan(() => 'shortage');
    expect(summary).toMatchObject({ tried: 0, exhausted: true });
  });

  it('ends at once when aborted', async () => {
    const controller = new AbortController();
    const { tried } = await scan(
      (_host, attempt) => {
        if (attempt === 10) controller.abort();
        return 'closed';
      },
      { signal: controller.signal, concurrency: 2 },
    );
    expect(tried.length).toBeLessThan(13);
  });
});

describe('connectOnce', () => {
  it.runIf(process.platform === 'linux')('finds who listens on loopback, and hangs up', async () => {
    let connections = 0;
    let ended = 0;
    const server = createServer((socket) => {
      connections++;
      socket.on('error', () => {});
      socket.on('close', () => ended++);
      socket.resume();
    });
    servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.9', resolve));
    const { port } = server.address() as { port: number };
    const open: string[] = [];
    const started = performance.now();
    const summary = await scanNetworks({
      networks: [{ address: '127.0.0.1', prefix: 24 }],
      port,
      skip: () => false,
      onOpen: (host) => open.push(host),
      signal: new AbortController().signal,
    });
    expect(open).toEqual(['127.0.0.9']);
    expect(summary).toMatchObject({ tried: 253, open: 1, exhausted: false });
    expect(performance.now() - started).toBeLessThan(5000);
    await expect.poll(() => [connections, ended]).toEqual([1, 1]);
  });

  it('answers when aborted, in time, and for an address that is none', async () => {
    const controller = new AbortController();
    const pending = connectOnce('192.0.2.254', 9, 60_000, controller.signal);
    controller.abort();
    expect(await pending).not.toBe('open');
    expect(await connectOnce('192.0.2.254', 9, 20, new AbortController().signal)).not.toBe('open');
    expect(await connectOnce('255.255.255.255', 9, 500, new AbortController().signal)).not.toBe('open');
  });
});
