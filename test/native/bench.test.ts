/** Benchmarks of the tiny model, alone and over a worker on loopback. */
import { describe, expect, it, onTestFinished } from 'vitest';
import { type BenchReport, bench, benchCluster, benchUrl, measureLink } from '../../lib/bench/index.js';
import { Cluster, createToken } from '../../lib/index.js';
import { openContext, openWorker, until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';
import { WorkerProcess } from '../support/worker-process.js';

const tests = { promptTokens: [32], generatedTokens: [24], repetitions: 2 };
const tiny = { model: tinyModel, threads: 1, ...tests };

describe('a benchmark of a split', () => {
  it('counts what passes for one token: three messages up, one down', async () => {
    const worker = await openWorker();
    const report = await bench({ ...tiny, rpc: [worker.endpoint], tensorSplits: [[0.5, 0.5]], streams: [1, 3] });
    expect(report.cases.map(({ name }) => name)).toEqual(['one device', '[0.5, 0.5]']);
    const [alone, split] = report.cases;
    const [counted] = split?.workers ?? [];
    expect(counted).toMatchObject({
      endpoint: worker.endpoint,
      messagesSentPerToken: 3,
      messagesReceivedPerToken: 1,
    });
    // Two hidden states and the mask up, one hidden state down, and headers.
    const hidden = 4 * 256;
    expect(counted?.bytesReceivedPerToken).toBeGreaterThanOrEqual(hidden);
    expect(counted?.bytesReceivedPerToken).toBeLessThan(hidden + 64);
    expect(counted?.bytesSentPerToken).toBeGreaterThan(hidden);
    expect(counted?.bytesSentPerToken).toBeLessThan(3 * hidden + 2 * 256 + 300);
    expect(counted?.roundTripsPerToken).toBeLessThanOrEqual(1);
    expect(counted?.computeMsPerToken).toBeGreaterThan(0);
    expect(counted?.memoryBytes).toBeGreaterThan(split?.placement?.[1]?.bytes as number);

    expect(split?.placement?.map(({ layers }) => layers.length)).toEqual([3, 3]);
    expect(split?.masterShare).toBe(0.5);
    expect(split?.prompts).toMatchObject([{ tokens: 32, tokensPerSecond: { samples: { length: 2 } } }]);
    const [generation] = split?.generations ?? [];
    expect(generation?.tokens).toBe(24);
    expect(generation?.predicted).toBeGreaterThan(0);
    const { totalMs = 0, masterMs = 0, workers = [] } = generation?.breakdown ?? {};
    expect(1000 / totalMs).toBeCloseTo(
      generation?.tokensPerSecond.samples.find((s) => Math.abs(s - 1000 / totalMs) < 1e-6) ?? 0,
    );
    expect(masterMs + (workers[0]?.waitMs ?? 0)).toBeCloseTo(Math.max(totalMs, workers[0]?.waitMs ?? 0), 6);

    const single = alone?.generations[0]?.tokensPerSecond.median as number;
    expect(generation?.floor?.computeMs).toBeCloseTo(1000 / single, 9);
    expect(generation?.floor?.roundTripMs).toBe(report.links[0]?.roundTripMs);
    expect(alone?.generations[0]?.floor).toBeNull();
    expect(alone?.workers).toEqual([]);
    expect(split?.streams.map(({ streams }) => streams)).toEqual([1, 3]);
    expect(split?.streams[1]?.perStream.samples).toHaveLength(6);
    // Nothing stays on the worker.
    await until('the last master is gone', () => worker.stats().clients === 0);
    expect(worker.stats().bytesAllocated).toBe(0);
  });

  it('tells a load that sent the weights from one that need not', async () => {
    const worker = await openWorker();
    const loads = async () => {
      const options = { ...tiny, promptTokens: [], rpc: [worker.endpoint], tensorSplits: [[0.5, 0.5]], single: false };
      const report = await bench({ ...options, repetitions: 1 });
      return { loads: report.cases[0]?.loads ?? [], bytes: report.cases[0]?.placement?.[1]?.bytes as number, report };
    };
    const cold = await loads();
    for (const load of cold.loads) {
      expect(load.kind).toBe(load.weightsReused === 0 ? 'cold' : 'warm');
      expect(load.weightsSent + load.weightsReused).toBe(cold.bytes);
    }
    expect(cold.loads[0]).toMatchObject({ kind: 'cold', weightsSent: cold.bytes });
    // Without one device alone there is no floor.
    expect(cold.report.cases[0]?.generations[0]?.floor).toBeNull();
    // Another master keeps them in the worker's memory.
    await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] });
    const warm = await loads();
    expect(warm.loads).toMatchObject([
      { kind: 'warm', weightsSent: 0, weightsReused: warm.bytes },
      { kind: 'warm', weightsSent: 0, weightsReused: warm.bytes },
    ]);
  });

  it('sweeps from one device to every layer on the worker, for each ubatch', async () => {
    const worker = await openWorker();
    const report = await bench({
      ...tiny,
      repetitions: 1,
      rpc: [worker.endpoint],
      sweep: 2,
      ubatchSizes: [16, 64],
      loads: 1,
    });
    expect(report.cases.map(({ name, masterShare, ubatchSize }) => [name, masterShare, ubatchSize])).toEqual([
      ['one device, ub 16', 1, 16],
      ['one device, ub 64', 1, 64],
      ['[0.5, 0.5], ub 16', 0.5, 16],
      ['[0.5, 0.5], ub 64', 0.5, 64],
      ['[0, 1], ub 16', 0, 16],
      ['[0, 1], ub 64', 0, 64],
    ]);
    expect(report.cases[1]?.loads).toMatchObject([{ kind: 'warm' }]);
  });

  it('ends with the code of a worker that is lost, and has the cases before', async () => {
    await using worker = await WorkerProcess.start();
    let last: BenchReport | undefined;
    const failed = bench({
      ...tiny,
      rpc: [worker.endpoint],
      tensorSplits: [[0.5, 0.5]],
      onReport: (report) => {
        last = report;
      },
      onProgress: ({ name, test, run }) => {
        if (name === '[0.5, 0.5]' && test === 'tg24' && run === 2) void worker.kill();
      },
    });
    await expect(failed).rejects.toMatchObject({ code: 'DROID_WORKER_LOST' });
    expect(last?.cases.map(({ name }) => name)).toEqual(['one device']);
  });

  it('ends at once when it is told to, and leaves nothing open', async () => {
    const worker = await openWorker();
    for (const where of ['link', 'load', 'warm-up', 'pp32', '2 streams']) {
      const stop = new AbortController();
      const reason = new Error(where);
      const onProgress = ({ test, case: index }: { test: string; case: number }) => {
        if (test === where && index !== 1) stop.abort(reason);
      };
      const options = { ...tiny, rpc: [worker.endpoint], tensorSplits: [[0, 1]], streams: [2] };
      await expect(bench({ ...options, onProgress, signal: stop.signal })).rejects.toBe(reason);
      await until('the master is gone', () => worker.stats().clients === 0);
    }
  });

  it.each([
    [{ model: '' }, /model/],
    [{ tensorSplits: [[0.5, 0.5]] }, /rpc names no worker/],
    [{ sweep: 4 }, /rpc names no worker/],
    [{ rpc: ['127.0.0.1:1'], sweep: 4, tensorSplits: [[1, 1]] }, /both given/],
    [{ rpc: ['127.0.0.1:1'], tensorSplits: [[1, 1, 1]] }, /3 shares for 2 devices/],
    [{ contextSize: 64, promptTokens: [512] }, /the tests need 520/],
    [{ contextSize: 128, streams: [4] }, /each of 4 streams/],
    [{ ubatchSizes: [] }, /ubatchSizes is empty/],
    [{ split: [1] }, /no option "split"/],
  ])('refuses %j before it does anything', async (options, message) => {
    await expect(bench({ ...tiny, ...options })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  it('refuses plain RPC with another device, and a model that is none', async () => {
    const other = { ...tiny, rpc: ['198.51.100.1:1'] };
    await expect(bench(other)).rejects.toMatchObject({ code: 'DROID_INSECURE' });
    await expect(bench({ ...tiny, model: '/no/such.gguf' })).rejects.toMatchObject({ code: 'DROID_MODEL_NOT_FOUND' });
  });
});

describe('a benchmark of a context that serves', () => {
  it('measures it like any llama-server', async () => {
    const ctx = await openContext({ parallel: 2, contextSize: 512 });
    const server = await ctx.listen({ port: 0, apiKey: ['secret'] });
    onTestFinished(() => server.close());
    const report = await benchUrl(server.url, { ...tests, streams: [2], apiKey: 'secret' });
    const [entry] = report.cases;
    expect(entry?.prompts[0]?.tokensPerSecond.median).toBeGreaterThan(0);
    expect(entry?.generations[0]?.tokensPerSecond.median).toBeGreaterThan(0);
    expect(entry?.streams[0]?.tokensPerSecond.median).toBeGreaterThan(0);
    expect(ctx.stats().engine.activeRequests).toBe(0);
    await expect(benchUrl(server.url, tests)).rejects.toMatchObject({ code: 'DROID_REQUEST_FAILED' });
    await expect(benchUrl(server.url, { ...tests, streams: [3], apiKey: 'secret' })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
    });
  });
});

