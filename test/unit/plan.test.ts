import { describe, expect, it } from 'vitest';
import { planCluster, predictPlan } from '../../lib/cluster/plan/plan.js';
import type { Plan } from '../../lib/cluster/types.js';
import { core, GIB, hotspot, MIB, planInput, planMaster, planWorker, tinyShape } from '../support/plan-models.js';

const layers = (plan: Plan) => Object.fromEntries(plan.parts.map((part) => [part.id, part.layers]));
const phoneC = planWorker({ id: 'c', name: 'phoneC' });

describe('planCluster with the guide’s two phones', () => {
  it('shares: half each, the head on the master, small ubatches, and says what one phone alone would do', () => {
    const plan = planCluster(planInput());
    expect(layers(plan)).toEqual({ a: 12, b: 12 });
    expect(plan.parts.map(({ bytes }) => Math.round(bytes / MIB))).toEqual([345, 118]);
    expect(plan).toMatchObject({ fits: true, missingBytes: 0, contextSize: 4096, batchSize: 2048, ubatchSize: 64 });
    // Measured on such a link: 22 s, 144 to 156 tokens/s, 22 to 24.6 tokens/s.
    expect(plan.prediction?.loadSeconds).toBeCloseTo(20.7, 0);
    expect(plan.prediction?.promptTokensPerSecond).toBeGreaterThan(140);
    expect(plan.prediction?.promptTokensPerSecond).toBeLessThan(220);
    expect(plan.prediction?.generationTokensPerSecond).toBeGreaterThan(20);
    expect(plan.prediction?.generationTokensPerSecond).toBeLessThan(30);
    expect(plan.reasons.join('\n')).toMatch(
      /phoneA alone would generate 36 tokens\/s instead of 29, 1\.3 times as fast/,
    );
  });

  it('is fastest without the worker, and says why it is left out', () => {
    const plan = planCluster(planInput({ objective: 'fastest' }));
    expect(layers(plan)).toEqual({ a: 24 });
    expect(plan.ubatchSize).toBe(512);
    expect(plan.leftOut).toEqual([
      { id: 'b', reason: 'It would slow generation down: 29 tokens/s with it, 36 without.' },
    ]);
  });

  it('uses a much faster worker for generation too', () => {
    const desktop = { threads: 8, weightBytesPerSecond: 60e9, flopsPerSecond: 900e9 };
    const link = { roundTripMs: 0.5, upBytesPerSecond: 1e9, downBytesPerSecond: 1e9 };
    const plan = planCluster(planInput({ objective: 'fastest', workers: [planWorker({ compute: desktop, link })] }));
    expect(layers(plan)).toEqual({ a: 0, b: 24 });
  });

  it('leaves out a third phone that would make prompts wait, and takes it where it is pinned', () => {
    const plan = planCluster(planInput({ workers: [planWorker(), phoneC] }));
    expect(layers(plan)).toEqual({ a: 12, b: 12 });
    expect(plan.leftOut[0]).toMatchObject({
      id: 'c',
      reason: expect.stringMatching(/would slow the reading of prompts down: \d+ tokens\/s with it, 211 without/),
    });
    const pinned = planCluster(planInput({ workers: [planWorker(), { ...phoneC, pinned: true }] }));
    expect(pinned.parts.map(({ id }) => id)).toContain('c');
  });

  it('shares a small model as well, one layer each at least: its prompts are short work anyway', () => {
    const plan = planCluster(planInput({ model: tinyShape, workers: [planWorker(), phoneC] }));
    expect(plan.parts).toHaveLength(3);
    expect(plan.parts.every((part) => part.layers >= 1)).toBe(true);
    expect(plan.contextSize).toBe(1024);
    expect(plan.reasons.join('\n')).toContain('is read soon enough');
  });

  it('does not share over a link that is too slow for it', () => {
    const slow = { roundTripMs: 300, upBytesPerSecond: 20e3, downBytesPerSecond: 20e3 };
    const plan = planCluster(planInput({ model: tinyShape, workers: [planWorker({ link: slow })] }));
    expect(layers(plan)).toEqual({ a: 6 });
  });
});

