/** What a token costs on the network, counted between the master and its workers, wherever the layers and the head are. */
import { describe, expect, it, onTestFinished } from 'vitest';
import type { DistributedContextOptions } from '../../lib/context-options.js';
import type { DistributedContext } from '../../lib/index.js';
import { openContext, openWorker, readJson } from '../support/contexts.js';
import { FakeWorker } from '../support/fake-worker.js';
import type { Traffic } from '../support/rpc-proxy.d.mts';
import { RpcProxy } from '../support/rpc-proxy.mjs';

/** Of the tiny model. */
const HIDDEN_BYTES = 256 * 4;
const VOCABULARY_BYTES = 1024 * 4;
/** Mask, positions, cell indices, and where each of them goes. */
const UP_OVERHEAD = 256;
/** The size of an answer, and the worker's time. */
const DOWN_OVERHEAD = 16;

interface Counted {
  readonly tokens: readonly number[];
  /** Of each worker, for a token. */
  readonly perToken: readonly Record<'messagesSent' | 'messagesReceived' | 'bytesSent' | 'bytesReceived', number>[];
  /** Of each worker, for the prompt. */
  readonly prompt: readonly Traffic[];
}

async function generate(ctx: DistributedContext, promptTokens: number, tokens: number): Promise<number[]> {
  const prompt = Array.from({ length: promptTokens }, (_, i) => 100 + ((i * 37) % 300));
  const body = {
    prompt,
    n_predict: tokens,
    temperature: 0,
    ignore_eos: true,
    return_tokens: true,
    cache_prompt: false,
  };
  return ((await readJson(await ctx.request('POST', '/completion', body))) as { tokens: number[] }).tokens;
}

async function count(options: Partial<DistributedContextOptions>, promptTokens: number): Promise<Counted> {
  const proxies: RpcProxy[] = [];
  for (let i = 1; i < (options.tensorSplit?.length ?? 1); i++) {
    const proxy = await RpcProxy.start((await openWorker()).port);
    onTestFinished(() => proxy.close());
    proxies.push(proxy);
  }
  const rpc = proxies.map(({ endpoint }) => endpoint);
  const ctx = await openContext({ rpc, contextSize: 1024, ubatchSize: 64, ...options });
  const run = async (tokens: number) => {
    for (const proxy of proxies) proxy.reset();
    const generated = await generate(ctx, promptTokens, tokens);
    return { generated, traffic: proxies.map(({ traffic }) => traffic) };
  };
  await run(4);
  const [prompt, short, long] = [await run(1), await run(2), await run(18)];
  return {
    tokens: long.generated,
    prompt: prompt.traffic,
    perToken: long.traffic.map((traffic, i) => {
      const of = (name: 'messagesSent' | 'messagesReceived' | 'bytesSent' | 'bytesReceived') =>
        (traffic[name] - (short.traffic[i]?.[name] ?? 0)) / 16;
      return {
        messagesSent: of('messagesSent'),
        messagesReceived: of('messagesReceived'),
        bytesSent: of('bytesSent'),
        bytesReceived: of('bytesReceived'),
      };
    }),
  };
}

describe('a token', () => {
  it('takes one hidden state each way and three messages, in every placement, and is the same token', async () => {
    const alone = await openContext({ contextSize: 1024, ubatchSize: 64 });
    const expected = await generate(alone, 300, 18);
    await alone.close();
    for (const [tensorSplit, head] of [
      [[0.5, 0.5], 'master'],
      [[0, 1], 'master'],
      [[0.5, 0.5], 'worker'],
      [[0.4, 0.3, 0.3], 'master'],
      [[0, 0.5, 0.5], 'worker'],
    ] as const) {
      const what = `${tensorSplit}, head on the ${head}`;
      const { tokens, perToken, prompt } = await count({ tensorSplit, head }, 300);
      expect(tokens, what).toEqual(expected);
      for (const [i, traffic] of perToken.entries()) {
        const down = head === 'worker' && i === perToken.length - 1 ? VOCABULARY_BYTES : HIDDEN_BYTES;
        expect(traffic, what).toMatchObject({ messagesSent: 3, messagesReceived: 1 });
        expect(traffic.bytesSent, what).toBeGreaterThan(HIDDEN_BYTES);
        expect(traffic.bytesSent, what).toBeLessThanOrEqual(HIDDEN_BYTES + UP_OVERHEAD);
        expect(traffic.bytesReceived, what).toBe(down + DOWN_OVERHEAD);
        // 300 tokens, and the graph a few times.
        expect(prompt[i]?.bytesSent, what).toBeLessThan(300 * (HIDDEN_BYTES + 32) + 40_000);
      }
    }
  });

  it('takes no more of them in a longer context', async () => {
    const [short, long] = [await count({ tensorSplit: [0.5, 0.5] }, 40), await count({ tensorSplit: [0.5, 0.5] }, 800)];
    const graphs = (short.prompt[0]?.requests.packed_graph?.bytes ?? 0) / 16; // the token that begins a generation
    expect(long.perToken[0]?.bytesSent).toBeLessThanOrEqual((short.perToken[0]?.bytesSent ?? 0) + graphs + 8);
  });
});

describe('activations as f16', () => {
  it('take half the bytes, and the same tokens with the tiny model', async () => {
    for (const tensorSplit of [
      [0.5, 0.5],
      [0.4, 0.3, 0.3],
    ]) {
      const exact = await count({ tensorSplit }, 300);
      const half = await count({ tensorSplit, activations: 'f16' }, 300);
      expect(half.tokens).toEqual(exact.tokens);
      for (const [i, traffic] of half.perToken.entries()) {
        expect(traffic).toMatchObject({ messagesSent: 3, messagesReceived: 1 });
        expect(traffic.bytesSent).toBe((exact.perToken[i]?.bytesSent ?? 0) - HIDDEN_BYTES / 2);
        expect(traffic.bytesReceived).toBe(HIDDEN_BYTES / 2 + 4 + DOWN_OVERHEAD);
      }
    }
  });

  it('leave logits as they are, which a worker with the head sends', async () => {
    const half = await count({ tensorSplit: [0.5, 0.5], head: 'worker', activations: 'f16' }, 300);
    expect(half.perToken[0]?.bytesReceived).toBe(VOCABULARY_BYTES + DOWN_OVERHEAD);
  });

  it.each([
    ['of another make', false],
    ['of an older version', true],
  ])('are refused where a worker is %s', async (_, extended) => {
    await using worker = await FakeWorker.start(undefined, { extended });
    const loading = openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5], activations: 'f16' });
    await expect(loading).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringContaining(worker.endpoint),
    });
  });
});
