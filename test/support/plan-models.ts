/** What inspectModel says of the models in the tests, and devices to plan for. */
import type { ModelShape, PlanDevice, PlanInput } from '../../lib/cluster/types.js';

const layerOfGuide = [10883840, 9717248];
const guideLayers = [0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0].map(
  (kind) => layerOfGuide[kind] as number,
);

/** Qwen2.5-0.5B-Instruct, Q4_K_M. */
export const guideShape: ModelShape = {
  name: 'guide-shape',
  layerBytes: guideLayers,
  activeBytesPerLayer: guideLayers,
  outerBytes: 238239232,
  headBytes: 144646656,
  kvBytesPerTokenLayer: 512,
  contextLength: 32768,
  embeddingLength: 896,
  feedForwardLength: 4864,
  headCount: 14,
  vocabularySize: 151936,
};

export const tinyShape: ModelShape = {
  name: 'droid-tiny',
  layerBytes: Array.from({ length: 6 }, () => 1183744),
  activeBytesPerLayer: Array.from({ length: 6 }, () => 1183744),
  outerBytes: 525312,
  headBytes: 525312,
  kvBytesPerTokenLayer: 512,
  contextLength: 1024,
  embeddingLength: 256,
  feedForwardLength: 512,
  headCount: 4,
  vocabularySize: 1024,
};

export const MIB = 1024 * 1024;
export const GIB = 1024 * MIB;

/** One core of the machine that docs/planning.md was measured on. */
export const core = { threads: 1, weightBytesPerSecond: 14.4e9, flopsPerSecond: 90e9 };
/** The emulated hotspot of the measurements: 50 Mbit/s. */
export const hotspot = { roundTripMs: 5.8, upBytesPerSecond: 6.25e6, downBytesPerSecond: 6.25e6 };

export function planMaster(more: Partial<PlanDevice> = {}): PlanDevice {
  return { id: 'a', name: 'phoneA', memory: 2 * GIB, compute: core, pinned: false, link: null, ...more };
}

export function planWorker(more: Partial<PlanDevice> = {}): PlanDevice {
  return { id: 'b', name: 'phoneB', memory: 2 * GIB, compute: core, pinned: false, link: hotspot, ...more };
}

export function planInput(more: Partial<PlanInput> = {}): PlanInput {
  return {
    model: guideShape,
    master: planMaster(),
    workers: [planWorker()],
    objective: 'share',
    contextSize: null,
    batchSize: null,
    ubatchSize: null,
    parallel: 1,
    ...more,
  };
}
