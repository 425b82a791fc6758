import { afterEach, describe, expect, it } from 'vitest';
import { LinkProber } from '../../lib/cluster/links.js';
import type { Link, Peer } from '../../lib/cluster/types.js';
import { startTransport } from '../../lib/transport/tls-transport.js';
import { createToken } from '../../lib/transport/token.js';
import type { Transport } from '../../lib/transport/transport.js';
import { peerRecord, twoIds, until } from '../support/cluster-peers.js';

interface Device {
  readonly transport: Transport;
  readonly prober: LinkProber;
  record: Peer;
}

const open: Device[] = [];
afterEach(async () => {
  for (const { prober, transport } of open.splice(0)) {
    prober.close();
    await transport.close();
  }
});

async function device(id: string, token: string, host: string, peers: () => readonly Peer[]): Promise<Device> {
  const transport = await startTransport({ token });
  const { port } = await transport.listen({
    host,
    port: 0,
    kinds: ['probe'],
    preambleBytes: { probe: 16 },
    onStream: (stream) => prober.serve(stream),
  });
  const prober = LinkProber.start({ transport, id, peers });
  const started = { transport, prober, record: peerRecord({ id, addresses: [host], port }) };
  open.push(started);
  return started;
}

const link = ({ prober }: Device): Link | undefined => prober.links()[0];
const measured = (each: Link | undefined): boolean => each?.roundTripMs != null && each.bytesPerSecond != null;

describe.runIf(process.platform === 'linux')('LinkProber over TLS on loopback', () => {
  it('measures both directions soon, and leaves nothing open', async () => {
    const [a, b] = twoIds();
    const token = createToken();
    const peers: Peer[] = [];
    const first = await device(a, token, '127.0.0.1', () => peers);
    const second = await device(b, token, '127.0.0.2', () => peers);
    const started = performance.now();
    peers.push(first.record, second.record);
    first.prober.check();
    second.prober.check();
    await until('both are measured', () => measured(link(first)) && measured(link(second)));
    expect(performance.now() - started).toBeLessThan(5000);
    expect(link(first)).toMatchObject({ dial: 'open', endpoint: `127.0.0.2:${second.record.port}` });
    expect(link(second)).toMatchObject({ dial: 'open', endpoint: `127.0.0.1:${first.record.port}` });
    for (const each of [link(first), link(second)]) {
      expect(each?.bytesPerSecond).toBeGreaterThan(1e6);
      expect(each?.bytesPerSecond).toBeLessThan(10e9);
      expect(each?.roundTripMs).toBeGreaterThan(0.01);
      expect(each?.roundTripMs).toBeLessThan(200);
    }
    await until('nothing is open', () => first.transport.stats().open + second.transport.stats().open === 0);
  });

  it('takes a device with another token for nobody, and the next address for the peer', async () => {
    const [a, b] = twoIds();
    const token = createToken();
    const peers: Peer[] = [];
    const first = await device(a, token, '127.0.0.1', () => peers);
    const second = await device(b, token, '127.0.0.2', () => peers);
    const stranger = await startTransport({ token: createToken() });
    try {
      const { port } = second.record;
      await stranger.listen({ host: '127.0.0.9', port, kinds: ['probe'], onStream: () => {} });
      // Nobody listens at the third one.
      peers.push({ ...second.record, addresses: ['127.0.0.9', '127.0.0.2', '127.0.0.77'] });
      await until('it is measured', () => measured(link(first)));
      expect(link(first)).toMatchObject({ dial: 'open', endpoint: `127.0.0.2:${port}` });
      peers[0] = { ...second.record, addresses: ['127.0.0.77'], incarnation: 2 };
      await until('it is refused', () => link(first)?.dial === 'refused');
      peers[0] = { ...second.record, addresses: ['127.0.0.9'], incarnation: 3 };
      await until('a stranger answered', () => link(first)?.endpoint === `127.0.0.9:${port}`);
      expect(link(first)?.dial).toBe('unknown');
    } finally {
      await stranger.close();
    }
  });

  it('survives that the transport is closed under it', async () => {
    const [a, b] = twoIds();
    const token = createToken();
    const peers: Peer[] = [];
    const first = await device(a, token, '127.0.0.1', () => peers);
    const second = await device(b, token, '127.0.0.2', () => peers);
    peers.push(first.record, second.record);
    await until('a stream is open', () => first.transport.stats().open > 0 || measured(link(first)));
    await second.transport.close();
    first.prober.refresh();
    await until('it is refused', () => link(first)?.dial === 'refused');
  });
});