describe('planCluster and memory', () => {
  it('spreads a model that no device holds, with a shorter context where that is what makes it fit', () => {
    const plan = planCluster(
      planInput({ master: planMaster({ memory: 420 * MIB }), workers: [planWorker({ memory: 180 * MIB })] }),
    );
    expect(plan.fits).toBe(true);
    expect(plan.contextSize).toBe(2048);
    expect(plan.parts.map((part) => part.layers).reduce((a, b) => a + b)).toBe(24);
    expect(plan.reasons.join('\n')).toContain('The context is 2048 tokens instead of 4096');
    expect(plan.reasons.join('\n')).toContain('The model does not fit phoneA alone; phoneB holds the rest.');
  });

  it('takes a third phone when only that makes it fit', () => {
    const small = { memory: 110 * MIB };
    const workers = [planWorker(small), { ...phoneC, ...small }];
    const master = planMaster({ memory: 400 * MIB });
    expect(planCluster(planInput({ master, workers: workers.slice(0, 1) })).fits).toBe(false);
    expect(planCluster(planInput({ master, workers })).parts).toHaveLength(3);
  });

  it('says how much is missing and what would help, and is right about it', () => {
    const at = (more: number) =>
      planCluster(
        planInput({ master: planMaster({ memory: 380 * MIB }), workers: [planWorker({ memory: 100 * MIB + more })] }),
      );
    const plan = at(0);
    expect(plan).toMatchObject({ fits: false, parts: [], prediction: null, contextSize: 512 });
    expect(plan.missingBytes).toBeGreaterThan(90 * MIB);
    expect(plan.leftOut.map(({ id }) => id)).toEqual(['a', 'b']);
    expect(plan.reasons.join('\n')).toMatch(/96 MiB more than phoneA \(380 MiB\) and phoneB \(100 MiB\) can give/);
    expect(at(plan.missingBytes + 11 * MIB).fits).toBe(true);
    expect(at(plan.missingBytes - 11 * MIB).fits).toBe(false);
  });

  it('names a master that cannot even hold the head', () => {
    const plan = planCluster(planInput({ master: planMaster({ memory: 100 * MIB }) }));
    expect(plan.fits).toBe(false);
    expect(plan.reasons.join('\n')).toContain('phoneA has the model file and must hold what is outside the layers');
  });

  it('keeps a context that was asked for, or does not fit', () => {
    const input = planInput({ contextSize: 32768, master: planMaster({ memory: 700 * MIB }), workers: [] });
    expect(planCluster(input)).toMatchObject({ fits: false, contextSize: 32768 });
    const roomy = planCluster({ ...input, master: planMaster({ memory: 4 * GIB }) });
    expect(roomy).toMatchObject({ fits: true, contextSize: 32768 });
  });

  it('leaves out a worker without room for a layer, pinned or not', () => {
    for (const pinned of [false, true]) {
      const plan = planCluster(planInput({ workers: [planWorker({ memory: 8 * MIB, pinned })] }));
      expect(layers(plan)).toEqual({ a: 24 });
      expect(plan.leftOut[0]?.reason).toMatch(/^It lends 8 MiB, and one layer with its buffers needs \d+ MiB\.$/);
    }
  });
});

describe('planCluster', () => {
  it('heeds batch, ubatch and context of the user', () => {
    const plan = planCluster(planInput({ contextSize: 1024, batchSize: 128, ubatchSize: 256 }));
    expect(plan).toMatchObject({ contextSize: 1024, batchSize: 128, ubatchSize: 128 });
  });

  it('predicts nothing from nothing, but plans', () => {
    const link = { roundTripMs: null, upBytesPerSecond: null, downBytesPerSecond: null };
    const plan = planCluster(
      planInput({ master: planMaster({ compute: null }), workers: [planWorker({ compute: null, link })] }),
    );
    expect(layers(plan)).toEqual({ a: 12, b: 12 });
    expect(plan.prediction).toBeNull();
    expect(plan.reasons.join('\n')).toMatch(/phoneB is not measured/);
  });

  it('takes an unmeasured device for one like the others', () => {
    const measured = planCluster(planInput());
    const plan = planCluster(planInput({ workers: [planWorker({ compute: null })] }));
    expect(plan.parts).toEqual(measured.parts);
    expect(plan.prediction).toEqual(measured.prediction);
  });

  it('takes 15 workers at most', () => {
    const workers = Array.from({ length: 20 }, (_, i) =>
      planWorker({ id: `w${String(i).padStart(2, '0')}`, memory: (30 + i) * MIB, pinned: i === 0 }),
    );
    const plan = planCluster(planInput({ model: tinyShape, workers }));
    const over = plan.leftOut.filter(({ reason }) => reason.includes('15 workers at most')).map(({ id }) => id);
    expect(over).toEqual(['w01', 'w02', 'w03', 'w04', 'w05']);
    expect(plan.parts.length + plan.leftOut.length).toBe(21);
  });

  it('plans 200 layers for 15 workers without keeping anybody waiting', () => {
    const layerBytes = Array.from({ length: 200 }, (_, i) => 2e8 + (i % 3) * 1e6);
    const model = { ...planInput().model, layerBytes, activeBytesPerLayer: layerBytes };
    const workers = Array.from({ length: 15 }, (_, i) =>
      planWorker({ id: `w${i}`, memory: 5 * GIB + i, compute: { ...core, flopsPerSecond: 9e10 * (1 + (i % 4)) } }),
    );
    const input = planInput({ model, workers, master: planMaster({ memory: 5 * GIB }) });
    const times = [1, 2, 3, 4, 5, 6].map(() => {
      const before = performance.now();
      expect(planCluster(input).fits).toBe(true);
      return performance.now() - before;
    });
    // 25 ms on one core; the rest is for machines that do something else as well.
    expect(Math.min(...times)).toBeLessThan(150);
  });
});

describe('predictPlan', () => {
  it('says again what planCluster said, and what becomes of it when the link slows down', () => {
    const plan = planCluster(planInput());
    expect(predictPlan(planInput(), plan)).toEqual(plan.prediction);
    const slower = planInput({ workers: [planWorker({ link: { ...hotspot, roundTripMs: 60 } })] });
    expect(predictPlan(slower, plan)?.generationTokensPerSecond).toBeLessThan(15);
    expect(predictPlan(planInput({ workers: [] }), plan)).toBeNull();
  });
});
