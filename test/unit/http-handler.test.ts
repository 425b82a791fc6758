/** The HTTP API over sockets that somebody else has connected. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { request } from 'node:http';
import { connect, createServer, type Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { createHttpHandler, type HttpBackend } from '../../lib/http/server.js';
import type { EngineResponse, EngineRoute, RequestOptions } from '../../lib/types.js';

const routes: readonly EngineRoute[] = [
  { method: 'GET', path: '/props' },
  { method: 'POST', path: '/v1/chat/completions' },
];

afterEach(() => vi.useRealTimers());

function answer(body: AsyncIterable<Uint8Array>, type = 'text/event-stream'): EngineResponse {
  return { status: 200, headers: { 'content-type': type }, body };
}

async function* bytes(...chunks: (string | Uint8Array)[]): AsyncGenerator<Uint8Array> {
  for (const chunk of chunks) yield Buffer.from(chunk);
}

function handlerOf(
  respond: (options: RequestOptions, body: Uint8Array | undefined) => EngineResponse | Promise<EngineResponse>,
) {
  const backend: HttpBackend = { routes, request: async (_method, _path, body, options) => respond(options, body) };
  const handler = createHttpHandler(routes, backend);
  onTestFinished(() => handler.close());
  return handler;
}

/** Two ends of a connection. */
async function socketPair(): Promise<[Socket, Socket]> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connect((server.address() as { port: number }).port, '127.0.0.1');
  const [accepted] = (await once(server, 'connection')) as [Socket];
  server.close();
  onTestFinished(() => {
    client.destroy();
    accepted.destroy();
  });
  return [client.on('error', () => {}), accepted];
}

async function ask(socket: Socket, method: string, path: string, body = '', headers = {}) {
  const client = request({ createConnection: () => socket, method, path, headers });
  client.on('error', () => {});
  client.end(body);
  const [response] = await once(client, 'response');
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  return { status: response.statusCode as number, headers: response.headers, text: Buffer.concat(chunks).toString() };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}

describe('a connected socket', () => {
  it('is served at once, without key or CORS, and closed after its request', async () => {
    const handler = handlerOf((_, body) => answer(bytes(body ?? 'nothing'), 'text/plain'));
    for (let i = 0; i < 3; i++) {
      const [client, accepted] = await socketPair();
      handler.handle(accepted);
      const { status, headers, text } = await ask(client, 'POST', '/v1/chat/completions', '{"a":1}', {
        Origin: 'x://y',
      });
      expect([status, text, headers.server]).toEqual([200, '{"a":1}', 'droid-llama']);
      expect(headers).not.toHaveProperty('access-control-allow-origin');
      await until(() => accepted.destroyed);
    }
  });

  it('may carry several requests', async () => {
    const handler = handlerOf(() => answer(bytes('x'), 'text/plain'));
    const [client, accepted] = await socketPair();
    handler.handle(accepted);
    let text = '';
    client.on('data', (chunk) => {
      text += String(chunk);
    });
    for (let i = 1; i <= 3; i++) {
      client.write('GET /props HTTP/1.1\r\nHost: x\r\n\r\n');
      await until(() => text.split('HTTP/1.1 200 OK').length === i + 1);
    }
  });

  it('gets the 503 of a backend that is still coming', async () => {
    const handler = createHttpHandler(routes, new Promise<HttpBackend>(() => {}));
    onTestFinished(() => handler.close());
    const [client, accepted] = await socketPair();
    handler.handle(accepted);
    expect((await ask(client, 'GET', '/props')).status).toBe(503);
  });

  it('that hangs up ends the generation', async () => {
    let ended = false;
    async function* endless(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) {
          await turn();
          yield Buffer.from('data: 1\n\n');
        }
      } finally {
        ended = true;
      }
    }
    let hungUp: AbortSignal | undefined;
    const handler = handlerOf(({ signal }) => {
      hungUp = signal;
      return answer(endless());
    });
    const [client, accepted] = await socketPair();
    handler.handle(accepted);
    client.write('POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}');
    await once(client, 'data');
    client.destroy();
    await until(() => ended && hungUp?.aborted === true);
  });

  it('that reads slowly slows the engine down', async () => {
    const chunk = randomBytes(64 * 1024);
    let pulled = 0;
    async function* produce(): AsyncGenerator<Uint8Array> {
      for (; pulled < 2000; pulled++) yield chunk;
    }
    const handler = handlerOf(() => answer(produce()));
    const [client, accepted] = await socketPair();
    client.pause();
    handler.handle(accepted);
    client.write('POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}');
    for (let before = -1, quiet = 0; quiet < 2000; quiet++) {
      if (pulled !== before) quiet = 0;
      before = pulled;
      await turn();
    }
    expect(pulled).toBeGreaterThan(0);
    expect(pulled).toBeLessThan(1000);
  });

  it.each(['nonsense\r\n\r\n', 'GET /props HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n'])(
    'that speaks no HTTP is sent away: %j',
    async (text) => {
      const handler = handlerOf(() => answer(bytes('x')));
      const [client, accepted] = await socketPair();
      handler.handle(accepted);
      client.write(text);
      expect(String((await once(client, 'data'))[0])).toMatch(/^HTTP\/1.1 400 /);
      await once(client, 'close');
    },
  );

  it('that never asks is closed after a while', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const handler = handlerOf(() => answer(bytes('x')));
    const [client, accepted] = await socketPair();
    handler.handle(accepted);
    await turn();
    vi.advanceTimersByTime(29_999);
    expect(accepted.destroyed).toBe(false);
    vi.advanceTimersByTime(1);
    expect(accepted.destroyed).toBe(true);
    await once(client, 'close');
  });
});

