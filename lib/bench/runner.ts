/** The tests of one case, on whatever answers llama-server's requests. */
import type { RequestSender } from '../requests.js';
import { type Completion, complete, GENERATION_PROMPT, Prompts } from './completion.js';
import type { CheckedTests } from './options.js';
import { spread } from './spread.js';
import { runStreams, summarizeStreams } from './streams.js';
import type { Spread, StreamsResult } from './types.js';

/** Tokens generated to set up the graphs. */
const WARM_UP_TOKENS = 4;

/** Called before each step: the test's name, the run from 1, and the number of runs. */
export type OnStep = (test: string, run: number, runs: number) => void;

/** Called with one request of a test, to look at counters before and after it. */
export type Around = (run: () => Promise<Completion>) => Promise<Completion>;

/** Runs tests one after the other on one sender. */
export class Runner {
  readonly #sender: RequestSender;
  readonly #tests: CheckedTests;
  readonly #onStep: OnStep;
  readonly #signal: AbortSignal | undefined;
  #prompts: Prompts | undefined;

  constructor(sender: RequestSender, tests: CheckedTests, onStep: OnStep, signal?: AbortSignal) {
    this.#sender = sender;
    this.#tests = tests;
    this.#onStep = onStep;
    this.#signal = signal;
  }

  /** The longest prompt and a few tokens, which count for nothing: memory is touched, graphs are set up, clocks rise. */
  async warmUp(): Promise<void> {
    this.#onStep('warm-up', 1, 1);
    this.#prompts = await Prompts.of(this.#sender, this.#signal);
    await this.complete(Math.max(GENERATION_PROMPT, ...this.#tests.promptTokens), WARM_UP_TOKENS);
  }

  /** One request outside of the tests. */
  complete(promptTokens: number, tokens: number): Promise<Completion> {
    return complete(this.#sender, this.#next(promptTokens), tokens, this.#signal);
  }

  async prompts(): Promise<{ tokens: number; tokensPerSecond: Spread }[]> {
    const results = [];
    for (const tokens of this.#tests.promptTokens) {
      const samples: number[] = [];
      for (let run = 1; run <= this.#tests.repetitions; run++) {
        this.#onStep(`pp${tokens}`, run, this.#tests.repetitions);
        samples.push((await this.complete(tokens, 1)).promptPerSecond);
      }
      results.push({ tokens, tokensPerSecond: spread(samples) });
    }
    return results;
  }

  /** @param around runs each request of the test */
  async generations(around: Around = (run) => run()): Promise<{ tokens: number; tokensPerSecond: Spread }[]> {
    const results = [];
    for (const tokens of this.#tests.generatedTokens) results.push(await this.generation(tokens, around));
    return results;
  }

  async generation(tokens: number, around: Around): Promise<{ tokens: number; tokensPerSecond: Spread }> {
    const samples: number[] = [];
    for (let run = 1; run <= this.#tests.repetitions; run++) {
      this.#onStep(`tg${tokens}`, run, this.#tests.repetitions);
      samples.push((await around(() => this.complete(GENERATION_PROMPT, tokens))).generatedPerSecond);
    }
    return { tokens, tokensPerSecond: spread(samples) };
  }

  async streams(): Promise<StreamsResult[]> {
    const results = [];
    for (const streams of this.#tests.streams) {
      const run = (tokens: number) =>
        runStreams(this.#sender, this.#known(), { streams, tokens, signal: this.#signal });
      // A batch of another size is another graph.
      await run(WARM_UP_TOKENS);
      const runs = [];
      for (let i = 1; i <= this.#tests.repetitions; i++) {
        this.#onStep(`${streams} ${streams === 1 ? 'stream' : 'streams'}`, i, this.#tests.repetitions);
        runs.push(await run(this.#tests.streamTokens));
      }
      results.push(summarizeStreams(runs));
    }
    return results;
  }

  #next(tokens: number): number[] {
    return this.#known().next(tokens);
  }

  #known(): Prompts {
    if (!this.#prompts) throw new TypeError('warmUp() comes first');
    return this.#prompts;
  }
}
