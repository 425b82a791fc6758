/** The master's state machine over an engine that only plays one. */
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { MasterRuntime } from '../../lib/cluster/master/master.js';
import type { MasterOptions } from '../../lib/cluster/master/master-options.js';
import { DroidLlamaError } from '../../lib/errors.js';
import type { EngineResponse } from '../../lib/types.js';
import { FakeLoads, layerBytes, planOf } from '../support/fake-engine.js';

afterEach(() => vi.useRealTimers());

const alone = planOf({ me: 4 });
const split = planOf({ me: 2, b: 2 });

function start(options: Partial<MasterOptions> = {}) {
  const loads = new FakeLoads();
  const runtime = new MasterRuntime({
    model: 'm.gguf',
    openRpc: async () => 99,
    loadContext: loads.load,
    layerBytes: async () => layerBytes,
    ...options,
  });
  const told: string[] = [];
  const states: string[] = [];
  runtime.on('state', () => {
    if (states.at(-1) !== runtime.state) states.push(runtime.state);
  });
  runtime.on('lost', ({ code }, peer) => told.push(`lost ${peer} ${code}`));
  runtime.on('failed', ({ code }, peer) => told.push(`failed ${peer} ${code}`));
  onTestFinished(() => runtime.close());
  return { runtime, loads, told, states };
}

/** Until everything that needs no timer has happened. */
async function quiet(): Promise<void> {
  for (let i = 0; i < 5; i++) await turn();
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}

async function loaded(plan = split, options: Partial<MasterOptions> = {}) {
  const started = start(options);
  const applied = started.runtime.apply(plan, { drain: true });
  await until(() => started.loads.all.length === 1);
  started.loads.last.finish();
  await applied;
  return started;
}

async function textOf({ body }: EngineResponse): Promise<string> {
  let text = '';
  for await (const chunk of body) text += Buffer.from(chunk).toString();
  return text;
}

/** Starts a request whose answer goes on, and reads it. */
async function openStream(runtime: MasterRuntime, signal?: AbortSignal) {
  const response = await runtime.request('POST', '/stream', {}, { ...(signal && { signal }) });
  const reading = textOf(response);
  reading.catch(() => {});
  await quiet();
  // In a record, as an async function would wait for the promise itself.
  return { reading };
}

const get = (runtime: MasterRuntime, path = '/x') => runtime.request('GET', path).then(textOf);
const code = (name: string, message = '') => ({ code: name, message: expect.stringContaining(message) });

describe('a plan', () => {
  it('becomes the options of a load, whose layers come out as planned', async () => {
    const engine = { threads: 3, parallel: 2 };
    const names: Record<string, string> = { b: 'Phone', c: 'Phone', d: 'master' };
    const { runtime, loads } = await loaded(planOf({ me: 0, b: 1, c: 2, d: 1 }), {
      engine,
      nameOf: (peer) => names[peer] as string,
    });
    expect(loads.last.options).toMatchObject({
      ...engine,
      model: 'm.gguf',
      head: 'master',
      tensorSplit: [0, 10, 50, 40],
      contextSize: 512,
      batchSize: 128,
      ubatchSize: 64,
    });
    expect(loads.last.workers.map(({ endpoint }) => endpoint)).toEqual(['Phone (b)', 'Phone (c)', 'master (d)']);
    expect(runtime.state).toBe('ready');
    expect(runtime.measured()).toEqual({
      loadSeconds: expect.any(Number),
      promptTokensPerSecond: null,
      generationTokensPerSecond: 5.5,
    });
  });

  it('opens the streams of each worker by its id, with the signal of the load', async () => {
    const asked: string[] = [];
    const { loads } = await loaded(split, {
      nameOf: () => 'Phone',
      openRpc: async (peer, signal) => {
        asked.push(`${peer} ${signal?.aborted}`);
        return 7;
      },
    });
    expect(await loads.last.workers[0]?.open()).toBe(7);
    expect(asked).toEqual(['b false']);
  });

  it.each([
    ['with layers for nobody', planOf({ me: 1, b: 2 }), 'places 3 of 4 layers'],
    [
      'with a gap',
      { ...split, parts: split.parts.map((part, i) => ({ ...part, firstLayer: i * 3 })) },
      'follow each other',
    ],
  ])('%s is refused for good', async (_, plan, message) => {
    const { runtime, told } = start();
    await expect(runtime.apply(plan, { drain: true })).rejects.toMatchObject(code('DROID_INVALID_ARGUMENT', message));
    expect(runtime.state).toBe('failed');
    expect(told).toEqual(['failed null DROID_INVALID_ARGUMENT']);
  });

  it('that comes out otherwise is a failure, and its engine is closed', async () => {
    const { runtime, loads } = start();
    const applied = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    const { context } = loads.last;
    Object.assign(context, { placement: context.placement.map((part) => ({ ...part, layers: [0, 1] })) });
    loads.last.finish();
    await expect(applied).rejects.toMatchObject(code('DROID_LOAD_FAILED', '2 to 3 were planned for b'));
    expect(context.isClosed).toBe(true);
    expect(runtime.state).toBe('failed');
  });

  it('that is loaded, or being loaded, is not loaded again', async () => {
    const { runtime, loads } = start();
    const first = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    expect(runtime.apply({ ...split, reasons: ['again'] }, { drain: true })).toBe(first);
    loads.last.finish();
    await first;
    await runtime.apply({ ...split, reasons: ['and again'] }, { drain: false });
    expect(loads.all).toHaveLength(1);
    expect(runtime.plan?.reasons).toEqual(['and again']);
  });

  it('that does not fit ends the engine and says how much is missing', async () => {
    const { runtime, loads } = await loaded();
    await runtime.apply(planOf({}, { fits: false, missingBytes: 3 * 2 ** 20 }), { drain: true });
    expect(loads.last.context.isClosed).toBe(true);
    expect([runtime.state, runtime.reason]).toEqual(['waiting', expect.stringContaining('3 MiB more')]);
  });
});