describe('a benchmark of a cluster', () => {
  it('measures what its member answers, beside the plan', async () => {
    const cluster = await Cluster.join({
      token: createToken(),
      model: tinyModel,
      threads: 1,
      contextSize: 512,
      listen: { host: '127.0.0.1', port: 0 },
      discovery: { mdns: false, scan: false, tailscale: false },
    });
    onTestFinished(() => cluster.leave());
    const [entry] = (await benchCluster(cluster, tests)).cases;
    expect(entry).toMatchObject({ name: 'cluster', masterShare: 1, placement: [{ device: 'master', head: true }] });
    expect(entry?.prompts[0]?.predicted).toBe(cluster.plan?.prediction?.promptTokensPerSecond);
    expect(entry?.generations[0]?.tokensPerSecond.median).toBeGreaterThan(0);
  });
});

describe('the measurement of a link', () => {
  it.each([undefined, createToken()])('tells round trip and bandwidth, and leaves no memory taken', async (token) => {
    const worker = await openWorker({ token });
    const link = await measureLink(worker.endpoint, { token });
    expect(link.roundTripMs).toBeGreaterThan(0);
    expect(link.roundTripMs).toBeLessThan(100);
    for (const rate of [link.upBytesPerSecond, link.downBytesPerSecond]) {
      expect(rate).toBeGreaterThan(1e6);
      expect(rate).toBeLessThan(1e11);
    }
    expect(link.memoryFree).toBe(worker.devices[0]?.memoryFree);
    expect(worker.stats()).toMatchObject({ bytesAllocated: 0, bytesWeights: 0 });
  });

  it('goes without bandwidth where a worker has no room', async () => {
    const worker = await openWorker({ memoryLimit: 100_000 });
    expect(await measureLink(worker.endpoint)).toMatchObject({ upBytesPerSecond: null, downBytesPerSecond: null });
  });
});
