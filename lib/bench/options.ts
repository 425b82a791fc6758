/** What a benchmark can be told, its defaults, and the checks that need no I/O. */
import { invalid, optionalInteger, show } from '../validate.js';
import { GENERATION_PROMPT } from './completion.js';
import { STREAM_PROMPT } from './streams.js';
import type { BenchProgress, BenchReport } from './types.js';

/** What to measure; the same for every kind of benchmark. */
export interface TestOptions {
  /** Lengths of prompts, in tokens; empty for none. Default `[512]`. */
  promptTokens?: readonly number[];
  /** How many tokens to generate, each at least 2; empty for none. Default `[128]`. */
  generatedTokens?: readonly number[];
  /** How many requests at once, e.g. `[1, 2, 4, 8]`. Default: none. */
  streams?: readonly number[];
  /** How many times each test runs. Default 5. */
  repetitions?: number;
  /** Called before each step. */
  onProgress?: (progress: BenchProgress) => void;
  /** The report so far, after each case: what there is to show when a later one fails. */
  onReport?: (report: BenchReport) => void;
  /** Aborting closes everything and rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface CheckedTests {
  readonly promptTokens: readonly number[];
  readonly generatedTokens: readonly number[];
  readonly streams: readonly number[];
  /** Tokens each stream generates: as many as the longest generation. */
  readonly streamTokens: number;
  readonly repetitions: number;
  readonly onProgress: (progress: BenchProgress) => void;
  readonly onReport: (report: BenchReport) => void;
  readonly signal: AbortSignal | undefined;
}

export const TEST_OPTION_NAMES: readonly (keyof TestOptions)[] = [
  'promptTokens',
  'generatedTokens',
  'streams',
  'repetitions',
  'onProgress',
  'onReport',
  'signal',
];

const DEFAULT_PROMPT = 512;
const DEFAULT_GENERATION = 128;
const DEFAULT_REPETITIONS = 5;
const MAX_TOKENS = 1 << 20;
const MAX_STREAMS = 256;
const MAX_TESTS = 64;

/** Throws `DROID_INVALID_ARGUMENT`. */
export function checkTests(options: TestOptions): CheckedTests {
  const promptTokens = integers('promptTokens', options.promptTokens, { min: 1, max: MAX_TOKENS }) ?? [DEFAULT_PROMPT];
  // The first token comes out of the prompt's last batch; only what follows takes a step of its own.
  const generatedTokens = integers('generatedTokens', options.generatedTokens, { min: 2, max: MAX_TOKENS }) ?? [
    DEFAULT_GENERATION,
  ];
  const streams = integers('streams', options.streams, { min: 1, max: MAX_STREAMS }) ?? [];
  if (promptTokens.length + generatedTokens.length + streams.length === 0) {
    invalid('There is nothing to measure: give a length of a prompt, of a generation, or a number of streams.');
  }
  for (const name of ['onProgress', 'onReport'] as const) {
    if (options[name] !== undefined && typeof options[name] !== 'function') invalid(`${name} must be a function.`);
  }
  if (options.signal !== undefined && !(options.signal instanceof AbortSignal)) {
    invalid('signal must be an AbortSignal.');
  }
  return {
    promptTokens,
    generatedTokens,
    streams,
    streamTokens: generatedTokens.length > 0 ? Math.max(...generatedTokens) : DEFAULT_GENERATION,
    repetitions: optionalInteger('repetitions', options.repetitions, { min: 1, max: 10_000 }) ?? DEFAULT_REPETITIONS,
    onProgress: options.onProgress ?? (() => {}),
    onReport: options.onReport ?? (() => {}),
    signal: options.signal,
  };
}

/** Tokens of context that each stream needs for these tests. */
export function tokensNeeded({ promptTokens, generatedTokens, streams, streamTokens }: CheckedTests): number {
  const stream = streams.length > 0 ? STREAM_PROMPT + streamTokens : 0;
  const generated = GENERATION_PROMPT + Math.max(0, ...generatedTokens);
  // The warm-up generates a few tokens after the longest prompt; the engine wants room for one more.
  return Math.max(stream, generated, ...promptTokens) + 8;
}

/** Requests that are answered at once in these tests. */
export function slotsNeeded({ streams }: CheckedTests): number {
  return Math.max(1, ...streams);
}

export function integers(
  name: string,
  values: readonly number[] | undefined,
  range: { min: number; max: number },
): readonly number[] | undefined {
  if (values === undefined) return undefined;
  if (!Array.isArray(values)) invalid(`${name} is ${show(values)}; it must be an array of numbers.`);
  if (values.length > MAX_TESTS) invalid(`${name} has ${values.length} numbers; at most ${MAX_TESTS} are measured.`);
  for (const [i, value] of values.entries()) optionalInteger(`${name}[${i}]`, value, range);
  const twice = values.find((value, i) => values.indexOf(value) !== i);
  if (twice !== undefined) invalid(`${name} has ${twice} twice.`);
  return [...values];
}
