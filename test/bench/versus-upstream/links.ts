/** The links between the two phones, and how much is measured on each: the whole is to take less than an hour. */
import type { LinkQuality } from '../../support/phones.js';
import type { Contender } from './contenders.js';

export interface BenchLink {
  readonly name: string;
  readonly title: string;
  /** One way and in each direction; undefined: both programs on one phone, over its loopback. */
  readonly quality?: LinkQuality;
  /** Contenders that are not run on it: one phone alone uses no link, and looking up n-grams saves round trips. */
  readonly without: readonly string[];
  /** How many cold and warm loads of each contender, at most as many as there are rounds. */
  readonly loads: number;
  /** Contenders with another number of loads, for those that take minutes. */
  readonly loadsOf: Readonly<Record<string, number>>;
  /** How many rounds measure concurrent streams, and where the time of a token goes. */
  readonly rareRounds: number;
  /** Prompts with each ubatch, of which the quickest counts. */
  readonly sweepPrompts: number;
  /** Bytes that are sent to measure the throughput: about half a second of them. */
  readonly meterBytes: number;
  /** Tokens of generations that would take a minute otherwise. */
  readonly fewerTokens: Readonly<Record<string, number>>;
}

const usual = { loadsOf: {}, fewerTokens: {}, sweepPrompts: 2 } as const;
/** What says little on links where nothing is to be reached. */
const SPECIAL = ['upstream-tuned-ngram', 'droid-split-ngram', 'droid-split-own'];

export const LINKS: readonly BenchLink[] = [
  {
    ...usual,
    name: 'hotspot',
    title: 'hotspot, 50 Mbit/s, 5 ms',
    quality: { delayMs: 2.5, mbit: 50 },
    without: ['droid-split-call'],
    loads: 3,
    loadsOf: { 'upstream-guide': 1, 'droid-split-token': 1 },
    rareRounds: 3,
    meterBytes: 3e6,
  },
  { ...usual, name: 'loopback', title: 'loopback', without: SPECIAL, loads: 5, rareRounds: 2, meterBytes: 100e6 },
  {
    ...usual,
    name: 'lan',
    title: '100 Mbit/s, 1 ms',
    quality: { delayMs: 0.5, mbit: 100 },
    without: ['upstream-alone', 'droid-split-call', ...SPECIAL],
    loads: 1,
    loadsOf: {},
    rareRounds: 1,
    sweepPrompts: 1,
    meterBytes: 6e6,
  },
  {
    name: 'poor',
    title: '10 Mbit/s, 20 ms, 1 % loss',
    quality: { delayMs: 10, mbit: 10, lossPercent: 1 },
    without: ['upstream-alone', 'droid-split-call', ...SPECIAL],
    // Each takes two minutes, whoever sends.
    loads: 0,
    loadsOf: {},
    rareRounds: 1,
    sweepPrompts: 1,
    meterBytes: 1e6,
    fewerTokens: { 'upstream-guide': 8 },
  },
];

/** While weights are sent that no load is measured with: what they take says nothing about what comes after. */
export const FAST: LinkQuality = { delayMs: 0, mbit: 10_000 };

/** Those that are run on a link. */
export function contendersOn({ without }: BenchLink, contenders: readonly Contender[]): Contender[] {
  return contenders.filter(({ id }) => !without.includes(id));
}

/** How many loads of a contender are measured on a link. */
export function loadsOf({ loads, loadsOf }: BenchLink, { id, measures }: Contender): number {
  return measures.includes('load') ? (loadsOf[id] ?? loads) : 0;
}
