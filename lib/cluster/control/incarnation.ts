/** Which incarnations are believed: one that lies too far ahead could never be exceeded again. Pure but for the clock. */
import { MAX_INCARNATION } from './record-schemas.js';

/** A clock that went back is made up for so often; more of it is no clock. */
export const MAX_RAISES = 8;
const YEARS_MS = 365.25 * 24 * 60 * 60_000;
/** A clock may be as far ahead of another one. */
const AHEAD_MS = 10 * YEARS_MS;
/** A clock that shows less was never set, and tells nothing of how late it can be. */
const CLOCKS_SHOW_MS = Date.UTC(2026, 0, 1);

/** Whether an incarnation may be that of a process which was started up to now, by the clock of any device. */
export function isCredible(incarnation: number, now = Date.now()): boolean {
  return incarnation <= Math.max(now, CLOCKS_SHOW_MS) + AHEAD_MS;
}

/**
 * The incarnation of a process with `own`, of which others have seen the later one `seen`: the next one. Undefined when
 * it is later already, or `seen` is not credible.
 */
export function raisedIncarnation(own: number, seen: number, now = Date.now()): number | undefined {
  return seen >= own && seen < MAX_INCARNATION && isCredible(seen, now) ? seen + 1 : undefined;
}
