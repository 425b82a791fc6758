import { copyFile, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { createDistributedContext, startRpcServer } from '../../lib/index.js';
import { openWorker } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';

let dir = '';
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'droid-errors-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const load = (options: object) => createDistributedContext({ model: tinyModel, contextSize: 256, ...options });

describe('a model that cannot be', () => {
  it('missing, a directory, and unreadable say DROID_MODEL_NOT_FOUND or INVALID with the path', async () => {
    await expect(load({ model: join(dir, 'none.gguf') })).rejects.toMatchObject({
      code: 'DROID_MODEL_NOT_FOUND',
      message: expect.stringContaining('none.gguf'),
    });
    await expect(load({ model: dir })).rejects.toMatchObject({ code: /DROID_MODEL_(NOT_FOUND|INVALID)/ });
  });

  it('not a GGUF file says so', async () => {
    const path = join(dir, 'page.gguf');
    await writeFile(path, '<!doctype html>');
    await expect(load({ model: path })).rejects.toMatchObject({ code: 'DROID_MODEL_INVALID' });
  });

  it('cut off in the header or in the data says so', async () => {
    const bytes = await readFile(tinyModel);
    const header = join(dir, 'header.gguf');
    await writeFile(header, bytes.subarray(0, 5000));
    await expect(load({ model: header })).rejects.toMatchObject({ code: 'DROID_MODEL_INVALID' });
    const data = join(dir, 'data.gguf');
    await writeFile(data, bytes.subarray(0, bytes.length - 500_000));
    await expect(load({ model: data })).rejects.toMatchObject({ code: 'DROID_LOAD_FAILED' });
  });

  it('of an unknown architecture says DROID_MODEL_UNSUPPORTED', async () => {
    const path = join(dir, 'arch.gguf');
    await copyFile(tinyModel, path);
    const file = await open(path, 'r+');
    const head = Buffer.alloc(4096);
    await file.read(head, 0, head.length, 0);
    await file.write('qwen9', head.indexOf('qwen2'));
    await file.close();
    await expect(load({ model: path })).rejects.toMatchObject({
      code: 'DROID_MODEL_UNSUPPORTED',
      message: expect.stringContaining('qwen9'),
    });
  });
});

describe('an endpoint that cannot be', () => {
  async function fakeServer(onData: (write: (bytes: Buffer) => void) => void): Promise<string> {
    const server: Server = createServer((socket) => {
      socket.on('error', () => {});
      socket.on('data', () => onData((bytes) => socket.write(bytes)));
      onTestFinished(() => {
        socket.destroy();
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => {
      server.close();
    });
    return `127.0.0.1:${(server.address() as { port: number }).port}`;
  }

  it('refused says DROID_ENDPOINT_REFUSED', async () => {
    const worker = await startRpcServer();
    await worker.close();
    await expect(load({ rpc: [worker.endpoint] })).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_REFUSED',
      message: expect.stringContaining(worker.endpoint),
    });
  });

  it('silent says DROID_ENDPOINT_TIMEOUT within the time it was given', async () => {
    const endpoint = await fakeServer(() => {});
    const start = performance.now();
    await expect(load({ rpc: [endpoint], timeouts: { connectMs: 200 } })).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_TIMEOUT',
    });
    expect(performance.now() - start).toBeLessThan(5000);
  });

  it('of another protocol version, or no RPC server at all, says DROID_VERSION_MISMATCH', async () => {
    const hello = Buffer.alloc(8 + 28);
    hello.writeBigUInt64LE(28n, 0);
    hello[8] = 3;
    const old = await fakeServer((write) => write(hello));
    await expect(load({ rpc: [old] })).rejects.toMatchObject({ code: 'DROID_VERSION_MISMATCH' });
    const web = await fakeServer((write) => write(Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'.padEnd(64))));
    await expect(load({ rpc: [web] })).rejects.toMatchObject({ code: 'DROID_VERSION_MISMATCH' });
  });

  it('already taken says DROID_PORT_IN_USE', async () => {
    const worker = await openWorker();
    await expect(startRpcServer({ port: worker.port })).rejects.toMatchObject({
      code: 'DROID_PORT_IN_USE',
      message: expect.stringContaining(String(worker.port)),
    });
  });

  it('is aborted with the signal’s reason while it is asked', async () => {
    const endpoint = await fakeServer(() => {});
    const abort = new AbortController();
    const loading = load({ rpc: [endpoint], signal: abort.signal });
    setTimeout(() => abort.abort(new Error('no patience')), 20);
    await expect(loading).rejects.toThrow('no patience');
  });
});

describe('an option that cannot be is DROID_INVALID_ARGUMENT and names its value', () => {
  const rpc = ['127.0.0.1:1', '127.0.0.1:2'];
  it.each([
    [{ tensorSplit: [0.5, 0.5], rpc }, 'tensorSplit'],
    [{ tensorSplit: [1, -1, 1], rpc }, 'negative'],
    [{ tensorSplit: [0, 0, 0], rpc }, 'all zero'],
    [{ tensorSplit: [1, Number.NaN, 1], rpc }, 'NaN'],
    [{ rpc: Array.from({ length: 16 }, (_, i) => `127.0.0.1:${i + 1}`) }, '16 workers'],
    [{ rpc: ['127.0.0.1:1', '127.0.0.1:1'] }, 'twice'],
    [{ rpc: ['nonsense'] }, 'nonsense'],
    [{ head: 'worker' }, 'no worker'],
    [{ head: 'middle', rpc }, 'middle'],
    [{ contextSize: -1 }, '-1'],
    [{ contextSize: 1.5 }, '1.5'],
    [{ parallel: 0 }, 'parallel'],
    [{ threads: 0 }, 'threads'],
    [{ batchSize: 'big' }, 'big'],
    [{ batchSize: 1 }, 'batchSize is 1'],
    [{ batchSize: 3, parallel: 4 }, 'batchSize is 3'],
    [{ contextSize: 1 }, 'contextSize is 1'],
    [{ pooling: 'max' }, 'max'],
    [{ mmap: 'yes' }, 'yes'],
    [{ model: '' }, 'model'],
    [{ tensorsplit: [1] }, 'did you mean tensorSplit'],
    [{ ctxSize: 5 }, 'ctxSize'],
    [{ chatTemplate: '{% nonsense' }, 'chatTemplate'],
    [{ llamaArgs: ['--no-such-flag'] }, '--no-such-flag'],
    [{ llamaArgs: ['--top-k'] }, '--top-k'],
    [{ llamaArgs: ['--top-k', 'many'] }, '--top-k'],
    [{ llamaArgs: ['--no-flash-attn'] }, '--no-flash-attn'],
  ])('%o', async (options, named) => {
    await expect(load(options)).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringContaining(named),
    });
  });

  it.each([
    '--help',
    '-h',
    '--version',
    '--list-devices',
    '--cache-list',
    '--completion-bash',
    '-m',
    '--model',
    '-hf',
    '--rpc',
    '-ts',
    '-ngl',
    '--gpu-layers',
    '-dev',
    '-sm',
    '-mg',
    '--host',
    '--port',
    '--api-key',
    '--ssl-key-file',
    '--path',
    '-c',
    '-b',
    '-ub',
    '-np',
    '-t',
    '--fit',
    '--log-file',
    '-v',
    '--log-verbosity',
    '--tools',
    '--sleep-idle-seconds',
    '--embedding',
    '--pooling',
    '--chat-template',
    '--mlock',
    '--no-mmap',
    '--numa',
    '--api-prefix',
    '--agent',
  ])('llamaArgs: %s is refused by name', async (flag) => {
    await expect(load({ llamaArgs: [flag, '1'] })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringContaining(flag),
    });
  });
});

