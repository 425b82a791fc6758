/** kill -9 of a worker, in each of the states a master can be in; the next worker comes back on the same port. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { createDistributedContext, type DistributedContext } from '../../lib/index.js';
import { greedyCompletion, readJson, until } from '../support/contexts.js';
import {
  closePromptly,
  expectContextLost,
  expectStreamLost,
  expectUsable,
  faultLoop,
  halfOn,
  longPrompt,
  longPromptOptions,
  type Scope,
  storyPrompt,
  storyTokens,
  TokenStream,
  undisturbedTokens,
} from '../support/faults.js';
import { isGraph, isRead, isWeight } from '../support/rpc-frames.mjs';
import type { WorkerProcess } from '../support/worker-process.js';

/** A context on a worker process behind a proxy. */
async function behindProxy(scope: Scope, options: object = {}) {
  const worker = await scope.worker();
  const proxy = await scope.proxy(worker.port);
  const lost: [Error, string][] = [];
  const ctx = await scope.context(proxy.endpoint, {
    onWorkerLost: (error, endpoint) => lost.push([error, endpoint]),
    ...options,
  });
  proxy.reset();
  return { worker, proxy, ctx, lost };
}

/** The callback comes from another thread, and once. */
async function expectReported(lost: [Error, string][], endpoint: string): Promise<void> {
  await until('the loss is reported', () => lost.length > 0);
  expect(lost).toMatchObject([[{ code: 'DROID_WORKER_LOST' }, endpoint]]);
}

/** What must hold once the worker is dead, up to a new context on the same endpoint. */
async function expectRecovery(scope: Scope, ctx: DistributedContext, worker: WorkerProcess, endpoint: string) {
  await expectContextLost(ctx, endpoint);
  await closePromptly(ctx);
  await scope.worker({ port: worker.port });
  await expectUsable(scope, endpoint);
}

faultLoop('while it loads', async (scope, i) => {
  const worker = await scope.worker();
  const proxy = await scope.proxy(worker.port);
  // The first of the weights, and ever later ones; in the middle of one, and after it.
  const weight = 1 + 4 * (i % 8);
  const stop = proxy.stopAt(({ command, count }) => isWeight(command) && count === weight, i % 2 ? 'after' : 'middle');
  let over = false;
  const loading = createDistributedContext(halfOn(proxy.endpoint, { mmap: i % 2 === 0 })).finally(() => {
    over = true;
  });
  loading.catch(() => {});
  await Promise.race([stop.reached, loading]);
  expect(stop.request?.count).toBe(weight);
  expect(over).toBe(false);
  await worker.kill();
  await expect(loading).rejects.toMatchObject({
    code: 'DROID_WORKER_LOST',
    message: expect.stringContaining(proxy.endpoint),
  });
  await scope.worker({ port: worker.port });
  await expectUsable(scope, proxy.endpoint);
});

