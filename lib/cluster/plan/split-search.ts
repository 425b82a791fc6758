/**
 * Finds the best split exactly: over all subsets of the workers and all splits that fit, by dynamic programming. Because
 * nothing is left to a heuristic, whatever makes each split better (memory, bandwidth, compute) makes the best one better.
 */
import { type DeviceTimes, type MemoryNeeds, promptSeconds } from './estimate.js';

/** Layers `first … end - 1` on the worker of that index. */
export interface Share {
  readonly worker: number;
  readonly first: number;
  readonly end: number;
}

/** The first layers, up to that of the first share, are the master's. */
export interface Split {
  readonly masterEnd: number;
  /** In the order of their layers. */
  readonly shares: readonly Share[];
  /** What was minimised. */
  readonly seconds: number;
}

export interface SearchDevice {
  readonly memory: number;
  readonly times: DeviceTimes;
  /** Must hold a layer. */
  readonly forced: boolean;
}

export interface SearchInput {
  readonly layers: number;
  readonly needs: MemoryNeeds;
  /** When forced, it computes a layer itself and not only the head. */
  readonly master: SearchDevice;
  /** In the order in which they get layers. */
  readonly workers: readonly SearchDevice[];
}

/** `costs[i]`: seconds in which the layers before the i-th one are computed; `starts[i]`: where the last device begins. */
interface Step {
  readonly costs: Float64Array;
  readonly starts: Int16Array;
}

const UNUSED = -1;

/** The split with the shortest time for one generated token; in the orders that {@link fastestPrompt} looks at. */
export function fastestGeneration(input: SearchInput): Split | null {
  const { workers, layers } = input;
  const atMaster = masterCosts(input, input.master.times.token);
  let best: Split | null = null;
  for (const order of ordersOf(workers.length)) {
    let row: Step = { costs: atMaster, starts: new Int16Array(0) };
    const table = [[row]];
    for (const index of order) {
      const worker = workers[index] as SearchDevice;
      const { token, tokenLink } = worker.times;
      row = addWorker(input, worker, token, tokenLink, row.costs, worker.forced ? null : row.costs);
      table.push([row]);
    }
    const seconds = at(row.costs, layers);
    if (!Number.isFinite(seconds) || (best && seconds >= best.seconds)) continue;
    const shares = readBack(table, order, 0, layers, false);
    best = { masterEnd: shares[0]?.first ?? layers, shares, seconds };
  }
  return best;
}

/** The workers in their order, and with each of them last. Layers differ in size, so more than one order may fit. */
function ordersOf(count: number): number[][] {
  const all = Array.from({ length: count }, (_, i) => i);
  return [all, ...all.slice(0, -1).map((last) => [...all.filter((i) => i !== last), last])];
}

export interface PromptSearch extends SearchInput {
  readonly ubatches: number;
}

/**
 * The split with the shortest time to read a prompt. Any worker may come last, since the last one computes while the
 * others do; the rest keep their order.
 */
export function fastestPrompt(input: PromptSearch): Split | null {
  return searchPrompt(input, null);
}

/** The split that reads a prompt within `seconds` on the most workers, and of those the one with the shortest time. */
export function widestPrompt(input: PromptSearch, seconds: number): Split | null {
  return searchPrompt(input, seconds);
}

function searchPrompt(input: PromptSearch, limit: number | null): Split | null {
  const { workers, layers, ubatches } = input;
  const byCount = limit !== null;
  const atMaster = masterCosts(input, input.master.times.ubatch);
  let best: (Split & { count: number }) | null = null;
  const consider = (count: number, seconds: number, shares: () => Share[]) => {
    if (!Number.isFinite(seconds) || (byCount && seconds > limit)) return;
    if (best && (count < best.count || (count === best.count && seconds >= best.seconds))) return;
    const found = shares();
    best = { masterEnd: found[0]?.first ?? layers, shares: found, seconds, count };
  };

  if (!workers.some(({ forced }) => forced)) consider(0, promptSeconds(ubatches, at(atMaster, layers), null), () => []);
  workers.forEach((last, lastIndex) => {
    const others = [...workers.keys()].filter((i) => i !== lastIndex);
    const from = firstThatFits(input, last, layers);
    if (from === layers) return;
    const table = addInTurn(input, others, atMaster, byCount);
    table.at(-1)?.forEach(({ costs }, n) => {
      for (let first = from; first < layers; first++) {
        const seconds = promptSeconds(ubatches, at(costs, first), {
          send: last.times.send + (layers - first) * last.times.sendPerLayer,
          compute: at(last.times.compute, layers) - at(last.times.compute, first),
          answer: last.times.answer,
        });
        consider(byCount ? n + 1 : 0, seconds, () => [
          ...readBack(table, others, n, first, byCount),
          { worker: lastIndex, first, end: layers },
        ]);
      }
    });
  });
  return best;
}

