/** Encrypted RPC between one worker and its masters, on loopback: who has the token gets in, and nobody else. */
import { once } from 'node:events';
import { connect } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import { addon } from '../../lib/addon.js';
import { createContextOverLinks } from '../../lib/context.js';
import { createDistributedContext, type DroidLlamaError, probeEndpoint, startRpcServer } from '../../lib/index.js';
import { probeLink } from '../../lib/probe.js';
import { startAdoptingRpcServer } from '../../lib/rpc-server.js';
import { createToken } from '../../lib/transport/token.js';
import type { WorkerLink } from '../../lib/worker-link.js';
import { answerOf, endless, greedyTokens, openContext, openWorker, question, until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';
import { processUsage } from '../support/process-usage.js';
import { WorkerProcess } from '../support/worker-process.js';

const token = createToken();
const half = (endpoint: string, more: object = {}) => ({ rpc: [endpoint], tensorSplit: [0.5, 0.5], token, ...more });
const load = (options: object) =>
  createDistributedContext({ model: tinyModel, threads: 1, contextSize: 512, ...options });
const prompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';

async function failure(promise: Promise<unknown>): Promise<DroidLlamaError> {
  return promise.then(
    () => expect.fail('it succeeded'),
    (error: DroidLlamaError) => error,
  );
}

describe('with the same token', () => {
  it('the model answers as it does over plain RPC', async () => {
    const [plain, encrypted] = [await openWorker(), await openWorker({ token })];
    expect([plain.encrypted, encrypted.encrypted]).toEqual([false, true]);
    const reference = await openContext(half(plain.endpoint, { token: undefined }));
    const ctx = await openContext(half(encrypted.endpoint));
    expect(ctx.placement).toMatchObject([{ device: 'master' }, { device: encrypted.endpoint, layers: [3, 4, 5] }]);
    expect(await answerOf(ctx, [question])).toBe('2+2 equals 4.');
    expect(await greedyTokens(ctx, prompt, 64)).toEqual(await greedyTokens(reference, prompt, 64));
    const { graphs, bytesSent } = ctx.stats().workers[0] ?? { graphs: 0, bytesSent: 0 };
    expect(ctx.stats().workers).toMatchObject([{ endpoint: encrypted.endpoint }]);
    expect(graphs).toBeGreaterThan(64);
    // Two streams: one asked for the memory. Nothing is lost on the way.
    await until('all of it arrived', () => encrypted.stats().graphsComputed === graphs);
    expect(encrypted.stats()).toMatchObject({ clients: 1, clientsTotal: 2, clientsRefused: 0, clientsDropped: 0 });
    expect(encrypted.stats().bytesReceived).toBeGreaterThanOrEqual(bytesSent);
    await ctx.close();
    await until('the worker sees the master go', () => encrypted.stats().clients === 0);
  });

  it('several masters and several workers may meet', async () => {
    const workers = [await openWorker({ token }), await openWorker({ token }), await openWorker({ token })];
    const rpc = workers.map(({ endpoint }) => endpoint);
    const split = { rpc, token, tensorSplit: [1, 1, 0, 1] };
    const masters = await Promise.all([openContext(split), openContext(split)]);
    for (const ctx of masters) expect(ctx.placement.map(({ layers }) => layers.length)).toEqual([2, 2, 0, 2]);
    const answers = await Promise.all(masters.map((ctx) => answerOf(ctx, [question])));
    expect(answers).toEqual(Array(2).fill('2+2 equals 4.'));
    // A worker without a part of the model was asked for its memory, and then left alone.
    expect(workers.map((worker) => worker.stats().clients)).toEqual([2, 0, 2]);
  });

  it('a probe sees the worker', async () => {
    const worker = await openWorker({ token });
    const info = await probeEndpoint(worker.endpoint, { token, roundTrips: 3 });
    expect(info).toMatchObject({ endpoint: worker.endpoint, extended: true, devices: [{ name: 'RPC0' }] });
    expect(info.connectMs).toBeGreaterThan(0);
  });

  it('a worker that is full or ends says so', async () => {
    const lost: DroidLlamaError[] = [];
    const worker = await startRpcServer({ threads: 1, token, maxClients: 1 });
    onTestFinished(() => worker.close());
    await openContext(half(worker.endpoint, { onWorkerLost: (error: DroidLlamaError) => lost.push(error) }));
    expect(await failure(probeEndpoint(worker.endpoint, { token }))).toMatchObject({ code: 'DROID_WORKER_BUSY' });
    await worker.close();
    await until('the master hears of it', () => lost.length > 0);
    expect(lost[0]).toMatchObject({ code: 'DROID_WORKER_LOST', message: expect.stringMatching(/shutting down/) });
    expect(worker.stats().clients).toBe(0);
  });
});

describe('without it', () => {
  it('another token is turned away', async () => {
    const events: string[] = [];
    const worker = await openWorker({ token, onEvent: (line) => events.push(line) });
    const other = createToken();
    for (const attempt of [
      () => load(half(worker.endpoint, { token: other })),
      () => probeEndpoint(worker.endpoint, { token: other }),
    ]) {
      const error = await failure(attempt());
      expect(error.code).toBe('DROID_TOKEN_REJECTED');
      expect(error.message).toContain(worker.endpoint);
      expect(error.message).not.toContain(other);
    }
    expect(worker.stats()).toMatchObject({ clients: 0, clientsTotal: 0, clientsRefused: 2, graphsComputed: 0 });
    expect(events).toEqual([expect.stringMatching(/turned away 127\.0\.0\.1.*token/)]);
  });

  it('plain RPC gets nothing, and a hint', async () => {
    const worker = await openWorker({ token });
    for (const attempt of [
      () => load(half(worker.endpoint, { token: undefined })),
      () => probeEndpoint(worker.endpoint),
    ]) {
      const error = await failure(attempt());
      expect(error.code).toBe('DROID_VERSION_MISMATCH');
      expect(error.message).toMatch(/token.*`--token`/);
    }
    expect(worker.stats()).toMatchObject({ clientsTotal: 0, clientsRefused: 2 });
  });

  it("a client like upstream's gets no byte of RPC", async () => {
    const worker = await openWorker({ token });
    const socket = connect({ host: '127.0.0.1', port: worker.port });
    onTestFinished(() => {
      socket.destroy();
    });
    const received: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => received.push(chunk)).on('error', () => {});
    const hello = Buffer.alloc(9 + 24);
    hello.writeUInt8(14);
    hello.writeBigUInt64LE(24n, 1);
    socket.write(hello);
    await once(socket, 'close');
    // An alert of TLS is 7 bytes: its type, its version, its length, and two that say what is wrong.
    const answer = Buffer.concat(received);
    if (answer.length > 0) expect([answer.length, answer[0], answer[1]]).toEqual([7, 0x15, 3]);
    expect(worker.stats()).toMatchObject({ clientsTotal: 0, bytesReceived: 0, bytesSent: 0 });
  });

  it('a token for a plain worker is refused with the hint to leave it out', async () => {
    const worker = await openWorker();
    const error = await failure(probeEndpoint(worker.endpoint, { token }));
    expect(error.code).toBe('DROID_TOKEN_REJECTED');
    expect(error.message).toMatch(/started without a token.* is reached without one/);
    expect(error.message).not.toContain(token);
  });

  it('a worker on another address than loopback does not start', async () => {
    expect(await failure(startRpcServer({ host: '0.0.0.0' }))).toMatchObject({ code: 'DROID_INSECURE' });
    await openWorker({ host: '0.0.0.0', insecure: true });
    const worker = await openWorker({ host: '0.0.0.0', token });
    expect(worker.endpoint).toBe(`0.0.0.0:${worker.port}`);
    expect((await probeEndpoint(`127.0.0.1:${worker.port}`, { token })).devices).toHaveLength(1);
  });

  it('a master does not try', async () => {
    for (const rpc of [['198.51.100.1:1'], ['phone.invalid:1']]) {
      expect(await failure(load({ rpc }))).toMatchObject({ code: 'DROID_INSECURE' });
    }
  });
});