describe('progress', () => {
  it('is told as it comes, and grows as a whole', async () => {
    const { runtime, loads } = start();
    const seen: number[] = [];
    runtime.on('progress', () => seen.push(runtime.progress));
    const applied = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    const { onProgress } = loads.last.options;
    onProgress?.({ stage: 'weights', fraction: 1 });
    onProgress?.({ stage: 'text_model', fraction: 0.5 });
    expect(runtime.health()).toEqual({
      status: 503,
      body: {
        error: { message: 'Loading model (60 %)', type: 'unavailable_error', code: 503 },
        status: 'loading',
        progress: 0.6,
      },
    });
    onProgress?.({ stage: 'text_model', fraction: 1 });
    loads.last.finish();
    await applied;
    onProgress?.({ stage: 'text_model', fraction: 0 });
    expect(seen).toEqual([0.2, expect.closeTo(0.6), 1]);
    expect([runtime.progress, runtime.health()]).toEqual([1, { status: 200, body: { status: 'ok' } }]);
  });
});

describe('a change of the plan', () => {
  it('waits for running streams, takes requests meanwhile, and answers after it', async () => {
    const { runtime, loads, states } = await loaded();
    const { reading: stream } = await openStream(runtime);
    const applied = runtime.apply(alone, { drain: true });
    await quiet();
    expect(await get(runtime)).toBe('/x');
    expect([runtime.state, runtime.plan, runtime.activeRequests]).toEqual(['ready', split, 1]);
    loads.last.context.finish();
    expect(await stream).toBe('/stream');
    await until(() => loads.all.length === 2);
    expect(loads.all[0]?.context.isClosed).toBe(true);
    const waiting = get(runtime, '/later');
    await quiet();
    expect([runtime.state, runtime.plan, runtime.waitingRequests]).toEqual(['loading', alone, 1]);
    loads.last.finish();
    await applied;
    expect(await waiting).toBe('/later');
    expect(loads.last.context.paths).toEqual(['/later']);
    expect(states).toEqual(['loading', 'ready', 'loading', 'ready']);
  });

  it('is not put off for ever by a busy server: new requests are held back after a while', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { runtime, loads } = await loaded(split, { drainGraceMs: 3000 });
    const { reading: stream } = await openStream(runtime);
    const applied = runtime.apply(alone, { drain: true });
    await quiet();
    vi.advanceTimersByTime(2999);
    const { reading: taken } = await openStream(runtime);
    vi.advanceTimersByTime(1);
    const held = get(runtime, '/held');
    await quiet();
    expect([runtime.activeRequests, runtime.waitingRequests]).toEqual([2, 1]);
    // However long they take, running streams are not cut.
    vi.advanceTimersByTime(50_000);
    await quiet();
    expect(loads.all[0]?.context.isClosed).toBe(false);
    loads.last.context.finish();
    expect(await Promise.all([stream, taken])).toEqual(['/stream', '/stream']);
    await until(() => loads.all.length === 2);
    loads.last.finish();
    await applied;
    expect(await held).toBe('/held');
    expect(await get(runtime)).toBe('/x');
  });

  it('is what those who were held back in vain are told of', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { runtime } = await loaded(split, { drainGraceMs: 1000, requestWaitMs: 1000 });
    await openStream(runtime);
    runtime.apply(alone, { drain: true });
    await quiet();
    vi.advanceTimersByTime(1000);
    const held = expect(get(runtime)).rejects.toMatchObject(
      code('DROID_NOT_READY', 'once 1 running requests have ended'),
    );
    await quiet();
    vi.advanceTimersByTime(1000);
    await held;
  });

  it('that is taken back lets in those it held', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { runtime, loads } = await loaded();
    const { reading: stream } = await openStream(runtime);
    const applied = runtime.apply(alone, { drain: true });
    await quiet();
    vi.advanceTimersByTime(5000);
    const held = get(runtime, '/held');
    await runtime.apply(split, { drain: true });
    await applied;
    expect(await held).toBe('/held');
    expect(loads.all).toHaveLength(1);
    loads.last.context.finish();
    expect(await stream).toBe('/stream');
    expect(runtime.state).toBe('ready');
  });

  it('waits for a body until it is read, ended, failed, or its request aborted', async () => {
    const { runtime, loads } = await loaded();
    const { context } = loads.last;
    const ended = (await runtime.request('GET', '/stream')).body[Symbol.asyncIterator]();
    const { reading: failed } = await openStream(runtime);
    const controller = new AbortController();
    await runtime.request('GET', '/stream', undefined, { signal: controller.signal });
    expect(runtime.activeRequests).toBe(3);
    await ended.return?.();
    await ended.return?.();
    expect(runtime.activeRequests).toBe(2);
    context.finish(new Error('gone'));
    await expect(failed).rejects.toThrow('gone');
    expect(runtime.activeRequests).toBe(1);
    controller.abort();
    expect(runtime.activeRequests).toBe(0);
  });

  it('without draining ends what runs', async () => {
    const { runtime, loads } = await loaded();
    const { reading: stream } = await openStream(runtime);
    runtime.apply(alone, { drain: false });
    await expect(stream).rejects.toMatchObject(code('DROID_CLOSED'));
    await until(() => loads.all.length === 2);
  });

  it('takes over from one that loads, which is aborted before the next load begins', async () => {
    const { runtime, loads, states } = start();
    const first = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    const skipped = runtime.apply(planOf({ me: 3, b: 1 }), { drain: true });
    const last = runtime.apply(alone, { drain: true });
    await Promise.all([first, skipped]);
    await until(() => loads.all.length === 2);
    expect(loads.all[0]?.state).toBe('aborted');
    expect(loads.last.options.tensorSplit).toEqual([100]);
    loads.last.finish();
    await last;
    expect(states).toEqual(['loading', 'ready']);
  });

  it('closes an engine that loaded although it was no longer wanted', async () => {
    const { runtime, loads } = start();
    const first = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    loads.last.finish();
    runtime.wait('nobody is there');
    await first;
    await quiet();
    expect(loads.last.context.isClosed).toBe(true);
    expect(runtime.state).toBe('waiting');
    expect(runtime.context()).toBeNull();
  });
});

