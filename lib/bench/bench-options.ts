/** What a benchmark of contexts of its own can be told, and the cases that follow from it. */
import { addon } from '../addon.js';
import { checkOptions, type DistributedContextOptions } from '../context-options.js';
import { checkTensorSplit } from '../placement.js';
import type { LoadProgress } from '../types.js';
import { invalid, knownKeys, optionalBoolean, optionalInteger, plainObject, show } from '../validate.js';
import {
  type CheckedTests,
  checkTests,
  integers,
  slotsNeeded,
  TEST_OPTION_NAMES,
  type TestOptions,
  tokensNeeded,
} from './options.js';
import { sweepSplits } from './sweep.js';

/** Options that mean the same as those of `createDistributedContext`. */
const CONTEXT_OPTION_NAMES = [
  'model',
  'rpc',
  'token',
  'insecure',
  'head',
  'activations',
  'contextSize',
  'batchSize',
  'threads',
  'mmap',
  'llamaArgs',
  'timeouts',
  'logLevel',
] as const;

export interface BenchOptions
  extends TestOptions,
    Pick<DistributedContextOptions, (typeof CONTEXT_OPTION_NAMES)[number]> {
  /**
   * Splits to compare, each with one share per device, master first. Default: one, by the devices' free memory; without
   * `rpc` none.
   */
  tensorSplits?: readonly (readonly number[])[];
  /** Instead of `tensorSplits`: from everything on the master to every layer on the workers, in so many steps. */
  sweep?: number;
  /** Sizes of the physical batch to compare. Default: what a context takes by itself, 64 with workers and 512 without. */
  ubatchSizes?: readonly number[];
  /** Also measure this device alone, when the model fits; the floor of a split needs it. Default true. */
  single?: boolean;
  /** How often each split is loaded: the second load shows what workers keep. 1 or 2, default 2. */
  loads?: number;
  /** Called while a model loads. */
  onLoad?: (progress: LoadProgress) => void;
}

/** One case before it is measured. */
export interface CasePlan {
  readonly name: string;
  /** False: this device alone. */
  readonly split: boolean;
  /** Null: by free memory, or no split. */
  readonly tensorSplit: readonly number[] | null;
  readonly ubatchSize: number | null;
  /** How often it is loaded, and whether an earlier case has loaded the same. */
  readonly loads: number;
  readonly reloads: boolean;
}

export interface CheckedBench {
  readonly tests: CheckedTests;
  /** For `createDistributedContext`, without the case's split and ubatch. */
  readonly context: DistributedContextOptions;
  readonly rpc: readonly string[];
  readonly splits: readonly (readonly number[])[] | undefined;
  readonly sweep: number | undefined;
  readonly ubatchSizes: readonly (number | null)[];
  readonly single: boolean;
  readonly loads: number;
}

const OPTION_NAMES = [
  ...TEST_OPTION_NAMES,
  ...CONTEXT_OPTION_NAMES,
  'tensorSplits',
  'sweep',
  'ubatchSizes',
  'single',
  'loads',
  'onLoad',
] as const;
const MAX_STEPS = 256;
const MAX_SPLITS = 64;
const MAX_UBATCH = 1 << 20;
const KV_CELLS = 256;

