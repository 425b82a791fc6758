/** What the planner reckons a worker needs, beside what its worker really allocates, and the same of a master. */
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { addon } from '../../lib/addon.js';
import { memoryNeeded, memoryNeeds } from '../../lib/cluster/plan/estimate.js';
import type { ModelShape } from '../../lib/cluster/types.js';
import { openContext, openWorker, readJson } from '../support/contexts.js';
import { guideModel } from '../support/guide.js';
import { tinyModel } from '../support/paths.js';
import { guideShape, MIB, tinyShape } from '../support/plan-models.js';

interface Case {
  tensorSplit: number[];
  contextSize: number;
  batchSize: number;
  ubatchSize: number;
  parallel?: number;
}

let guide = '';
beforeAll(async () => {
  guide = await guideModel();
}, 120_000);

/** Loads, reads a prompt, and compares each worker. */
async function compare(model: string, shape: ModelShape, { tensorSplit, parallel = 1, ...sizes }: Case) {
  const workers = [];
  for (let i = 1; i < tensorSplit.length; i++) workers.push(await openWorker());
  const rpc = workers.map(({ endpoint }) => endpoint);
  const ctx = await openContext({ model, rpc, tensorSplit, parallel, mmap: false, ...sizes });
  const prompt = ' the'.repeat(100);
  await readJson(await ctx.request('POST', '/completion', { prompt, n_predict: 2 }));

  const needs = memoryNeeds(shape, { ...sizes, parallel });
  return workers.map((worker, i) => {
    const layers = ctx.placement[i + 1]?.layers ?? [];
    const first = layers[0] ?? 0;
    return { estimate: memoryNeeded(needs, first, first + layers.length, false), real: worker.stats().bytesAllocated };
  });
}

// First, since what the workers of the others have freed stays with the process, and would be taken again uncounted.
describe('memory that a master needs', () => {
  it.each([
    { tensorSplit: [0.5, 0.5], layers: 12 },
    { tensorSplit: [1, 0], layers: 24 },
  ])(
    'is never above the estimate, nor far below: $tensorSplit',
    async ({ tensorSplit, layers }) => {
      const worker = await openWorker();
      const before = residentBytes();
      const sizes = { contextSize: 1024, batchSize: 1024, ubatchSize: 512 };
      const ctx = await openContext({ model: guide, rpc: [worker.endpoint], tensorSplit, mmap: false, ...sizes });
      const prompt = ' the'.repeat(900);
      await readJson(await ctx.request('POST', '/completion', { prompt, n_predict: 8 }));
      // The worker lives in the same process.
      const real = residentBytes() - before - worker.stats().bytesAllocated;
      const estimate = memoryNeeded(memoryNeeds(guideShape, { ...sizes, parallel: 1 }), 0, layers, true);
      expect(estimate).toBeGreaterThanOrEqual(real);
      expect(estimate).toBeLessThanOrEqual(1.6 * real);
    },
    180_000,
  );
});

describe('memory that a worker needs', () => {
  it.each<Case>([
    { tensorSplit: [0.5, 0.5], contextSize: 256, batchSize: 64, ubatchSize: 64 },
    { tensorSplit: [0.5, 0.5], contextSize: 1024, batchSize: 512, ubatchSize: 128 },
    { tensorSplit: [0, 1], contextSize: 4096, batchSize: 2048, ubatchSize: 512 },
    { tensorSplit: [0.9, 0.1], contextSize: 4096, batchSize: 2048, ubatchSize: 512 },
    { tensorSplit: [1, 1, 1], contextSize: 4096, batchSize: 512, ubatchSize: 128, parallel: 4 },
    { tensorSplit: [0.5, 0.5], contextSize: 16384, batchSize: 512, ubatchSize: 64 },
  ])(
    'of the guide’s model is never above the estimate, nor far below: $tensorSplit, $contextSize, $ubatchSize',
    async (given) => {
      for (const { estimate, real } of await compare(guide, guideShape, given)) {
        expect(estimate).toBeGreaterThanOrEqual(real);
        expect(estimate).toBeLessThanOrEqual(1.6 * real);
      }
    },
  );

  // What every worker needs, whatever it holds, weighs more than this model.
  it.each<Case>([
    { tensorSplit: [0, 1], contextSize: 256, batchSize: 64, ubatchSize: 64 },
    { tensorSplit: [0.5, 0.5], contextSize: 1024, batchSize: 512, ubatchSize: 512 },
    { tensorSplit: [1, 1, 1], contextSize: 1024, batchSize: 1024, ubatchSize: 1024, parallel: 2 },
  ])('of the tiny model is never above the estimate: $tensorSplit, $contextSize, $ubatchSize', async (given) => {
    for (const { estimate, real } of await compare(tinyModel, tinyShape, given)) {
      expect(estimate).toBeGreaterThanOrEqual(real);
      expect(estimate - 4 * MIB).toBeLessThanOrEqual(1.6 * real);
    }
  });
});

describe('the sizes in test/support/plan-models.ts', () => {
  it('are those of the files', async () => {
    const { name: _, ...guideSizes } = guideShape;
    expect(await addon().inspectModel(guide)).toMatchObject(guideSizes);
    const { name: __, ...tinySizes } = tinyShape;
    expect(await addon().inspectModel(tinyModel)).toMatchObject(tinySizes);
  });
});

/** Memory of this process that is not a file's. */
function residentBytes(): number {
  const kibibytes = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  return Number(kibibytes) * 1024;
}
