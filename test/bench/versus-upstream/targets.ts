/** What droid-llama is to reach, and whether a run reached it. */
import { floorOf } from './floor.js';
import type { Measurements } from './measurements.js';
import { type Ratio, ratioOf, type Sample } from './statistics.js';

export type Quantity = 'generation' | 'prompt' | 'cold load' | 'warm load' | 'streams';

export interface Target {
  readonly link: string;
  readonly quantity: Quantity;
  /** The contenders it is compared with, of which the best one counts; or the floor. */
  readonly against: readonly string[] | 'floor';
  readonly bar: number;
  /** The contender that the target is about; default both of {@link SPLITS}. */
  readonly of?: string;
  readonly stretch?: boolean;
}

/** Of droid-llama's split; the bar is a ratio of medians, above 1 where droid-llama is better. */
export const TARGETS: readonly Target[] = [
  { link: 'hotspot', quantity: 'generation', against: ['upstream-guide'], bar: 3.5 },
  { link: 'hotspot', quantity: 'generation', against: ['upstream-tuned'], bar: 1.15 },
  { link: 'hotspot', quantity: 'generation', against: 'floor', bar: 0.9 },
  { link: 'hotspot', quantity: 'prompt', against: ['upstream-alone', 'droid-alone'], bar: 1.5 },
  { link: 'hotspot', quantity: 'prompt', against: ['upstream-tuned'], bar: 1.2 },
  { link: 'hotspot', quantity: 'warm load', against: ['upstream-tuned'], bar: 10 },
  { link: 'loopback', quantity: 'cold load', against: ['upstream-tuned'], bar: 1 },
  { link: 'loopback', quantity: 'warm load', against: ['upstream-tuned'], bar: 1 },
  { link: 'loopback', quantity: 'cold load', against: ['upstream-tuned'], bar: 1, of: 'droid-split-call' },
  { link: 'loopback', quantity: 'warm load', against: ['upstream-tuned'], bar: 1, of: 'droid-split-call' },
  { link: 'loopback', quantity: 'prompt', against: ['upstream-tuned'], bar: 1 },
  { link: 'loopback', quantity: 'generation', against: ['upstream-tuned'], bar: 1 },
  { link: 'hotspot', quantity: 'streams', against: ['upstream-tuned'], bar: 1.3, stretch: true },
];

/** The contenders that the targets are about: as upstream speaks, and as people run it. */
export const SPLITS = { plain: 'droid-split', encrypted: 'droid-split-token' } as const;

export interface Outcome {
  readonly target: Target;
  /** The contender of `against` that was compared with, null for the floor. */
  readonly other: string | null;
  readonly plain: Verdict | null;
  readonly encrypted: Verdict | null;
}

export interface Verdict extends Ratio {
  readonly reached: boolean;
}

/** What was measured of a contender on a link, round by round. */
export function samplesOf(measurements: Measurements, link: string, contender: string, quantity: Quantity): Sample[] {
  if (quantity === 'cold load' || quantity === 'warm load') {
    const kind = quantity === 'cold load' ? 'cold' : 'warm';
    const loads = measurements.of('load', link, contender).filter(({ load }) => load === kind);
    return loads.map(({ round, seconds }) => ({ round, value: seconds }));
  }
  if (quantity === 'streams') {
    const streams = measurements.of('streams', link, contender);
    return streams.map(({ round, tokensPerSecond }) => ({ round, value: tokensPerSecond }));
  }
  return measurements.of('speed', link, contender).flatMap((speed) => {
    const value = quantity === 'prompt' ? speed.promptPerSecond : speed.generatedPerSecond;
    return value === null ? [] : [{ round: speed.round, value }];
  });
}

/** The floor of each round, from what one phone alone and the link did in it. Tokens per second. */
export function floorSamples(measurements: Measurements, link: string, width: number): Sample[] {
  const alone = samplesOf(measurements, link, 'droid-alone', 'generation');
  return measurements.of('link', link).flatMap((measured) => {
    const generatedPerSecond = alone.find(({ round }) => round === measured.round)?.value;
    if (generatedPerSecond === undefined) return [];
    return [{ round: measured.round, value: floorOf({ ...measured, generatedPerSecond, width }).tokensPerSecond }];
  });
}

/** How many times as good `contender` is as `other`; less time is better. */
export function compare(
  measurements: Measurements,
  link: string,
  quantity: Quantity,
  contender: string,
  other: string,
): Ratio | null {
  const mine = samplesOf(measurements, link, contender, quantity);
  const theirs = samplesOf(measurements, link, other, quantity);
  return quantity.endsWith('load') ? ratioOf(theirs, mine) : ratioOf(mine, theirs);
}

/** The targets of the links that were measured; null where a contender was not. */
export function outcomes(measurements: Measurements, links: readonly string[], width: number): Outcome[] {
  return TARGETS.filter(({ link }) => links.includes(link)).map((target) => {
    const { link, quantity, against, bar } = target;
    const verdict = (contender: string): { other: string | null; verdict: Verdict | null } => {
      if (against === 'floor') {
        const mine = samplesOf(measurements, link, contender, quantity);
        return { other: null, verdict: judge(ratioOf(mine, floorSamples(measurements, link, width)), bar) };
      }
      const compared = against.flatMap((other) => {
        const ratio = compare(measurements, link, quantity, contender, other);
        return ratio === null ? [] : [{ other, ratio }];
      });
      // The best of those it is compared with is the one with the smallest ratio.
      const [hardest] = compared.sort((a, b) => a.ratio.ratio - b.ratio.ratio);
      return { other: hardest?.other ?? null, verdict: judge(hardest?.ratio ?? null, bar) };
    };
    const plain = verdict(target.of ?? SPLITS.plain);
    const encrypted = target.of === undefined ? verdict(SPLITS.encrypted).verdict : null;
    return { target, other: plain.other, plain: plain.verdict, encrypted };
  });
}

function judge(ratio: Ratio | null, bar: number): Verdict | null {
  return ratio && { ...ratio, reached: ratio.ratio >= bar };
}
