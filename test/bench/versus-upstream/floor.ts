/**
 * The least time that a generated token can take when its layers are split over two devices, as `droid-llama bench`
 * computes it.
 */
import { floorOf as floorOfLinks, tokenBytes } from '../../../lib/bench/floor.js';
import type { Floor } from '../../../lib/bench/types.js';
import { GENERATED_TOKENS } from './schedule.js';

export interface FloorInput {
  /** Of one device that computes all layers itself. */
  readonly generatedPerSecond: number;
  readonly roundTripMs: number;
  /** From the master to the worker, and back. */
  readonly upBytesPerSecond: number;
  readonly downBytesPerSecond: number;
  /** Elements of a hidden state. */
  readonly width: number;
}

export function floorOf({ generatedPerSecond, width, ...link }: FloorInput): Omit<Floor, 'share'> {
  const floor = floorOfLinks({
    computeMs: 1000 / generatedPerSecond,
    bytes: tokenBytes(width, GENERATED_TOKENS),
    links: [link],
    measured: 0,
  });
  if (!floor) throw new Error('a link with all its numbers has a floor');
  return floor;
}
