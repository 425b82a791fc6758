/** A model of the size people run: the tiny one's numbers are too small to tell a right placement from a wrong one. */
import { beforeAll, describe, expect, it } from 'vitest';
import { endless, openContext, openWorker, readJson, settled, until } from '../support/contexts.js';
import { guideEmbedding, guideModel } from '../support/guide.js';

let model = '';
beforeAll(async () => {
  model = await guideModel();
}, 120_000);

const mib = (bytes: number | undefined) => Math.round((bytes ?? 0) / 1048576);

describe('the guide’s model', () => {
  it.each([
    { tensorSplit: [0.5, 0.5], head: 'master', sizes: [345, 118], layers: [12, 12] },
    { tensorSplit: [0, 1], head: 'master', sizes: [227, 236], layers: [0, 24] },
    { tensorSplit: [0, 1], head: 'worker', sizes: [89, 374], layers: [0, 24] },
    { tensorSplit: [1, 0], head: 'master', sizes: [463, 0], layers: [24, 0] },
  ] as const)('$tensorSplit with the head on the $head is $sizes MiB', async ({ tensorSplit, head, sizes, layers }) => {
    const worker = await openWorker();
    const ctx = await openContext({ model, rpc: [worker.endpoint], tensorSplit, head, contextSize: 256, mmap: false });
    expect(ctx.placement.map(({ bytes }) => mib(bytes))).toEqual(sizes);
    expect(ctx.placement.map((placement) => placement.layers.length)).toEqual(layers);
    const bytes = ctx.placement[1]?.bytes ?? Number.NaN;
    const [traffic] = ctx.stats().workers;
    expect((traffic?.weightsSent ?? 0) + (traffic?.weightsReused ?? 0)).toBe(bytes);
    // The generated norms are all alike, and what is identical is held once.
    expect(worker.stats().bytesWeights).toBeLessThanOrEqual(bytes);
    expect(worker.stats().bytesWeights).toBeGreaterThanOrEqual(0.99 * bytes);
  });

  it('brings one hidden state back for each generated token, one round trip each', async () => {
    const tokens = 24;
    const worker = await openWorker();
    const ctx = await openContext({ model, rpc: [worker.endpoint], tensorSplit: [0.5, 0.5], contextSize: 1024 });
    const generate = async (n: number) =>
      readJson(await ctx.request('POST', '/completion', { prompt: 'Hello', n_predict: n, temperature: 0 }));
    await generate(2); // sets up the graphs
    const link = () => ({ ...ctx.stats().workers[0] }) as Record<string, number>;
    const before = link();
    const answer = (await generate(tokens)) as { tokens_predicted: number };
    expect(answer.tokens_predicted).toBe(tokens);
    const used = Object.fromEntries(Object.entries(link()).map(([name, value]) => [name, value - (before[name] ?? 0)]));
    const perToken = (name: string) => (used[name] ?? Number.NaN) / tokens;
    expect(perToken('bytesReceived')).toBeLessThanOrEqual(3 * guideEmbedding * 4 + 512);
    expect(perToken('bytesReceived')).toBeGreaterThanOrEqual(guideEmbedding * 4);
    expect(perToken('messagesReceived')).toBeLessThan(1.5);
    expect(perToken('graphs')).toBeGreaterThanOrEqual(1);
    // Two hidden states and the attention mask, and not the graph itself again.
    expect(perToken('bytesSent')).toBeLessThan(3 * guideEmbedding * 4 + 2 * 1024 + 512);
  });

  it('stops within two tokens when an HTTP client hangs up, streaming or not', async () => {
    // A token takes tens of milliseconds here, far longer than a hang-up takes to travel through the socket.
    const ctx = await openContext({ model, contextSize: 1024 });
    const generated = () => ctx.stats().engine.tokensGenerated;
    const server = await ctx.listen({ port: 0 });
    for (const stream of [true, false]) {
      const abort = new AbortController();
      const before = generated();
      const answer = fetch(`${server.url}/v1/chat/completions`, {
        method: 'POST',
        body: JSON.stringify({ ...endless(), stream }),
        signal: abort.signal,
      }).then((response) => response.text());
      await until('tokens are generated', () => generated() >= before + 5);
      const atAbort = generated();
      abort.abort();
      await expect(answer).rejects.toThrow();
      expect(await settled(generated, 1000)).toBeLessThanOrEqual(atAbort + 2);
      expect(ctx.stats().engine.activeRequests).toBe(0);
    }
  });

  it('is cancelled while it loads, with the worker left empty', async () => {
    const worker = await openWorker();
    const abort = new AbortController();
    const reason = new Error('too large after all');
    const loading = openContext({
      model,
      rpc: [worker.endpoint],
      tensorSplit: [0, 1],
      mmap: false,
      signal: abort.signal,
      onProgress: ({ stage, fraction }) =>
        stage === 'text_model' && fraction > 0 && fraction < 1 ? abort.abort(reason) : undefined,
    });
    await expect(loading).rejects.toBe(reason);
    await until('the worker has freed the weights', () => worker.stats().bytesAllocated === 0);
  });
});