describe('a worker that is lost', () => {
  it('ends what runs with its error; who comes then waits for the next plan', async () => {
    const { runtime, loads, told } = await loaded();
    const { reading: stream } = await openStream(runtime);
    loads.last.loseWorker(0);
    expect(told).toEqual(['lost b DROID_WORKER_LOST']);
    expect([runtime.state, runtime.failure?.code]).toEqual(['degraded', 'DROID_WORKER_LOST']);
    expect(runtime.health()).toMatchObject({ status: 503, body: { status: 'degraded' } });
    const waiting = get(runtime);
    const applied = runtime.apply(alone, { drain: true });
    await expect(stream).rejects.toMatchObject(code('DROID_WORKER_LOST', 'b hung up'));
    await until(() => loads.all.length === 2);
    expect(runtime.failure).toBeNull();
    loads.last.finish();
    await applied;
    expect(await waiting).toBe('/x');
  });

  it('is respected before the engine has told', async () => {
    const { runtime, loads } = await loaded();
    loads.last.context.failure = { code: 'DROID_WORKER_LOST', message: 'b', endpoint: 'b' };
    const waiting = get(runtime);
    await quiet();
    expect(runtime.waitingRequests).toBe(1);
    runtime.apply(alone, { drain: true });
    await until(() => loads.all.length === 2);
    loads.last.finish();
    expect(await waiting).toBe('/x');
  });

  it('ends the draining of a change', async () => {
    const { runtime, loads, told } = await loaded();
    const { reading: stream } = await openStream(runtime);
    runtime.apply(alone, { drain: true });
    await quiet();
    loads.last.loseWorker(0);
    await expect(stream).rejects.toMatchObject(code('DROID_WORKER_LOST'));
    await until(() => loads.all.length === 2);
    expect(told).toEqual(['lost b DROID_WORKER_LOST']);
  });

  it('while it loads leaves the state degraded, and the same plan may be tried again', async () => {
    const { runtime, loads, told } = start();
    runtime.once('lost', () => void runtime.apply(split, { drain: false }));
    const applied = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    loads.last.loseWorker(0);
    loads.last.fail(new DroidLlamaError('DROID_WORKER_LOST', 'the worker is gone'));
    await expect(applied).rejects.toMatchObject(code('DROID_WORKER_LOST'));
    expect(told).toEqual(['lost b DROID_WORKER_LOST']);
    await until(() => loads.all.length === 2);
    loads.last.finish();
    await until(() => runtime.state === 'ready');
  });

  it('that cannot be reached is named, also among several', async () => {
    const { runtime, loads, told } = start({
      openRpc: async (peer) => {
        throw peer === 'c' ? new Error('no way') : new DroidLlamaError('DROID_CLOSED', 'unused');
      },
    });
    const applied = runtime.apply(planOf({ me: 2, b: 1, c: 1 }), { drain: true });
    await until(() => loads.all.length === 1);
    await loads.last.workers[1]?.open().catch((error: unknown) => loads.last.fail(error));
    await expect(applied).rejects.toMatchObject(code('DROID_LOAD_FAILED', 'no way'));
    expect([runtime.state, told]).toEqual(['degraded', ['lost c DROID_LOAD_FAILED']]);
  });

  it('of an engine that is gone is no news', async () => {
    const { runtime, loads, told } = await loaded();
    const old = loads.last;
    runtime.apply(alone, { drain: true });
    await until(() => loads.all.length === 2);
    old.loseWorker(0);
    loads.last.finish();
    await until(() => runtime.state === 'ready');
    expect(told).toEqual([]);
  });
});

