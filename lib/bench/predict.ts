/** What the planner's formulas (docs/planning.md) say of a split, with the speeds of this run. */
import { evaluate, prepare } from '../cluster/plan/plan-candidate.js';
import type { ComputeSpeed, ModelShape, PlanDevice } from '../cluster/types.js';
import { GENERATION_PROMPT } from './completion.js';
import type { BenchLink } from './types.js';

/** What a context takes by itself, alone and with workers. */
export const DEFAULT_UBATCH = { alone: 512, split: 64 } as const;

export interface PredictorInput {
  readonly model: ModelShape;
  /** Of the master; the workers are taken to be as fast. */
  readonly compute: ComputeSpeed;
  /** Layers of each device, master first. */
  readonly layers: readonly number[];
  /** One for each worker, in the same order. */
  readonly links: readonly BenchLink[];
  /** Null: llama.cpp's default. */
  readonly ubatchSize: number | null;
}

/** Tokens per second; null where a link was not measured. */
export interface Predictor {
  prompt(tokens: number): number | null;
  generation(tokens: number): number | null;
}

export function predictor({ model, compute, layers, links, ubatchSize }: PredictorInput): Predictor {
  const device = (id: string, link: PlanDevice['link']): PlanDevice => ({
    id,
    name: id,
    memory: Number.MAX_SAFE_INTEGER,
    compute: link ? null : compute,
    pinned: false,
    link,
  });
  const { workplace } = prepare({
    model,
    master: device('master', null),
    // The planner orders workers by their ids.
    workers: links.map((link, i) => device(String(i).padStart(3, '0'), link)),
    objective: 'share',
    contextSize: null,
    batchSize: null,
    ubatchSize: null,
    parallel: 1,
  });
  let first = layers[0] ?? 0;
  const shares = links.flatMap((_, worker) => {
    const count = layers[worker + 1] ?? 0;
    const share = { worker, first, end: first + count };
    first += count;
    return count > 0 ? [share] : [];
  });
  const known = shares.every(({ worker }) => {
    const link = links[worker];
    return link?.roundTripMs != null && link.upBytesPerSecond !== null && link.downBytesPerSecond !== null;
  });
  const usual = shares.length > 0 ? DEFAULT_UBATCH.split : DEFAULT_UBATCH.alone;
  const times = (contextSize: number) =>
    known ? evaluate(workplace, { contextSize, ubatchSize: ubatchSize ?? usual, parallel: 1 }, shares) : undefined;
  return {
    // The formulas are for prompts of up to 512 tokens; longer ones are read about as fast.
    prompt(tokens) {
      const asked = Math.min(tokens, 512);
      const candidate = times(asked);
      return candidate ? asked / candidate.promptSeconds : null;
    },
    generation(tokens) {
      const candidate = times(Math.round(GENERATION_PROMPT + tokens / 2));
      return candidate ? 1 / candidate.tokenSeconds : null;
    },
  };
}
