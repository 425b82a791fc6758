import { describe, expect, it } from 'vitest';
import { greedyTokens, openContext, openWorker } from '../support/contexts.js';
import { tinyModel, tinyModelQ8 } from '../support/paths.js';

const prompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';
const tokens = 64;
const all = [0, 1, 2, 3, 4, 5];

describe('tensorSplit places the layers and keeps the head on the master', () => {
  it.each([
    { split: [1, 0], master: all, worker: [] },
    { split: [0.5, 0.5], master: [0, 1, 2], worker: [3, 4, 5] },
    { split: [2, 1], master: [0, 1, 2, 3], worker: [4, 5] },
    { split: [0, 1], master: [], worker: all },
  ])('$split', async ({ split, master, worker }) => {
    const server = await openWorker();
    const ctx = await openContext({ rpc: [server.endpoint], tensorSplit: split });
    expect(ctx.placement).toMatchObject([
      { device: 'master', layers: master, head: true },
      { device: server.endpoint, layers: worker, head: false },
    ]);
    // The worker counts the bytes it was sent; the master reads its tensors' buffers.
    expect(server.stats().bytesWeights).toBe(ctx.placement[1]?.bytes);
    expect(server.stats().bytesAllocated).toBeGreaterThanOrEqual(server.stats().bytesWeights);
  });

  it('moves the head with head: worker', async () => {
    const server = await openWorker();
    const ctx = await openContext({ rpc: [server.endpoint], tensorSplit: [0, 1], head: 'worker' });
    expect(ctx.placement).toMatchObject([
      { layers: [], head: false },
      { layers: all, head: true },
    ]);
    expect(server.stats().bytesWeights).toBe(ctx.placement[1]?.bytes);
  });

  it('spreads the layers over two workers in the order of rpc', async () => {
    const servers = [await openWorker(), await openWorker()];
    const ctx = await openContext({ rpc: servers.map((s) => s.endpoint), tensorSplit: [1, 1, 1] });
    expect(ctx.placement.map(({ layers }) => layers)).toEqual([
      [0, 1],
      [2, 3],
      [4, 5],
    ]);
    servers.forEach((server, i) => {
      expect(server.stats().bytesWeights).toBe(ctx.placement[i + 1]?.bytes);
    });
  });

  it('leaves a worker with no share alone', async () => {
    const servers = [await openWorker(), await openWorker()];
    const ctx = await openContext({ rpc: servers.map((s) => s.endpoint), tensorSplit: [1, 0, 1] });
    expect(ctx.placement.map(({ layers }) => layers)).toEqual([[0, 1, 2], [], [3, 4, 5]]);
    expect(servers[0]?.stats().bytesAllocated).toBe(0);
  });

  it('follows free memory without a tensorSplit', async () => {
    const server = await openWorker();
    const ctx = await openContext({ rpc: [server.endpoint] });
    // Both devices are this machine, so they report about the same.
    expect(ctx.placement.map(({ layers }) => layers.length)).toEqual([3, 3]);
  });
});

describe('greedy output', () => {
  // F16 weights: every device computes with the same kernels. Quantized ones are repacked on a master and not on a
  // worker, and the two kinds of kernels round differently, so only F16 is compared token for token.
  it('is the same token for token over every split of an F16 model', async () => {
    const reference = await greedyTokens(await openContext(), prompt, tokens);
    expect(reference).toHaveLength(tokens);
    const workers = [await openWorker(), await openWorker()];
    const [first, second] = workers.map((worker) => worker.endpoint) as [string, string];
    for (const [rpc, tensorSplit] of [
      [[first], [1, 0]],
      [[first], [0.5, 0.5]],
      [[first], [0, 1]],
      [
        [first, second],
        [1, 1, 1],
      ],
      [
        [first, second],
        [0, 1, 1],
      ],
    ] as const) {
      const before = workers.map((worker) => worker.stats().graphsComputed);
      const ctx = await openContext({ model: tinyModel, rpc, tensorSplit });
      expect(await greedyTokens(ctx, prompt, tokens), `split ${tensorSplit}`).toEqual(reference);
      rpc.forEach((_, i) => {
        const graphs = (workers[i]?.stats().graphsComputed ?? 0) - (before[i] ?? 0);
        if (tensorSplit[i + 1]) expect(graphs).toBeGreaterThanOrEqual(tokens);
        else expect(graphs).toBe(0);
      });
      await ctx.close();
    }
  });

  it('of a quantized model starts with the same words on every split', async () => {
    const worker = await openWorker();
    const whole = await openContext({ model: tinyModelQ8 });
    const split = await openContext({ model: tinyModelQ8, rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] });
    const ask = '<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n';
    expect(await greedyTokens(split, ask, 6)).toEqual(await greedyTokens(whole, ask, 6));
  });

  it('is computed by both: the counters of the two ends agree', async () => {
    const worker = await openWorker();
    const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] });
    const before = ctx.stats().workers[0];
    await greedyTokens(ctx, prompt, tokens);
    const after = ctx.stats().workers[0];
    const graphs = (after?.graphs ?? 0) - (before?.graphs ?? 0);
    expect(graphs).toBeGreaterThanOrEqual(tokens);
    expect(after?.graphs).toBe(worker.stats().graphsComputed);
    // The probe before the load was a connection of its own.
    expect(worker.stats().bytesReceived).toBeGreaterThanOrEqual(after?.bytesSent ?? Number.POSITIVE_INFINITY);
    // One round trip a token: each graph brings back one hidden state; the rest sets up the prompt's and the first
    // token's graph.
    expect((after?.messagesReceived ?? 0) - (before?.messagesReceived ?? 0)).toBeLessThanOrEqual(graphs + 8);
    expect(ctx.stats().engine.tokensGenerated).toBeGreaterThanOrEqual(tokens);
    expect(ctx.stats().engine.tokensPerSecond).toBeGreaterThan(0);
  });
});
