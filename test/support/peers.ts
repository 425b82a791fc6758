/** Records of made-up peers. */
import { createHash } from 'node:crypto';
import type { Link, Peer } from '../../lib/cluster/types.js';

/** An id that is always the same for a name. */
export function idOf(name: string): string {
  return createHash('sha256').update(name).digest().subarray(0, 16).toString('base64url');
}

export function peerOf(name: string, change: Partial<Peer> = {}): Peer {
  return {
    id: idOf(name),
    name,
    incarnation: 1_700_000_000_000,
    revision: 1,
    version: '0.1.0',
    port: 60_000,
    addresses: [],
    pin: null,
    model: null,
    memory: 4 * 2 ** 30,
    compute: null,
    battery: null,
    graphsComputed: 0,
    neighbours: [],
    links: [],
    lead: null,
    ...change,
  };
}

export function linkOf(from: string, to: string, change: Partial<Link> = {}): Link {
  return {
    from: idOf(from),
    to: idOf(to),
    dial: 'open',
    endpoint: '10.0.0.1:60000',
    roundTripMs: 5,
    bytesPerSecond: 1e6,
    ...change,
  };
}
