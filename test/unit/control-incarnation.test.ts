import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isCredible, raisedIncarnation } from '../../lib/cluster/control/incarnation.js';
import { MAX_INCARNATION, peerSchema } from '../../lib/cluster/control/record-schemas.js';
import { peerOf } from '../support/peers.js';

const YEAR_MS = 366 * 24 * 3_600_000;
const NOW = Date.UTC(2030, 0, 1);

describe('an incarnation', () => {
  it('is raised above what others have seen', () => {
    expect(raisedIncarnation(10, 5000, NOW)).toBe(5001);
    expect(raisedIncarnation(5000, 5000, NOW)).toBe(5001);
    expect(raisedIncarnation(5001, 5000, NOW)).toBeUndefined();
  });

  it('is not raised to a time that no clock shows', () => {
    expect(raisedIncarnation(10, NOW + 9 * YEAR_MS, NOW)).toBe(NOW + 9 * YEAR_MS + 1);
    expect(raisedIncarnation(10, NOW + 10 * YEAR_MS, NOW)).toBeUndefined();
    expect(raisedIncarnation(10, MAX_INCARNATION, NOW)).toBeUndefined();
  });

  it('of today is believed by a device whose clock was never set', () => {
    expect(raisedIncarnation(10, NOW, 0)).toBe(NOW + 1);
    expect(isCredible(NOW, 1000)).toBe(true);
    expect(isCredible(NOW + 10 * YEAR_MS, 1000)).toBe(false);
  });

  it('is one that others accept after any raise', () => {
    const time = fc.integer({ min: 0, max: MAX_INCARNATION });
    fc.assert(
      fc.property(time, time, time, (own, seen, now) => {
        const incarnation = raisedIncarnation(own, seen, now) ?? own;
        expect(incarnation).toBeGreaterThanOrEqual(own);
        expect(peerSchema.safeParse(peerOf('a', { incarnation })).success).toBe(true);
      }),
    );
  });
});
