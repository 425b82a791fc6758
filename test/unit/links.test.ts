import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { LinkProber, mergeMeasurements } from '../../lib/cluster/links.js';
import type { Link, Peer } from '../../lib/cluster/types.js';
import { DroidLlamaError, type ErrorCode } from '../../lib/errors.js';
import type { Transport } from '../../lib/transport/transport.js';
import { createId, peerRecord } from '../support/cluster-peers.js';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

interface Dial {
  readonly second: number;
  readonly endpoint: string;
}

/** A prober on a network in which nobody can be dialled. */
function start(
  codes: Record<string, ErrorCode | Error>,
  peer: Peer,
): { prober: LinkProber; dials: Dial[]; peers: Peer[]; told: (readonly Link[])[] } {
  const dials: Dial[] = [];
  const began = performance.now();
  const transport: Pick<Transport, 'dial' | 'cut'> = {
    cut: () => {},
    dial: async ({ host, port }) => {
      dials.push({
        second: Math.round((performance.now() - began) / 1000),
        endpoint: host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`,
      });
      const code = codes[host] ?? 'DROID_ENDPOINT_TIMEOUT';
      throw typeof code === 'string' ? new DroidLlamaError(code, host) : code;
    },
  };
  const peers = [peer];
  const told: (readonly Link[])[] = [];
  const prober = LinkProber.start({ transport, id: createId(), peers: () => peers });
  prober.on('links', (links) => told.push(links));
  return { prober, dials, peers, told };
}

describe('LinkProber, in time', () => {
  it('confirms a failure after 3 seconds and then tries every 30', async () => {
    const { prober, dials, told } = start({}, peerRecord({ id: createId(), addresses: ['10.0.0.2'] }));
    await vi.advanceTimersByTimeAsync(100_000);
    expect(dials.map(({ second }) => second)).toEqual([0, 3, 33, 63, 93]);
    // Not told again while nothing changes.
    expect(told.map(([link]) => link?.dial)).toEqual(['unknown', 'timeout']);
    prober.refresh();
    await vi.advanceTimersByTimeAsync(4000);
    expect(dials.map(({ second }) => second)).toEqual([0, 3, 33, 63, 93, 100, 103]);
    prober.close();
    prober.check();
    await vi.advanceTimersByTimeAsync(100_000);
    expect(dials).toHaveLength(7);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('dials at once when the addresses or the incarnation change, and not for the rest of a record', async () => {
    const record = peerRecord({ id: createId(), addresses: ['10.0.0.2'] });
    const { prober, dials, peers } = start({}, record);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(dials).toHaveLength(2);
    peers[0] = { ...record, revision: 9, memory: 1, neighbours: [createId()] };
    await vi.advanceTimersByTimeAsync(10_000);
    expect(dials).toHaveLength(2);
    peers[0] = { ...record, addresses: ['10.0.0.3'] };
    await vi.advanceTimersByTimeAsync(1000);
    expect(dials.at(-1)?.endpoint).toBe('10.0.0.3:60000');
    peers[0] = { ...record, addresses: ['10.0.0.3'], incarnation: 2 };
    await vi.advanceTimersByTimeAsync(1000);
    expect(dials).toHaveLength(4);
    prober.close();
  });

  it.each<[string, Link['dial'], Record<string, ErrorCode | Error>]>([
    ['a refusal', 'refused', { '10.0.0.2': 'DROID_ENDPOINT_REFUSED' }],
    ['silence', 'timeout', { '10.0.0.2': 'DROID_ENDPOINT_TIMEOUT' }],
    ['no route', 'unreachable', { '10.0.0.2': 'DROID_ENDPOINT_UNREACHABLE', '10.0.0.3': 'DROID_ENDPOINT_UNREACHABLE' }],
    ['a stranger', 'unknown', { '10.0.0.2': 'DROID_TOKEN_REJECTED', '10.0.0.3': 'DROID_TOKEN_REJECTED' }],
    ['silence rather than a stranger', 'timeout', { '10.0.0.2': 'DROID_TOKEN_REJECTED' }],
    ['what was not foreseen', 'unknown', { '10.0.0.2': new Error('x'), '10.0.0.3': new Error('y') }],
  ])('reads %s', async (_name, dial, codes) => {
    const { prober } = start(codes, peerRecord({ id: createId(), addresses: ['10.0.0.2', '10.0.0.3'] }));
    await vi.advanceTimersByTimeAsync(100);
    expect(prober.links()[0]).toMatchObject({ dial, roundTripMs: null, bytesPerSecond: null });
    prober.close();
  });

  it('dials numeric addresses that can be dialled, the first eight at most', async () => {
    const addresses = ['fe80::1', 'fe80::1%wlan0', 'phone.local', '224.0.0.1', '0.0.0.0', '', 'fd00::2', '10.0.0.2'];
    const { prober, dials, peers } = start({}, peerRecord({ id: createId(), addresses: [...addresses, '10.0.0.2'] }));
    await vi.advanceTimersByTimeAsync(100);
    expect(dials.map(({ endpoint }) => endpoint)).toEqual(['[fd00::2]:60000', '10.0.0.2:60000']);
    dials.length = 0;
    peers[0] = peerRecord({ id: createId(), addresses: Array.from({ length: 50 }, (_, i) => `10.0.1.${i}`) });
    await vi.advanceTimersByTimeAsync(600);
    expect(dials.map(({ endpoint }) => endpoint)).toEqual(Array.from({ length: 8 }, (_, i) => `10.0.1.${i}:60000`));
    prober.close();
  });
});

describe('mergeMeasurements', () => {
  const [a, b, c] = [createId(), createId(), createId()];
  const link = (from: string, to: string, roundTripMs: number | null, bytesPerSecond: number | null): Link => ({
    from,
    to,
    dial: roundTripMs === null ? 'timeout' : 'open',
    endpoint: null,
    roundTripMs,
    bytesPerSecond,
  });

  it('takes what the other end found out where this one could not', () => {
    const own = [link(a, b, null, null), link(a, c, 3, 100)];
    const peers = [
      peerRecord({ id: b, links: [link(b, a, 7, 500), link(a, b, 8, 600)] }),
      peerRecord({ id: c, links: [link(c, a, 9, 900), link(a, c, 9, 900)] }),
    ];
    expect(mergeMeasurements(own, peers)).toEqual([{ ...own[0], roundTripMs: 8, bytesPerSecond: 600 }, own[1]]);
  });

  it('takes the round trip of the way back, but not its throughput', () => {
    const merged = mergeMeasurements([link(a, b, null, null)], [peerRecord({ id: b, links: [link(b, a, 7, 500)] })]);
    expect(merged).toMatchObject([{ dial: 'timeout', roundTripMs: 7, bytesPerSecond: null }]);
  });

  it('believes nobody but the two ends', () => {
    const liar = peerRecord({ id: c, links: [link(a, b, 1, 1e12), link(b, a, 1, 1e12)] });
    expect(mergeMeasurements([link(a, b, null, null)], [liar])).toEqual([link(a, b, null, null)]);
    expect(mergeMeasurements([], [liar])).toEqual([]);
  });
});
