/** The master's runtime with real engines: plans come out as planned, workers are lost and replaced under requests. */
import { readdirSync } from 'node:fs';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { addon } from '../../lib/addon.js';
import { MasterRuntime } from '../../lib/cluster/master/master.js';
import type { MasterOptions } from '../../lib/cluster/master/master-options.js';
import type { Plan } from '../../lib/cluster/types.js';
import { DroidLlamaError } from '../../lib/errors.js';
import { startHttpServer } from '../../lib/http/server.js';
import { streamRequest } from '../../lib/requests.js';
import { endless, greedyCompletion, question, readJson, settled, until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';
import { WiredWorker } from '../support/wire.js';

const CHAT = '/v1/chat/completions';
let layers = 0;
beforeAll(async () => {
  layers = (await addon().inspectModel(tinyModel)).layerBytes.length;
});

/** `me` gets the layers that are left over. */
function planOf(workers: Record<string, number>, more: Partial<Plan> = {}): Plan {
  const rest = Object.values(workers).reduce((left, count) => left - count, layers);
  let next = 0;
  const parts = Object.entries({ me: rest, ...workers }).map(([id, count]) => {
    next += count;
    return { id, firstLayer: next - count, layers: count, bytes: 0, memoryNeeded: 0 };
  });
  const sizes = { contextSize: 1024, batchSize: 128, ubatchSize: 64 };
  return { fits: true, missingBytes: 0, parts, ...sizes, prediction: null, leftOut: [], reasons: [], ...more };
}

async function start(workers: Record<string, WiredWorker>, options: Partial<MasterOptions> = {}) {
  const runtime = new MasterRuntime({
    model: tinyModel,
    openRpc: async (peer) => {
      const worker = workers[peer];
      if (!worker) throw new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', `${peer} is not there`);
      return worker.open();
    },
    nameOf: (peer) => `Phone ${peer}`,
    engine: { threads: 1, parallel: 2 },
    ...options,
  });
  const told: string[] = [];
  runtime.on('lost', ({ code }, peer) => told.push(`lost ${peer} ${code}`));
  runtime.on('failed', ({ code }, peer) => told.push(`failed ${peer} ${code}`));
  onTestFinished(() => runtime.close());
  return { runtime, told };
}

async function answerOf(runtime: MasterRuntime): Promise<string> {
  let text = '';
  const body = { messages: [question], temperature: 0, max_tokens: 30 };
  for await (const chunk of streamRequest<{ choices: { delta: { content?: string } }[] }>(runtime, CHAT, body, {})) {
    text += chunk.choices[0]?.delta.content ?? '';
  }
  return text;
}
const answer = '2+2 equals 4.';

async function readAll(stream: AsyncIterable<unknown>): Promise<number> {
  let chunks = 0;
  for await (const _ of stream) chunks++;
  return chunks;
}

const generated = (runtime: MasterRuntime) => runtime.stats()?.engine.tokensGenerated ?? 0;

describe('a plan', () => {
  it('with the master alone is loaded, answers, and is measured', async () => {
    const { runtime } = await start({});
    const seen: number[] = [];
    runtime.on('progress', () => seen.push(runtime.progress));
    const early = answerOf(runtime);
    await runtime.apply(planOf({}), { drain: true });
    expect(await early).toBe(answer);
    expect(runtime.state).toBe('ready');
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
    expect(seen.at(-1)).toBe(1);
    const response = await runtime.request('POST', '/completion', greedyCompletion('Once', 20));
    expect(((await readJson(response)) as { tokens: number[] }).tokens).toHaveLength(20);
    const measured = runtime.measured();
    expect(measured.loadSeconds).toBeGreaterThan(0);
    expect(measured.generationTokensPerSecond).toBeGreaterThan(0);
    expect(measured.promptTokensPerSecond).toBeGreaterThan(0);
    const props = (await readJson(await runtime.request('GET', '/props'))) as { total_slots: number };
    expect(props.total_slots).toBe(2);
    expect(runtime.activeRequests).toBe(0);
  });

  it('gives each device exactly its layers, whatever the split', async () => {
    const workers = { b: await WiredWorker.start(), c: await WiredWorker.start() };
    const { runtime } = await start(workers);
    for (let b = 1; b < layers; b++) {
      const c = Math.max(1, layers - b - (b % 2));
      await runtime.apply(planOf({ b, c }), { drain: true });
      expect(runtime.context()?.placement.map((part) => part.layers.length)).toEqual([layers - b - c, b, c]);
      expect(runtime.context()?.placement.map(({ device }) => device)).toEqual(['master', 'Phone b', 'Phone c']);
    }
    expect(await answerOf(runtime)).toBe(answer);
    expect(workers.b.server.stats().graphsComputed).toBeGreaterThan(0);
    expect(workers.c.server.stats().graphsComputed).toBeGreaterThan(0);
    await runtime.close();
    await until(
      'the workers are free',
      () => workers.b.server.stats().clients + workers.c.server.stats().clients === 0,
    );
  });

  it('changes between streams, not in the middle of one', async () => {
    const { runtime } = await start({ b: await WiredWorker.start() });
    await runtime.apply(planOf({}), { drain: true });
    const running = readAll(streamRequest(runtime, CHAT, endless(200), {}));
    await until('tokens are generated', () => generated(runtime) > 5);
    const applied = runtime.apply(planOf({ b: 2 }), { drain: true });
    expect(await running).toBeGreaterThan(150);
    await applied;
    expect(runtime.plan?.parts).toHaveLength(2);
    expect(await answerOf(runtime)).toBe(answer);
  });
});

describe('a worker whose stream is cut', () => {
  it('in the middle of a generation ends it; who comes meanwhile is answered by the next plan', async () => {
    const workers = { b: await WiredWorker.start(), c: await WiredWorker.start() };
    const { runtime, told } = await start(workers);
    const server = await startHttpServer(runtime.routes, runtime, { port: 0 });
    onTestFinished(() => server.close());
    await runtime.apply(planOf({ b: 1, c: 1 }), { drain: true });
    expect((await fetch(`${server.url}/health`)).status).toBe(200);

    const gone = { code: 'DROID_WORKER_LOST', message: expect.stringContaining('Phone b') };
    const stream = expect(readAll(streamRequest(runtime, CHAT, endless(), {}))).rejects.toMatchObject(gone);
    const whole = fetch(server.url + CHAT, { method: 'POST', body: JSON.stringify(endless()) });
    await until('both are generated', () => runtime.activeRequests === 2 && generated(runtime) > 10);
    workers.b.cut();
    await stream;
    const failed = await whole;
    expect(failed.status).toBe(503);
    expect(await failed.json()).toMatchObject({
      error: { code: 503, type: 'unavailable_error', message: expect.stringContaining('(DROID_WORKER_LOST)') },
    });
    await until('it is told', () => told.length > 0);
    expect(told).toEqual(['lost b DROID_WORKER_LOST']);
    expect(runtime.state).toBe('degraded');
    const health = await fetch(`${server.url}/health`);
    expect([health.status, await health.json()]).toEqual([503, expect.objectContaining({ status: 'degraded' })]);

    const meanwhile = [answerOf(runtime), answerOf(runtime)];
    const overHttp = fetch(`${server.url}/completion`, {
      method: 'POST',
      body: JSON.stringify(greedyCompletion('Once', 3)),
    });
    await until('they wait', () => runtime.waitingRequests === 3);
    await runtime.apply(planOf({ c: 2 }), { drain: true });
    expect(await Promise.all(meanwhile)).toEqual([answer, answer]);
    expect((await overHttp).status).toBe(200);
    expect(runtime.context()?.placement.map((part) => part.layers.length)).toEqual([layers - 2, 2]);
    await until('the lost worker is free', () => workers.b.server.stats().clients === 0);
    await runtime.apply(planOf({ b: 1, c: 1 }), { drain: true });
    expect(await answerOf(runtime)).toBe(answer);
  });

  it('ends what runs as lost, also when the next plan is there at once', async () => {
    const worker = await WiredWorker.start();
    const { runtime } = await start({ b: worker });
    await runtime.apply(planOf({ b: 2 }), { drain: true });
    runtime.once('lost', () => void runtime.apply(planOf({}), { drain: false }));
    const streams = [1, 2].map(() =>
      expect(readAll(streamRequest(runtime, CHAT, endless(), {}))).rejects.toMatchObject({ code: 'DROID_WORKER_LOST' }),
    );
    await until('tokens are generated', () => generated(runtime) > 10);
    worker.cut();
    await Promise.all(streams);
    expect(await answerOf(runtime)).toBe(answer);
  });

  it('while it loads is told, and the next plan loads', async () => {
    const worker = await WiredWorker.start();
    const { runtime, told } = await start({ b: worker });
    let opened = 0;
    const open = worker.open.bind(worker);
    worker.open = () => {
      // The first stream asks for the memory, the second one gets the model.
      if (++opened === 2) setImmediate(() => worker.cut());
      return open();
    };
    const applied = runtime.apply(planOf({ b: layers }), { drain: true });
    await expect(applied).rejects.toMatchObject({ code: expect.stringMatching(/^DROID_(WORKER|ENDPOINT)_/) });
    expect(told).toEqual([expect.stringMatching(/^lost b /)]);
    expect(runtime.state).toBe('degraded');
    await runtime.apply(planOf({}), { drain: false });
    expect(await answerOf(runtime)).toBe(answer);
  });
});

describe('what cannot be loaded', () => {
  it('for a worker that is not there is its loss', async () => {
    const { runtime, told } = await start({ b: await WiredWorker.start() });
    await expect(runtime.apply(planOf({ b: 1, x: 1 }), { drain: true })).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_UNREACHABLE',
    });
    expect([runtime.state, told]).toEqual(['degraded', ['lost x DROID_ENDPOINT_UNREACHABLE']]);
  });

  it('for memory names the worker', async () => {
    const workers = { b: await WiredWorker.start(), c: await WiredWorker.start({ memoryLimit: 100_000 }) };
    const { runtime, told } = await start(workers);
    await expect(runtime.apply(planOf({ b: 1, c: 2 }), { drain: true })).rejects.toMatchObject({
      code: expect.stringMatching(/OUT_OF_MEMORY$/),
    });
    expect([runtime.state, told]).toEqual(['failed', [expect.stringMatching(/^failed c .*OUT_OF_MEMORY$/)]]);
    await runtime.apply(planOf({ b: 3 }), { drain: false });
    expect(await answerOf(runtime)).toBe(answer);
  });

  it('for the model is final', async () => {
    const { runtime, told } = await start({}, { model: '/nowhere.gguf' });
    const waiting = runtime.request('GET', '/props');
    waiting.catch(() => {});
    await expect(runtime.apply(planOf({}), { drain: true })).rejects.toMatchObject({ code: 'DROID_MODEL_NOT_FOUND' });
    await expect(waiting).rejects.toMatchObject({ code: 'DROID_NOT_READY' });
    expect(told).toEqual(['failed null DROID_MODEL_NOT_FOUND']);
  });
});

