/** A context whose worker is lost, over an engine that only plays it. */
import { describe, expect, it, vi } from 'vitest';
import type { NativeEngine, NativeEngineOptions, NativeFailure, NativeRequest } from '../../lib/addon.js';
import { createDistributedContext, DistributedContext } from '../../lib/context.js';
import type { DroidLlamaError } from '../../lib/errors.js';

type EngineArguments = [NativeEngineOptions, unknown, (index: number, code: string, message: string) => void];

const { engines, probes } = vi.hoisted(() => ({ engines: [] as unknown[][], probes: [] as unknown[][] }));
vi.mock('../../lib/addon.js', async (original) => ({
  ...(await original<typeof import('../../lib/addon.js')>()),
  addon: () => ({
    buildInfo: () => ({ routes: [], maxWorkers: 15 }),
    inspectModel: async () => ({ layerBytes: [1, 1, 1], tensors: [], kvBytesPerTokenLayer: 0 }),
    Engine: class {
      constructor(...args: unknown[]) {
        engines.push(args);
      }
      async loaded() {
        return [];
      }
    },
  }),
}));
vi.mock('../../lib/probe.js', async (original) => ({
  ...(await original<typeof import('../../lib/probe.js')>()),
  probeEndpoint: async (...args: unknown[]) => {
    probes.push(args);
    return { devices: [{ memoryFree: 1000 }] };
  },
}));

const lost: NativeFailure = {
  code: 'DROID_WORKER_LOST',
  message: '10.0.0.2:1 hung up while it computed a graph (DROID_WORKER_LOST)',
  endpoint: '10.0.0.2:1',
};
const message = '10.0.0.2:1 hung up while it computed a graph';

function context(failure: NativeFailure | null, status: number, ...chunks: string[]): DistributedContext {
  const request = (): NativeRequest => ({
    head: async () => ({ status, headers: {} }),
    next: async () => {
      const chunk = chunks.shift();
      return chunk === undefined ? null : Buffer.from(chunk);
    },
    cancel: () => {},
  });
  return new DistributedContext({ request, failure: () => failure } as unknown as NativeEngine, []);
}

const answer = (text: string) => JSON.stringify({ error: { code: 500, message: text, type: 'server_error' } });
const event = (text: string) => `data: ${answer(text)}\n\n`;

async function outcome(call: Promise<unknown> | AsyncIterable<unknown>): Promise<object> {
  const error = await (async () => {
    if (call instanceof Promise) await call;
    else for await (const _ of call);
  })().catch((error: Error & { code?: string; status?: number }) => error);
  return error ? { code: error.code, message: error.message, status: error.status } : {};
}

const chat = { messages: [] };

describe('a request that a lost worker fails', () => {
  it('rejects with the code and the message of the failure', async () => {
    const expected = { code: 'DROID_WORKER_LOST', message, status: 503 };
    expect(await outcome(context(lost, 503, answer('worker is gone')).embed('a'))).toEqual(expected);
    expect(await outcome(context(lost, 503, 'not JSON').tokenize('a'))).toEqual(expected);
    expect(await outcome(context(lost, 503, answer('x')).chat(chat))).toEqual(expected);
  });

  it('ends a stream with it, after what came before', async () => {
    const chunks: unknown[] = [];
    const stream = context(lost, 200, 'data: {"choices":[]}\n\n', event('Compute error.')).complete({ prompt: '' });
    const end = outcome(
      (async () => {
        for await (const chunk of stream) chunks.push(chunk);
      })(),
    );
    expect(await end).toEqual({ code: 'DROID_WORKER_LOST', message, status: 500 });
    expect(chunks).toEqual([{ choices: [] }]);
  });

  it("stays the caller's own fault where it is", async () => {
    expect(await outcome(context(lost, 400, answer('no messages')).chat(chat))).toMatchObject({
      code: 'DROID_REQUEST_FAILED',
      message: 'no messages',
      status: 400,
    });
  });

  it('is told by the text alone where nothing else tells', async () => {
    expect(await outcome(context(null, 500, answer(lost.message)).chat(chat))).toEqual({
      code: 'DROID_WORKER_LOST',
      message,
      status: 500,
    });
    expect(await outcome(context(null, 200, event('Compute error.')).chat(chat))).toEqual({
      code: 'DROID_REQUEST_FAILED',
      message: 'Compute error.',
      status: 500,
    });
  });

  it('is answered as it is by request()', async () => {
    const response = await context(lost, 503, answer('worker is gone')).request('GET', '/health');
    expect(response.status).toBe(503);
    for await (const chunk of response.body) expect(String(chunk)).toBe(answer('worker is gone'));
  });
});

it('ctx.failure is the first failure, if there is one', () => {
  expect(context(lost, 200).failure).toEqual({ code: 'DROID_WORKER_LOST', message, endpoint: '10.0.0.2:1' });
  expect(context(null, 200).failure).toBeUndefined();
});

describe('createDistributedContext', () => {
  it('hands the timeouts over, and the first of them to the probe', async () => {
    const rpc = ['a:1', 'b:2'];
    await createDistributedContext({
      model: 'm',
      rpc,
      insecure: true,
      timeouts: { connectMs: 7, answerMs: 8 },
      onWorkerLost: () => {},
    });
    const [native] = engines.at(-1) as EngineArguments;
    expect(native.timeouts).toMatchObject({ connectMs: 7, answerMs: 8, handshakeMs: 10_000 });
    expect(native).not.toHaveProperty('onWorkerLost');
    expect(probes.splice(0)).toEqual(rpc.map((endpoint) => [endpoint, expect.objectContaining({ timeoutMs: 7 })]));
  });

  it('tells which worker is lost', async () => {
    const told: [DroidLlamaError, string][] = [];
    const onWorkerLost = (...args: [DroidLlamaError, string]) => told.push(args);
    await createDistributedContext({ model: 'm', rpc: ['a:1', 'b:2'], insecure: true, onWorkerLost });
    const [, , report] = engines.at(-1) as EngineArguments;
    report(1, 'DROID_WORKER_LOST', 'b:2 fell silent (DROID_WORKER_LOST)');
    report(0, 'DROID_WORKER_REFUSED', 'a:1 refused');
    expect(told.map(([{ code, message }, endpoint]) => [code, message, endpoint])).toEqual([
      ['DROID_WORKER_LOST', 'b:2 fell silent', 'b:2'],
      ['DROID_WORKER_REFUSED', 'a:1 refused', 'a:1'],
    ]);
    await createDistributedContext({ model: 'm', rpc: ['a:1'], insecure: true });
    // Nobody listens, which is no error.
    (engines.at(-1) as EngineArguments)[2](0, 'DROID_WORKER_LOST', 'gone');
  });
});