it('an answer may take longer than that', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  let go = () => {};
  const wait = new Promise<void>((resolve) => {
    go = resolve;
  });
  let asked = false;
  const handler = handlerOf(async () => {
    asked = true;
    await wait;
    return answer(bytes('late'), 'text/plain');
  });
  const [client, accepted] = await socketPair();
  handler.handle(accepted);
  const answered = ask(client, 'GET', '/props');
  await until(() => asked);
  vi.advanceTimersByTime(600_000);
  go();
  expect((await answered).text).toBe('late');
});

describe('the limits', () => {
  const LIMITED = { maxConnections: 2, idleMs: 1000 };
  const START = 'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n';

  it('turn connections away above a number, until one of them ends', async () => {
    const backend: HttpBackend = { routes, request: async () => answer(bytes('x'), 'text/plain') };
    const handler = createHttpHandler(routes, backend, LIMITED);
    onTestFinished(() => handler.close());
    const pairs = [await socketPair(), await socketPair(), await socketPair(), await socketPair()] as const;
    for (const [, accepted] of pairs.slice(0, 3)) handler.handle(accepted);
    expect(pairs.map(([, accepted]) => accepted.destroyed)).toEqual([false, false, true, false]);
    pairs[0][0].destroy();
    await once(pairs[0][1], 'close');
    handler.handle(pairs[3][1]);
    expect((await ask(pairs[3][0], 'GET', '/props')).text).toBe('x');
  });

  it('end a connection that pauses within a request or after one, and no other', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval'] });
    let go = () => {};
    let asked = 0;
    const wait = new Promise<void>((resolve) => {
      go = resolve;
    });
    const backend: HttpBackend = {
      routes,
      request: async (method) => {
        asked++;
        if (method === 'GET') await wait;
        return answer(bytes('late'), 'text/plain');
      },
    };
    const handler = createHttpHandler(routes, backend, { ...LIMITED, maxConnections: 3 });
    onTestFinished(() => handler.close());
    const [paused, slow, waiting] = [await socketPair(), await socketPair(), await socketPair()];
    for (const [, accepted] of [paused, slow, waiting]) handler.handle(accepted);
    let text = '';
    waiting[0].on('data', (chunk) => {
      text += String(chunk);
    });
    paused[0].write(START);
    slow[0].write(START);
    waiting[0].write('GET /props HTTP/1.1\r\nHost: x\r\n\r\n');
    await until(() => asked === 1 && slow[1].bytesRead > 0 && paused[1].bytesRead > 0);
    for (let second = 1; second <= 20; second++) {
      vi.advanceTimersByTime(1000);
      const before = slow[1].bytesRead;
      slow[0].write('x'.repeat(1000));
      await until(() => slow[1].bytesRead > before);
    }
    expect([paused, slow, waiting].map(([, accepted]) => accepted.destroyed)).toEqual([true, false, false]);
    go();
    await until(() => text.endsWith('0\r\n\r\n'));
    for (let i = 0; i < 20; i++) await turn();
    vi.advanceTimersByTime(2000);
    expect([slow, waiting].map(([, accepted]) => accepted.destroyed)).toEqual([true, true]);
  });
});

describe('close', () => {
  it('ends requests with DROID_CLOSED and cuts every connection, also one that comes later', async () => {
    let reason: unknown;
    const handler = handlerOf(({ signal }) => {
      return new Promise((_, reject) => {
        signal?.addEventListener('abort', () => {
          reason = signal.reason;
          reject(reason);
        });
      });
    });
    const pairs = [await socketPair(), await socketPair(), await socketPair()];
    handler.handle((pairs[0] as [Socket, Socket])[1]);
    handler.handle((pairs[1] as [Socket, Socket])[1]);
    const closed = pairs.map(([client]) => once(client, 'close'));
    for (const [client] of pairs) client.resume();
    const [busy] = pairs[0] as [Socket, Socket];
    busy.write('GET /props HTTP/1.1\r\nHost: x\r\n\r\n');
    for (let i = 0; i < 50; i++) await turn();
    const closing = handler.close();
    expect(handler.close()).toBe(closing);
    await closing;
    handler.handle((pairs[2] as [Socket, Socket])[1]);
    await Promise.all(closed);
    expect(reason).toMatchObject({ code: 'DROID_CLOSED' });
  });

  it('before it is ready, with a backend that fails, leaves nothing unhandled', async () => {
    const [client, accepted] = await socketPair();
    const handler = createHttpHandler(routes, Promise.reject(new Error('load failed')));
    handler.handle(accepted);
    const closed = once(client.resume(), 'close');
    await handler.close();
    await closed;
    await turn();
  });
});
