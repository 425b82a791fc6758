/** What a plan that is made of any acceptable records is like. A failure prints its seed. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { checkOwnRecord, leadSchema, peerSchema } from '../../lib/cluster/control/record-schemas.js';
import { planCluster } from '../../lib/cluster/plan/plan.js';
import type { Link, ModelShape, Peer, PlanDevice } from '../../lib/cluster/types.js';
import { idOf, linkOf, peerOf } from '../support/peers.js';

const MIB = 2 ** 20;
const shapeOf = (layers: number, bytes: number): ModelShape => ({
  name: 'model',
  layerBytes: Array(layers).fill(bytes),
  outerBytes: 10 * bytes,
  headBytes: 5 * bytes,
  kvBytesPerTokenLayer: 512,
  contextLength: 2048,
  embeddingLength: 64,
  feedForwardLength: 256,
  headCount: 4,
  vocabularySize: 1000,
  activeBytesPerLayer: Array(layers).fill(bytes),
});

// The ends of what is accepted, and everything that is not.
const EDGES = [5e-324, 1e-300, 1e-9, 0, 0.5, 1, 1e3, 1e6, 1e7, 1e9, 1e15, 2 ** 53, 1e18, 1e19, 1e300, Number.MAX_VALUE];
const number = fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...EDGES) },
  fc.double({ min: 0, noNaN: true, noDefaultInfinity: true }),
  fc.double({ min: 1e3, max: 1e7 }),
);
const speed = fc.oneof({ weight: 3, arbitrary: fc.constantFrom(1e3, 1e9, 1e11, 1e18) }, number);
const rate = fc.oneof({ weight: 3, arbitrary: fc.constantFrom(null, 1, 1e6, 1e15) }, number);
const worker = fc.record({
  memory: fc.oneof({ weight: 3, arbitrary: fc.constantFrom(30 * MIB, 2 ** 30, 2 ** 53) }, number),
  compute: fc.option(fc.record({ threads: fc.nat(16), weightBytesPerSecond: speed, flopsPerSecond: speed })),
  roundTripMs: fc.oneof({ weight: 3, arbitrary: fc.constantFrom(null, 0, 5, 1e7) }, number),
  up: rate,
  down: rate,
  pin: fc.constantFrom('worker' as const, null),
});

const isAccepted = (peer: Peer): boolean => peerSchema.safeParse(peer).success;

describe('every record that is accepted', () => {
  it('gives a plan that predicts nothing, or numbers that others accept', () => {
    let accepted = 0;
    let predicted = 0;
    const all = fc.record({
      workers: fc.array(worker, { maxLength: 4 }),
      master: worker,
      model: fc.constantFrom(shapeOf(4, 1000), shapeOf(12, 10 * MIB), shapeOf(80, 300 * MIB)),
      objective: fc.constantFrom('share' as const, 'fastest' as const),
      contextSize: fc.constantFrom(null, 1, 2048),
    });
    fc.assert(
      fc.property(all, ({ workers, master: own, model, objective, contextSize }) => {
        const master = peerOf('master', { memory: own.memory, compute: own.compute });
        if (!isAccepted(master)) return;
        const devices = workers.flatMap((given, i): PlanDevice[] => {
          const name = `w${i}`;
          const { memory, compute, pin, roundTripMs } = given;
          const back: Link = linkOf(name, 'master', { roundTripMs, bytesPerSecond: given.down });
          const peer = peerOf(name, { memory, compute, pin, links: [back] });
          const there = peerOf('master', { links: [linkOf('master', name, { bytesPerSecond: given.up })] });
          if (!isAccepted(peer) || !isAccepted(there)) return [];
          accepted++;
          const link = { roundTripMs, upBytesPerSecond: given.up, downBytesPerSecond: given.down };
          return [{ id: idOf(name), name, memory: Math.floor(memory), compute, pinned: pin !== null, link }];
        });
        const plan = planCluster({
          model,
          master: {
            id: master.id,
            name: 'master',
            memory: Math.floor(own.memory),
            compute: own.compute,
            pinned: false,
            link: null,
          },
          workers: devices,
          objective,
          contextSize,
          batchSize: null,
          ubatchSize: null,
          parallel: 1,
        });
        if (plan.prediction) predicted++;
        for (const value of Object.values(plan.prediction ?? {})) {
          expect(value).toBeGreaterThan(0);
          expect(value).toBeLessThan(Number.POSITIVE_INFINITY);
        }
        const lead = { epoch: 1, state: 'loading' as const, progress: 0, reason: null, plan, measured: null };
        expect(leadSchema.safeParse(lead).error).toBeUndefined();
        expect(checkOwnRecord({ ...master, lead }).lead?.plan?.prediction).toEqual(plan.prediction);
      }),
      { numRuns: 1000 },
    );
    // Else it would say nothing.
    expect(accepted).toBeGreaterThan(300);
    expect(predicted).toBeGreaterThan(100);
  });
});