describe('a load that fails', () => {
  it.each([
    ['DROID_OUT_OF_MEMORY', 'The master has 1 MiB free', 'me'],
    ['DROID_MODEL_INVALID', 'no GGUF', null],
    ['DROID_LOAD_FAILED', 'who knows', null],
  ] as const)('%s of %s is told with %s', async (name, message, peer) => {
    const { runtime, loads, told } = start();
    const applied = runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    loads.last.fail(new DroidLlamaError(name, message));
    await expect(applied).rejects.toMatchObject(code(name));
    expect(told).toEqual([`failed ${peer} ${name}`]);
    expect([runtime.state, runtime.reason]).toEqual(['failed', message]);
    expect(runtime.health()).toMatchObject({ status: 503, body: { status: 'failed' } });
  });

  it('for a model at fault fails requests at once, those that wait too', async () => {
    const { runtime, loads } = start();
    runtime.apply(split, { drain: true });
    const waiting = get(runtime);
    waiting.catch(() => {});
    await until(() => loads.all.length === 1);
    loads.last.fail(new DroidLlamaError('DROID_MODEL_INVALID', 'no GGUF'));
    const error = { ...code('DROID_NOT_READY', 'no GGUF'), cause: code('DROID_MODEL_INVALID') };
    await expect(waiting).rejects.toMatchObject(error);
    await expect(get(runtime)).rejects.toMatchObject(error);
  });

  it('for memory lets requests wait for a better plan', async () => {
    const { runtime, loads } = start();
    runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    loads.last.fail(new DroidLlamaError('DROID_OUT_OF_MEMORY', 'The master has too little'));
    await until(() => runtime.state === 'failed');
    const waiting = get(runtime);
    runtime.apply(alone, { drain: false });
    await until(() => loads.all.length === 2);
    loads.last.finish();
    expect(await waiting).toBe('/x');
  });

  it('for memory of a worker is tried again for a while, as it may still free the last engine', async () => {
    const { runtime, loads, told } = start();
    const now = vi.spyOn(performance, 'now');
    const applied = runtime.apply(planOf({ me: 2, b: 1, c: 1 }), { drain: true });
    for (let i = 1; i <= 2; i++) {
      await expect.poll(() => loads.all.length).toBe(i);
      loads.last.fail(new DroidLlamaError('DROID_OUT_OF_MEMORY', 'The worker c has 1 MiB free'));
    }
    await expect.poll(() => loads.all.length).toBe(3);
    expect(told).toEqual([]);
    const later = performance.now() + 60_000;
    now.mockReturnValue(later);
    loads.last.fail(
      new DroidLlamaError(
        'DROID_WORKER_OUT_OF_MEMORY',
        'The worker c has too little memory for alloc_buffer of 5 bytes: none is left',
      ),
    );
    await expect(applied).rejects.toMatchObject(code('DROID_WORKER_OUT_OF_MEMORY'));
    expect([runtime.state, told]).toEqual(['failed', ['failed c DROID_WORKER_OUT_OF_MEMORY']]);
  });
});

