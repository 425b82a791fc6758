import type { Peer } from './types.js';

/** A record with a higher epoch is none; far below the integers that counting up would leave. */
export const MAX_EPOCH = 2 ** 40;

/**
 * The member whose lead counts: the highest epoch, of several the one that joined first, then the smallest id. Every
 * member finds the same one.
 */
export function leaderOf(peers: readonly Peer[]): Peer | null {
  const leading = peers.filter(({ lead }) => lead !== null);
  leading.sort(
    (a, b) => epochOf(b) - epochOf(a) || a.incarnation - b.incarnation || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0),
  );
  return leading[0] ?? null;
}

/**
 * The highest epoch that anybody leads in, or `least`. The next one is always an epoch, too: when they are used up, the
 * last one is led in again, and who joined first decides.
 */
export function highestEpoch(peers: readonly Peer[], least = 0): number {
  return Math.min(MAX_EPOCH - 1, Math.max(least, ...peers.map(epochOf)));
}

function epochOf({ lead }: Peer): number {
  return lead?.epoch ?? 0;
}
