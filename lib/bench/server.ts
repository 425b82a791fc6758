/** Benchmarks of what runs already: a server by its URL, or a cluster that this process is a member of. */
import { z } from 'zod';
import type { Cluster } from '../cluster/cluster.js';
import { DroidLlamaError } from '../errors.js';
import { limitTime } from '../link-signals.js';
import { type RequestSender, requestJson } from '../requests.js';
import { invalid, knownKeys, optionalString, plainObject } from '../validate.js';
import { type ClusterFacts, clusterLinks, clusterPlacement, masterShare } from './cluster-facts.js';
import { noServer } from './completion.js';
import { HttpSender } from './http-sender.js';
import { emptyReport } from './machine.js';
import {
  type CheckedTests,
  checkTests,
  slotsNeeded,
  TEST_OPTION_NAMES,
  type TestOptions,
  tokensNeeded,
} from './options.js';
import { Runner } from './runner.js';
import type { BenchReport } from './types.js';

export interface UrlBenchOptions extends TestOptions {
  /** Key that the server wants, if any. */
  apiKey?: string;
  /**
   * What `droid-llama status --json` says of the cluster behind the URL: its placement, links and prediction are
   * reported beside what is measured.
   */
  cluster?: ClusterFacts;
}

/**
 * Measures a server that runs already: droid-llama's own, or any llama-server. It must be able to answer as many
 * requests at once as the largest of `streams`, and nobody else should use it meanwhile.
 *
 * Rejects with `DROID_INVALID_ARGUMENT`, also for tests that do not fit the server; `DROID_ENDPOINT_*`, when it cannot
 * be reached or never answers; `DROID_CLOSED`, when it hangs up; `DROID_REQUEST_FAILED` or `DROID_WORKER_*`, when it
 * answers with an error; or the signal's reason.
 */
export async function benchUrl(url: string, options: UrlBenchOptions = {}): Promise<BenchReport> {
  plainObject('options', options);
  knownKeys('benchUrl()', options, [...TEST_OPTION_NAMES, 'apiKey', 'cluster']);
  const tests = checkTests(options);
  const sender = new HttpSender(url, optionalString('apiKey', options.apiKey));
  try {
    return await benchSender(sender, sender.url, tests, options.cluster);
  } finally {
    sender.close();
  }
}

/**
 * Measures the cluster that this process is a member of, from this device: on a worker every request and its tokens also
 * pass between it and the master. Rejects like {@link benchUrl}, and as `Cluster.request` does.
 */
export async function benchCluster(
  cluster: Pick<Cluster, 'request' | 'ready' | 'status'>,
  options: TestOptions = {},
): Promise<BenchReport> {
  plainObject('options', options);
  knownKeys('benchCluster()', options, TEST_OPTION_NAMES);
  const tests = checkTests(options);
  await cluster.ready({ signal: tests.signal });
  return benchSender(cluster, 'cluster', tests, cluster.status());
}

async function benchSender(
  sender: RequestSender,
  name: string,
  tests: CheckedTests,
  cluster: ClusterFacts | undefined,
): Promise<BenchReport> {
  const { signal } = tests;
  signal?.throwIfAborted();
  const onStep = (test: string, run: number, runs: number) =>
    tests.onProgress({ case: 1, cases: 1, name, test, run, runs });
  onStep('answer', 1, 1);
  const { model, slots, contextSize } = await serverProps(sender, name, signal);
  checkFit(tests, slots, contextSize);
  const runner = new Runner(sender, tests, onStep, signal);
  await runner.warmUp();
  const prediction = cluster?.plan?.prediction ?? null;
  const placement = cluster ? clusterPlacement(cluster) : null;
  const prompts = (await runner.prompts()).map((result) => ({
    ...result,
    predicted: prediction?.promptTokensPerSecond ?? null,
  }));
  const generations = (await runner.generations()).map((result) => ({
    ...result,
    predicted: prediction?.generationTokensPerSecond ?? null,
    floor: null,
    breakdown: null,
  }));
  const report: BenchReport = {
    ...emptyReport(model, tests.repetitions),
    links: cluster ? clusterLinks(cluster) : [],
    cases: [
      {
        name,
        tensorSplit: null,
        masterShare: placement && masterShare(placement),
        ubatchSize: cluster?.plan?.ubatchSize ?? null,
        threads: null,
        placement,
        loads: [],
        prompts,
        generations,
        streams: await runner.streams(),
        workers: [],
      },
    ],
  };
  tests.onReport(report);
  return report;
}

const propsSchema = z.object({
  total_slots: z.number().int().min(1).nullish(),
  model_path: z.string().nullish(),
  default_generation_settings: z.object({ n_ctx: z.number().int().nonnegative().nullish() }).nullish(),
});

/** Longer than droid-llama's own server waits for its cluster by itself. */
const PROPS_TIMEOUT_MS = 120_000;

interface ServerProps {
  readonly model: string | null;
  readonly slots: number | null;
  /** Tokens of each slot. */
  readonly contextSize: number | null;
}

/** What a server says of itself; one that says nothing of it can be measured as well. */
async function serverProps(sender: RequestSender, name: string, signal: AbortSignal | undefined): Promise<ServerProps> {
  let answer: unknown;
  const late = `${name} did not answer /props in ${PROPS_TIMEOUT_MS / 1000} s: is it a llama-server or droid-llama?`;
  const limit = limitTime(PROPS_TIMEOUT_MS, () => new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', late), signal);
  try {
    answer = await requestJson(sender, '/props', undefined, { signal: limit.signal });
  } catch (error) {
    if (error instanceof DroidLlamaError && error.status === 404)
      return { model: null, slots: null, contextSize: null };
    throw error;
  } finally {
    limit.unlink();
  }
  const props = propsSchema.safeParse(answer);
  if (!props.success) throw noServer('/props is not understood');
  const { total_slots, model_path, default_generation_settings } = props.data;
  return {
    model: model_path ?? null,
    slots: total_slots ?? null,
    contextSize: default_generation_settings?.n_ctx || null,
  };
}

function checkFit(tests: CheckedTests, slots: number | null, contextSize: number | null): void {
  const wantedSlots = slotsNeeded(tests);
  if (slots !== null && wantedSlots > slots) {
    invalid(
      `${wantedSlots} streams are to be measured, but the server answers ${slots} at once: ` +
        `start it with --parallel ${wantedSlots}, or ask for fewer streams.`,
    );
  }
  const wanted = tokensNeeded(tests);
  if (contextSize !== null && wanted > contextSize) {
    invalid(
      `The tests need ${wanted} tokens of context, but the server has ${contextSize} for each request: ` +
        'start it with a larger --ctx-size, or measure shorter prompts and generations.',
    );
  }
}
