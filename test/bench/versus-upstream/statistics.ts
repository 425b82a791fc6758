/** Medians, spreads, and ratios of what was measured in turn. */
import { median } from '../../../lib/statistics.js';

export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

/** Null of nothing. */
export function spreadOf(values: readonly number[]): Spread | null {
  if (values.length === 0) return null;
  return { median: median(values), min: Math.min(...values), max: Math.max(...values), count: values.length };
}

/** A value and the round it was measured in. */
export interface Sample {
  readonly round: number;
  readonly value: number;
}

export interface Ratio {
  /** Of the medians. */
  readonly ratio: number;
  /** Of the values of one round, over all rounds that have both. */
  readonly perRound: Spread | null;
}

/** How many times `a` is `b`; null when one of them was not measured. */
export function ratioOf(a: readonly Sample[], b: readonly Sample[]): Ratio | null {
  if (a.length === 0 || b.length === 0) return null;
  const values = (samples: readonly Sample[]) => samples.map(({ value }) => value);
  const pairs = a.flatMap(({ round, value }) => {
    const other = b.find((sample) => sample.round === round);
    return other === undefined ? [] : [value / other.value];
  });
  return { ratio: median(values(a)) / median(values(b)), perRound: spreadOf(pairs) };
}
