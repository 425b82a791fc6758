/** Which layers, context and batches each device gets, and how fast that will be: a pure function of what was measured. */

import type { Plan, PlanDevice, PlanInput, PlanPart, Prediction } from '../types.js';
import {
  deviceTimes,
  headSeconds,
  memoryNeeded,
  memoryNeeds,
  promptTokens,
  type Sizing,
  sum,
  ubatchTokens,
} from './estimate.js';
import { type Candidate, evaluate, isKnown, predictionOf, prepare, SHARING, type Workplace } from './plan-candidate.js';
import { contextReason, leftOutReason, planReasons, unfitReasons } from './plan-reasons.js';
import type { DeviceSpeed } from './speeds.js';
import {
  fastestGeneration,
  fastestPrompt,
  layersThatFit,
  type PromptSearch,
  type Share,
  type Split,
  widestPrompt,
} from './split-search.js';

/** llama.cpp's own default, beyond which a longer context costs more memory than most chats need. */
const DEFAULT_CONTEXT = 4096;
/** A context is not made smaller than this to make a model fit; shorter ones are of little use for chat. */
const LEAST_CONTEXT = 512;
const DEFAULT_BATCH = 2048;
const UBATCHES = [512, 256, 128, 64, 32];

/**
 * Plans for the devices that are there. The answer does not depend on the order of `input.workers`, and every device is
 * either in `parts` or in `leftOut`.
 */
export function planCluster(input: PlanInput): Plan {
  const { workplace, surplus } = prepare(input);
  const contexts = contextSizes(input);
  const contextSize = contexts.find((size) => fits(workplace, leanest(input, size)));
  const candidate = contextSize === undefined ? null : choose(workplace, contextSize);
  if (contextSize === undefined || !candidate) {
    return unfitPlan(workplace, surplus, leanest(input, contexts.at(-1) ?? LEAST_CONTEXT));
  }

  const used = new Set(candidate.shares.map(({ worker }) => worker));
  const idle = [...workplace.workers.entries()].filter(([index]) => !used.has(index));
  return {
    fits: true,
    missingBytes: 0,
    parts: partsOf(workplace, candidate),
    contextSize,
    batchSize: batchSize(input, candidate.sizing),
    ubatchSize: candidate.sizing.ubatchSize,
    prediction: isKnown(workplace, candidate) ? predictionOf(workplace, candidate) : null,
    leftOut: [
      ...idle.map(([index, device]) => {
        const withIt = search(workplace, candidate.sizing, new Set([...used, index]));
        return { id: device.id, reason: leftOutReason(workplace, candidate, device, withIt) };
      }),
      ...surplus,
    ],
    reasons: [contextReason(workplace, contextSize, contexts[0] ?? contextSize), ...planReasons(workplace, candidate)],
  };
}

/**
 * What a plan made earlier would do by what is known now, to compare it with a new one.
 * @returns null when a device of it is not there, or when something needed was not measured
 */
export function predictPlan(input: PlanInput, plan: Plan): Prediction | null {
  const { workplace } = prepare(input);
  const shares: Share[] = [];
  for (const part of plan.parts.slice(1)) {
    const worker = workplace.workers.findIndex(({ id }) => id === part.id);
    if (worker < 0) return null;
    shares.push({ worker, first: part.firstLayer, end: part.firstLayer + part.layers });
  }
  const master = plan.parts[0];
  if (!plan.fits || master?.id !== input.master.id) return null;
  if (sum(plan.parts.map(({ layers }) => layers)) !== input.model.layerBytes.length) return null;
  const sizing = { contextSize: plan.contextSize, ubatchSize: plan.ubatchSize, parallel: input.parallel };
  const candidate = evaluate(workplace, sizing, shares);
  return isKnown(workplace, candidate) ? predictionOf(workplace, candidate) : null;
}

/** From the one wished for down to the smallest one that is tried. */
function contextSizes({ contextSize, model }: PlanInput): number[] {
  if (contextSize) return [contextSize];
  const sizes = [Math.min(model.contextLength || DEFAULT_CONTEXT, DEFAULT_CONTEXT)];
  for (let size = (sizes[0] ?? 0) / 2; size >= LEAST_CONTEXT; size /= 2) sizes.push(Math.floor(size));
  return sizes;
}

function ubatchSizes({ batchSize, ubatchSize }: PlanInput, contextSize: number): number[] {
  const most = Math.min(batchSize ?? DEFAULT_BATCH, contextSize);
  if (ubatchSize) return [Math.min(ubatchSize, most)];
  const sizes = UBATCHES.filter((size) => size <= most);
  return sizes.length > 0 ? sizes : [most];
}

function batchSize(input: PlanInput, { contextSize, ubatchSize }: Sizing): number {
  return input.batchSize ?? Math.max(ubatchSize, Math.min(DEFAULT_BATCH, contextSize));
}

/** With the ubatch that takes the least memory. */
function leanest(input: PlanInput, contextSize: number): Sizing {
  return { contextSize, ubatchSize: Math.min(...ubatchSizes(input, contextSize)), parallel: input.parallel };
}

function fits({ input, master, workers }: Workplace, sizing: Sizing): boolean {
  const needs = memoryNeeds(input.model, sizing);
  const layers = input.model.layerBytes.length;
  return master.memory >= needs.master && layersThatFit({ layers, needs, master, workers }) === layers;
}