/**
 * The steps after the master, after the first one of `order`, and so on. With `byCount` there is one step for each number
 * of workers that hold layers.
 */
function addInTurn(input: SearchInput, order: readonly number[], atMaster: Float64Array, byCount: boolean): Step[][] {
  let row: Step[] = [{ costs: atMaster, starts: new Int16Array(0) }];
  const table = [row];
  for (const index of order) {
    const before = row;
    const worker = input.workers[index] as SearchDevice;
    row = Array.from({ length: byCount ? before.length + 1 : 1 }, (_, n) =>
      addWorker(
        input,
        worker,
        worker.times.ubatch,
        worker.times.ubatchLink,
        before[byCount ? n - 1 : n]?.costs ?? null,
        worker.forced ? null : (before[n]?.costs ?? null),
      ),
    );
    table.push(row);
  }
  return table;
}

/** The shares that led to the step of `count` workers with all layers before `end`. */
function readBack(
  table: readonly Step[][],
  order: readonly number[],
  count: number,
  end: number,
  byCount: boolean,
): Share[] {
  const shares: Share[] = [];
  let stop = end;
  let left = count;
  for (let k = order.length; k > 0; k--) {
    const step = table[k]?.[left] as Step;
    const first = step.starts[stop] ?? UNUSED;
    if (first === UNUSED) continue;
    shares.unshift({ worker: order[k - 1] as number, first, end: stop });
    stop = first;
    if (byCount) left--;
  }
  return shares;
}

/** The most layers that fit the devices in any of the orders that are searched. */
export function layersThatFit(input: {
  readonly layers: number;
  readonly needs: MemoryNeeds;
  readonly master: { readonly memory: number };
  readonly workers: readonly { readonly memory: number }[];
}): number {
  const { layers, needs, master, workers } = input;
  const reach = (start: number, capacity: number): number => {
    let end = start;
    while (end < layers && (needs.before[end + 1] ?? 0) - (needs.before[start] ?? 0) <= capacity) end++;
    return end;
  };
  const first = reach(0, master.memory - needs.master);
  const ends = ordersOf(workers.length).map((order) =>
    order.reduce((end, index) => reach(end, (workers[index]?.memory ?? 0) - needs.worker), first),
  );
  return Math.max(first, ...ends);
}

function masterCosts({ layers, needs, master }: SearchInput, times: Float64Array): Float64Array {
  const capacity = master.memory - needs.master;
  const costs = new Float64Array(layers + 1).fill(Number.POSITIVE_INFINITY);
  const least = master.forced ? 1 : 0;
  for (let end = least; end <= layers && (needs.before[end] ?? 0) <= capacity; end++) costs[end] = times[end] ?? 0;
  return costs;
}

/** The first layer from which on everything up to `end` fits the worker. */
function firstThatFits({ needs }: SearchInput, worker: SearchDevice, end: number): number {
  const capacity = worker.memory - needs.worker;
  let first = end;
  while (first > 0 && (needs.before[end] ?? 0) - (needs.before[first - 1] ?? 0) <= capacity) first--;
  return first;
}

/**
 * Adds a worker after those whose costs are known. What it costs from `start` to `end` is `times[end] - times[start] +
 * link`, so the best start is the least `using[start] - times[start]` of those that fit, and these form a window that
 * only moves on: linear in the number of layers.
 * @param using costs of the devices before it when it gets layers; null when it must not
 * @param skipping costs of them when it gets none; null when it must
 */
function addWorker(
  { layers, needs }: SearchInput,
  worker: SearchDevice,
  times: Float64Array,
  link: number,
  using: Float64Array | null,
  skipping: Float64Array | null,
): Step {
  const capacity = worker.memory - needs.worker;
  const before = needs.before as readonly number[];
  const costs = new Float64Array(layers + 1).fill(Number.POSITIVE_INFINITY);
  const starts = new Int16Array(layers + 1).fill(UNUSED);
  if (skipping) costs.set(skipping);
  if (!using) return { costs, starts };
  const window = new Int16Array(layers + 1); // starts whose values ascend
  const values = new Float64Array(layers + 1); // using[start] - times[start] of those in the window
  let [head, size] = [0, 0];
  for (let end = 1; end <= layers; end++) {
    const added = (using[end - 1] as number) - (times[end - 1] as number);
    while (size > head && (values[size - 1] as number) > added) size--;
    window[size] = end - 1;
    values[size++] = added;
    while (head < size && (before[end] as number) - (before[window[head] as number] as number) > capacity) head++;
    if (head === size) continue;
    const cost = (values[head] as number) + (times[end] as number) + link;
    if (cost < (costs[end] as number)) {
      costs[end] = cost;
      starts[end] = window[head] as number;
    }
  }
  return { costs, starts };
}

function at(costs: Float64Array, layer: number): number {
  return costs[layer] ?? Number.POSITIVE_INFINITY;
}