describe('an encrypted worker that is killed', () => {
  it.each(['while it generates', 'while nobody uses it'])('is lost at once, %s', async (state) => {
    const worker = await WorkerProcess.start({ token });
    onTestFinished(() => worker[Symbol.asyncDispose]());
    let lostAt = 0;
    const ctx = await openContext(half(worker.endpoint, { onWorkerLost: () => (lostAt = performance.now()) }));
    const tokens = (): number => ctx.stats().engine.tokensGenerated;
    let running: Promise<DroidLlamaError> | undefined;
    if (state === 'while it generates') {
      running = failure(answerOf(ctx, [question], endless()));
      await until('tokens are generated', () => tokens() > 5);
    }
    const killedAt = performance.now();
    await worker.kill();
    await until('it is noticed', () => lostAt > 0);
    expect(lostAt - killedAt).toBeLessThan(2000);
    const gone = { code: 'DROID_WORKER_LOST', message: expect.stringContaining(worker.endpoint) };
    if (running) expect(await running).toMatchObject(gone);
    expect(ctx.failure).toMatchObject({ ...gone, endpoint: worker.endpoint });
    await ctx.close();
    expect(await failure(load(half(worker.endpoint)))).toMatchObject({ code: 'DROID_ENDPOINT_REFUSED' });
  });
});

