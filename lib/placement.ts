/** Which device gets which layers: pure functions of the model's sizes, the shares and the free memory. */
import type { ModelInfo } from './addon.js';
import { DroidLlamaError } from './errors.js';
import { invalid } from './validate.js';

/** A device as the planner sees it; the master comes first. Sizes are bytes. */
export interface DeviceMemory {
  /** `'master'` or the worker's endpoint. */
  readonly device: string;
  readonly memoryFree: number;
}

const count = (number: number, what: string): string => `${number} ${what}${number === 1 ? '' : 's'}`;

/** Throws `DROID_INVALID_ARGUMENT` unless there is one usable share per device, master first. */
export function checkTensorSplit(split: readonly number[], workers: number): void {
  const shown = `[${split.join(', ')}]`;
  if (split.length !== workers + 1) {
    invalid(
      `tensorSplit ${shown} has ${count(split.length, 'share')} for ${count(workers + 1, 'device')}; ` +
        'it needs one for the master and one for each worker, in that order.',
    );
  }
  if (split.some((share) => !Number.isFinite(share) || share < 0)) {
    invalid(`tensorSplit ${shown} must hold finite numbers that are not negative.`);
  }
  if (split.every((share) => share === 0)) {
    invalid(`tensorSplit ${shown} is all zero; at least one device must hold layers.`);
  }
}

/**
 * How many consecutive layers each device gets so that the bytes of its layers come closest to its share. Whoever has a
 * share gets one layer at least, as long as there are enough layers for that.
 * @param layerBytes bytes of each layer, in order
 * @param given shares, one per device, master first; only their ratio counts
 * @returns one count per device; they add up to the number of layers, and a share of 0 gives 0 layers
 */
export function splitLayers(layerBytes: readonly number[], given: readonly number[]): number[] {
  const largest = Math.max(...given);
  const shares = given.map((share) => share / largest); // their sum cannot overflow
  const before = [0];
  for (const bytes of layerBytes) before.push((before.at(-1) ?? 0) + bytes);
  const total = before.at(-1) ?? 0;
  const sum = shares.reduce((a, b) => a + b, 0);
  const lastWithShare = shares.findLastIndex((share) => share > 0);
  let holders = shares.filter((share) => share > 0).length;
  const least = layerBytes.length >= holders ? 1 : 0;

  const counts: number[] = [];
  let start = 0;
  let wanted = 0;
  shares.forEach((share, device) => {
    wanted += share / sum;
    let end = start;
    if (share > 0) {
      holders--;
      if (device === lastWithShare) end = layerBytes.length;
      else end = closestBoundary(before, start + least, layerBytes.length - holders * least, wanted * total);
    }
    counts.push(end - start);
    start = end;
  });
  return counts;
}

/** The layer index from `first` to `last` at which the bytes before it are closest to `target`; the first one on a tie. */
function closestBoundary(before: readonly number[], first: number, last: number, target: number): number {
  let best = first;
  for (let i = first; i <= last; i++) {
    if (Math.abs((before[i] as number) - target) < Math.abs((before[best] as number) - target)) best = i;
  }
  return best;
}

export interface LayerPlan {
  /** Layers of each device, master first. */
  readonly layers: readonly number[];
  readonly headOnWorker: boolean;
}

export interface PlanInput {
  readonly model: ModelInfo;
  readonly devices: readonly DeviceMemory[];
  /** One share per device; undefined lets the layers follow free memory. */
  readonly tensorSplit?: readonly number[];
  readonly headOnWorker: boolean;
  /** Tokens of KV cache to count; 0 for the model's training context. */
  readonly contextSize: number;
  /** Mapped weights of the master are read on demand and need not fit its memory. */
  readonly mmap: boolean;
}

/** Throws `DROID_OUT_OF_MEMORY` when a device's part does not fit its free memory, before anything is loaded. */
export function planLayers(input: PlanInput): LayerPlan {
  const { model, devices, headOnWorker } = input;
  const shares = input.tensorSplit ?? memoryShares(input);
  const layers = splitLayers(model.layerBytes, shares);
  const kvPerLayer = model.kvBytesPerTokenLayer * (input.contextSize || model.contextLength);

  let first = 0;
  devices.forEach(({ device, memoryFree }, index) => {
    const count = layers[index] ?? 0;
    const weights = model.layerBytes.slice(first, first + count).reduce((a, b) => a + b, 0);
    first += count;
    const isMaster = index === 0;
    const holdsHead = headOnWorker && index === devices.length - 1;
    const kv = count * kvPerLayer;
    // A master that maps its file needs memory only for what it computes with; its KV cache is the certain part.
    const needed =
      isMaster && input.mmap
        ? kv
        : weights + kv + (isMaster ? model.outerBytes : 0) + (holdsHead ? model.headBytes : 0);
    if (needed > memoryFree) {
      throw new DroidLlamaError(
        'DROID_OUT_OF_MEMORY',
        `${device === 'master' ? 'The master' : `The worker ${device}`} has ${mib(memoryFree)} MiB free, but its ` +
          `${count} of ${model.layerBytes.length} layers need ${mib(needed)} MiB, ${mib(kv)} MiB of it for the KV ` +
          'cache. Give it a smaller share, take a smaller contextSize, or add a worker.',
      );
    }
  });
  return { layers, headOnWorker };
}

function memoryShares({ model, devices, headOnWorker }: PlanInput): number[] {
  const shares = devices.map(({ memoryFree }, index) => {
    const taken = index === 0 ? model.outerBytes - (headOnWorker ? model.headBytes : 0) : 0;
    return Math.max(0, memoryFree - taken);
  });
  // Nobody says how much is free: then everything stays where the file is.
  return shares.some((share) => share > 0) ? shares : devices.map((_, index) => (index === 0 ? 1 : 0));
}

function mib(bytes: number): string {
  return (bytes / 1048576).toFixed(0);
}