/** Throws `DROID_INVALID_ARGUMENT` or `DROID_INSECURE`. */
export function checkBench(options: BenchOptions): CheckedBench {
  plainObject('options', options);
  knownKeys('bench()', options, OPTION_NAMES);
  const tests = checkTests(options);
  const rpc = options.rpc ?? [];
  const context: DistributedContextOptions = {
    ...Object.fromEntries(CONTEXT_OPTION_NAMES.map((name) => [name, options[name]])),
    model: options.model,
    contextSize: contextSize(options.contextSize, tests),
    parallel: slotsNeeded(tests),
    onProgress: options.onLoad,
    signal: tests.signal,
  };
  const ubatchSizes = integers('ubatchSizes', options.ubatchSizes, { min: 1, max: MAX_UBATCH }) ?? [null];
  if (ubatchSizes.length === 0) invalid('ubatchSizes is empty; leave it out for the default.');
  // Everything that a context would refuse later is refused before the first one loads.
  checkOptions({ ...context, ubatchSize: ubatchSizes[0] ?? undefined }, addon().buildInfo().maxWorkers);
  const sweep = optionalInteger('sweep', options.sweep, { min: 1, max: MAX_STEPS });
  if (rpc.length === 0 && (sweep !== undefined || options.tensorSplits !== undefined)) {
    invalid(`${sweep === undefined ? 'tensorSplits is' : 'sweep is'} given, but rpc names no worker to split with.`);
  }
  const splits = checkSplits(options.tensorSplits, rpc.length);
  if (sweep !== undefined && splits !== undefined) {
    invalid('tensorSplits and sweep are both given; a sweep chooses the splits by itself.');
  }
  return {
    tests,
    context,
    rpc,
    splits,
    sweep,
    ubatchSizes,
    single: optionalBoolean('single', options.single) ?? true,
    loads: optionalInteger('loads', options.loads, { min: 1, max: 2 }) ?? 2,
  };
}

function checkSplits(
  splits: BenchOptions['tensorSplits'],
  workers: number,
): readonly (readonly number[])[] | undefined {
  if (splits === undefined) return undefined;
  if (!Array.isArray(splits) || !splits.every((split) => Array.isArray(split))) {
    invalid(`tensorSplits is ${show(splits)}; it must be an array of splits, each an array of numbers.`);
  }
  if (splits.length === 0) invalid('tensorSplits is empty; leave it out for the default.');
  if (splits.length > MAX_SPLITS)
    invalid(`tensorSplits has ${splits.length} splits; at most ${MAX_SPLITS} are measured.`);
  for (const split of splits) checkTensorSplit(split, workers);
  return splits.map((split) => [...split]);
}

function contextSize(given: number | undefined, tests: CheckedTests): number {
  const slots = slotsNeeded(tests);
  const each = tokensNeeded(tests);
  if (given === undefined || given === 0) return slots * Math.ceil(each / KV_CELLS) * KV_CELLS;
  optionalInteger('contextSize', given, { min: 2, max: 1 << 24 });
  if (given < slots * each) {
    const streams = slots > 1 ? ` for each of ${slots} streams` : '';
    invalid(`contextSize is ${given}, but the tests need ${each} tokens${streams}: ${slots * each} in all.`);
  }
  return given;
}

/** All cases, in the order they are measured: this device alone first, as the floor of the others needs it. */
export function caseList(bench: CheckedBench, layerBytes: readonly number[]): CasePlan[] {
  const { rpc, splits, sweep, ubatchSizes, single, loads } = bench;
  const plans: { name: string; split: boolean; tensorSplit: readonly number[] | null }[] = [];
  const alone = { name: 'one device', split: false, tensorSplit: null };
  if (rpc.length === 0) {
    plans.push(alone);
  } else {
    if (single) plans.push(alone);
    const compared = sweep === undefined ? (splits ?? [null]) : sweepSplits(layerBytes, rpc.length, sweep).slice(1);
    for (const tensorSplit of compared) {
      plans.push({ name: tensorSplit ? splitName(tensorSplit) : 'by free memory', split: true, tensorSplit });
    }
  }
  return plans.flatMap((plan) =>
    ubatchSizes.map((ubatchSize, i) => ({
      ...plan,
      name: ubatchSizes.length > 1 ? `${plan.name}, ub ${ubatchSize}` : plan.name,
      ubatchSize,
      // The size of a batch changes nothing about loading.
      reloads: i > 0,
      loads: i === 0 ? loads : 1,
    })),
  );
}

/** `'[0.5, 0.5]'`; three digits tell any two splits apart that are worth comparing. */
function splitName(tensorSplit: readonly number[]): string {
  return `[${tensorSplit.map((share) => Number(share.toFixed(3))).join(', ')}]`;
}
