/** What a user sees of a worker that goes away: errors with a code, a context that says so, and an endpoint to use again. */
import { describe, expect, it, onTestFinished } from 'vitest';
import { createDistributedContext, type DroidLlamaError } from '../../lib/index.js';
import {
  answerOf,
  endless,
  greedyTokens,
  openContext,
  openWorker,
  question,
  readJson,
  until,
} from '../support/contexts.js';
import { guideModel } from '../support/guide.js';
import { tinyModel } from '../support/paths.js';
import { WorkerProcess, type WorkerProcessOptions } from '../support/worker-process.js';

async function openWorkerProcess(options?: WorkerProcessOptions): Promise<WorkerProcess> {
  const worker = await WorkerProcess.start(options);
  onTestFinished(() => worker[Symbol.asyncDispose]());
  return worker;
}

const split = (endpoint: string) => ({ rpc: [endpoint], tensorSplit: [0.5, 0.5] });
const prompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';

async function readAll(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

describe('a worker killed', () => {
  it('ends what runs with DROID_WORKER_LOST, and says so to everyone who asks', async () => {
    const worker = await openWorkerProcess();
    const lost: [DroidLlamaError, string][] = [];
    const ctx = await openContext({
      ...split(worker.endpoint),
      parallel: 4,
      contextSize: 2048,
      onWorkerLost: (error, endpoint) => lost.push([error, endpoint]),
    });
    const { url } = await ctx.listen({ port: 0 });
    expect((await fetch(`${url}/health`)).status).toBe(200);
    expect(ctx.failure).toBeUndefined();

    const gone = { code: 'DROID_WORKER_LOST', message: expect.stringContaining(worker.endpoint) };
    const chat = expect(readAll(ctx.chat(endless()))).rejects.toMatchObject(gone);
    const complete = expect(readAll(ctx.complete({ prompt, max_tokens: 400, ignore_eos: true }))).rejects.toMatchObject(
      gone,
    );
    const raw = fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      body: JSON.stringify({ ...endless(), stream: true }),
    }).then((response) => response.text());
    const whole = fetch(`${url}/v1/chat/completions`, { method: 'POST', body: JSON.stringify(endless()) });
    await until('four requests run', () => ctx.stats().engine.activeRequests === 4);
    await until('tokens are generated', () => ctx.stats().engine.tokensGenerated > 20);
    await worker.kill();

    await chat;
    await complete;
    const events = (await raw).trimEnd().split('\n\n');
    const last = JSON.parse(events.at(-1)?.replace(/^data: /, '') ?? '') as { error: { message: string } };
    expect(last.error.message).toContain('DROID_WORKER_LOST');
    expect(last.error.message).toContain(worker.endpoint);
    const answer = await whole;
    expect(answer.status).toBeGreaterThanOrEqual(500);
    expect(await answer.text()).toContain(worker.endpoint);

    await until('the loss is reported', () => lost.length > 0);
    expect(lost).toMatchObject([[gone, worker.endpoint]]);
    expect(ctx.failure).toMatchObject({ ...gone, endpoint: worker.endpoint });
    const health = await fetch(`${url}/health`);
    expect(health.status).toBe(503);
    expect(await health.text()).toContain(worker.endpoint);
    expect((await ctx.request('GET', '/health')).status).toBe(503);
    await expect(answerOf(ctx, [question])).rejects.toMatchObject(gone);
    // What needs no worker goes on.
    expect(await ctx.tokenize('Once upon a time')).not.toHaveLength(0);
  });

  it('while idle is noticed, and the endpoint works again once a worker is back', async () => {
    const worker = await openWorkerProcess();
    const ctx = await openContext(split(worker.endpoint));
    expect(await answerOf(ctx, [question])).toBe('2+2 equals 4.');
    await worker.kill();
    await expect.poll(() => ctx.failure?.code, { timeout: 10_000 }).toBe('DROID_WORKER_LOST');
    for (let i = 0; i < 3; i++) {
      await expect(answerOf(ctx, [question], { cache_prompt: false })).rejects.toMatchObject({
        code: 'DROID_WORKER_LOST',
      });
    }
    const back = await openWorkerProcess({ port: worker.port });
    expect(back.endpoint).toBe(worker.endpoint);
    // Also before the old context is closed; a lost worker stays lost to that one.
    const again = await openContext(split(back.endpoint));
    expect(await answerOf(again, [question])).toBe('2+2 equals 4.');
    await expect(answerOf(ctx, [question])).rejects.toMatchObject({ code: 'DROID_WORKER_LOST' });
    await ctx.close();
    expect(await answerOf(again, [question])).toBe('2+2 equals 4.');
  });

  it('leaves contexts on other workers alone', async () => {
    const [first, second] = [await openWorkerProcess(), await openWorkerProcess()];
    const ctx = await openContext(split(first.endpoint));
    const other = await openContext(split(second.endpoint));
    const both = await openContext({ rpc: [first.endpoint, second.endpoint], tensorSplit: [1, 1, 1] });
    const expected = await greedyTokens(other, prompt, 32);
    expect(await greedyTokens(both, prompt, 32)).toEqual(expected);
    await first.kill();
    await expect(answerOf(ctx, [question])).rejects.toMatchObject({ code: 'DROID_WORKER_LOST' });
    await expect(answerOf(both, [question])).rejects.toMatchObject({
      code: 'DROID_WORKER_LOST',
      message: expect.stringContaining(first.endpoint),
    });
    expect(await greedyTokens(other, prompt, 32)).toEqual(expected);
    expect(other.failure).toBeUndefined();
  });

  it('before the master came is refused, and a worker that ends by itself is lost like any other', async () => {
    const worker = await openWorkerProcess();
    await worker.kill();
    await expect(createDistributedContext({ model: tinyModel, ...split(worker.endpoint) })).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_REFUSED',
    });
    const inProcess = await openWorker();
    const ctx = await openContext(split(inProcess.endpoint));
    const stream = ctx.chat(endless());
    await stream.next();
    await inProcess.close();
    // It may say that it ends; either way it is gone.
    await expect(readAll(stream)).rejects.toMatchObject({ code: 'DROID_WORKER_LOST' });
    await until('the request has ended', () => ctx.stats().engine.activeRequests === 0);
    await ctx.close();
  });
});

