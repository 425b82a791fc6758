/** A worker that stops answering while its connection stands: SIGSTOP, and the deadlines that notice it. */
import { expect } from 'vitest';
import { createDistributedContext } from '../../lib/index.js';
import { greedyTokens, until } from '../support/contexts.js';
import {
  closePromptly,
  expectContextLost,
  expectPromptly,
  expectStreamLost,
  expectUsable,
  faultLoop,
  halfOn,
  longPrompt,
  longPromptOptions,
  longTimeouts,
  shortTimeouts,
  storyPrompt,
  storyTokens,
  TokenStream,
  undisturbedTokens,
} from '../support/faults.js';
import { isGraph, isWeight } from '../support/rpc-frames.mjs';

/** Deadlines of `shortTimeouts` with the time a graph may take, and a busy machine's delays. */
const DEADLINE_MS = 10_000;

async function within<T>(what: Promise<T>): Promise<T> {
  const start = performance.now();
  const result = await what;
  expect(performance.now() - start, 'milliseconds until the loss was noticed').toBeLessThan(DEADLINE_MS);
  return result;
}

faultLoop('past the deadline during generation', async (scope, i) => {
  const worker = await scope.worker();
  const ctx = await scope.context(worker.endpoint, { timeouts: shortTimeouts });
  const stream = new TokenStream(ctx, storyPrompt, storyTokens);
  await until('tokens are delivered', () => stream.tokens.length > 3 + i);
  worker.freeze();
  await until('the worker is frozen', () => worker.state === 'T');
  expect(stream.over).toBe(false);
  await within(expectStreamLost(stream, worker.endpoint, await undisturbedTokens()));
  expect(worker.state).toBe('T');
  await expectContextLost(ctx, worker.endpoint);
  await closePromptly(ctx);
  worker.thaw();
  await expectUsable(scope, worker.endpoint);
  await expect.poll(async () => (await worker.stats()).bytesAllocated).toBe(0);
});

faultLoop('past the deadline during prompt processing', async (scope, i) => {
  const worker = await scope.worker();
  const proxy = await scope.proxy(worker.port);
  const ctx = await scope.context(proxy.endpoint, { timeouts: shortTimeouts, ...longPromptOptions });
  let graphs = 0;
  const stop = proxy.stopAt(({ command }) => isGraph(command) && ++graphs === 2 + (i % 6));
  const stream = new TokenStream(ctx, longPrompt, 16);
  await Promise.race([stop.reached, stream.ended]);
  worker.freeze();
  await until('the worker is frozen', () => worker.state === 'T');
  expect(ctx.stats().engine).toMatchObject({ tokensGenerated: 0, activeRequests: 1 });
  proxy.resume();
  await within(expectStreamLost(stream, proxy.endpoint, await undisturbedTokens(longPrompt)));
  expect(stream.tokens).toEqual([]);
  await expectContextLost(ctx, proxy.endpoint);
  await closePromptly(ctx);
  worker.thaw();
  await expectUsable(scope, proxy.endpoint);
});

faultLoop('past the deadline while it loads', async (scope, i) => {
  const worker = await scope.worker();
  const proxy = await scope.proxy(worker.port);
  const stop = proxy.stopAt(({ command, count }) => isWeight(command) && count === 1 + 6 * (i % 5), 'middle');
  const loading = createDistributedContext(halfOn(proxy.endpoint, { timeouts: shortTimeouts }));
  loading.catch(() => {});
  await Promise.race([stop.reached, loading]);
  expect(stop.request).toBeDefined();
  worker.freeze();
  await until('the worker is frozen', () => worker.state === 'T');
  proxy.resume();
  await within(
    expect(loading).rejects.toMatchObject({
      code: 'DROID_WORKER_LOST',
      message: expect.stringContaining(proxy.endpoint),
    }),
  );
  expect(worker.state).toBe('T');
  worker.thaw();
  await expectUsable(scope, proxy.endpoint);
  await expect.poll(async () => (await worker.stats()).bytesAllocated).toBe(0);
});

faultLoop('for less than the deadline is only slow, also when the request is aborted meanwhile', async (scope, i) => {
  const worker = await scope.worker();
  const ctx = await scope.context(worker.endpoint, { timeouts: longTimeouts });
  const abort = new AbortController();
  const stream = new TokenStream(ctx, storyPrompt, storyTokens, abort.signal);
  await until('tokens are delivered', () => stream.tokens.length > 3 + i);
  worker.freeze();
  await until('the worker is frozen', () => worker.state === 'T');
  if (i % 2) {
    abort.abort(new Error('no patience'));
    await expectPromptly('the request has ended', () => stream.ended);
    expect(stream.rejection?.message).toBe('no patience');
    worker.thaw();
    // The abort was the request's alone: the worker was never lost.
    expect(await greedyTokens(ctx, storyPrompt, 16)).toEqual((await undisturbedTokens()).slice(0, 16));
  } else {
    worker.thaw();
    await stream.ended;
    expect(stream.errorEvent).toBeUndefined();
    expect(stream.tokens).toEqual(await undisturbedTokens());
  }
  expect(ctx.failure).toBeUndefined();
});