faultLoop('during prompt processing', async (scope, i) => {
  const { worker, proxy, ctx, lost } = await behindProxy(scope, longPromptOptions);
  // One of the first graphs of about a dozen; the worker may have computed it or not.
  let graphs = 0;
  const stop = proxy.stopAt(({ command }) => isGraph(command) && ++graphs === 2 + (i % 6));
  const stream = new TokenStream(ctx, longPrompt, 16);
  await Promise.race([stop.reached, stream.ended]);
  expect(stop.request).toBeDefined();
  expect(ctx.stats().engine).toMatchObject({ tokensGenerated: 0, activeRequests: 1 });
  await worker.kill();
  await expectStreamLost(stream, proxy.endpoint, await undisturbedTokens(longPrompt));
  expect(stream.tokens).toEqual([]);
  expect(ctx.stats().engine.tokensGenerated).toBe(0);
  await expectReported(lost, proxy.endpoint);
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('between the batches of a prompt', async (scope, i) => {
  // Each graph is a batch of its own, so that nothing waits for the results of those before the last.
  const { worker, proxy, ctx, lost } = await behindProxy(scope, { batchSize: 32, ubatchSize: 32 });
  let graphs = 0;
  const stop = proxy.stopAt(({ command }) => isGraph(command) && ++graphs === 2 + (i % 6));
  const stream = new TokenStream(ctx, longPrompt, 16);
  await Promise.race([stop.reached, stream.ended]);
  expect(stop.request).toBeDefined();
  await worker.kill();
  await expectStreamLost(stream, proxy.endpoint, await undisturbedTokens(longPrompt));
  expect(stream.tokens).toEqual([]);
  await expectReported(lost, proxy.endpoint);
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('with more requests than slots, whose prompts begin alike', async (scope, i) => {
  // What the lost batch left in a slot must not be taken for a prompt that the next request can go on from.
  const { worker, proxy, ctx, lost } = await behindProxy(scope, {
    ubatchSize: 32,
    parallel: 4,
    contextSize: 4 * 512,
    llamaArgs: i % 2 ? [] : ['--kv-unified'],
  });
  const ask = async (tail: number) => {
    const prompt = `${'Count to 20 and tell me a story. '.repeat(9)}${'And more. '.repeat(tail % 7)}`;
    const body = { ...greedyCompletion(prompt, 16), cache_prompt: true };
    const response = await ctx.request('POST', '/completion', body);
    return { status: response.status, body: await readJson(response) };
  };
  let graphs = 0;
  const stop = proxy.stopAt(({ command }) => isGraph(command) && ++graphs === 1 + (i % 5));
  const asked = Promise.all(Array.from({ length: 12 }, (_, tail) => ask(tail)));
  await Promise.race([stop.reached, asked]);
  expect(stop.request).toBeDefined();
  await until('all are asked', () => ctx.stats().engine.activeRequests === 12);
  await worker.kill();
  for (const answer of await asked) {
    expect(answer.status).toBeGreaterThanOrEqual(500);
    expect(answer.body).toMatchObject({ error: { message: expect.stringContaining('DROID_WORKER_LOST') } });
    expect(answer.body).toMatchObject({ error: { message: expect.stringContaining(proxy.endpoint) } });
  }
  await expectReported(lost, proxy.endpoint);
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('before a slot is saved', async (scope) => {
  const directory = await mkdtemp(join(tmpdir(), 'droid-llama-slots-'));
  scope.defer(() => rm(directory, { recursive: true }));
  const { worker, proxy, ctx, lost } = await behindProxy(scope, { llamaArgs: ['--slot-save-path', directory] });
  const save = async () => {
    const response = await ctx.request('POST', '/slots/0?action=save', { filename: 'slot.bin' });
    return { status: response.status, body: await readJson(response) };
  };
  await new TokenStream(ctx, storyPrompt, 16).ended;
  expect(await save()).toMatchObject({ status: 200 });
  await worker.kill();
  await expectReported(lost, proxy.endpoint);
  expect(await save()).toMatchObject({
    status: 500,
    body: { error: { message: expect.stringContaining('DROID_WORKER_LOST') } },
  });
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('during generation, wherever it happens to be', async (scope, i) => {
  const { worker, proxy, ctx, lost } = await behindProxy(scope);
  const stream = new TokenStream(ctx, storyPrompt, storyTokens);
  await until('tokens are delivered', () => stream.tokens.length > 3 + i);
  const killed = worker.kill();
  expect(stream.over).toBe(false);
  expect(ctx.stats().engine).toMatchObject({ activeRequests: 1 });
  await killed;
  await expectStreamLost(stream, proxy.endpoint, await undisturbedTokens());
  expect(stream.tokens.length).toBeGreaterThan(3 + i);
  await expectReported(lost, proxy.endpoint);
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('between graph and read', async (scope, i) => {
  const { worker, proxy, ctx, lost } = await behindProxy(scope);
  const stream = new TokenStream(ctx, storyPrompt, storyTokens);
  await until('tokens are delivered', () => stream.tokens.length > 3);
  // The worker has the graph and not the read of its result; or both, and none of its answer has passed.
  const graph = proxy.stopAt(({ command }) => isGraph(command));
  await graph.reached;
  if (i % 2) {
    const read = proxy.stopAt(({ command }) => isRead(command));
    proxy.resume();
    await read.reached;
    expect(proxy.awaiting.some(isRead)).toBe(true);
  } else {
    expect(proxy.awaiting.some(isRead)).toBe(false);
  }
  const answers = proxy.traffic.messagesReceived;
  const sampled = ctx.stats().engine.tokensGenerated;
  await worker.kill();
  await expectStreamLost(stream, proxy.endpoint, await undisturbedTokens());
  expect(proxy.traffic.messagesReceived).toBe(answers);
  // Nothing was sampled from what never came back.
  expect(ctx.stats().engine.tokensGenerated).toBe(sampled);
  await expectReported(lost, proxy.endpoint);
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('while idle', async (scope) => {
  const { worker, proxy, ctx, lost } = await behindProxy(scope);
  const stream = new TokenStream(ctx, storyPrompt, 16);
  await stream.ended;
  expect(stream.tokens).toEqual((await undisturbedTokens()).slice(0, 16));
  await until('no request is left', () => ctx.stats().engine.activeRequests === 0);
  expect(proxy.awaiting).toEqual([]);
  await worker.kill();
  // Nobody asks anything, and still it shows.
  await expectContextLost(ctx, proxy.endpoint);
  const next = new TokenStream(ctx, storyPrompt, 16);
  await expectStreamLost(next, proxy.endpoint, await undisturbedTokens());
  expect(next.tokens).toEqual([]);
  await expectReported(lost, proxy.endpoint);
  await expectRecovery(scope, ctx, worker, proxy.endpoint);
});

faultLoop('and started again on its port, with nothing in between', async (scope, i) => {
  const worker = await scope.worker();
  const ctx = await scope.context(worker.endpoint);
  const stream = new TokenStream(ctx, storyPrompt, storyTokens);
  await until('tokens are delivered', () => stream.tokens.length > 3 + i);
  const killed = worker.kill();
  expect(stream.over).toBe(false);
  await killed;
  // The new worker knows nothing of the old context, which must not take it for the one it lost.
  const back = await scope.worker({ port: worker.port });
  expect(back.endpoint).toBe(worker.endpoint);
  await expectStreamLost(stream, worker.endpoint, await undisturbedTokens());
  const next = await scope.context(worker.endpoint);
  await expectContextLost(ctx, worker.endpoint);
  await closePromptly(ctx);
  const again = new TokenStream(next, storyPrompt, 32);
  await again.ended;
  expect(again.tokens).toEqual((await undisturbedTokens()).slice(0, 32));
});
