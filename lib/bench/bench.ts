/** A benchmark of contexts that it makes itself: one device, splits, a sweep. */

import { availableMemory, computeSpeed } from '../cluster/device/device.js';
import { type ModelFile, readModelFile } from '../cluster/device/model-file.js';
import { memoryNeeded, memoryNeeds } from '../cluster/plan/estimate.js';
import type { ComputeSpeed } from '../cluster/types.js';
import { defaultThreads } from '../cpu.js';
import { type BenchOptions, type CasePlan, type CheckedBench, caseList, checkBench } from './bench-options.js';
import { type MeasuredCase, measureCase } from './case.js';
import { GENERATION_PROMPT } from './completion.js';
import { floorOf, tokenBytes } from './floor.js';
import { type MeasuredLink, measureLink } from './link.js';
import { emptyReport } from './machine.js';
import { DEFAULT_UBATCH, predictor } from './predict.js';
import type { BenchCase, BenchReport, GenerationResult } from './types.js';

/**
 * Loads a model in every way asked for, one after the other, and measures each: on this device alone, and split over
 * workers. Before that it measures each worker's connection and how fast this device computes, for the predictions and
 * the floor.
 *
 * Rejects as `createDistributedContext` does: `DROID_INVALID_ARGUMENT` and `DROID_INSECURE` before anything is done,
 * `DROID_MODEL_*`, `DROID_ENDPOINT_*`, `DROID_OUT_OF_MEMORY`, `DROID_WORKER_*`, or the signal's reason. `onReport` has
 * been given the cases that were finished by then.
 */
export async function bench(options: BenchOptions): Promise<BenchReport> {
  const checked = checkBench(options);
  const { tests, rpc } = checked;
  const { signal } = tests;
  signal?.throwIfAborted();
  const model = await readModelFile(checked.context.model);
  const plans = caseList(checked, model.shape.layerBytes);
  let report = emptyReport(model.summary.name, tests.repetitions);
  const note = (text: string) => {
    report = { ...report, notes: [...report.notes, text] };
  };

  const links: MeasuredLink[] = [];
  for (const [i, endpoint] of rpc.entries()) {
    tests.onProgress({ case: 0, cases: plans.length, name: endpoint, test: 'link', run: i + 1, runs: rpc.length });
    links.push(await measureLink(endpoint, { token: checked.context.token, signal }));
  }
  report = {
    ...report,
    links: links.map(({ endpoint, roundTripMs, upBytesPerSecond, downBytesPerSecond }) => ({
      endpoint,
      roundTripMs,
      upBytesPerSecond,
      downBytesPerSecond,
    })),
  };
  signal?.throwIfAborted();
  const compute = await computeSpeed(checked.context.threads ?? defaultThreads());
  if (rpc.length > 0) note('Predictions take the workers to compute as fast as this device.');
  for (const text of missing(links)) note(text);

  const measured: MeasuredCase[] = [];
  for (const [i, plan] of plans.entries()) {
    signal?.throwIfAborted();
    const needed = plan.split ? 0 : missingMemory(checked, plan, model);
    if (needed > 0 && rpc.length > 0) {
      note(`One device alone was left out: ${Math.ceil(needed / 2 ** 20)} MiB of memory are missing here.`);
      continue;
    }
    measured.push(
      await measureCase(checked, plan, links, (test, run, runs) =>
        tests.onProgress({ case: i + 1, cases: plans.length, name: plan.name, test, run, runs }),
      ),
    );
    const last = measured.at(-1)?.loads.at(-1);
    if (plan.split && plan.loads === 2 && last?.kind === 'cold' && !report.notes.includes(NOT_KEPT)) note(NOT_KEPT);
    const alone = measured.filter(({ placement }) => placement?.slice(1).every(({ layers }) => layers.length === 0));
    report = {
      ...report,
      cases: measured.map((entry) => compared(entry, { alone, links, compute, model, head: checked.context.head })),
    };
    tests.onReport(report);
  }
  return report;
}

const NOT_KEPT =
  'A second load was cold as well: workers keep weights for later loads when they have a cache (--cache).';

interface Comparison {
  /** The cases of one device. */
  readonly alone: readonly MeasuredCase[];
  readonly links: readonly MeasuredLink[];
  readonly compute: ComputeSpeed;
  readonly model: ModelFile;
  readonly head: 'master' | 'worker' | undefined;
}

/** A case with what it is compared with: predictions, and the floor. */
function compared(measured: MeasuredCase, { alone, links, compute, model, head }: Comparison): BenchCase {
  const layers = (measured.placement ?? []).map((part) => part.layers.length);
  const predict = predictor({ model: model.shape, compute, layers, links, ubatchSize: measured.ubatchSize });
  // The formulas are of a head on the master.
  const known = head !== 'worker' || alone.includes(measured);
  const used = links.filter((_, i) => (layers[i + 1] ?? 0) > 0);
  const floor = ({ tokens, tokensPerSecond }: Pick<GenerationResult, 'tokens' | 'tokensPerSecond'>) => {
    // How large a batch may be changes nothing for a single token: the quickest is the nearest to what is possible.
    const same = alone.flatMap(({ generations }) => generations.filter((test) => test.tokens === tokens));
    const fastest = Math.max(...same.map((test) => test.tokensPerSecond.median));
    if (same.length === 0 || used.length === 0 || head === 'worker') return null;
    return floorOf({
      computeMs: 1000 / fastest,
      bytes: tokenBytes(model.shape.embeddingLength, GENERATION_PROMPT + tokens / 2),
      links: used,
      measured: tokensPerSecond.median,
    });
  };
  return {
    ...measured,
    prompts: measured.prompts.map((prompt) => ({ ...prompt, predicted: known ? predict.prompt(prompt.tokens) : null })),
    generations: measured.generations.map((generation) => ({
      ...generation,
      predicted: known ? predict.generation(generation.tokens) : null,
      floor: floor(generation),
    })),
  };
}

/** Bytes that this device lacks to run the model alone; 0 when it fits. */
function missingMemory({ context }: CheckedBench, { ubatchSize }: CasePlan, { shape }: ModelFile): number {
  const needs = memoryNeeds(shape, {
    contextSize: context.contextSize ?? 0,
    ubatchSize: ubatchSize ?? DEFAULT_UBATCH.alone,
    parallel: context.parallel ?? 1,
  });
  return Math.max(0, memoryNeeded(needs, 0, shape.layerBytes.length, true) - availableMemory());
}

function missing(links: readonly MeasuredLink[]): string[] {
  return links.flatMap(({ endpoint, extended, upBytesPerSecond }) => [
    ...(extended ? [] : [`${endpoint} is no droid-llama worker, so it does not tell how long it computes.`]),
    ...(upBytesPerSecond === null ? [`${endpoint} has no memory left to measure its bandwidth with.`] : []),
  ]);
}
