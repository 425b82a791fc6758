import { describe, expect, it } from 'vitest';
import { planCluster } from '../../lib/cluster/plan/plan.js';
import { isWorthChanging, whyChange } from '../../lib/cluster/plan/plan-change.js';
import type { PlanInput } from '../../lib/cluster/types.js';
import { core, hotspot, MIB, planInput, planMaster, planWorker, tinyShape } from '../support/plan-models.js';

/** What is said of going from the plan for one state of things to the plan for another one. */
const from = (before: PlanInput, after: PlanInput) => whyChange(planCluster(before), planCluster(after), after);
const phoneC = planWorker({ id: 'c', name: 'phoneC' });
const faster = (times: number) => ({
  ...core,
  weightBytesPerSecond: core.weightBytesPerSecond * times,
  flopsPerSecond: core.flopsPerSecond * times,
});

describe('a new plan is worth it', () => {
  it('when a worker is gone, or its memory', () => {
    expect(from(planInput(), planInput({ workers: [] }))).toMatch(/gone/);
    const poor = planInput({ workers: [planWorker({ memory: 100 * MIB })] });
    expect(from(planInput(), poor)).toBe('phoneB has too little memory by now.');
  });

  it('when nothing fits any more, so that the master waits', () => {
    const small = planMaster({ memory: 420 * MIB });
    const before = planInput({ master: small });
    expect(planCluster({ ...before, workers: [] }).fits).toBe(false);
    expect(from(before, { ...before, workers: [] })).toMatch(/gone/);
  });

  it('when the model fits at last, and not as long as it does not', () => {
    const alone = planInput({ master: planMaster({ memory: 420 * MIB }), workers: [] });
    expect(from(alone, { ...alone, workers: [planWorker()] })).toBe('The model fits now.');
    expect(from(alone, { ...alone, workers: [planWorker({ memory: MIB })] })).toBeNull();
  });

  it('when the context can grow', () => {
    const master = planMaster({ memory: 420 * MIB });
    const before = planInput({ master, workers: [planWorker({ memory: 180 * MIB })] });
    expect(from(before, planInput({ master }))).toBe('The context can grow to 4096 tokens.');
  });

  it('when the first worker comes, whether prompts are read faster or the model is small', () => {
    expect(from(planInput({ workers: [] }), planInput())).toMatch(/^Prompts are read 1\.7 times as fast\.$/);
    const tiny = planInput({ model: tinyShape });
    expect(from({ ...tiny, workers: [] }, tiny)).toMatch(/shared with more devices/);
    const link = { roundTripMs: null, upBytesPerSecond: null, downBytesPerSecond: null };
    const unknown = planInput({ workers: [planWorker({ link })] });
    expect(from(planInput({ workers: [] }), unknown)).toMatch(/somebody to share/);
  });

  it('when a worker is pinned', () => {
    const pinned = { ...phoneC, pinned: true };
    const before = planInput({ workers: [planWorker(), phoneC] });
    expect(from(before, planInput({ workers: [planWorker(), pinned] }))).toBe('phoneC is pinned as a worker.');
  });

  it('when generation gains a tenth with the objective fastest, and not below', () => {
    const fast = (times: number) =>
      planInput({
        objective: 'fastest',
        workers: [
          planWorker({
            compute: faster(times),
            link: { roundTripMs: 0.1, upBytesPerSecond: 1e9, downBytesPerSecond: 1e9 },
          }),
        ],
      });
    const alone = planInput({ objective: 'fastest', workers: [] });
    expect(from(alone, fast(3))).toMatch(/generated 1\.\d times as fast/);
    expect(planCluster(fast(1.15)).parts).toHaveLength(2);
    expect(from(alone, fast(1.15))).toBeNull();
  });
});

describe('a new plan is not worth it', () => {
  it('when it is the same', () => {
    const plan = planCluster(planInput());
    expect(isWorthChanging(plan, plan, planInput())).toBe(false);
  });

  it('when measurements moved by a few percent', () => {
    for (const times of [0.93, 1.07]) {
      expect(from(planInput(), planInput({ workers: [planWorker({ compute: faster(times) })] }))).toBeNull();
      const link = { ...hotspot, upBytesPerSecond: hotspot.upBytesPerSecond * times };
      expect(from(planInput(), planInput({ workers: [planWorker({ link })] }))).toBeNull();
    }
  });

  it('when it would drop a worker that costs nothing one can feel', () => {
    const tiny = planInput({ model: tinyShape });
    const alone = planCluster({ ...tiny, workers: [] });
    expect(whyChange(planCluster(tiny), alone, tiny)).toBeNull();
  });

  it('when a third phone comes that brings nothing', () => {
    expect(from(planInput(), planInput({ workers: [planWorker(), phoneC] }))).toBeNull();
  });
});
