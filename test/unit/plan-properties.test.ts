/** What holds of every plan, over random models and devices. A failure prints its seed. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { memoryNeeded, memoryNeeds, promptTokens } from '../../lib/cluster/plan/estimate.js';
import { planCluster } from '../../lib/cluster/plan/plan.js';
import { SHARING } from '../../lib/cluster/plan/plan-candidate.js';
import type { ModelShape, Plan, PlanDevice, PlanInput } from '../../lib/cluster/types.js';
import { MIB } from '../support/plan-models.js';

const RUNS = { numRuns: 300 };
const rate = (low: number, high: number) => fc.double({ min: low, max: high, noNaN: true });

const model: fc.Arbitrary<ModelShape> = fc
  .record({
    layerBytes: fc.array(fc.integer({ min: 1000, max: 60 * MIB }), { minLength: 1, maxLength: 24 }),
    outerBytes: fc.integer({ min: 0, max: 100 * MIB }),
    activePart: fc.constantFrom(1, 1, 0.3),
    kvBytesPerTokenLayer: fc.constantFrom(0, 512, 4096),
    contextLength: fc.constantFrom(0, 700, 1024, 32768),
    embeddingLength: fc.constantFrom(64, 896, 4096),
    feedForwardLength: fc.constantFrom(256, 4864, 14336),
    vocabularySize: fc.constantFrom(100, 32000),
  })
  .map(({ activePart, ...shape }) => ({
    ...shape,
    name: 'random',
    headBytes: Math.floor(shape.outerBytes / 2),
    headCount: 8,
    activeBytesPerLayer: shape.layerBytes.map((bytes) => Math.ceil(bytes * activePart)),
  }));

const device = (id: string, isMaster: boolean): fc.Arbitrary<PlanDevice> =>
  fc.record({
    id: fc.constant(id),
    name: fc.constant(`phone ${id}`),
    memory: fc.integer({ min: 0, max: 900 * MIB }),
    compute: fc.record({
      threads: fc.constant(4),
      weightBytesPerSecond: rate(1e9, 60e9),
      flopsPerSecond: rate(5e9, 900e9),
    }),
    pinned: isMaster ? fc.constant(false) : fc.boolean(),
    link: isMaster
      ? fc.constant(null)
      : fc.record({
          roundTripMs: rate(0.1, 200),
          upBytesPerSecond: rate(1e5, 1e9),
          downBytesPerSecond: rate(1e5, 1e9),
        }),
  });

const input = (objective?: PlanInput['objective']): fc.Arbitrary<PlanInput> =>
  fc.record({
    model,
    master: device('m', true),
    workers: fc
      .integer({ min: 0, max: 6 })
      .chain((n) => fc.tuple(...Array.from({ length: n }, (_, i) => device(`w${i}`, false)))),
    objective: objective ? fc.constant(objective) : fc.constantFrom('share', 'fastest'),
    contextSize: fc.constantFrom(null, null, 300, 2048),
    batchSize: fc.constantFrom(null, 100),
    ubatchSize: fc.constantFrom(null, null, 48),
    parallel: fc.constantFrom(1, 3),
  });

const devicesOf = ({ master, workers }: PlanInput) => [master, ...workers];

describe('every plan', () => {
  it('places each layer once, in order, and within the memory of its device', () => {
    fc.assert(
      fc.property(input(), (given) => {
        const plan = planCluster(given);
        if (!plan.fits) {
          expect(plan.parts).toEqual([]);
          expect(plan.missingBytes).toBeGreaterThan(0);
          return;
        }
        const needs = memoryNeeds(given.model, { ...plan, parallel: given.parallel });
        let next = 0;
        plan.parts.forEach((part, i) => {
          expect(part.firstLayer).toBe(next);
          if (i > 0) expect(part.layers).toBeGreaterThan(0);
          next += part.layers;
          expect(part.memoryNeeded).toBe(memoryNeeded(needs, part.firstLayer, next, i === 0));
          expect(part.memoryNeeded).toBeLessThanOrEqual(
            devicesOf(given).find(({ id }) => id === part.id)?.memory ?? Number.NaN,
          );
        });
        expect(next).toBe(given.model.layerBytes.length);
        expect(plan.parts[0]?.id).toBe('m');
      }),
      RUNS,
    );
  });

  it('has every device exactly once, with a reason for those it leaves out', () => {
    fc.assert(
      fc.property(input(), (given) => {
        const plan = planCluster(given);
        const ids = [...plan.parts, ...plan.leftOut].map(({ id }) => id).sort();
        expect(ids).toEqual(
          devicesOf(given)
            .map(({ id }) => id)
            .sort(),
        );
        expect(plan.leftOut.every(({ reason }) => reason.length > 10)).toBe(true);
        for (const text of [...plan.reasons, ...plan.leftOut.map(({ reason }) => reason)]) {
          expect(text).not.toMatch(/NaN|undefined|Infinity/);
        }
      }),
      RUNS,
    );
  });

  it('does not depend on the order of the workers', () => {
    const shuffled = input().chain((given) =>
      fc.tuple(
        fc.constant(given),
        fc.shuffledSubarray([...given.workers], { minLength: given.workers.length, maxLength: given.workers.length }),
      ),
    );
    fc.assert(
      fc.property(shuffled, ([given, workers]) => {
        expect(planCluster({ ...given, workers })).toEqual(planCluster(given));
      }),
      RUNS,
    );
  });

  it('uses every pinned worker that has room for a layer, as far as there are layers', () => {
    fc.assert(
      fc.property(input(), (given) => {
        // Layers of one size, so that room for one is room for any.
        const shape = { ...given.model, layerBytes: given.model.layerBytes.map(() => MIB) };
        const model = { ...shape, activeBytesPerLayer: shape.layerBytes };
        const plan = planCluster({ ...given, model });
        if (!plan.fits) return;
        const needs = memoryNeeds(model, { ...plan, parallel: given.parallel });
        const pinned = given.workers.filter((w) => w.pinned && w.memory >= memoryNeeded(needs, 0, 1, false));
        const used = pinned.filter(({ id }) => plan.parts.some((part) => part.id === id));
        expect(used.length).toBe(Math.min(pinned.length, model.layerBytes.length));
      }),
      RUNS,
    );
  });
});

/** Makes one device better in one respect. */
const improvement = fc.record({
  which: fc.nat({ max: 6 }),
  what: fc.constantFrom('memory', 'up', 'down', 'roundTrip', 'weights', 'flops'),
  factor: rate(1, 20),
});

