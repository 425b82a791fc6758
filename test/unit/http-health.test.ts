/** What a backend that knows its own health, and one that waits, are asked for; and whose failures become 503. */
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import { healthAnswer } from '../../lib/cluster/master/health.js';
import { notReady } from '../../lib/cluster/master/request-gate.js';
import { type HttpBackend, startHttpServer } from '../../lib/http/server.js';
import type { EngineResponse, EngineRoute } from '../../lib/types.js';

const routes: readonly EngineRoute[] = [
  { method: 'GET', path: '/health' },
  { method: 'GET', path: '/v1/health' },
  { method: 'GET', path: '/props' },
  { method: 'POST', path: '/v1/chat/completions' },
  { method: 'POST', path: '/v1/messages' },
];
let returned = 0;
afterEach(() => {
  returned = 0;
});

function answer(text: string | string[], status: number, type = 'application/json; charset=utf-8'): EngineResponse {
  const chunks = [text].flat().map((chunk) => Buffer.from(chunk));
  const body: AsyncIterableIterator<Uint8Array> = {
    next: async () => {
      const value = chunks.shift();
      return value ? { done: false, value } : { done: true, value: undefined };
    },
    return: async () => {
      returned++;
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]: () => body,
  };
  return { status, headers: { 'content-type': type, 'x-engine': 'e' }, body };
}

async function serve(backend: Partial<HttpBackend>, options = {}): Promise<string> {
  const request: HttpBackend['request'] = async () => answer('{"from":"engine"}', 200);
  const server = await startHttpServer(routes, { routes, request, ...backend }, { port: 0, ...options });
  onTestFinished(() => server.close());
  return server.url;
}

describe('health', () => {
  it.each(['/health', '/v1/health'])(
    'of a backend that knows it is answered at once on %s, without a key',
    async (path) => {
      let health = healthAnswer({ state: 'loading', progress: 0.425, reason: null });
      const url = await serve({ health: () => health, request: () => new Promise(() => {}) }, { apiKey: 'k' });
      const loading = await fetch(url + path);
      expect([loading.status, loading.headers.get('content-type')]).toEqual([503, 'application/json; charset=utf-8']);
      expect(await loading.json()).toEqual({
        error: { message: 'Loading model (43 %)', type: 'unavailable_error', code: 503 },
        status: 'loading',
        progress: 0.43,
      });
      health = healthAnswer({ state: 'ready', progress: 1, reason: null });
      const ready = await fetch(url + path);
      expect([ready.status, await ready.json()]).toEqual([200, { status: 'ok' }]);
      const head = await fetch(url + path, { method: 'HEAD' });
      expect([head.status, await head.text()]).toEqual([200, '']);
      expect((await fetch(`${url}/props`)).status).toBe(401);
    },
  );

  it.each([
    [{ state: 'degraded', reason: 'b hung up' } as const, 'degraded', 'placed anew yet: b hung up'],
    [{ state: 'waiting', reason: 'it needs 3 MiB more' } as const, 'waiting', 'waits: it needs 3 MiB more'],
    [{ state: 'failed', reason: 'no GGUF' } as const, 'failed', 'could not be loaded: no GGUF'],
    [null, 'waiting', 'No device leads the cluster yet.'],
  ])('of %j', (lead, status, message) => {
    const { body, ...rest } = healthAnswer(lead && { progress: 0.5, ...lead });
    expect(rest).toEqual({ status: 503 });
    expect(body).toEqual({
      error: { message: expect.stringContaining(message), type: 'unavailable_error', code: 503 },
      status,
    });
  });

  it('of any other backend is the engine’s', async () => {
    for (const backend of [{}, { health: () => undefined }]) {
      const url = await serve(backend);
      expect(await (await fetch(`${url}/health`)).json()).toEqual({ from: 'engine' });
    }
  });

  it('says so when it cannot tell', async () => {
    const url = await serve({
      health: () => {
        throw new Error('cannot tell');
      },
    });
    expect((await fetch(`${url}/health`)).status).toBe(500);
  });
});

it('a request that has waited in vain is told when to try again, and why', async () => {
  const url = await serve({ request: () => Promise.reject(notReady('The cluster waits.')) });
  const response = await fetch(`${url}/props`);
  expect([response.status, response.headers.get('retry-after')]).toEqual([503, '5']);
  expect(await response.json()).toEqual({
    error: { message: 'The cluster waits. (DROID_NOT_READY)', type: 'unavailable_error', code: 503 },
  });
});

describe('an answer of 500', () => {
  const lost = 'Compute error: worker b hung up (DROID_WORKER_LOST)';
  const error = { code: 500, message: lost, type: 'server_error', param: 'x' };

  it('is a 503 when a worker is the reason, its message and all else as they were', async () => {
    const text = JSON.stringify({ type: 'error', error });
    const url = await serve({ request: async () => answer([text.slice(0, 9), text.slice(9)], 500) });
    const response = await fetch(`${url}/v1/messages`, { method: 'POST', body: '{}' });
    expect([response.status, response.headers.get('x-engine')]).toEqual([503, 'e']);
    expect(await response.json()).toEqual({
      type: 'error',
      error: { ...error, code: 503, type: 'unavailable_error' },
    });
  });

  it.each([
    ['another reason', JSON.stringify({ error: { ...error, message: 'no (DROID_CLOSED)' } })],
    ['a code in the middle', JSON.stringify({ error: { ...error, message: `${lost} or not` } })],
    ['no message', '{"error":{"message":5}}'],
    ['null', 'null'],
    ['no JSON', '{"error":'],
    [
      'more than any error',
      JSON.stringify({ error: { ...error, pad: 'x'.repeat(300_000) } }).match(/.{1,9999}/g) ?? [],
    ],
  ])('with %s stays what it was, to the byte', async (_, text) => {
    const url = await serve({ request: async () => answer(text, 500) });
    const response = await fetch(`${url}/props`);
    expect([response.status, await response.text()]).toEqual([500, [text].flat().join('')]);
    expect(returned).toBe(1);
  });

  it('of another type, or with another status, is not looked into', async () => {
    const text = JSON.stringify({ error });
    for (const [status, type] of [
      [500, 'text/plain'],
      [200, 'application/json'],
    ] as const) {
      const url = await serve({ request: async () => answer(text, status, type) });
      const response = await fetch(`${url}/props`);
      expect([response.status, await response.text()]).toEqual([status, text]);
    }
  });

  it('ends the engine when its client hangs up while it is read', async () => {
    let ended = () => {};
    const end = new Promise<void>((resolve) => {
      ended = resolve;
    });
    let asked = () => {};
    const asking = new Promise<void>((resolve) => {
      asked = resolve;
    });
    const body: AsyncIterableIterator<Uint8Array> = {
      next: () => {
        asked();
        return end.then(() => ({ done: true, value: undefined }));
      },
      return: async () => {
        ended();
        return { done: true, value: undefined };
      },
      [Symbol.asyncIterator]: () => body,
    };
    const url = await serve({ request: async () => ({ ...answer('', 500), body }) });
    const controller = new AbortController();
    const request = fetch(`${url}/props`, { signal: controller.signal });
    request.catch(() => {});
    await asking;
    controller.abort();
    await expect(request).rejects.toThrow();
    await end;
  });
});
