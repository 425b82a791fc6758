/** Workers over sockets that are connected already: an engine and a server in one process, a pair of sockets between. */
import { readdirSync } from 'node:fs';
import { Socket } from 'node:net';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import {
  addon,
  type ModelInfo,
  type NativeEngine,
  type NativeEngineOptions,
  type NativeRpcServer,
  type NativeRpcServerOptions,
  type NativeWorkerOptions,
} from '../../lib/addon.js';
import { greedyCompletion, greedyTokens, openContext, openWorker, until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';

const prompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';
const descriptors = () => readdirSync('/proc/self/fd').length;

let model: ModelInfo;
beforeAll(async () => {
  model = await addon().inspectModel(tinyModel);
});

function openServer(options: Partial<NativeRpcServerOptions> = {}, onEvent?: (line: string) => void): NativeRpcServer {
  const server = new (addon().RpcServer)(
    {
      host: '',
      port: 0,
      threads: 1,
      maxClients: 8,
      memoryLimit: 0,
      clientMemoryLimit: 0,
      cacheDir: '',
      cacheLimit: 0,
      handshakeTimeoutMs: 10_000,
      verbose: false,
      ...options,
    },
    onEvent,
  );
  onTestFinished(() => server.close());
  return server;
}

/** A descriptor of a socket that the server has the other end of. */
function adopted(server: NativeRpcServer, peer = 'master'): number {
  const [ours, theirs] = addon().createSocketPair();
  server.adopt(theirs, peer);
  return ours;
}

const worker = (layers: number, fd: number, endpoint = 'worker'): NativeWorkerOptions => ({
  endpoint,
  host: '',
  port: 0,
  fd,
  layers,
});

function openEngine(
  workers: NativeWorkerOptions[],
  options: Partial<NativeEngineOptions> = {},
  onLost?: (index: number, code: string) => void,
): NativeEngine {
  const engine = new (addon().Engine)(
    {
      model: tinyModel,
      workers,
      headOnWorker: false,
      halfActivations: false,
      tensors: model.tensors,
      contextSize: 512,
      batchSize: 0,
      ubatchSize: 0,
      parallel: 1,
      threads: 1,
      mmap: true,
      embeddings: false,
      reranking: false,
      pooling: '',
      loras: [],
      draft: '',
      chatTemplate: '',
      llamaArgs: [],
      llamaEnv: false,
      timeouts: {
        connectMs: 10_000,
        handshakeMs: 10_000,
        answerMs: 15_000,
        keepAliveIdleMs: 5000,
        keepAliveIntervalMs: 2000,
        userTimeoutMs: 15_000,
      },
      ...options,
    },
    () => {},
    onLost,
  );
  onTestFinished(() => engine.close());
  return engine;
}

async function complete(engine: NativeEngine, tokens: number): Promise<{ status: number; tokens: number[] }> {
  const request = engine.request({
    method: 'POST',
    route: '/completion',
    path: '/completion',
    queryString: '',
    params: {},
    headers: {},
    body: Buffer.from(JSON.stringify(greedyCompletion(prompt, tokens))),
    files: {},
  });
  const head = await request.head();
  const chunks: Uint8Array[] = [];
  for (let chunk = await request.next(); chunk; chunk = await request.next()) chunks.push(chunk);
  const answer = JSON.parse(Buffer.concat(chunks).toString()) as { tokens: number[] };
  return { status: head?.status ?? 0, tokens: answer.tokens };
}

describe('a worker over a pair of sockets', () => {
  it('computes the same as one over TCP, and leaves no descriptor behind', async () => {
    const tcp = await openWorker();
    const context = await openContext({ rpc: [tcp.endpoint], tensorSplit: [0.5, 0.5] });
    const expected = await greedyTokens(context, prompt, 48);
    await context.close();
    await tcp.close();

    const before = descriptors();
    const lines: string[] = [];
    const server = openServer({}, (line) => lines.push(line));
    expect(server.port).toBe(0);
    const engine = openEngine([worker(3, adopted(server, 'tablet'))]);
    const placement = await engine.loaded();
    expect(placement.map(({ layers }) => layers)).toEqual([
      [0, 1, 2],
      [3, 4, 5],
    ]);
    expect(await complete(engine, 48)).toEqual({ status: 200, tokens: expected });
    expect(server.stats()).toMatchObject({ clients: 1, clientsTotal: 1, clientsRefused: 0 });
    expect(server.stats().graphsComputed).toBeGreaterThanOrEqual(48);
    await engine.close();
    await until('the master is gone', () => lines.includes('client tablet disconnected'));
    expect(server.stats().bytesAllocated).toBe(0);
    await server.close();
    expect(descriptors()).toBe(before);
  });

  it('stands beside others, over TCP and over sockets', async () => {
    const tcp = await openWorker();
    const server = openServer();
    const expected = await greedyTokens(await openContext(), prompt, 32);
    const overTcp = { ...worker(2, -1, tcp.endpoint), host: '127.0.0.1', port: Number(tcp.endpoint.split(':')[1]) };
    const engine = openEngine([worker(1, adopted(server)), overTcp, worker(2, adopted(server))]);
    const placement = await engine.loaded();
    expect(placement.map(({ layers }) => layers)).toEqual([[0], [1], [2, 3], [4, 5]]);
    expect((await complete(engine, 32)).tokens).toEqual(expected);
    expect(server.stats().clients).toBe(2);
  });

  it('is missed at once when it stops, idle or not', async () => {
    const server = openServer();
    const lost: string[] = [];
    const engine = openEngine([worker(3, adopted(server))], {}, (index, code) => lost.push(`${index} ${code}`));
    await engine.loaded();
    await complete(engine, 4);
    await server.close();
    await until('the loss is told', () => lost.length > 0, 2000);
    expect(lost).toEqual(['0 DROID_WORKER_LOST']);
    expect(engine.failure()).toMatchObject({ endpoint: 'worker', code: 'DROID_WORKER_LOST' });
  });
});

describe('a socket that is handed over', () => {
  it('is closed when its worker has no part of the model', async () => {
    const before = descriptors();
    const server = openServer();
    const base = descriptors();
    const engine = openEngine([worker(0, adopted(server)), worker(3, adopted(server))]);
    await engine.loaded();
    await until('the unused one is gone', () => server.stats().clientsRefused === 1);
    expect(server.stats().clients).toBe(1);
    await engine.close();
    await until('both are closed', () => descriptors() === base);
    await server.close();
    expect(descriptors()).toBe(before);
  });

  it.each([
    { what: 'an earlier one refuses the connection', first: { port: 1 }, code: 'DROID_ENDPOINT_REFUSED' },
    { what: 'an earlier one has hung up', first: {}, code: 'DROID_WORKER_LOST' },
  ])('is closed when $what', async ({ first, code }) => {
    const server = openServer();
    const base = descriptors();
    const bad = { ...worker(1, -1, 'bad'), host: '127.0.0.1', port: 0, ...first };
    if (!('port' in first)) {
      const [ours, theirs] = addon().createSocketPair();
      addon().closeDescriptor(theirs);
      bad.fd = ours;
    }
    const engine = openEngine([bad, worker(1, adopted(server)), worker(1, adopted(server))]);
    await expect(engine.loaded()).rejects.toMatchObject({ code });
    // Also while the engine itself is not closed.
    await until('the others are closed', () => server.stats().clientsRefused === 2);
    await engine.close();
    await until('nothing is left', () => descriptors() === base);
  });

  it('is closed when the engine is closed before anybody answers', async () => {
    const base = descriptors();
    const [ours, theirs] = addon().createSocketPair();
    const engine = openEngine([worker(3, ours)]);
    const loading = expect(engine.loaded()).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    await engine.close();
    await loading;
    addon().closeDescriptor(theirs);
    expect(descriptors()).toBe(base);
  });

  it('is closed by a server that has too many, or is stopped', async () => {
    const server = openServer({ maxClients: 0 });
    const base = descriptors();
    const sockets = Array.from({ length: 30 }, () => new Socket({ fd: adopted(server), readable: true }));
    for (const socket of sockets) socket.on('error', () => {}).resume();
    await until('some are turned away', () => sockets.some((socket) => socket.readableEnded));
    expect(server.stats().clientsRefused).toBeGreaterThanOrEqual(10);
    await server.close();
    const refused = server.stats().clientsRefused;
    sockets.push(new Socket({ fd: adopted(server), readable: true }).resume());
    expect(server.stats().clientsRefused).toBe(refused + 1);
    await until('all are closed', () => sockets.every((socket) => socket.readableEnded));
    for (const socket of sockets) socket.destroy();
    await until('nothing is left', () => descriptors() < base);
  });
});
