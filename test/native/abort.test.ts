import { describe, expect, it } from 'vitest';
import { createDistributedContext } from '../../lib/index.js';
import {
  answerOf,
  endless,
  openContext,
  openWorker,
  question,
  readJson,
  settled,
  story,
  until,
} from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';

/** The engine may have a token in the making when the stop arrives, and one more on its way to being counted. */
const SLACK = 2;

async function splitContext(options: object = {}) {
  const worker = await openWorker();
  const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5], ...options });
  return { ctx, generated: () => ctx.stats().engine.tokensGenerated };
}

describe('generation stops within two tokens by the engine’s own counter', () => {
  it('when a stream is aborted, which rejects with the reason', async () => {
    const { ctx, generated } = await splitContext();
    const abort = new AbortController();
    const reason = new Error('enough');
    let atAbort = 0;
    const read = async () => {
      for await (const _ of ctx.chat(endless(), { signal: abort.signal })) {
        if (generated() < 5 || abort.signal.aborted) continue;
        atAbort = generated();
        abort.abort(reason);
      }
    };
    await expect(read()).rejects.toBe(reason);
    expect(await settled(generated)).toBeLessThanOrEqual(atAbort + SLACK);
    expect(ctx.stats().engine.activeRequests).toBe(0);
  });

  it('when a request that does not stream is aborted', async () => {
    const { ctx, generated } = await splitContext();
    const abort = new AbortController();
    const reason = new Error('changed my mind');
    const response = ctx.request('POST', '/v1/chat/completions', endless(), { signal: abort.signal });
    await until('tokens are generated', () => generated() >= 5);
    const atAbort = generated();
    abort.abort(reason);
    await expect(response).rejects.toBe(reason);
    expect(await settled(generated)).toBeLessThanOrEqual(atAbort + SLACK);
  });

  it('beside a second stream that stays busy', async () => {
    const { ctx, generated } = await splitContext({ parallel: 2, contextSize: 2048 });
    const abort = new AbortController();
    let busyTokens = 0;
    const busy = (async () => {
      for await (const chunk of ctx.chat(endless(800))) busyTokens += chunk.choices[0]?.delta.content ? 1 : 0;
    })();
    await until('the first stream is busy', () => busyTokens > 0);
    const response = ctx.request('POST', '/v1/chat/completions', endless(800), { signal: abort.signal });
    await until('two requests run', () => ctx.stats().engine.activeRequests === 2);
    const before = generated();
    await until('both generate', () => generated() > before + 20);
    abort.abort();
    const atAbort = generated();
    const busyAtAbort = busyTokens;
    await expect(response).rejects.toBe(abort.signal.reason);
    await busy;
    // All tokens but the busy stream's 800 are the aborted request's; of those made before the abort, the busy stream's
    // are at least the chunks that had been read, and at most the unread ones more.
    expect(generated() - 800).toBeLessThanOrEqual(atAbort - busyAtAbort + SLACK);
    expect(generated() - 800).toBeGreaterThan(0);
  });

  it('when the loop over a stream is left', async () => {
    const { ctx, generated } = await splitContext();
    let atBreak = 0;
    for await (const _ of ctx.chat(endless())) {
      if (generated() < 5) continue;
      atBreak = generated();
      break;
    }
    expect(await settled(generated)).toBeLessThanOrEqual(atBreak + SLACK);
  });

  it('when a body is returned before it was read', async () => {
    const { ctx, generated } = await splitContext();
    const response = await ctx.request('POST', '/v1/chat/completions', { ...endless(), stream: true });
    const atReturn = generated();
    await response.body[Symbol.asyncIterator]().return?.();
    expect(await settled(generated)).toBeLessThanOrEqual(atReturn + SLACK);
    expect(ctx.stats().engine.activeRequests).toBe(0);
  });

  it('and in the prompt phase after the batch that is being computed', async () => {
    const { ctx } = await splitContext({ contextSize: 1024, batchSize: 32, ubatchSize: 32 });
    const promptTokens = () => ctx.stats().engine.promptTokens;
    const abort = new AbortController();
    const content = 'Tell me a story. '.repeat(120);
    const prompt = await ctx.tokenize(content);
    expect(prompt.length).toBeGreaterThan(600);
    const slots = async () => (await readJson(await ctx.request('GET', '/slots'))) as { is_processing: boolean }[];
    const response = ctx.request(
      'POST',
      '/completion',
      { prompt: content, n_predict: 1, cache_prompt: false },
      {
        signal: abort.signal,
      },
    );
    await until('the request runs', () => ctx.stats().engine.activeRequests === 1);
    await slots(); // answered between two batches, so the first one is under way
    abort.abort();
    await expect(response).rejects.toBe(abort.signal.reason);
    await expect.poll(async () => (await slots()).some(({ is_processing }) => is_processing)).toBe(false);
    expect(await settled(promptTokens)).toBeLessThan(prompt.length);
    expect(ctx.stats().engine.tokensGenerated).toBe(0);
  });
});