function improve(
  given: PlanInput,
  { which, what, factor }: { which: number; what: string; factor: number },
): PlanInput {
  const change = (device: PlanDevice): PlanDevice => {
    const { compute, link } = device;
    if (what === 'memory') return { ...device, memory: Math.ceil(device.memory * factor) };
    if (what === 'weights' && compute) {
      return { ...device, compute: { ...compute, weightBytesPerSecond: compute.weightBytesPerSecond * factor } };
    }
    if (what === 'flops' && compute) {
      return { ...device, compute: { ...compute, flopsPerSecond: compute.flopsPerSecond * factor } };
    }
    if (!link) return device;
    const { roundTripMs, upBytesPerSecond: up, downBytesPerSecond: down } = link;
    if (what === 'up') return { ...device, link: { ...link, upBytesPerSecond: (up ?? 0) * factor } };
    if (what === 'down') return { ...device, link: { ...link, downBytesPerSecond: (down ?? 0) * factor } };
    return { ...device, link: { ...link, roundTripMs: (roundTripMs ?? 0) / factor } };
  };
  const index = which % (given.workers.length + 1);
  return index === 0
    ? { ...given, master: change(given.master) }
    : { ...given, workers: given.workers.map((worker, i) => (i === index - 1 ? change(worker) : worker)) };
}

const EXACT = 1 + 1e-9;

function expectNotWorse(before: Plan, after: Plan, isNotSlower: () => void): void {
  expect(after.missingBytes).toBeLessThanOrEqual(before.missingBytes);
  if (!before.fits) return;
  expect(after.fits).toBe(true);
  expect(after.contextSize).toBeGreaterThanOrEqual(before.contextSize);
  // A longer context takes memory that could have held layers of a faster device.
  if (after.contextSize === before.contextSize) isNotSlower();
}

// Pins are orders, and more memory lets more of them be followed: without them, what is better never makes a plan worse.
const unpinned = (given: PlanInput): PlanInput => ({
  ...given,
  workers: given.workers.map((worker) => ({ ...worker, pinned: false })),
});

describe('more memory, bandwidth or compute and less round trip', () => {
  it('never slow generation down, with the objective fastest', () => {
    fc.assert(
      fc.property(input('fastest').map(unpinned), improvement, (given, better) => {
        const [before, after] = [planCluster(given), planCluster(improve(given, better))];
        expectNotWorse(before, after, () => {
          expect((after.prediction?.generationTokensPerSecond ?? 0) * EXACT).toBeGreaterThanOrEqual(
            before.prediction?.generationTokensPerSecond ?? Number.NaN,
          );
        });
      }),
      { numRuns: 1000 },
    );
  });

  it('never slow prompts down, with the objective share, by more than it gives up for using the devices', () => {
    fc.assert(
      fc.property(input('share').map(unpinned), improvement, (given, better) => {
        const [before, after] = [planCluster(given), planCluster(improve(given, better))];
        expectNotWorse(before, after, () => {
          const seconds = ({ prediction, contextSize }: Plan) =>
            promptTokens(contextSize) / (prediction?.promptTokensPerSecond ?? Number.NaN);
          const limit = Math.max(SHARING.sufficientSeconds, seconds(before) * SHARING.tolerance);
          expect(seconds(after)).toBeLessThanOrEqual(limit * EXACT);
        });
      }),
      { numRuns: 1000 },
    );
  });
});