describe('streams that somebody else opens', () => {
  async function openLinked(): Promise<{ link: WorkerLink; opened: () => number; stats: () => object }> {
    const worker = await startAdoptingRpcServer({ threads: 1 });
    onTestFinished(() => worker.close());
    expect(worker).toMatchObject({ endpoint: '', host: '', port: 0 });
    let opened = 0;
    const link = {
      endpoint: 'phone B',
      open: async () => {
        const [ours, theirs] = addon().createSocketPair();
        worker.adopt(ours, `master ${++opened}`);
        return theirs;
      },
    };
    return { link, opened: () => opened, stats: () => worker.stats() };
  }

  it('carry a model', async () => {
    const { link, opened, stats } = await openLinked();
    const ctx = await createContextOverLinks(
      { model: tinyModel, threads: 1, contextSize: 512, tensorSplit: [0.5, 0.5] },
      [link],
    );
    onTestFinished(() => ctx.close());
    expect(ctx.placement[1]).toMatchObject({ device: 'phone B', layers: [3, 4, 5] });
    expect(await answerOf(ctx, [question])).toBe('2+2 equals 4.');
    expect(opened()).toBe(2);
    expect(stats()).toMatchObject({ clients: 1, clientsTotal: 2 });
  });

  it('that cannot be opened reject as they say', async () => {
    const { link } = await openLinked();
    const reason = new Error('the phone is gone');
    const broken = { endpoint: 'phone C', open: () => Promise.reject(reason) };
    const options = { model: tinyModel, threads: 1, contextSize: 512 };
    await expect(createContextOverLinks(options, [link, broken])).rejects.toBe(reason);
    // Only the second stream to it fails; the one to the other worker was open by then.
    let attempts = 0;
    const flaky = { ...link, open: () => (++attempts > 1 ? Promise.reject(reason) : link.open()) };
    const before = processUsage().descriptors;
    const loading = createContextOverLinks({ ...options, tensorSplit: [1, 1, 1] }, [link, flaky]);
    await expect(loading).rejects.toBe(reason);
    await until('nothing stays open', () => processUsage().descriptors <= before);
  });

  it('that come too late are closed, and those that stay silent are given up', async () => {
    const before = processUsage().descriptors;
    const pairs: number[] = [];
    const pair = (): number => {
      const [ours, theirs] = addon().createSocketPair();
      pairs.push(ours);
      return theirs;
    };
    let late = (): void => {};
    const waits = new Promise<number>((resolve) => {
      late = () => resolve(pair());
    });
    const tooLate = await failure(probeLink({ endpoint: 'phone D', open: () => waits }, { timeoutMs: 20 }));
    expect(tooLate.code).toBe('DROID_ENDPOINT_TIMEOUT');
    late();
    const silent = await failure(probeLink({ endpoint: 'phone D', open: async () => pair() }, { timeoutMs: 20 }));
    expect(silent).toMatchObject({ code: 'DROID_ENDPOINT_TIMEOUT', message: expect.stringContaining('frozen') });
    for (const fd of pairs) addon().closeDescriptor(fd);
    await until('nothing stays open', () => processUsage().descriptors <= before);
  });

  it('are closed by a server that is closed', async () => {
    const worker = await startAdoptingRpcServer({ threads: 1 });
    await worker.close();
    const before = processUsage().descriptors;
    const [ours, theirs] = addon().createSocketPair();
    worker.adopt(ours, 'late');
    addon().closeDescriptor(theirs);
    await until('nothing stays open', () => processUsage().descriptors <= before);
  });
});

it('nothing stays open, whatever happens', async () => {
  const port = await (async () => {
    const worker = await openWorker({ token });
    return worker.port;
  })();
  const endpoint = `127.0.0.1:${port}`;
  const abort = (ms: number) => AbortSignal.timeout(ms);
  const round = async (): Promise<void> => {
    const worker = await startRpcServer({ threads: 1, token });
    const ctx = await load(half(worker.endpoint));
    await ctx.close();
    await failure(load(half(endpoint, { token: createToken() })));
    await failure(load(half(endpoint, { llamaArgs: ['--no-such-flag'] })));
    await failure(load(half(endpoint, { contextSize: 16_000_000 })));
    await failure(load(half(endpoint, { rpc: [endpoint, '127.0.0.1:1'], tensorSplit: [1, 1, 1] })));
    expect(await failure(startRpcServer({ port, token }))).toMatchObject({ code: 'DROID_PORT_IN_USE' });
    await failure(startRpcServer({ token, signal: AbortSignal.abort() }));
    for (const ms of [1, 20, 60])
      await failure(
        load(half(endpoint, { signal: abort(ms) })).then((late) =>
          late.close().then(() => {
            throw new Error('late');
          }),
        ),
      );
    await probeEndpoint(endpoint, { token });
    await worker.close();
  };
  // The address' budget for wrong tokens is not what this is about.
  await round();
  const before = processUsage();
  for (let i = 0; i < 3; i++) await round();
  await until('all is closed', () => {
    const { threads, descriptors } = processUsage();
    return threads <= before.threads && descriptors <= before.descriptors;
  });
});