describe('a worker frozen', () => {
  it('is lost when the deadline for its answer has passed', async () => {
    const worker = await openWorkerProcess();
    const ctx = await openContext({ ...split(worker.endpoint), timeouts: { answerMs: 500 } });
    const reading = readAll(ctx.chat(endless()));
    reading.catch(() => {});
    await until('tokens are generated', () => ctx.stats().engine.tokensGenerated > 5);
    const start = performance.now();
    worker.freeze();
    await expect(reading).rejects.toMatchObject({
      code: 'DROID_WORKER_LOST',
      message: expect.stringContaining(worker.endpoint),
    });
    const noticed = performance.now() - start;
    expect(noticed).toBeGreaterThan(400);
    expect(noticed).toBeLessThan(10_000);
  });

  it('holds up neither an abort nor close()', async () => {
    const worker = await openWorkerProcess();
    const ctx = await openContext({ ...split(worker.endpoint), timeouts: { answerMs: 60_000 } });
    const abort = new AbortController();
    const reading = readAll(ctx.chat(endless(), { signal: abort.signal }));
    reading.catch(() => {});
    await until('tokens are generated', () => ctx.stats().engine.tokensGenerated > 5);
    worker.freeze();
    const start = performance.now();
    abort.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    await ctx.close();
    expect(performance.now() - start).toBeLessThan(2000);
  });

  it('holds up neither the cancelling of a load', async () => {
    const model = await guideModel();
    const worker = await openWorkerProcess();
    const abort = new AbortController();
    let start = 0;
    const loading = createDistributedContext({
      model,
      ...split(worker.endpoint),
      mmap: false,
      timeouts: { answerMs: 60_000 },
      signal: abort.signal,
      onProgress: ({ stage, fraction }) => {
        if (stage !== 'text_model' || fraction === 0 || abort.signal.aborted) return;
        worker.freeze();
        start = performance.now();
        abort.abort(new Error('no longer'));
      },
    });
    await expect(loading).rejects.toThrow('no longer');
    expect(performance.now() - start).toBeLessThan(3000);
  }, 30_000);

  it('in the middle of a large load is lost, however much it has yet to get', async () => {
    const model = await guideModel();
    const worker = await openWorkerProcess();
    let frozen = 0;
    const loading = createDistributedContext({
      model,
      ...split(worker.endpoint),
      mmap: false,
      timeouts: { answerMs: 1000 },
      onProgress: ({ stage, fraction }) => {
        if (stage !== 'text_model' || fraction < 0.1 || frozen) return;
        worker.freeze();
        frozen = performance.now();
      },
    });
    await expect(loading).rejects.toMatchObject({
      code: 'DROID_WORKER_LOST',
      message: expect.stringContaining(worker.endpoint),
    });
    expect(frozen).toBeGreaterThan(0);
    expect(performance.now() - frozen).toBeLessThan(10_000);
  }, 60_000);
});

it('counts what a worker was asked and what it took', async () => {
  const worker = await openWorker();
  const ctx = await openContext(split(worker.endpoint));
  const before = ctx.stats().workers[0];
  await readJson(await ctx.request('POST', '/completion', { prompt, n_predict: 32, ignore_eos: true }));
  const after = ctx.stats().workers[0];
  const used = (name: keyof Exclude<typeof after, undefined>) => Number(after?.[name]) - Number(before?.[name]);
  expect(used('graphs')).toBeGreaterThanOrEqual(32);
  // One answer for each token, and everything that is sent for it in one system call.
  expect(used('messagesReceived')).toBeLessThan(32 * 1.5);
  expect(used('writes')).toBeLessThan(32 * 1.5);
  expect(used('writes')).toBeGreaterThanOrEqual(32);
  expect(used('waits')).toBeLessThanOrEqual(used('messagesReceived'));
  expect(used('computeMs')).toBeGreaterThan(0);
  expect(used('waitMs')).toBeGreaterThan(0);
  expect(used('weightsSent')).toBe(0);
});
