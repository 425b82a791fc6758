/** What the stages of planning share: who is there, and what a split of the layers costs them. */

import type { Plan, PlanDevice, PlanInput, Prediction } from '../types.js';
import {
  deviceTimes,
  headSeconds,
  loadSeconds,
  promptSeconds,
  promptTokens,
  type Sizing,
  sum,
  ubatchTokens,
} from './estimate.js';
import { type DeviceSpeed, resolveSpeeds, type Speeds } from './speeds.js';
import type { Share } from './split-search.js';

/** ggml takes 16 backends in one model, and the master's processor is one of them. */
const MAX_WORKERS = 15;
/** How much prompt speed the objective `share` gives up to use more of the devices. */
export const SHARING = {
  /**
   * A prompt of 512 tokens that is read within so many seconds is read fast enough. Small models would otherwise never be
   * shared.
   */
  sufficientSeconds: 2,
  /** Above that, so many times the shortest time is still not worse: measurements are no better than that. */
  tolerance: 1.05,
};

/** What the stages of planning share. */
export interface Workplace {
  readonly input: PlanInput;
  readonly master: PlanDevice;
  /** At most {@link MAX_WORKERS}, by id. */
  readonly workers: readonly PlanDevice[];
  readonly speeds: Speeds;
}

/** A split with its sizes and its times; `shares[].worker` counts {@link Workplace.workers}. */
export interface Candidate {
  readonly sizing: Sizing;
  readonly masterEnd: number;
  readonly shares: readonly Share[];
  readonly tokenSeconds: number;
  readonly promptSeconds: number;
}

export function prepare(input: PlanInput): { workplace: Workplace; surplus: Plan['leftOut'] } {
  const byId = (a: PlanDevice, b: PlanDevice) => (a.id < b.id ? -1 : 1);
  const ranked = [...input.workers].sort(
    (a, b) => Number(b.pinned) - Number(a.pinned) || b.memory - a.memory || byId(a, b),
  );
  const workers = ranked.slice(0, MAX_WORKERS).sort(byId);
  const speeds = resolveSpeeds([input.master, ...workers]);
  const reason = `A model runs on ${MAX_WORKERS} workers at most; those with more memory were taken.`;
  return {
    workplace: { input, master: input.master, workers, speeds },
    surplus: ranked
      .slice(MAX_WORKERS)
      .sort(byId)
      .map(({ id }) => ({ id, reason })),
  };
}

/** The times of a split. */
export function evaluate({ input, speeds }: Workplace, sizing: Sizing, shares: readonly Share[]): Candidate {
  const { model } = input;
  const times = speeds.devices.map(({ compute, link }) => deviceTimes(model, sizing, compute, link));
  const masterTimes = times[0] as (typeof times)[number];
  const masterEnd = shares[0]?.first ?? model.layerBytes.length;
  const head = headSeconds(model, (speeds.devices[0] as DeviceSpeed).compute);
  let tokenSeconds = (masterTimes.token[masterEnd] ?? 0) + head;
  let waited = masterTimes.ubatch[masterEnd] ?? 0;
  let last: Parameters<typeof promptSeconds>[2] = null;
  shares.forEach(({ worker, first, end }, i) => {
    const own = times[worker + 1] as (typeof times)[number];
    tokenSeconds += (own.token[end] ?? 0) - (own.token[first] ?? 0) + own.tokenLink;
    if (i < shares.length - 1) {
      waited += (own.ubatch[end] ?? 0) - (own.ubatch[first] ?? 0) + own.ubatchLink;
    } else {
      last = {
        send: own.send + (end - first) * own.sendPerLayer,
        compute: (own.compute[end] ?? 0) - (own.compute[first] ?? 0),
        answer: own.answer,
      };
    }
  });
  const ubatches = promptTokens(sizing.contextSize) / ubatchTokens(sizing);
  return { sizing, masterEnd, shares, tokenSeconds, promptSeconds: promptSeconds(ubatches, waited, last) + head };
}

/** Whether enough was measured to predict. */
export function isKnown({ speeds }: Workplace, candidate: Candidate): boolean {
  return speeds.computeKnown && (candidate.shares.length === 0 || speeds.linksKnown);
}

export function predictionOf({ input, speeds }: Workplace, candidate: Candidate): Prediction {
  const { layerBytes, outerBytes } = input.model;
  return {
    loadSeconds: loadSeconds(
      outerBytes + sum(layerBytes),
      candidate.shares.map(({ worker, first, end }) => ({
        bytes: sum(layerBytes.slice(first, end)),
        up: speeds.devices[worker + 1]?.link?.up ?? Number.POSITIVE_INFINITY,
      })),
    ),
    promptTokensPerSecond: promptTokens(candidate.sizing.contextSize) / candidate.promptSeconds,
    generationTokensPerSecond: 1 / candidate.tokenSeconds,
  };
}
