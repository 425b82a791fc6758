/** close() and aborting with a worker that does not answer: nobody waits for it, whatever it was asked. */
import { afterAll, expect } from 'vitest';
import { createDistributedContext, type DistributedContext } from '../../lib/index.js';
import { greedyTokens, until } from '../support/contexts.js';
import {
  closePromptly,
  expectPromptly,
  expectUsable,
  faultLoop,
  halfOn,
  longPrompt,
  longPromptOptions,
  longTimeouts,
  type Scope,
  storyPrompt,
  storyTokens,
  TokenStream,
  undisturbedTokens,
} from '../support/faults.js';
import { isGraph, isRead, isWeight } from '../support/rpc-frames.mjs';
import type { RpcProxy } from '../support/rpc-proxy.mjs';
import { WorkerProcess } from '../support/worker-process.js';

interface State {
  readonly ctx: DistributedContext;
  readonly proxy: RpcProxy;
  readonly stream: TokenStream;
  readonly abort: AbortController;
}

/** Deadlines are long here: what ends a wait is the close, or the abort. */
async function open(scope: Scope, worker: WorkerProcess, prompt: string, options: object = {}): Promise<State> {
  const proxy = await scope.proxy(worker.port);
  const ctx = await scope.context(proxy.endpoint, { timeouts: longTimeouts, ...options });
  const abort = new AbortController();
  const stream = new TokenStream(ctx, prompt, prompt === storyPrompt ? storyTokens : 16, abort.signal);
  return { ctx, proxy, stream, abort };
}

/** States with a request under way that a silent worker holds up. */
const states: Record<string, (scope: Scope, worker: WorkerProcess, i: number) => Promise<State>> = {
  'during prompt processing': async (scope, worker, i) => {
    const proxy = await scope.proxy(worker.port);
    const ctx = await scope.context(proxy.endpoint, { timeouts: longTimeouts, ...longPromptOptions });
    let graphs = 0;
    const stop = proxy.stopAt(({ command }) => isGraph(command) && ++graphs === 1 + (i % 6));
    const abort = new AbortController();
    const stream = new TokenStream(ctx, longPrompt, 16, abort.signal);
    await Promise.race([stop.reached, stream.ended]);
    expect(ctx.stats().engine).toMatchObject({ tokensGenerated: 0, activeRequests: 1 });
    return { ctx, proxy, stream, abort };
  },
  'between graph and read': async (scope, worker) => {
    const state = await open(scope, worker, storyPrompt);
    await until('tokens are delivered', () => state.stream.tokens.length > 3);
    await state.proxy.stopAt(({ command }) => isGraph(command)).reached;
    expect(state.stream.over).toBe(false);
    expect(state.proxy.awaiting.some(isRead)).toBe(false);
    return state;
  },
  'while a read is not answered': async (scope, worker) => {
    const state = await open(scope, worker, storyPrompt);
    await until('tokens are delivered', () => state.stream.tokens.length > 3);
    await state.proxy.stopAt(({ command }) => isRead(command)).reached;
    expect(state.proxy.awaiting.some(isRead)).toBe(true);
    return state;
  },
  'while the worker is frozen': async (scope, worker, i) => {
    const state = await open(scope, worker, storyPrompt);
    await until('tokens are delivered', () => state.stream.tokens.length > 3 + i);
    worker.freeze();
    scope.defer(() => worker.thaw());
    await until('the worker is frozen', () => worker.state === 'T');
    expect(state.stream.over).toBe(false);
    return state;
  },
};

let shared: WorkerProcess | undefined;
afterAll(() => shared?.[Symbol.asyncDispose]());

/** One worker for all iterations: closing and aborting must leave it as it was. */
async function sharedWorker(): Promise<WorkerProcess> {
  shared ??= await WorkerProcess.start({ maxClients: 4 });
  return shared;
}

async function expectLeftEmpty(worker: WorkerProcess): Promise<void> {
  await expect.poll(async () => (await worker.stats()).bytesAllocated, { timeout: 10_000 }).toBe(0);
}

for (const [name, reach] of Object.entries(states)) {
  faultLoop(`close() ${name}`, async (scope, i) => {
    const worker = await sharedWorker();
    const { ctx, proxy, stream } = await reach(scope, worker, i);
    await closePromptly(ctx);
    await expectPromptly('the request has ended', () => stream.ended);
    expect(stream.rejection?.code).toBe('DROID_CLOSED');
    if (name.includes('prompt')) expect(stream.tokens).toEqual([]);
    else expect(stream.tokens).toEqual((await undisturbedTokens()).slice(0, stream.tokens.length));
    await expect(ctx.request('GET', '/health')).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    await proxy.close();
    if (worker.state === 'T') worker.thaw();
    await expectUsable(scope, worker.endpoint);
    await expectLeftEmpty(worker);
  });

  faultLoop(`abort ${name}`, async (scope, i) => {
    const worker = await sharedWorker();
    const { ctx, proxy, stream, abort } = await reach(scope, worker, i);
    const reason = new Error('enough');
    abort.abort(reason);
    await expectPromptly('the request has ended', () => stream.ended);
    expect(stream.rejection).toBe(reason);
    proxy.resume();
    if (worker.state === 'T') worker.thaw();
    // Only the request is over: the context goes on with the same worker.
    expect(await greedyTokens(ctx, storyPrompt, 16)).toEqual((await undisturbedTokens()).slice(0, 16));
    expect(ctx.failure).toBeUndefined();
    await closePromptly(ctx);
    await expectLeftEmpty(worker);
  });
}

faultLoop('abort while it loads', async (scope, i) => {
  const worker = await sharedWorker();
  const proxy = await scope.proxy(worker.port);
  const weight = 1 + 5 * (i % 6);
  const stop = proxy.stopAt(({ command, count }) => isWeight(command) && count === weight, i % 2 ? 'after' : 'middle');
  const abort = new AbortController();
  const loading = createDistributedContext(
    halfOn(proxy.endpoint, { timeouts: longTimeouts, signal: abort.signal, mmap: i % 2 === 0 }),
  );
  loading.catch(() => {});
  await Promise.race([stop.reached, loading]);
  expect(stop.request?.count).toBe(weight);
  const reason = new Error('no longer');
  abort.abort(reason);
  await expectPromptly('loading has ended', () => expect(loading).rejects.toBe(reason));
  await proxy.close();
  await expectUsable(scope, worker.endpoint);
  await expectLeftEmpty(worker);
});

faultLoop('close() after the worker was killed, with nobody having asked', async (scope) => {
  const worker = await scope.worker();
  const ctx = await scope.context(worker.endpoint, { timeouts: longTimeouts });
  await worker.kill();
  await closePromptly(ctx);
});

faultLoop('close() while idle on a frozen worker', async (scope) => {
  const worker = await sharedWorker();
  const ctx = await scope.context(worker.endpoint, { timeouts: longTimeouts });
  worker.freeze();
  scope.defer(() => worker.thaw());
  await until('the worker is frozen', () => worker.state === 'T');
  expect(ctx.stats().engine.activeRequests).toBe(0);
  await closePromptly(ctx);
  worker.thaw();
  await expectLeftEmpty(worker);
});
