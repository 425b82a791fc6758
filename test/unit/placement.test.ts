import { describe, expect, it } from 'vitest';
import type { ModelInfo } from '../../lib/addon.js';
import { checkTensorSplit, planLayers, splitLayers } from '../../lib/placement.js';

const even = (n: number) => Array.from({ length: n }, () => 10);

describe('splitLayers', () => {
  it.each([
    [even(24), [0.5, 0.5], [12, 12]],
    [even(24), [1, 1], [12, 12]],
    [even(24), [3, 1], [18, 6]],
    [even(24), [1, 0], [24, 0]],
    [even(24), [0, 1], [0, 24]],
    [even(24), [1, 0, 1], [12, 0, 12]],
    [even(24), [1, 1, 0], [12, 12, 0]],
    [even(6), [1, 1, 1], [2, 2, 2]],
    [even(1), [0.5, 0.5], [0, 1]],
    [even(24), [0.99, 0.01], [23, 1]],
    [even(24), [0.01, 0.99], [1, 23]],
    [even(3), [1, 1e-9, 1e-9], [1, 1, 1]],
    [even(2), [1, 1, 1], [1, 0, 1]],
    // By bytes, not by count: two large layers weigh as much as six small ones.
    [
      [30, 30, 10, 10, 10, 10, 10, 10],
      [0.5, 0.5],
      [2, 6],
    ],
  ])('%j by %j is %j', (layers, shares, counts) => {
    expect(splitLayers(layers, shares)).toEqual(counts);
  });

  it('never loses or invents a layer, and gives a share of 0 nothing', () => {
    let seed = 1;
    const random = () => {
      seed = (seed * 48271) % 2147483647;
      return seed / 2147483647;
    };
    for (let run = 0; run < 2000; run++) {
      const layers = Array.from({ length: 1 + Math.floor(random() * 80) }, () => 1 + random() * 100);
      const shares = Array.from({ length: 1 + Math.floor(random() * 15) }, () => (random() < 0.2 ? 0 : random()));
      if (shares.every((share) => share === 0)) continue;
      const counts = splitLayers(layers, shares);
      expect(counts.reduce((a, b) => a + b)).toBe(layers.length);
      counts.forEach((count, i) => {
        expect(count).toBeGreaterThanOrEqual(0);
        if (shares[i] === 0) expect(count).toBe(0);
        else if (layers.length >= shares.filter((share) => share > 0).length) expect(count).toBeGreaterThan(0);
      });
      // Every boundary is as close to its share as layers allow, where nobody's only layer stands in the way.
      if (counts.some((count, i) => shares[i] && count <= 1)) continue;
      const total = layers.reduce((a, b) => a + b);
      const largest = Math.max(...layers);
      const sum = shares.reduce((a, b) => a + b);
      let done = 0;
      let wanted = 0;
      let bytes = 0;
      counts.slice(0, -1).forEach((count, i) => {
        bytes += layers.slice(done, done + count).reduce((a, b) => a + b, 0);
        done += count;
        wanted += ((shares[i] as number) / sum) * total;
        expect(Math.abs(bytes - wanted)).toBeLessThanOrEqual(largest / 2 + 1e-6);
      });
    }
  });
});

describe('checkTensorSplit', () => {
  it.each([
    [[0.5], 1],
    [[0.5, 0.5, 0.5], 1],
    [[1, -1], 1],
    [[0, 0], 1],
    [[Number.NaN, 1], 1],
    [[Number.POSITIVE_INFINITY, 1], 1],
  ])('refuses %j for %i workers and shows it', (split, workers) => {
    expect(() => checkTensorSplit(split, workers)).toThrow(
      expect.objectContaining({
        code: 'DROID_INVALID_ARGUMENT',
        message: expect.stringContaining(`[${split.join(', ')}]`),
      }),
    );
  });
});

describe('planLayers', () => {
  const model: ModelInfo = {
    architecture: 'qwen2',
    name: '',
    contextLength: 100,
    layerBytes: Array.from({ length: 10 }, () => 1000),
    outerBytes: 500,
    tensors: [],
    headBytes: 200,
    kvBytesPerTokenLayer: 1,
    activeBytesPerLayer: Array.from({ length: 10 }, () => 1000),
    embeddingLength: 8,
    feedForwardLength: 16,
    headCount: 1,
    vocabularySize: 10,
  };
  const plan = (master: number, worker: number, more: object = {}) =>
    planLayers({
      model,
      devices: [
        { device: 'master', memoryFree: master },
        { device: 'phone:1', memoryFree: worker },
      ],
      headOnWorker: false,
      contextSize: 100,
      mmap: false,
      ...more,
    }).layers;

  it('follows free memory, less what the master holds outside the layers', () => {
    expect(plan(10_500, 10_000)).toEqual([5, 5]);
    expect(plan(40_500, 10_000)).toEqual([8, 2]);
    expect(plan(500, 20_000)).toEqual([0, 10]);
  });

  it('refuses what does not fit, naming the device, the need and what there is', () => {
    expect(() => plan(1e9, 3_000_000, { tensorSplit: [0, 1], contextSize: 4_000_000 })).toThrow(
      expect.objectContaining({
        code: 'DROID_OUT_OF_MEMORY',
        message: expect.stringMatching(/phone:1 has 3 MiB free/),
      }),
    );
    expect(() => plan(5000, 1e9, { tensorSplit: [1, 0] })).toThrow(
      expect.objectContaining({ code: 'DROID_OUT_OF_MEMORY', message: expect.stringContaining('The master') }),
    );
  });

  it('counts the head where it is, the KV cache, and not the mapped weights of the master', () => {
    const fits = 10_000 + 10 * 100;
    expect(plan(1e6, fits, { tensorSplit: [0, 1] })).toEqual([0, 10]);
    expect(() => plan(1e6, fits - 1, { tensorSplit: [0, 1] })).toThrow('phone:1');
    expect(() => plan(1e6, fits, { tensorSplit: [0, 1], headOnWorker: true })).toThrow('phone:1');
    expect(plan(1000, 1e6, { tensorSplit: [1, 0], mmap: true })).toEqual([10, 0]);
  });
});
