/** One case of a benchmark: load, warm up, run the tests, count what the workers did, close. */
import { performance } from 'node:perf_hooks';
import { createDistributedContext, type DistributedContext } from '../context.js';
import { DroidLlamaError } from '../errors.js';
import { probeEndpoint } from '../probe.js';
import type { CasePlan, CheckedBench } from './bench-options.js';
import { masterShare } from './cluster-facts.js';
import { GENERATION_PROMPT } from './completion.js';
import type { MeasuredLink } from './link.js';
import { type OnStep, Runner } from './runner.js';
import {
  breakdownOf,
  type Counted,
  type CountedWorker,
  type Counts,
  difference,
  perToken,
  workerResult,
} from './traffic.js';
import type { BenchCase, BenchLoad, GenerationResult, Spread } from './types.js';

/** Tokens of a generation that is counted for what a request costs besides its tokens. */
const SHORT_GENERATION = 2;
/** Tokens that are counted where no test generates more than a short one. */
const COUNTED_TOKENS = 18;
const PROBE_TIMEOUT_MS = 5_000;

/** A case as it was measured, before anything is compared with it. */
export type MeasuredCase = Omit<BenchCase, 'prompts' | 'generations'> & {
  readonly prompts: readonly Omit<BenchCase['prompts'][number], 'predicted'>[];
  readonly generations: readonly Omit<GenerationResult, 'predicted' | 'floor'>[];
};

/** @param links of the workers, in the order of `rpc` */
export async function measureCase(
  bench: CheckedBench,
  plan: CasePlan,
  links: readonly MeasuredLink[],
  onStep: OnStep,
): Promise<MeasuredCase> {
  const { tests } = bench;
  const { signal } = tests;
  const memoryBefore = plan.split ? await freeMemory(bench, links) : [];
  const { context: ctx, loads } = await load(bench, plan, onStep);
  try {
    const runner = new Runner(ctx, tests, onStep, signal);
    await runner.warmUp();
    const memoryAfter = plan.split ? await freeMemory(bench, links) : [];
    const used = usedWorkers(ctx, links);
    const count = async (tokens: number, run = () => runner.complete(GENERATION_PROMPT, tokens)) => {
      const before = ctx.stats().workers;
      const completion = await run();
      return { completion, counted: { tokens, workers: difference(ctx.stats().workers, before) } };
    };
    const prompts = await runner.prompts();
    // Twice: after a prompt the graph of a single token is sent anew, and no later generation does that.
    await count(SHORT_GENERATION);
    const short = await count(SHORT_GENERATION);

    const generations: Omit<GenerationResult, 'predicted' | 'floor'>[] = [];
    let longest: Counted | undefined;
    for (const tokens of tests.generatedTokens) {
      const runs: Counted[] = [];
      const { tokensPerSecond } = await runner.generation(tokens, async (run) => {
        const { completion, counted } = await count(tokens, run);
        runs.push(counted);
        return completion;
      });
      const median = medianRun(tokensPerSecond);
      const counted = runs[median] as Counted;
      const totalMs = 1000 / (tokensPerSecond.samples[median] as number);
      if (tokens > SHORT_GENERATION && tokens > (longest?.tokens ?? 0)) longest = counted;
      const breakdown =
        tokens > SHORT_GENERATION ? breakdownOf(totalMs, withCounts(used, perToken(counted, short.counted))) : null;
      generations.push({ tokens, tokensPerSecond, breakdown });
    }
    if (used.length > 0) longest ??= (await count(COUNTED_TOKENS)).counted;
    const token = longest ? perToken(longest, short.counted) : [];
    const workers = withCounts(used, token).map((worker, i) => {
      const { index } = used[i] as UsedWorker;
      return workerResult({ ...worker, memoryBytes: taken(memoryBefore[index], memoryAfter[index]) });
    });
    return {
      name: plan.name,
      tensorSplit: plan.tensorSplit,
      masterShare: masterShare(ctx.placement),
      ubatchSize: plan.ubatchSize,
      threads: bench.context.threads ?? null,
      placement: ctx.placement,
      loads,
      prompts,
      generations,
      streams: await runner.streams(),
      workers,
    };
  } finally {
    await ctx.close();
  }
}

/** Loads as often as the case says; the last context stays open. */
async function load(
  bench: CheckedBench,
  plan: CasePlan,
  onStep: OnStep,
): Promise<{ context: DistributedContext; loads: BenchLoad[] }> {
  const loads: BenchLoad[] = [];
  for (let run = 1; ; run++) {
    onStep('load', run, plan.loads);
    const start = performance.now();
    const context = await createDistributedContext({
      ...bench.context,
      ...(plan.split
        ? {}
        : { rpc: undefined, token: undefined, insecure: undefined, head: undefined, activations: undefined }),
      tensorSplit: plan.tensorSplit ?? undefined,
      ubatchSize: plan.ubatchSize ?? undefined,
    });
    const seconds = (performance.now() - start) / 1000;
    loads.push({ ...loadOf(context, run === 1 && !plan.reloads), seconds });
    if (run === plan.loads) return { context, loads };
    await context.close();
  }
}

function loadOf(context: DistributedContext, isFirst: boolean): Omit<BenchLoad, 'seconds'> {
  const { workers } = context.stats();
  const weightsSent = workers.reduce((sum, worker) => sum + worker.weightsSent, 0);
  const weightsReused = workers.reduce((sum, worker) => sum + worker.weightsReused, 0);
  const held = context.placement.slice(1).some(({ layers, head }) => layers.length > 0 || head);
  const cold = held ? weightsReused === 0 : isFirst;
  return { kind: cold ? 'cold' : 'warm', weightsSent, weightsReused };
}

/** A worker that holds a part of the model; `index` counts those of `rpc`. */
interface UsedWorker {
  readonly index: number;
  readonly link: MeasuredLink;
}

function usedWorkers(ctx: DistributedContext, links: readonly MeasuredLink[]): UsedWorker[] {
  return links.flatMap((link, index) => {
    const part = ctx.placement[index + 1];
    return part && (part.layers.length > 0 || part.head) ? [{ index, link }] : [];
  });
}

function withCounts(used: readonly UsedWorker[], token: readonly Counts[]): Omit<CountedWorker, 'memoryBytes'>[] {
  return used.map(({ index, link: { endpoint, extended } }) => ({ endpoint, extended, token: token[index] as Counts }));
}

/** Which run was nearest to the median. */
function medianRun({ samples, median }: Spread): number {
  const distances = samples.map((sample) => Math.abs(sample - median));
  return distances.indexOf(Math.min(...distances));
}

/** What each worker has free; null for one that serves a single master, and so would let a question wait. */
async function freeMemory(bench: CheckedBench, links: readonly MeasuredLink[]): Promise<(number | null)[]> {
  const { token, signal } = bench.context;
  return Promise.all(
    links.map(async ({ endpoint, extended }) => {
      if (!extended) return null;
      try {
        const { devices } = await probeEndpoint(endpoint, { token, signal, timeoutMs: PROBE_TIMEOUT_MS });
        return devices[0]?.memoryFree ?? null;
      } catch (error) {
        // It takes no second client. Anything worse shows as soon as the worker is needed.
        if (error instanceof DroidLlamaError && !signal?.aborted) return null;
        throw error;
      }
    }),
  );
}

function taken(before: number | null | undefined, after: number | null | undefined): number | null {
  return before == null || after == null ? null : Math.max(0, before - after);
}
