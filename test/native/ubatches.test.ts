import { describe, expect, it } from 'vitest';
import type { DistributedContext } from '../../lib/index.js';
import { openContext, openWorker, readJson } from '../support/contexts.js';

const prompt = Array.from({ length: 200 }, (_, i) => 20 + ((i * 37) % 500));

/** Graphs that the worker computes for a prompt of so many tokens; it computes one for each ubatch. */
async function ubatchesOf(ctx: DistributedContext, tokens: number): Promise<number> {
  const before = ctx.stats().workers[0]?.graphs ?? 0;
  await complete(ctx, prompt.slice(0, tokens), 1);
  return (ctx.stats().workers[0]?.graphs ?? 0) - before;
}

async function complete(ctx: DistributedContext, tokens: readonly number[], n: number): Promise<number[]> {
  const body = { prompt: tokens, n_predict: n, temperature: 0, ignore_eos: true, return_tokens: true };
  const response = await ctx.request('POST', '/completion', { ...body, cache_prompt: false });
  return ((await readJson(response)) as { tokens: number[] }).tokens;
}

describe('the ubatches of a prompt on several devices', () => {
  it('are 64 tokens, so that the devices work on different ones at the same time', async () => {
    const worker = await openWorker();
    const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] });
    expect(await ubatchesOf(ctx, 64)).toBe(1);
    expect(await ubatchesOf(ctx, 65)).toBe(2);
    expect(await ubatchesOf(ctx, 192)).toBe(3);
  });

  it('are as large as asked for', async () => {
    const worker = await openWorker();
    const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5], ubatchSize: 128 });
    expect(await ubatchesOf(ctx, 192)).toBe(2);
  });

  it('hold a whole text whose embedding is asked for', async () => {
    const worker = await openWorker();
    const ctx = await openContext({
      rpc: [worker.endpoint],
      tensorSplit: [0.5, 0.5],
      embeddings: true,
      pooling: 'mean',
    });
    const before = ctx.stats().workers[0]?.graphs ?? 0;
    await ctx.embed('word '.repeat(100));
    expect((ctx.stats().workers[0]?.graphs ?? 0) - before).toBe(1);
  });

  it('give the tokens that one device gives', async () => {
    const worker = await openWorker();
    const split = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] });
    const alone = await openContext();
    expect(await complete(split, prompt, 32)).toEqual(await complete(alone, prompt, 32));
  });
});