/** The best split for a context; null when nothing fits. */
function choose(workplace: Workplace, contextSize: number): Candidate | null {
  const { input, workers } = workplace;
  let forced = new Set([...workers.keys()].filter((i) => workers[i]?.pinned));
  let best = bestOf(workplace, contextSize, forced);
  if (!best) {
    // One of the pinned has no room, or there are more of them than layers: then as many as go, by id.
    const pinned = forced;
    forced = new Set();
    best = bestOf(workplace, contextSize, forced);
    for (const index of pinned) {
      const more = new Set([...forced, index]);
      const candidate = bestOf(workplace, contextSize, more);
      if (candidate) [best, forced] = [candidate, more];
    }
  }
  return best && input.objective === 'share' ? widen(workplace, best, forced) : best;
}

/** Over all sizes of ubatch. */
function bestOf(workplace: Workplace, contextSize: number, forced: ReadonlySet<number>): Candidate | null {
  const { input } = workplace;
  let best: Candidate | null = null;
  for (const ubatchSize of ubatchSizes(input, contextSize)) {
    const candidate = search(workplace, { contextSize, ubatchSize, parallel: input.parallel }, forced);
    if (candidate && (!best || isBetter(candidate, best, input.objective))) best = candidate;
  }
  return best;
}

/** The best of one size of ubatch. With `share` that is not yet the answer, see {@link widen}. */
function search(workplace: Workplace, sizing: Sizing, forced: ReadonlySet<number>): Candidate | null {
  const searched = searchInput(workplace, sizing, forced);
  const { objective } = workplace.input;
  const split = objective === 'fastest' ? fastestGeneration(searched) : fastestPrompt(searched);
  return split && evaluate(workplace, sizing, split.shares);
}

function isBetter(a: Candidate, b: Candidate, objective: PlanInput['objective']): boolean {
  if (objective === 'fastest' && a.tokenSeconds !== b.tokenSeconds) return a.tokenSeconds < b.tokenSeconds;
  return a.promptSeconds < b.promptSeconds;
}

/**
 * Takes in more devices than the fastest split has, as long as prompts are read as fast by the measure of
 * {@link SHARING}; the master computes a layer too, if it can. Never slower than that, whatever is given: the fastest
 * split itself is among the choices.
 */
function widen(workplace: Workplace, fastest: Candidate, forced: ReadonlySet<number>): Candidate {
  const { workers, speeds, input } = workplace;
  const head = headSeconds(input.model, (speeds.devices[0] as DeviceSpeed).compute);
  const limit = Math.max(SHARING.sufficientSeconds, fastest.promptSeconds * SHARING.tolerance) - head;
  const within = (sizing: Sizing, split: Split | null) =>
    split && split.seconds <= limit ? evaluate(workplace, sizing, split.shares) : null;

  let [everybody, seconds] = [fastest.sizing, Number.POSITIVE_INFINITY];
  let best: Candidate | null = null;
  for (const ubatchSize of ubatchSizes(input, fastest.sizing.contextSize)) {
    const sizing = { ...fastest.sizing, ubatchSize };
    const split = fastestPrompt(searchInput(workplace, sizing, new Set(workers.keys()), true));
    if (!split || split.seconds >= seconds) continue;
    [everybody, seconds, best] = [sizing, split.seconds, within(sizing, split)];
  }
  if (best) return best;
  for (const masterHolds of [true, false]) {
    for (const sizing of [everybody, fastest.sizing]) {
      const widest = within(sizing, widestPrompt(searchInput(workplace, sizing, forced, masterHolds), limit));
      if (widest) return widest;
    }
  }
  return fastest;
}

function searchInput(
  { input, master, workers, speeds }: Workplace,
  sizing: Sizing,
  forced: ReadonlySet<number>,
  masterHolds = false,
): PromptSearch {
  const { model } = input;
  const device = ({ memory }: PlanDevice, index: number, mustHold: boolean) => {
    const { compute, link } = speeds.devices[index] as DeviceSpeed;
    return { memory, times: deviceTimes(model, sizing, compute, link), forced: mustHold };
  };
  return {
    layers: model.layerBytes.length,
    needs: memoryNeeds(model, sizing),
    master: device(master, 0, masterHolds),
    workers: workers.map((worker, i) => device(worker, i + 1, forced.has(i))),
    ubatches: promptTokens(sizing.contextSize) / ubatchTokens(sizing),
  };
}

function partsOf({ input, master, workers }: Workplace, { sizing, masterEnd, shares }: Candidate): PlanPart[] {
  const { layerBytes, outerBytes } = input.model;
  const needs = memoryNeeds(input.model, sizing);
  const part = (id: string, first: number, end: number, isMaster: boolean): PlanPart => ({
    id,
    firstLayer: first,
    layers: end - first,
    bytes: sum(layerBytes.slice(first, end)) + (isMaster ? outerBytes : 0),
    memoryNeeded: memoryNeeded(needs, first, end, isMaster),
  });
  return [
    part(master.id, 0, masterEnd, true),
    ...shares.map(({ worker, first, end }) => part((workers[worker] as PlanDevice).id, first, end, false)),
  ];
}

/** The plan of a model that does not fit: what is missing, and nobody holds anything. */
function unfitPlan(workplace: Workplace, surplus: Plan['leftOut'], sizing: Sizing): Plan {
  const { input, master, workers } = workplace;
  const layers = input.model.layerBytes.length;
  const needs = memoryNeeds(input.model, sizing);
  const placed = layersThatFit({ layers, needs, master, workers });
  const missingBytes =
    Math.max(0, needs.master - master.memory) + (needs.before[layers] ?? 0) - (needs.before[placed] ?? 0);
  const reason = 'The model does not fit the devices there are.';
  return {
    fits: false,
    missingBytes,
    parts: [],
    contextSize: sizing.contextSize,
    batchSize: batchSize(input, sizing),
    ubatchSize: sizing.ubatchSize,
    prediction: null,
    leftOut: [...[master, ...workers].map(({ id }) => ({ id, reason })), ...surplus],
    reasons: unfitReasons(workplace, sizing, missingBytes),
  };
}
