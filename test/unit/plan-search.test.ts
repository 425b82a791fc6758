/** The search against trying everything, for few layers and workers. A failure prints its seed. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { memoryNeeded, memoryNeeds, promptTokens } from '../../lib/cluster/plan/estimate.js';
import { planCluster, predictPlan } from '../../lib/cluster/plan/plan.js';
import { SHARING } from '../../lib/cluster/plan/plan-candidate.js';
import type { Plan, PlanInput, PlanPart } from '../../lib/cluster/types.js';
import { MIB, planInput, planMaster, planWorker } from '../support/plan-models.js';

const rate = (low: number, high: number) => fc.double({ min: low, max: high, noNaN: true });
const memory = fc.integer({ min: 10 * MIB, max: 250 * MIB });
const compute = fc.record({
  threads: fc.constant(1),
  weightBytesPerSecond: rate(1e9, 30e9),
  flopsPerSecond: rate(3e9, 90e9),
});
const link = fc.record({
  roundTripMs: rate(0.1, 30),
  upBytesPerSecond: rate(1e6, 1e9),
  downBytesPerSecond: rate(1e6, 1e9),
});
const input: fc.Arbitrary<PlanInput> = fc
  .record({
    objective: fc.constantFrom('share' as const, 'fastest' as const),
    layerBytes: fc.array(fc.integer({ min: 10 * MIB, max: 40 * MIB }), { minLength: 1, maxLength: 5 }),
    master: fc.record({ memory, compute }),
    workers: fc.array(fc.record({ memory, compute, link }), { maxLength: 3 }),
  })
  .map(({ objective, layerBytes, master, workers }) =>
    planInput({
      objective,
      model: {
        ...planInput().model,
        layerBytes,
        activeBytesPerLayer: layerBytes,
        outerBytes: 0,
        headBytes: 0,
        vocabularySize: 100,
      },
      master: planMaster(master),
      workers: workers.map((worker, i) => planWorker({ id: `w${i}`, name: `w${i}`, ...worker })),
      contextSize: 1024,
    }),
  );

/** Every way to give the layers from `first` on to these workers in this order, each one or none. */
function* splits(order: readonly string[], first: number, layers: number): Generator<PlanPart[]> {
  if (first === layers) yield [];
  for (const [i, id] of order.entries()) {
    for (let end = first + 1; end <= layers; end++) {
      const part = { id, firstLayer: first, layers: end - first, bytes: 0, memoryNeeded: 0 };
      for (const rest of splits(order.slice(i + 1), end, layers)) yield [part, ...rest];
    }
  }
}

function* everyPlan(given: PlanInput): Generator<Plan> {
  const layers = given.model.layerBytes.length;
  const ids = given.workers.map(({ id }) => id);
  const orders = [ids, ...ids.map((last) => [...ids.filter((id) => id !== last), last])];
  const room = new Map([given.master, ...given.workers].map((device) => [device.id, device.memory]));
  for (const ubatchSize of [512, 256, 128, 64, 32]) {
    const needs = memoryNeeds(given.model, { contextSize: 1024, ubatchSize, parallel: 1 });
    for (const order of orders) {
      for (let first = 0; first <= layers; first++) {
        const master = { id: given.master.id, firstLayer: 0, layers: first, bytes: 0, memoryNeeded: 0 };
        for (const rest of splits(order, first, layers)) {
          const parts = [master, ...rest];
          const fits = parts.every(
            (part, i) =>
              memoryNeeded(needs, part.firstLayer, part.firstLayer + part.layers, i === 0) <= (room.get(part.id) ?? 0),
          );
          if (fits)
            yield { ...planCluster({ ...given, workers: [] }), fits: true, parts, contextSize: 1024, ubatchSize };
        }
      }
    }
  }
}

it('finds what trying everything finds', () => {
  fc.assert(
    fc.property(input, (given) => {
      const plan = planCluster(given);
      let [generation, seconds] = [0, Number.POSITIVE_INFINITY];
      for (const other of everyPlan(given)) {
        const prediction = predictPlan(given, other);
        if (!prediction) throw new Error('no prediction');
        generation = Math.max(generation, prediction.generationTokensPerSecond);
        seconds = Math.min(seconds, promptTokens(1024) / prediction.promptTokensPerSecond);
      }
      expect(plan.fits).toBe(generation > 0);
      if (!plan.prediction) return;
      if (given.objective === 'fastest') {
        expect(plan.prediction.generationTokensPerSecond / generation).toBeCloseTo(1, 9);
      } else {
        const limit = Math.max(SHARING.sufficientSeconds, seconds * SHARING.tolerance);
        expect(promptTokens(1024) / plan.prediction.promptTokensPerSecond).toBeLessThanOrEqual(limit * (1 + 1e-9));
      }
    }),
    { numRuns: 60 },
  );
}, 60_000);