describe('a storm of aborts', () => {
  it('leaves every slot usable', async () => {
    const { ctx } = await splitContext({ parallel: 2 });
    let seed = 7;
    const random = () => {
      seed = (seed * 48271) % 2147483647;
      return seed / 2147483647;
    };
    const one = async () => {
      const abort = new AbortController();
      const timer = setTimeout(() => abort.abort(), random() * 6);
      const body = { ...endless(50), stream: random() < 0.5 };
      await ctx
        .request('POST', '/v1/chat/completions', body, { signal: abort.signal })
        .then(async ({ body }) => {
          for await (const _ of body);
        })
        .catch(() => {});
      clearTimeout(timer);
    };
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let i = 0; i < 120; i++) await one();
      }),
    );
    const answers = [1, 2, 3].map(() => answerOf(ctx, [question]));
    expect(await Promise.all(answers)).toEqual(Array(3).fill('2+2 equals 4.'));
    // The last reader is done a moment before the engine's thread is.
    await until('every request is gone', () => ctx.stats().engine.activeRequests === 0);
  });
});

describe('a reader', () => {
  it('that asks for several chunks at once gets each in its turn', async () => {
    const { ctx } = await splitContext();
    const response = await ctx.request('POST', '/v1/chat/completions', { ...endless(20), stream: true });
    const iterator = response.body[Symbol.asyncIterator]();
    const chunks = await Promise.all([iterator.next(), iterator.next(), iterator.next()]);
    expect(chunks.map(({ done }) => done)).toEqual([false, false, false]);
    await iterator.return?.();
    expect(await iterator.next()).toEqual({ done: true, value: undefined });
  });

  it('that is slow slows generation down instead of filling memory', async () => {
    const { ctx, generated } = await splitContext({ parallel: 2, contextSize: 2048 });
    const before = generated();
    const response = await ctx.request('POST', '/v1/chat/completions', { ...endless(600), stream: true });
    const iterator = response.body[Symbol.asyncIterator]();
    await iterator.next();
    // Nobody reads on: the engine stops after the unread chunks it may hold.
    const stalled = await settled(generated);
    expect(stalled - before).toBeLessThan(40);
    // The other slot is not held up.
    const other = await ctx.request('POST', '/completion', { prompt: 'Hi', n_predict: 50, ignore_eos: true });
    expect(((await readJson(other)) as { tokens_predicted: number }).tokens_predicted).toBe(50);
    // And reading on gets the whole answer.
    let rest = '';
    for (let chunk = await iterator.next(); !chunk.done; chunk = await iterator.next()) {
      rest += Buffer.from(chunk.value).toString();
    }
    expect(rest.trimEnd().endsWith('data: [DONE]')).toBe(true);
    expect(generated() - before).toBeGreaterThanOrEqual(650);
  });

  it('gets the stream byte for byte as the engine wrote it, in order', async () => {
    const { ctx } = await splitContext();
    const streamed: string[] = [];
    for await (const chunk of ctx.chat(endless(100))) streamed.push(chunk.choices[0]?.delta.content ?? '');
    const whole = (await readJson(await ctx.request('POST', '/v1/chat/completions', endless(100)))) as {
      choices: { message: { content: string } }[];
    };
    expect(streamed.join('')).toBe(whole.choices[0]?.message.content);
  });
});

describe('close()', () => {
  it('ends running requests with DROID_CLOSED and is idempotent', async () => {
    const { ctx, generated } = await splitContext();
    const stream = ctx.chat(endless());
    await stream.next();
    const waiting = (async () => {
      for await (const _ of stream);
    })();
    const blocked = ctx.request('POST', '/v1/chat/completions', endless());
    const blockedEnd = expect(blocked).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    await until('tokens are generated', () => generated() >= 5);
    const both = [ctx.close(), ctx.close()];
    await expect(waiting).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    await blockedEnd;
    await Promise.all(both);
    await expect(ctx.request('GET', '/health')).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    await expect(ctx.chat({ messages: [story] }).next()).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    await expect(ctx.listen({ port: 0 })).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    expect(ctx.stats().engine.tokensGenerated).toBe(generated());
  });

  it('closes its HTTP servers', async () => {
    const { ctx } = await splitContext();
    const server = await ctx.listen({ port: 0 });
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
    await ctx.close();
    await expect(fetch(`${server.url}/health`)).rejects.toThrow();
  });

  it('during load, and an aborted load, reject at once', async () => {
    const worker = await openWorker();
    for (let i = 0; i < 10; i++) {
      const abort = new AbortController();
      const reason = new Error(`attempt ${i}`);
      const loading = createDistributedContext({
        model: tinyModel,
        rpc: [worker.endpoint],
        tensorSplit: [0.5, 0.5],
        signal: abort.signal,
        // 0: before the probe; 1: at the first progress; later: somewhere in between.
        onProgress: () => (i === 1 ? abort.abort(reason) : undefined),
      });
      if (i !== 1) setTimeout(() => abort.abort(reason), i * 2);
      const result = await loading.then(
        (ctx) => ctx.close().then(() => 'loaded'),
        (error) => error,
      );
      if (result !== 'loaded') expect(result).toBe(reason);
      else expect(i).toBeGreaterThan(1);
    }
    await until('the worker has let its clients go', () => worker.stats().clients === 0);
    expect(worker.stats().bytesAllocated).toBe(0);
  });
});