describe('memory', () => {
  it('too small for the KV cache is DROID_OUT_OF_MEMORY before anything loads', async () => {
    const worker = await openWorker();
    await expect(
      load({ rpc: [worker.endpoint], tensorSplit: [0, 1], contextSize: 16_000_000, parallel: 1 }),
    ).rejects.toMatchObject({ code: 'DROID_OUT_OF_MEMORY', message: expect.stringContaining(worker.endpoint) });
    expect(worker.stats().bytesAllocated).toBe(0);
  });
});

describe('llamaArgs and the environment', () => {
  it('takes any other llama-server flag, also tensor overrides, beside a placement of ours', async () => {
    const worker = await openWorker();
    const ctx = await load({
      rpc: [worker.endpoint],
      tensorSplit: [0.5, 0.5],
      llamaArgs: ['--temp', '0.125', '-ot', 'blk\\.5\\.ffn_up\\.weight=CPU'],
    });
    onTestFinished(() => ctx.close());
    const response = await ctx.request('GET', '/props');
    let text = '';
    for await (const chunk of response.body) text += Buffer.from(chunk).toString();
    expect(JSON.parse(text).default_generation_settings.params.temperature).toBe(0.125);
    // The head is still here, and the overridden tensor came back from the worker's layer 5.
    expect(ctx.placement[0]).toMatchObject({ head: true, layers: [0, 1, 2, 5] });
    expect(ctx.placement[1]?.bytes).toBe(worker.stats().bytesWeights);
  });

  it('ignores LLAMA_ARG_* unless asked', async () => {
    process.env.LLAMA_ARG_TEMP = '0.5';
    process.env.LLAMA_ARG_CACHE_PROMPT = '0';
    process.env.LLAMA_ARG_CTX_SIZE = '64';
    onTestFinished(() => {
      for (const name of ['LLAMA_ARG_TEMP', 'LLAMA_ARG_CACHE_PROMPT', 'LLAMA_ARG_CTX_SIZE']) delete process.env[name];
    });
    const ctx = await load({});
    await ctx.close();
    expect(ctx.placement).toHaveLength(1);
    await expect(load({ llamaEnv: true })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringContaining('LLAMA_ARG_CTX_SIZE'),
    });
  });
});
