/** Records of members as tests need them. */
import { randomBytes } from 'node:crypto';
import type { Peer } from '../../lib/cluster/types.js';

export function createId(): string {
  return randomBytes(16).toString('base64url');
}

/** Two ids, the smaller one first. */
export function twoIds(): [string, string] {
  const [a, b] = [createId(), createId()];
  return a < b ? [a, b] : [b, a];
}

export function peerRecord(record: Partial<Peer> & Pick<Peer, 'id'>): Peer {
  return {
    name: record.id.slice(0, 4),
    incarnation: 1,
    revision: 1,
    version: '0.0.0',
    port: 60000,
    addresses: [],
    pin: null,
    model: null,
    memory: 1e9,
    compute: null,
    battery: null,
    graphsComputed: 0,
    neighbours: [],
    links: [],
    lead: null,
    ...record,
  };
}

/** Polls until the condition holds; its name ends up in the error. */
export async function until(what: string, holds: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!holds()) {
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
