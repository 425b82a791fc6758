import { describe, expect, it } from 'vitest';
import {
  computeBytes,
  deviceTimes,
  memoryNeeded,
  memoryNeeds,
  promptSeconds,
  weightsPerLayer,
} from '../../lib/cluster/plan/estimate.js';
import { core, guideShape, tinyShape } from '../support/plan-models.js';

const sizing = { contextSize: 4096, ubatchSize: 512, parallel: 1 };

describe('memory', () => {
  it('grows with context, ubatch, streams and layers', () => {
    const total = (more: Partial<typeof sizing>, end = 24) =>
      memoryNeeded(memoryNeeds(guideShape, { ...sizing, ...more }), 0, end, true);
    for (const more of [{ contextSize: 4097 }, { ubatchSize: 513 }, { parallel: 2 }]) {
      expect(total(more)).toBeGreaterThan(total({}));
    }
    expect(total({}, 23)).toBeLessThan(total({}));
    expect(total({ contextSize: 4000 })).toBe(total({ contextSize: 4096 })); // cells come in 256
  });

  it('asks for more where experts are used, or where the file says little', () => {
    const experts = { ...guideShape, activeBytesPerLayer: guideShape.layerBytes.map((bytes) => bytes / 4) };
    expect(computeBytes(experts, sizing, false)).toBeGreaterThan(computeBytes(guideShape, sizing, false));
    const silent = { ...guideShape, embeddingLength: 0, feedForwardLength: 0, kvBytesPerTokenLayer: 0 };
    expect(memoryNeeds(silent, sizing).worker).toBeGreaterThan(memoryNeeds(guideShape, sizing).worker);
    expect(memoryNeeds(silent, sizing).before[1]).toBeGreaterThan(memoryNeeds(guideShape, sizing).before[1] ?? 0);
  });
});

describe('time', () => {
  it('knows the number of weights of a layer from its shape', () => {
    expect(weightsPerLayer(tinyShape)).toBe(589824);
    expect(weightsPerLayer(guideShape) / 1e6).toBeCloseTo(14.9, 1);
  });

  it('counts a round trip and the bytes of a token for a worker, as measured', () => {
    const link = { roundTrip: 0.0058, up: 6.25e6, down: 6.25e6 };
    const times = deviceTimes(guideShape, sizing, core, link);
    // 3829 bytes up and 3600 down were counted, with 256 cells of context and with 4096.
    expect(times.tokenLink).toBeCloseTo(0.0058 + (3829 + 3600) / 6.25e6, 5);
  });

  it('overlaps the last worker with all others, and nothing else', () => {
    expect(promptSeconds(8, 1, null)).toBe(8);
    expect(promptSeconds(8, 1, { send: 0.25, compute: 1, answer: 0.5 })).toBe(1 + 0.25 + 1 + 0.5 + 7);
    expect(promptSeconds(8, 1, { send: 0.25, compute: 2, answer: 0 })).toBe(1 + 0.25 + 2 + 7 * 2);
    expect(promptSeconds(8, 1, { send: 3, compute: 1, answer: 0 })).toBe(1 + 3 + 1 + 7 * 3);
  });

  it('finds small ubatches slow, as the kernels for many tokens do not serve them', () => {
    const perToken = (ubatchSize: number) =>
      (deviceTimes(guideShape, { ...sizing, ubatchSize }, core, null).ubatch[24] ?? 0) / ubatchSize;
    expect(perToken(32) / perToken(512)).toBeGreaterThan(1.2);
    expect(perToken(64) / perToken(512)).toBeLessThan(1.1);
  });
});
