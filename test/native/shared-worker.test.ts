/** Several masters on one worker, and weights that need not travel twice. */
import { once } from 'node:events';
import { copyFile, mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { createDistributedContext, type DistributedContext } from '../../lib/index.js';
import { parseGguf } from '../models/gguf-reader.mjs';
import { tensorBytes } from '../models/gguf-writer.mjs';
import { answerOf, greedyTokens, openContext, openWorker, question, until } from '../support/contexts.js';
import { tinyModel, tinyModelQ8 } from '../support/paths.js';

let dir = '';
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'droid-weights-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const prompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';
const half = (endpoint: string) => ({ rpc: [endpoint], tensorSplit: [0.5, 0.5] });
const traffic = (ctx: DistributedContext) =>
  ctx.stats().workers[0] as NonNullable<ReturnType<typeof ctx.stats>['workers'][0]>;
const bytesOnWorker = (ctx: DistributedContext) => ctx.placement[1]?.bytes as number;

describe('masters of the same model', () => {
  it('share its weights on a worker, which go when the last of them does', async () => {
    const worker = await openWorker();
    const expected = await greedyTokens(await openContext(), prompt, 64);
    const first = await openContext(half(worker.endpoint));
    const bytes = bytesOnWorker(first);
    expect(worker.stats().bytesWeights).toBe(bytes);
    expect(traffic(first)).toMatchObject({ weightsSent: bytes, weightsReused: 0 });
    const second = await openContext(half(worker.endpoint));
    expect(worker.stats()).toMatchObject({ bytesWeights: bytes, clients: 2 });
    expect(traffic(second)).toMatchObject({ weightsSent: 0, weightsReused: bytes });
    const both = [first, second].map((ctx) => greedyTokens(ctx, prompt, 64));
    expect(await Promise.all(both)).toEqual([expected, expected]);
    await first.close();
    await until('the first master is gone', () => worker.stats().clients === 1);
    expect(worker.stats().bytesWeights).toBe(bytes);
    expect(await greedyTokens(second, prompt, 64)).toEqual(expected);
    await second.close();
    await until('the weights are gone', () => worker.stats().bytesWeights === 0);
    expect(worker.stats().bytesAllocated).toBe(0);
  });

  it('of another share of it get what they have in common', async () => {
    const worker = await openWorker();
    const first = await openContext(half(worker.endpoint));
    const second = await openContext({ rpc: [worker.endpoint], tensorSplit: [0, 1] });
    expect(traffic(second).weightsReused).toBe(bytesOnWorker(first));
    expect(traffic(second).weightsSent).toBe(bytesOnWorker(second) - bytesOnWorker(first));
    expect(worker.stats().bytesWeights).toBe(bytesOnWorker(second));
  });
});

describe('a worker with a limit of clients', () => {
  /** A client that speaks plain protocol 7. */
  async function plainClient(port: number): Promise<{ socket: Socket; answer: Promise<Buffer> }> {
    const socket = connect(port, '127.0.0.1');
    onTestFinished(() => {
      socket.destroy();
    });
    socket.on('error', () => {});
    const hello = Buffer.alloc(1 + 8 + 24);
    hello[0] = 14;
    hello.writeBigUInt64LE(24n, 1);
    let received = Buffer.alloc(0);
    const answer = new Promise<Buffer>((resolve) => {
      socket.on('data', (chunk) => {
        received = Buffer.concat([received, chunk]);
        if (received.length >= 36) resolve(received);
      });
      socket.on('close', () => resolve(received));
    });
    await once(socket, 'connect');
    socket.write(hello);
    return { socket, answer };
  }

  it('tells one too many that it is busy, or hangs up on it, and takes the next when one has left', async () => {
    const worker = await openWorker({ maxClients: 2 });
    const ctx = await openContext(half(worker.endpoint));
    await until('the probe is gone', () => worker.stats().clients === 1);
    const second = await plainClient(worker.port);
    expect((await second.answer).length).toBe(36);
    await expect(createDistributedContext({ model: tinyModel, ...half(worker.endpoint) })).rejects.toMatchObject({
      code: 'DROID_WORKER_BUSY',
      message: expect.stringContaining(worker.endpoint),
    });
    const third = await plainClient(worker.port);
    expect((await third.answer).length).toBe(0);
    expect(worker.stats()).toMatchObject({ clients: 2, clientsRefused: 2 });
    // Those who are in do not notice.
    expect(await answerOf(ctx, [question])).toBe('2+2 equals 4.');
    second.socket.destroy();
    await ctx.close();
    await until('both have left', () => worker.stats().clients === 0);
    const next = await openContext(half(worker.endpoint));
    expect(await answerOf(next, [question])).toBe('2+2 equals 4.');
  });

  it('of one takes its one master, whose probe is no second one', async () => {
    const worker = await openWorker({ maxClients: 1 });
    for (let i = 0; i < 10; i++) {
      await until('nobody is there', () => worker.stats().clients === 0);
      const ctx = await openContext(half(worker.endpoint));
      await ctx.close();
    }
  });
});

describe('the weight cache', () => {
  async function load(cacheDir: string, model: string) {
    const worker = await openWorker({ cacheDir });
    const ctx = await openContext({ model, ...half(worker.endpoint) });
    const { weightsSent, weightsReused } = traffic(ctx);
    const bytes = bytesOnWorker(ctx);
    const tokens = await greedyTokens(ctx, prompt, 32);
    await ctx.close();
    await worker.close();
    return { weightsSent, weightsReused, bytes, tokens, stats: worker.stats() };
  }

  it('lets a second load send no weights, under whatever name, and only what changed of a changed file', async () => {
    const cacheDir = join(dir, 'cache');
    const first = await load(cacheDir, tinyModelQ8);
    expect(first).toMatchObject({ weightsSent: first.bytes, weightsReused: 0 });
    expect(first.stats).toMatchObject({ bytesWeightsReceived: first.bytes, bytesWeightsReused: 0 });

    // A worker of its own each time: nothing is left but the files.
    const second = await load(cacheDir, tinyModelQ8);
    expect(second).toMatchObject({ weightsSent: 0, weightsReused: first.bytes, tokens: first.tokens });
    expect(second.stats).toMatchObject({ bytesWeightsReceived: 0, bytesWeightsReused: first.bytes });

    const copy = join(dir, 'another-name.gguf');
    await copyFile(tinyModelQ8, copy);
    expect(await load(cacheDir, copy)).toMatchObject({ weightsSent: 0, weightsReused: first.bytes });

    const changed = await changeByteOf('blk.4.ffn_down.weight', copy);
    const third = await load(cacheDir, copy);
    expect(third).toMatchObject({ weightsSent: changed, weightsReused: first.bytes - changed });
    expect(await load(cacheDir, copy)).toMatchObject({ weightsSent: 0, tokens: third.tokens });
    // And the old content is still there.
    expect(await load(cacheDir, tinyModelQ8)).toMatchObject({ weightsSent: 0, tokens: first.tokens });
  });

  it('is of use without a file as well: a damaged one is found out and sent again', async () => {
    const cacheDir = join(dir, 'damaged');
    const first = await load(cacheDir, tinyModel);
    const { readdir, stat } = await import('node:fs/promises');
    const names = (await readdir(cacheDir, { recursive: true })).map((name) => join(cacheDir, name));
    let largest = { name: '', size: 0 };
    for (const name of names) {
      const { size } = await stat(name);
      if (size > largest.size) largest = { name, size };
    }
    const file = await open(largest.name, 'r+');
    await file.write(Buffer.from([0x5a, 0xa5, 0x5a]), 0, 3, 1000);
    await file.close();
    const second = await load(cacheDir, tinyModel);
    expect(second.tokens).toEqual(first.tokens);
    expect(second.weightsSent).toBe(largest.size);
    expect(await load(cacheDir, tinyModel)).toMatchObject({ weightsSent: 0, tokens: first.tokens });
  });

  /** Returns the tensor's bytes. */
  async function changeByteOf(name: string, path: string): Promise<number> {
    const { tensors, dataOffset } = parseGguf(await readFile(path));
    const tensor = tensors.find((candidate) => candidate.name === name);
    if (!tensor) throw new Error(`${path} has no ${name}`);
    const position = dataOffset + tensor.offset + 1003;
    const file = await open(path, 'r+');
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, position);
    byte[0] = (byte[0] as number) ^ 1;
    await file.write(byte, 0, 1, position);
    await file.close();
    return tensorBytes(tensor);
  }
});