describe('requests without an engine', () => {
  it('wait for their time, and then tell why', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { runtime } = start({ requestWaitMs: 20_000 });
    runtime.wait('The model needs 3 MiB more.');
    const request = expect(get(runtime)).rejects.toMatchObject(
      code('DROID_NOT_READY', 'needs 3 MiB more. The request has waited for 20 s.'),
    );
    await quiet();
    vi.advanceTimersByTime(20_000);
    await request;
    expect(runtime.waitingRequests).toBe(0);
  });

  it('are so many at most', async () => {
    const { runtime } = start({ waitingLimit: 2 });
    const waiting = [get(runtime), get(runtime)].map((request) =>
      expect(request).rejects.toMatchObject(code('DROID_CLOSED')),
    );
    await expect(get(runtime)).rejects.toMatchObject(code('DROID_NOT_READY', '2 requests wait already'));
    await runtime.close();
    await Promise.all(waiting);
  });

  it('can be aborted', async () => {
    const { runtime } = start();
    const controller = new AbortController();
    const request = runtime.request('GET', '/x', undefined, { signal: controller.signal });
    await quiet();
    controller.abort(new Error('enough'));
    await expect(request).rejects.toThrow('enough');
    expect(runtime.waitingRequests).toBe(0);
  });
});

describe('a listener', () => {
  it('may apply a plan as soon as it hears that the runtime waits', async () => {
    const { runtime, loads } = await loaded();
    let applied: Promise<void> | undefined;
    runtime.on('state', () => {
      if (runtime.state === 'waiting') applied = runtime.apply(alone, { drain: true });
    });
    runtime.wait('nobody is there');
    await until(() => loads.all.length === 2);
    loads.last.finish();
    await applied;
    await quiet();
    expect([runtime.state, loads.last.context.isClosed]).toEqual(['ready', false]);
  });

  it('may close, and gets nothing new in while it is closed', async () => {
    const { runtime, loads } = await loaded();
    const told: unknown[] = [];
    runtime.on('state', () => {
      runtime.close().then(() => told.push('closed'));
      runtime.apply(alone, { drain: true }).catch((error: DroidLlamaError) => told.push(error.code));
    });
    loads.last.loseWorker(0);
    await runtime.close();
    await quiet();
    expect(new Set(told)).toEqual(new Set(['closed', 'DROID_CLOSED']));
    expect([runtime.state, loads.all.length, loads.last.context.isClosed]).toEqual(['idle', 1, true]);
  });
});

describe('close', () => {
  it('ends the engine and what runs, is final, and can be called twice', async () => {
    const { runtime, loads } = await loaded();
    const { reading: stream } = await openStream(runtime);
    const closing = runtime.close();
    expect(runtime.close()).toBe(closing);
    await closing;
    await expect(stream).rejects.toMatchObject(code('DROID_CLOSED'));
    expect([runtime.state, runtime.plan, loads.last.context.isClosed]).toEqual(['idle', null, true]);
    await expect(runtime.apply(alone, { drain: true })).rejects.toMatchObject(code('DROID_CLOSED'));
    await expect(get(runtime)).rejects.toMatchObject(code('DROID_CLOSED'));
    runtime.wait('for nothing');
    expect(runtime.state).toBe('idle');
  });

  it('aborts a load, and a change that waits for a stream', async () => {
    const first = start();
    const loading = first.runtime.apply(split, { drain: true });
    await until(() => first.loads.all.length === 1);
    await first.runtime.close();
    await loading;
    expect(first.loads.last.state).toBe('aborted');

    const second = await loaded();
    const { reading: stream } = await openStream(second.runtime);
    const draining = second.runtime.apply(alone, { drain: true });
    await quiet();
    await second.runtime.close();
    await draining;
    await expect(stream).rejects.toMatchObject(code('DROID_CLOSED'));
    expect(second.loads.all).toHaveLength(1);
  });

  it('leaves no rejection unhandled', async () => {
    const { runtime, loads } = start();
    runtime.apply(split, { drain: true });
    await until(() => loads.all.length === 1);
    loads.last.fail(new DroidLlamaError('DROID_MODEL_INVALID', 'no GGUF'));
    await quiet();
    await runtime.close();
    runtime.apply(split, { drain: true });
    // vitest fails the run on an unhandled rejection.
    await quiet();
  });
});
