// @ts-check
// What a master and a worker do together: how fast they load, process a prompt and generate, and what they say to each
// other for each token.
import { median } from '../../dist/statistics.js';
import { RpcProxy } from '../support/rpc-proxy.mjs';
import { startOurMaster, startOurWorker, startUpstreamMaster, startUpstreamWorker } from './rpc-programs.mjs';

/** @import { BenchModel, End, Pair, Speed, TokenTraffic } from './rpc-measure.d.mts' */

export const PROMPT_TOKENS = 256;
export const GENERATED_TOKENS = 64;
/** A generation of 64 tokens of a small model is over in tens of milliseconds; the best of several was disturbed least. */
const REPEATS = 3;

/** @type {readonly Pair[]} */
export const PAIRS = [
  { master: 'ours', worker: 'ours' },
  { master: 'ours', worker: 'upstream' },
  { master: 'upstream', worker: 'ours' },
  { master: 'upstream', worker: 'upstream' },
];

const startMaster = { ours: startOurMaster, upstream: startUpstreamMaster };
const startWorker = { ours: startOurWorker, upstream: startUpstreamWorker };

/** Ids of ordinary tokens, the same for every master. @param {number} count */
function promptOf(count) {
  return Array.from({ length: count }, (_, i) => 100 + ((i * 37) % 800));
}

/** @param {number} promptTokens @param {number} tokens */
function completion(promptTokens, tokens) {
  const prompt = promptOf(promptTokens);
  return { prompt, n_predict: tokens, temperature: 0, ignore_eos: true, cache_prompt: false };
}

/**
 * One load, and the best of a few prompts and generations.
 *
 * @param {BenchModel} model
 * @param {Pair} pair
 * @returns {Promise<Speed>}
 */
export async function measureSpeed(model, pair) {
  const worker = await startWorker[pair.worker]();
  try {
    const master = await startMaster[pair.master](model, worker.port);
    try {
      await master.complete(completion(16, 4)); // sets up the graphs
      let promptPerSecond = 0;
      let generatedPerSecond = 0;
      for (let i = 0; i < REPEATS; i++) {
        const prompt = await master.complete(completion(PROMPT_TOKENS, 1));
        if (prompt.timings.prompt_n !== PROMPT_TOKENS) throw new Error(`${prompt.timings.prompt_n} prompt tokens`);
        promptPerSecond = Math.max(promptPerSecond, prompt.timings.prompt_per_second);
        const generation = await master.complete(completion(16, GENERATED_TOKENS));
        if (generation.timings.predicted_n !== GENERATED_TOKENS) throw new Error('the generation ended early');
        generatedPerSecond = Math.max(generatedPerSecond, generation.timings.predicted_per_second);
      }
      return { loadSeconds: master.loadSeconds, promptPerSecond, generatedPerSecond };
    } finally {
      await master.stop();
    }
  } finally {
    await worker.stop();
  }
}

/**
 * What passes between the two for one generated token, counted between them.
 *
 * @param {BenchModel} model
 * @param {Pair} pair
 * @returns {Promise<TokenTraffic>}
 */
export async function countTraffic(model, pair) {
  const worker = await startWorker[pair.worker]();
  const proxy = await RpcProxy.start(worker.port);
  try {
    const master = await startMaster[pair.master](model, proxy.port);
    try {
      await master.complete(completion(16, 4));
      /** @param {number} tokens */
      const trafficOf = async (tokens) => {
        proxy.reset();
        await master.complete(completion(16, tokens));
        return proxy.traffic;
      };
      // The difference is the generation's alone: both have the prompt, and the start and the end of a request.
      const short = await trafficOf(2);
      const long = await trafficOf(2 + GENERATED_TOKENS);
      /** @param {'messagesSent' | 'messagesReceived' | 'bytesSent' | 'bytesReceived'} name */
      const perToken = (name) => (long[name] - short[name]) / GENERATED_TOKENS;
      return {
        messagesSent: perToken('messagesSent'),
        messagesReceived: perToken('messagesReceived'),
        bytesSent: perToken('bytesSent'),
        bytesReceived: perToken('bytesReceived'),
      };
    } finally {
      await master.stop();
    }
  } finally {
    await proxy.close();
    await worker.stop();
  }
}

/**
 * Every pair once a round, in turn, each round starting with another one.
 *
 * @param {BenchModel} model
 * @param {number} rounds
 * @param {(line: string) => void} [log]
 * @returns {Promise<Map<Pair, Speed[]>>}
 */
export async function measureRounds(model, rounds, log = () => {}) {
  /** @type {Map<Pair, Speed[]>} */
  const samples = new Map(PAIRS.map((pair) => [pair, []]));
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < PAIRS.length; i++) {
      const pair = /** @type {Pair} */ (PAIRS[(round + i) % PAIRS.length]);
      const speed = await measureSpeed(model, pair);
      samples.get(pair)?.push(speed);
      log(`round ${round + 1} of ${rounds}, ${describePair(pair)}: ${describeSpeed(speed)}`);
    }
  }
  return samples;
}

/** @param {readonly Speed[]} speeds @returns {Speed} */
export function medianSpeed(speeds) {
  return {
    loadSeconds: median(speeds.map((speed) => speed.loadSeconds)),
    promptPerSecond: median(speeds.map((speed) => speed.promptPerSecond)),
    generatedPerSecond: median(speeds.map((speed) => speed.generatedPerSecond)),
  };
}

/** What the least disturbed of them took. @param {readonly Speed[]} speeds @returns {Speed} */
export function bestSpeed(speeds) {
  return {
    loadSeconds: Math.min(...speeds.map((speed) => speed.loadSeconds)),
    promptPerSecond: Math.max(...speeds.map((speed) => speed.promptPerSecond)),
    generatedPerSecond: Math.max(...speeds.map((speed) => speed.generatedPerSecond)),
  };
}

/** How many times as fast as the other; above 1 is better, for loading as well. @param {Speed} speed @param {Speed} other */
export function ratios(speed, other) {
  return {
    load: other.loadSeconds / speed.loadSeconds,
    prompt: speed.promptPerSecond / other.promptPerSecond,
    generation: speed.generatedPerSecond / other.generatedPerSecond,
  };
}

/** @type {Record<End, string>} */
const masterNames = { ours: 'droid-llama', upstream: 'llama-server' };
/** @type {Record<End, string>} */
const workerNames = { ours: 'droid-llama', upstream: 'ggml-rpc-server' };

/** @param {Pair} pair */
export function describePair({ master, worker }) {
  return `${masterNames[master]} with ${workerNames[worker]}`;
}

/** @param {Speed} speed */
function describeSpeed({ loadSeconds, promptPerSecond, generatedPerSecond }) {
  const [load, prompt, generation] = [
    loadSeconds.toFixed(2),
    promptPerSecond.toFixed(1),
    generatedPerSecond.toFixed(1),
  ];
  return `load ${load} s, prompt ${prompt} t/s, generation ${generation} t/s`;
}