it('a newer plan takes over from one that loads', async () => {
  const worker = await WiredWorker.start();
  const { runtime, told } = await start({ b: worker });
  const first = runtime.apply(planOf({ b: 2 }), { drain: true });
  let stopped = 0;
  runtime.on('progress', () => {
    if (stopped++ === 0) void runtime.apply(planOf({ b: 1 }), { drain: true });
  });
  await first;
  await until('the newer one is loaded', () => runtime.state === 'ready');
  expect(runtime.context()?.placement[1]?.layers).toHaveLength(1);
  expect(await answerOf(runtime)).toBe(answer);
  expect(told).toEqual([]);
});

it('is changed, cut and stopped over and over without leaving descriptors or masters behind', async () => {
  const worker = await WiredWorker.start();
  const { runtime } = await start({ b: worker });
  const openDescriptors = () => readdirSync('/proc/self/fd').length;
  let before = 0;
  for (let i = 0; i < 40; i++) {
    const applied = runtime.apply(planOf({ b: 1 + (i % 3) }), { drain: true });
    applied.catch(() => {});
    // From the first step of a load to its end, wherever that is.
    const stopAt = Math.random() * 20;
    await Promise.race([applied.catch(() => {}), new Promise((resolve) => setTimeout(resolve, stopAt))]);
    if (i % 3 === 0) worker.cut();
    if (i % 4 === 1) runtime.wait('nobody is there');
    if (i % 10 !== 9) continue;
    runtime.wait('nobody is there');
    await until('the worker is free', () => worker.server.stats().clients === 0);
    before ||= openDescriptors();
    await until('all streams are closed', () => openDescriptors() <= before);
  }
  await runtime.apply(planOf({ b: 1 }), { drain: true });
  expect(await answerOf(runtime)).toBe(answer);
});

it('close() ends a stream, and the memory of the worker is free', async () => {
  const worker = await WiredWorker.start();
  const { runtime } = await start({ b: worker });
  await runtime.apply(planOf({ b: 2 }), { drain: true });
  const stream = readAll(streamRequest(runtime, CHAT, endless(), {}));
  stream.catch(() => {});
  await until('tokens are generated', () => generated(runtime) > 5);
  const waiting = runtime.request('GET', '/props');
  await (await waiting).body[Symbol.asyncIterator]().return?.();
  await runtime.close();
  await expect(stream).rejects.toMatchObject({ code: 'DROID_CLOSED' });
  await until('the worker is free', () => worker.server.stats().clients === 0);
  expect(await settled(() => worker.server.stats().bytesAllocated, 50)).toBe(0);
});
