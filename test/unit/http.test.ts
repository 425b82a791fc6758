import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  Agent,
  type ClientRequest,
  type IncomingMessage,
  type RequestOptions as NodeRequest,
  request,
} from 'node:http';
import { connect, createServer, type Socket } from 'node:net';
import { networkInterfaces } from 'node:os';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { DroidLlamaError } from '../../lib/errors.js';
import { type HttpBackend, type HttpServer, type HttpServerOptions, startHttpServer } from '../../lib/http/server.js';
import type { EngineResponse, EngineRoute, RequestOptions } from '../../lib/types.js';

const routes: readonly EngineRoute[] = [
  { method: 'GET', path: '/health' },
  { method: 'GET', path: '/v1/health' },
  { method: 'GET', path: '/props' },
  { method: 'POST', path: '/props' },
  { method: 'POST', path: '/v1/chat/completions' },
  { method: 'POST', path: '/v1/messages' },
  { method: 'POST', path: '/v1/audio/transcriptions' },
  { method: 'POST', path: '/slots/:id_slot' },
];
const CHAT = '/v1/chat/completions';

interface Call {
  readonly method: string;
  readonly path: string;
  readonly body: Uint8Array | undefined;
  readonly options: RequestOptions;
  readonly signal: AbortSignal;
}

class FakeBackend implements HttpBackend {
  readonly routes = routes;
  readonly calls: Call[] = [];

  constructor(private readonly answer: (call: Call) => EngineResponse | Promise<EngineResponse> = () => json('{}')) {}

  async request(
    method: string,
    path: string,
    body: Uint8Array | undefined,
    options: RequestOptions,
  ): Promise<EngineResponse> {
    if (!options.signal) throw new Error('the server gave no signal');
    const call = { method, path, body, options, signal: options.signal };
    this.calls.push(call);
    return this.answer(call);
  }

  get last(): Call {
    const call = this.calls.at(-1);
    if (!call) throw new Error('the backend was not called');
    return call;
  }
}

/** What the engine does when it is aborted: `request` and a pending `next` reject. */
function untilAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const fail = (): void => reject(signal.reason);
    if (signal.aborted) fail();
    else signal.addEventListener('abort', fail, { once: true });
  });
}

async function* bytes(...chunks: (string | Uint8Array)[]): AsyncGenerator<Uint8Array> {
  for (const chunk of chunks) yield typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
}

function json(text: string, status = 200): EngineResponse {
  return { status, headers: { 'content-type': 'application/json; charset=utf-8' }, body: bytes(text) };
}

function events(body: AsyncIterable<Uint8Array>): EngineResponse {
  return { status: 200, headers: { 'content-type': 'text/event-stream' }, body };
}

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function serve(
  backend: HttpBackend | Promise<HttpBackend> = new FakeBackend(),
  options: HttpServerOptions = {},
): Promise<HttpServer> {
  const server = await startHttpServer(routes, backend, { port: 0, ...options });
  cleanUps.push(() => server.close());
  return server;
}

/** Resolves when the condition holds; a test that waits in vain is ended by vitest's own timeout. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

function open(server: HttpServer, method: string, path: string, options: NodeRequest = {}): ClientRequest {
  const { host, port } = server;
  const client = request({ host, port, method, path, agent: false, ...options });
  cleanUps.push(() => client.destroy());
  return client;
}

async function responseOf(client: ClientRequest): Promise<IncomingMessage> {
  const [response] = (await once(client, 'response')) as [IncomingMessage];
  return response;
}

async function collect(response: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) };
}

async function ask(
  server: HttpServer,
  method: string,
  path: string,
  body: string | Uint8Array = '',
  headers: Record<string, string> = {},
): Promise<Answer> {
  const client = open(server, method, path, { headers });
  client.end(body);
  return collect(await responseOf(client));
}

/** Sends text as it is and resolves to everything that came back until the server hung up. */
async function talk(server: HttpServer, text: string): Promise<string> {
  const socket = connect(server.port, server.host);
  cleanUps.push(() => socket.destroy());
  socket.write(text);
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

function errorOf({ body }: Answer): { message: string; type: string; code: number } {
  const parsed = JSON.parse(body.toString()) as { error: { message: string; type: string; code: number } };
  expect(Object.keys(parsed)).toEqual(['error']);
  expect(Object.keys(parsed.error).sort()).toEqual(['code', 'message', 'type']);
  return parsed.error;
}

describe('what the engine is asked', () => {
  it('gets method, path, headers and the bytes of the body as they came', async () => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    const body = Buffer.from('{ "a" :\t1.0e0, "ü": "\\u00e9", "a": 2 }\n');
    await ask(server, 'POST', CHAT, body, { 'X-Custom': 'Value', 'Content-Type': 'application/json' });
    const { method, path, options } = backend.last;
    expect({ method, path }).toEqual({ method: 'POST', path: CHAT });
    expect(Buffer.from(backend.last.body ?? [])).toEqual(body);
    expect(options.headers).toMatchObject({ 'x-custom': 'Value', 'content-type': 'application/json' });
    expect(options.files).toBeUndefined();
  });

  it('gets path parameters in the path and among the query parameters, of which the last one counts', async () => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    await ask(server, 'POST', '/slots/3?action=save&action=erase&id_slot=7&name=a%20b+c');
    expect(backend.last.path).toBe('/slots/3');
    expect(backend.last.options.query).toEqual({ id_slot: '3', action: 'erase', name: 'a b c' });
    expect(backend.last.body).toBeUndefined();
  });

  it('decodes a parameter once and spells the path of a route in one way', async () => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    await ask(server, 'POST', '/slots/a%2Fb%253A');
    expect(backend.last.path).toBe('/slots/a%2Fb%253A');
    expect(backend.last.options.query).toEqual({ id_slot: 'a/b%3A' });
    await ask(server, 'GET', `http://example.org/pr%6Fps`);
    expect(backend.last.path).toBe('/props');
  });

  it('never sees a conversation id, with which a request would outlive its client', async () => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    await ask(server, 'POST', CHAT, '{}', { 'X-Conversation-Id': 'abc' });
    expect(Object.keys(backend.last.options.headers ?? {})).not.toContain('x-conversation-id');
  });

  it.each(['text/plain', 'application/x-www-form-urlencoded', 'nonsense', 'multipart/mixed; boundary=x', ''])(
    'takes JSON under the content type %j',
    async (contentType) => {
      const backend = new FakeBackend();
      const server = await serve(backend);
      const { status } = await ask(server, 'POST', CHAT, '{"a":1}', { 'Content-Type': contentType });
      expect(status).toBe(200);
      expect(Buffer.from(backend.last.body ?? []).toString()).toBe('{"a":1}');
    },
  );

  it('answers HEAD like GET, without a body and without letting the engine go on', async () => {
    let returned = false;
    async function* endless(): AsyncGenerator<Uint8Array> {
      for (;;) yield Buffer.from('x');
    }
    const backend = new FakeBackend(() => {
      const chunks = endless();
      const body: AsyncIterableIterator<Uint8Array> = {
        [Symbol.asyncIterator]: () => body,
        next: () => chunks.next(),
        return: () => {
          returned = true;
          return chunks.return(undefined);
        },
      };
      return { status: 200, headers: { 'content-type': 'application/json' }, body };
    });
    const server = await serve(backend);
    const answer = await ask(server, 'HEAD', '/props');
    expect(answer).toMatchObject({ status: 200, headers: { 'content-type': 'application/json' } });
    expect(answer.body.length).toBe(0);
    expect(backend.last.method).toBe('GET');
    await until(() => returned);
    expect((await ask(server, 'HEAD', CHAT)).status).toBe(404);
  });
});

describe('streaming', () => {
  it('passes status, headers and every byte on', async () => {
    const chunks = Array.from({ length: 200 }, (_, i) => randomBytes(i * 37));
    const body = bytes(...chunks);
    const server = await serve(
      new FakeBackend(() => ({
        status: 207,
        headers: { 'content-type': 'application/x-test', 'x-engine': 'e' },
        body,
      })),
    );
    const answer = await ask(server, 'POST', CHAT, '{}');
    expect(answer.status).toBe(207);
    expect(answer.headers).toMatchObject({
      'content-type': 'application/x-test',
      'x-engine': 'e',
      server: 'droid-llama',
    });
    expect(answer.headers).not.toHaveProperty('x-accel-buffering');
    expect(answer.body.equals(Buffer.concat(chunks))).toBe(true);
  });

  it('sends the headers of an event stream before its first event, and every event when it is there', async () => {
    const released: (() => void)[] = [];
    const waits = [0, 1].map(() => new Promise<void>((resolve) => released.push(resolve)));
    async function* produce(): AsyncGenerator<Uint8Array> {
      await waits[0];
      yield Buffer.from('data: 1\n\n');
      await waits[1];
      yield Buffer.from('data: [DONE]\n\n');
    }
    const server = await serve(new FakeBackend(() => events(produce())));
    const client = open(server, 'POST', CHAT);
    client.end('{}');
    const response = await responseOf(client);
    expect(response.headers).toMatchObject({ 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' });
    const reader = response[Symbol.asyncIterator]();
    released[0]?.();
    expect(String((await reader.next()).value)).toBe('data: 1\n\n');
    released[1]?.();
    expect(String((await reader.next()).value)).toBe('data: [DONE]\n\n');
    expect((await reader.next()).done).toBe(true);
  });

  it('asks the engine for no more than a slow reader takes', async () => {
    const chunk = randomBytes(64 * 1024);
    const total = 2000;
    let pulled = 0;
    async function* produce(): AsyncGenerator<Uint8Array> {
      while (pulled < total) {
        pulled++;
        yield chunk;
      }
    }
    const server = await serve(new FakeBackend(() => events(produce())));
    const client = open(server, 'POST', CHAT);
    client.end('{}');
    const response = await responseOf(client);
    response.pause();
    // Until the kernel's buffers are full: nothing was pulled for many turns of the event loop.
    for (let before = -1, quiet = 0; quiet < 2000; quiet++) {
      if (pulled !== before) quiet = 0;
      before = pulled;
      await turn();
    }
    expect(pulled).toBeGreaterThan(0);
    expect(pulled).toBeLessThan(total / 2);
    let received = 0;
    for await (const part of response) received += (part as Buffer).length;
    expect(pulled).toBe(total);
    expect(received).toBe(total * chunk.length);
  });

  it('keeps the connection for the next request', async () => {
    const server = await serve(new FakeBackend(() => events(bytes('data: 1\n\n'))));
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    cleanUps.push(() => agent.destroy());
    const ports = new Set<number | undefined>();
    for (let i = 0; i < 3; i++) {
      const client = open(server, 'POST', CHAT, { agent });
      client.end('{}');
      const response = await responseOf(client);
      ports.add(response.socket.localPort);
      expect((await collect(response)).body.toString()).toBe('data: 1\n\n');
    }
    expect(ports.size).toBe(1);
  });
});

describe('a client that hangs up', () => {
  it('stops a request that has not been answered yet', async () => {
    const backend = new FakeBackend(({ signal }) => untilAborted(signal));
    const server = await serve(backend);
    const client = open(server, 'POST', CHAT).on('error', () => {});
    client.end('{}');
    await until(() => backend.calls.length === 1);
    expect(backend.last.signal.aborted).toBe(false);
    client.destroy();
    await until(() => backend.last.signal.aborted);
  });

  it('stops an answer whose engine noticed too late, before its first byte', async () => {
    let ended = false;
    let resolve: (response: EngineResponse) => void = () => {};
    const body = {
      [Symbol.asyncIterator]: () => ({
        next: () => new Promise<never>(() => {}),
        return: async () => {
          ended = true;
          return { done: true as const, value: undefined };
        },
      }),
    };
    const backend = new FakeBackend(() => new Promise((r) => (resolve = r)));
    const server = await serve(backend);
    const client = open(server, 'POST', CHAT).on('error', () => {});
    client.end('{}');
    await until(() => backend.calls.length === 1);
    client.destroy();
    await until(() => backend.last.signal.aborted);
    resolve(events(body));
    await until(() => ended);
  });

  it('stops a non-streaming answer that is being computed', async () => {
    let ended = false;
    async function* slow(signal: AbortSignal): AsyncGenerator<Uint8Array> {
      try {
        yield await untilAborted(signal);
      } finally {
        ended = true;
      }
    }
    const backend = new FakeBackend(({ signal }) => ({ ...json(''), body: slow(signal) }));
    const server = await serve(backend);
    const client = open(server, 'POST', CHAT).on('error', () => {});
    client.end('{}');
    await until(() => backend.calls.length === 1);
    client.destroy();
    await until(() => ended);
  });

  it('stops a stream, and ends its iterator even while a chunk is awaited', async () => {
    let ended = false;
    let chunks = 0;
    const body = {
      [Symbol.asyncIterator]: () => {
        let finish: (result: IteratorResult<Uint8Array>) => void = () => {};
        return {
          next: () =>
            chunks++ === 0
              ? Promise.resolve({ done: false as const, value: Buffer.from('data: 1\n\n') })
              : new Promise<IteratorResult<Uint8Array>>((resolve) => (finish = resolve)),
          return: async () => {
            ended = true;
            finish({ done: true, value: undefined });
            return { done: true as const, value: undefined };
          },
        };
      },
    };
    const backend = new FakeBackend(() => events(body));
    const server = await serve(backend);
    const client = open(server, 'POST', CHAT).on('error', () => {});
    client.end('{}');
    const response = await responseOf(client);
    await once(response, 'data');
    await until(() => chunks === 2);
    response.on('error', () => {});
    client.destroy();
    await until(() => ended && backend.last.signal.aborted);
  });

  it('stops a stream that waits for the reader', async () => {
    let ended = false;
    async function* endless(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) yield randomBytes(64 * 1024);
      } finally {
        ended = true;
      }
    }
    const server = await serve(new FakeBackend(() => events(endless())));
    const client = open(server, 'POST', CHAT).on('error', () => {});
    client.end('{}');
    const response = (await responseOf(client)).on('error', () => {});
    response.pause();
    await once(response, 'readable');
    client.destroy();
    await until(() => ended);
  });

  it.each(['application/json', 'multipart/form-data; boundary=b'])(
    'never reaches the engine while its %s body is still coming',
    async (contentType) => {
      const backend = new FakeBackend();
      const server = await serve(backend);
      const socket = connect(server.port, server.host);
      socket.write(
        `POST ${CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: ${contentType}\r\nContent-Length: 1000\r\n\r\n--b\r\n` +
          'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\nabc',
      );
      await once(socket, 'connect');
      await turn();
      socket.destroy();
      await once(socket, 'close');
      await ask(server, 'GET', '/props');
      expect(backend.calls.map(({ path }) => path)).toEqual(['/props']);
    },
  );

  it('stops all requests it has pipelined', async () => {
    const backend = new FakeBackend(({ signal }) => untilAborted(signal));
    const server = await serve(backend);
    const socket = connect(server.port, server.host);
    socket.write(`POST ${CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}`.repeat(15));
    await until(() => backend.calls.length === 15);
    socket.destroy();
    await until(() => backend.calls.every(({ signal }) => signal.aborted));
  });
});

describe('a stream that fails', () => {
  async function* failing(error: unknown, ...chunks: string[]): AsyncGenerator<Uint8Array> {
    yield* bytes(...chunks);
    throw error;
  }

  it('says so in a last event', async () => {
    const body = failing(new Error('worker 10.0.0.2 left'), 'data: 1\n\n');
    const server = await serve(new FakeBackend(() => events(body)));
    const answer = await ask(server, 'POST', CHAT, '{}');
    expect(answer.status).toBe(200);
    expect(answer.body.toString()).toBe(
      'data: 1\n\ndata: {"error":{"message":"worker 10.0.0.2 left","type":"server_error","code":500}}\n\n',
    );
  });

  it("says so in Anthropic's form on /v1/messages", async () => {
    const error = new DroidLlamaError('DROID_CLOSED', 'closed');
    const server = await serve(new FakeBackend(() => events(failing(error))));
    const answer = await ask(server, 'POST', '/v1/messages', '{}');
    expect(answer.body.toString()).toBe(
      'event: error\ndata: {"type":"error","error":{"message":"closed","type":"unavailable_error","code":503}}\n\n',
    );
  });

  it('breaks the connection where no event can tell', async () => {
    const body = failing(new Error('gone'), '{"half":');
    const server = await serve(new FakeBackend(() => ({ ...json(''), body })));
    await expect(ask(server, 'POST', CHAT, '{}')).rejects.toMatchObject({ code: 'ECONNRESET' });
  });

  it('answers with a status if it fails before the first byte', async () => {
    const server = await serve(new FakeBackend(() => ({ ...json(''), body: failing(new Error('no memory')) })));
    const answer = await ask(server, 'POST', CHAT, '{}');
    expect(answer.status).toBe(500);
    expect(errorOf(answer)).toEqual({ message: 'no memory', type: 'server_error', code: 500 });
  });

  it('answers 500, and stops the engine, if its headers cannot be sent', async () => {
    let ended = false;
    async function* endless(): AsyncGenerator<Uint8Array> {
      try {
        for (;;) yield Buffer.from('x');
      } finally {
        ended = true;
      }
    }
    const server = await serve(new FakeBackend(() => ({ status: 200, headers: { 'x-bad': 'a\nb' }, body: endless() })));
    const answer = await ask(server, 'POST', CHAT, '{}');
    expect(answer.status).toBe(500);
    expect(errorOf(answer).type).toBe('server_error');
    expect(ended).toBe(true);
  });

  it.each([
    [new DroidLlamaError('DROID_REQUEST_FAILED', 'm', { status: 501 }), 501, 'not_supported_error', 'm'],
    [new DroidLlamaError('DROID_INVALID_ARGUMENT', 'm'), 400, 'invalid_request_error', 'm'],
    [new DroidLlamaError('DROID_CLOSED', 'm'), 503, 'unavailable_error', 'm'],
    // As the engine writes it, so that whoever hears of a lost worker hears the same.
    [new DroidLlamaError('DROID_WORKER_LOST', 'm'), 503, 'unavailable_error', 'm (DROID_WORKER_LOST)'],
    [
      new DroidLlamaError('DROID_WORKER_OUT_OF_MEMORY', 'm (DROID_WORKER_OUT_OF_MEMORY)', { status: 500 }),
      503,
      'unavailable_error',
      'm (DROID_WORKER_OUT_OF_MEMORY)',
    ],
    [Object.assign(new Error('m'), { statusCode: 201 }), 500, 'server_error', 'm'],
  ])('answers a rejected request: %s', async (error, status, type, message) => {
    const server = await serve(new FakeBackend(() => Promise.reject(error)));
    const answer = await ask(server, 'POST', CHAT, '{}');
    expect(answer.status).toBe(status);
    expect(answer.headers['content-type']).toBe('application/json; charset=utf-8');
    expect(errorOf(answer)).toEqual({ message, type, code: status });
    expect(answer.body.toString()).not.toMatch(/\bat .*:\d+/);
  });
});

describe('an engine that has lost a worker', () => {
  // What it answers itself is llama-server's, and reaches the client to the byte.
  const lost = '{"error":{"code":503,"message":"worker 10.0.0.2:1 is gone","type":"unavailable_error"}}';

  it.each(['/health', '/v1/health'])('says so in %s, also to those without a key', async (path) => {
    const server = await serve(new FakeBackend(() => json(lost, 503)), { apiKey: 'k' });
    const answer = await ask(server, 'GET', path);
    expect([answer.status, answer.body.toString()]).toEqual([503, lost]);
    expect(errorOf(answer).type).toBe('unavailable_error');
    const head = await ask(server, 'HEAD', path);
    expect([head.status, head.body.length]).toEqual([503, 0]);
  });

  it('ends a stream with its own error event and no other', async () => {
    const chunks = ['data: {"a":1}\n\n', `data: ${lost}\n\n`];
    const server = await serve(new FakeBackend(() => events(bytes(...chunks))));
    const answer = await ask(server, 'POST', CHAT, '{}');
    expect(answer.body.toString()).toBe(chunks.join(''));
  });
});

describe('loading', () => {
  it('answers 503 everywhere, before it asks for a key, until the model is there', async () => {
    let loaded: (backend: HttpBackend) => void = () => {};
    const pending = new Promise<HttpBackend>((resolve) => (loaded = resolve));
    const server = await serve(pending, { apiKey: 'k' });
    for (const [method, path] of [
      ['GET', '/health'],
      ['POST', CHAT],
      ['GET', '/unknown'],
    ] as const) {
      const answer = await ask(server, method, path, method === 'POST' ? 'not json' : '');
      expect(answer.status).toBe(503);
      expect(answer.body.toString()).toBe(
        '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}',
      );
      expect(answer.headers).toMatchObject({
        'content-type': 'application/json; charset=utf-8',
        'access-control-allow-origin': '*',
        server: 'droid-llama',
      });
    }
    loaded(new FakeBackend());
    await pending;
    expect((await ask(server, 'GET', '/health')).status).toBe(200);
    expect((await ask(server, 'POST', CHAT, '{}')).status).toBe(401);
  });

  it('answers with the reason when the model does not load', async () => {
    const server = await serve(Promise.reject(new DroidLlamaError('DROID_MODEL_INVALID', 'not a GGUF file')));
    const answer = await ask(server, 'GET', '/health');
    expect(answer.status).toBe(503);
    expect(errorOf(answer)).toEqual({ message: 'not a GGUF file', type: 'unavailable_error', code: 503 });
  });

  it('leaves no rejection unhandled when the start itself fails', async () => {
    const failed = Promise.reject(new Error('load failed'));
    await expect(startHttpServer(routes, failed, { port: -1 })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
    });
    // vitest fails the run on an unhandled rejection.
    await turn();
  });
});

describe('API keys', () => {
  it.each<[string, Record<string, string>, number]>([
    ['none', {}, 401],
    ['a wrong one', { Authorization: 'Bearer nope' }, 401],
    ['a prefix', { Authorization: 'Bearer one' }, 401],
    ['an empty one', { Authorization: 'Bearer ' }, 401],
    ['an empty header', { 'X-Api-Key': '' }, 401],
    ['the first, as a bearer token', { Authorization: 'Bearer one-key' }, 200],
    ['the second, its scheme in small letters', { authorization: 'bearer second-key' }, 200],
    ["the first, in Anthropic's header", { 'X-Api-Key': 'one-key' }, 200],
  ])('%s', async (_, headers, status) => {
    const backend = new FakeBackend();
    const server = await serve(backend, { apiKey: ['one-key', 'second-key'] });
    const answer = await ask(server, 'POST', CHAT, '{}', headers);
    expect(answer.status).toBe(status);
    if (status === 401) {
      expect(errorOf(answer)).toEqual({ message: 'Invalid API Key', type: 'authentication_error', code: 401 });
      expect(backend.calls).toEqual([]);
    }
  });

  it('may hold any letters, sent in UTF-8', async () => {
    const server = await serve(new FakeBackend(), { apiKey: 'schlüssel' });
    const head = 'GET /props HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ';
    expect(await talk(server, `${head}schlüssel\r\n\r\n`)).toMatch(/^HTTP\/1.1 200 /);
    expect(await talk(server, `${head}schlussel\r\n\r\n`)).toMatch(/^HTTP\/1.1 401 /);
  });

  it('are asked for before a route is looked up, and not for health or preflights', async () => {
    const server = await serve(new FakeBackend(), { apiKey: 'k' });
    expect((await ask(server, 'GET', '/unknown')).status).toBe(401);
    expect((await ask(server, 'GET', '/health')).status).toBe(200);
    expect((await ask(server, 'HEAD', '/v1/health')).status).toBe(200);
    expect((await ask(server, 'GET', '/props')).status).toBe(401);
    expect((await ask(server, 'OPTIONS', CHAT)).status).toBe(200);
  });
});

describe('CORS', () => {
  const preflight = {
    Origin: 'https://chat.example',
    'Access-Control-Request-Method': 'POST',
    'Access-Control-Request-Headers': 'authorization,content-type,x-stainless-os',
  };

  it('lets pages of any origin in, without credentials', async () => {
    const server = await serve(new FakeBackend(), { apiKey: 'k' });
    const answer = await ask(server, 'OPTIONS', CHAT, '', preflight);
    expect(answer.status).toBe(200);
    expect(answer.body.length).toBe(0);
    expect(answer.headers).toMatchObject({
      'access-control-allow-origin': '*',
      'access-control-allow-headers': preflight['Access-Control-Request-Headers'],
    });
    expect(answer.headers['access-control-allow-methods']).toContain('POST');
    expect(answer.headers).not.toHaveProperty('access-control-allow-credentials');
    const headers = { Origin: preflight.Origin, Authorization: 'Bearer k' };
    expect((await ask(server, 'POST', CHAT, '{}', headers)).headers['access-control-allow-origin']).toBe('*');
    expect((await ask(server, 'POST', CHAT, '{}')).headers['access-control-allow-origin']).toBe('*');
  });

  it('lets only the given origins in', async () => {
    const server = await serve(new FakeBackend(), { corsOrigin: ['https://a.example', 'https://chat.example'] });
    const allowed = await ask(server, 'OPTIONS', CHAT, '', preflight);
    expect(allowed.headers['access-control-allow-origin']).toBe('https://chat.example');
    const other = await ask(server, 'OPTIONS', CHAT, '', { ...preflight, Origin: 'https://evil.example' });
    expect(other.headers).not.toHaveProperty('access-control-allow-origin');
  });

  it('lets none in when told so', async () => {
    const server = await serve(new FakeBackend(), { corsOrigin: false, apiKey: 'k' });
    const answer = await ask(server, 'OPTIONS', CHAT, '', preflight);
    expect(answer.status).toBe(404);
    expect(answer.headers).not.toHaveProperty('access-control-allow-origin');
  });
});

describe('requests that are refused', () => {
  it.each(['{"a":', 'x', '{"a":1}}', '\u00a0{}', "{'a':1}"])('malformed JSON: %j', async (body) => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    const answer = await ask(server, 'POST', CHAT, body);
    expect(answer.status).toBe(400);
    expect(errorOf(answer)).toMatchObject({ type: 'invalid_request_error', code: 400 });
    expect(errorOf(answer).message).toContain('not valid JSON');
    expect(backend.calls).toEqual([]);
  });

  it('ill-formed UTF-8', async () => {
    const server = await serve();
    const body = Buffer.from([0x22, 0xff, 0x22]);
    expect((await ask(server, 'POST', CHAT, body)).status).toBe(400);
  });

  it.each([
    ['GET', '/nope'],
    ['POST', '/nope'],
    ['GET', CHAT],
    ['DELETE', '/props'],
    ['GET', '/health/'],
    ['PROPFIND', '/health'],
  ])('%s %s', async (method, path) => {
    const server = await serve();
    const answer = await ask(server, method, path);
    expect(answer.status).toBe(404);
    expect(answer.body.toString()).toBe('{"error":{"message":"File Not Found","type":"not_found_error","code":404}}');
  });

  it.each([
    ['with its length given', false, 'application/json'],
    ['in chunks', true, 'application/json'],
    ['a form with its length given', false, 'multipart/form-data; boundary=b'],
    ['a form in chunks', true, 'multipart/form-data; boundary=b'],
  ])('an oversized body, %s, is answered although the client sends all of it first', async (_, chunked, type) => {
    const backend = new FakeBackend();
    const server = await serve(backend, { bodyLimit: 1000 });
    const part = `--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n${'x'.repeat(900)}\r\n`;
    const body = Buffer.from(`${part}${part}--b--${' '.repeat(8_000_000)}`);
    const headers = { 'Content-Type': type, ...(chunked && { 'Transfer-Encoding': 'chunked' }) };
    const client = open(server, 'POST', CHAT, { headers });
    client.end(body);
    const [answer] = await Promise.all([responseOf(client).then(collect), once(client, 'finish')]);
    expect(answer.status).toBe(413);
    expect(errorOf(answer)).toMatchObject({ type: 'invalid_request_error', code: 413 });
    expect(errorOf(answer).message).toContain('1000 bytes');
    expect(backend.calls).toEqual([]);
  });

  it('a body of exactly the limit is not', async () => {
    const server = await serve(new FakeBackend(), { bodyLimit: 1000 });
    expect((await ask(server, 'POST', CHAT, `"${'x'.repeat(998)}"`)).status).toBe(200);
  });

  it('a URL that does not decode', async () => {
    const server = await serve();
    const answer = await ask(server, 'GET', '/slots/%zz');
    expect(answer.status).toBe(400);
    expect(answer.headers.server).toBe('droid-llama');
    expect(errorOf(answer)).toMatchObject({ type: 'invalid_request_error', code: 400 });
  });

  it('a parameter too long to mean anything', async () => {
    const server = await serve();
    const answer = await ask(server, 'POST', `/slots/${'1'.repeat(1000)}`);
    expect(answer.status).toBe(414);
    expect(errorOf(answer)).toMatchObject({ type: 'invalid_request_error', code: 414 });
  });

  it.each([
    ['too many header bytes', `GET /health HTTP/1.1\r\nHost: x\r\nA: ${'a'.repeat(20_000)}\r\n\r\n`, 431],
    ['no HTTP', 'hello there\r\n\r\n', 400],
  ])('%s', async (_, text, status) => {
    const server = await serve();
    const answer = await talk(server, text);
    expect(answer).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(answer).toContain('Server: droid-llama\r\n');
    const body = answer.slice(answer.indexOf('\r\n\r\n') + 4);
    expect(JSON.parse(body)).toMatchObject({ error: { code: status, type: 'invalid_request_error' } });
  });

  it('garbage behind a request does not end up in the middle of its answer', async () => {
    async function* produce(signal: AbortSignal): AsyncGenerator<Uint8Array> {
      yield Buffer.from('data: 1\n\n');
      yield await untilAborted(signal);
    }
    const server = await serve(new FakeBackend(({ signal }) => events(produce(signal))));
    const socket = connect(server.port, server.host);
    socket.write(`POST ${CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}`);
    let received = '';
    socket.on('data', (chunk: Buffer) => {
      received += chunk.toString();
    });
    socket.on('error', () => {});
    await until(() => received.includes('data: 1'));
    socket.write('garbage\r\n\r\n');
    await once(socket, 'close');
    expect(received.match(/HTTP\/1\.1/g)).toHaveLength(1);
  });
});

describe('multipart forms', () => {
  async function submit(server: HttpServer, form: FormData): Promise<Answer> {
    const encoded = new Response(form);
    const body = new Uint8Array(await encoded.arrayBuffer());
    return ask(server, 'POST', '/v1/audio/transcriptions', body, {
      'Content-Type': encoded.headers.get('content-type') ?? '',
    });
  }

  it('become a JSON body and files', async () => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    const audio = randomBytes(200_000);
    const form = new FormData();
    form.append('model', 'tiny');
    form.append('tags[]', 'a');
    form.append('file', new Blob([audio], { type: 'audio/wav' }), 'voice ü.wav');
    form.append('tags[]', 'b');
    form.append('tags[]', 'ç');
    expect((await submit(server, form)).status).toBe(200);
    const { body, options } = backend.last;
    expect(JSON.parse(Buffer.from(body ?? []).toString())).toEqual({ model: 'tiny', 'tags[]': ['a', 'b', 'ç'] });
    expect(Object.keys(options.files ?? {})).toEqual(['file']);
    const file = options.files?.file;
    expect(file).toMatchObject({ filename: 'voice ü.wav', contentType: 'audio/wav' });
    expect(Buffer.from(file?.data ?? []).equals(audio)).toBe(true);
  });

  it('keep long fields whole', async () => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    const form = new FormData();
    form.append('prompt', 'x'.repeat(3_000_000));
    await submit(server, form);
    expect(JSON.parse(Buffer.from(backend.last.body ?? []).toString()).prompt.length).toBe(3_000_000);
  });

  it.each([
    ['no boundary', 'multipart/form-data', ''],
    ['cut short', 'multipart/form-data; boundary=b', '--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx'],
    [
      'a name from the prototype',
      'multipart/form-data; boundary=b',
      '--b\r\nContent-Disposition: form-data; name="__proto__"\r\n\r\nx\r\n--b--\r\n',
    ],
  ])('are refused when malformed: %s', async (_, type, body) => {
    const backend = new FakeBackend();
    const server = await serve(backend);
    const answer = await ask(server, 'POST', CHAT, body, { 'Content-Type': type });
    expect(answer.status).toBe(400);
    expect(errorOf(answer)).toMatchObject({ type: 'invalid_request_error', code: 400 });
    expect(backend.calls).toEqual([]);
  });
});

describe('listening', () => {
  it('says where', async () => {
    const server = await serve();
    expect(server.host).toBe('127.0.0.1');
    expect(server.port).toBeGreaterThan(0);
    expect(server.url).toBe(`http://127.0.0.1:${server.port}`);
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
  });

  it('takes a name', async () => {
    const server = await serve(new FakeBackend(), { host: 'localhost' });
    expect(['127.0.0.1', '::1']).toContain(server.host);
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
  });

  const hasIPv6 = Object.values(networkInterfaces()).some((list) => list?.some(({ address }) => address === '::1'));
  it.skipIf(!hasIPv6)('writes an IPv6 address in brackets', async () => {
    const warnings: string[] = [];
    const server = await serve(new FakeBackend(), { host: '::1', onWarning: (message) => warnings.push(message) });
    expect(server.url).toBe(`http://[::1]:${server.port}`);
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
    expect(warnings).toEqual([]);
  });

  it('names the port that is taken', async () => {
    const first = await serve();
    await expect(serve(new FakeBackend(), { port: first.port })).rejects.toMatchObject({
      name: 'DroidLlamaError',
      code: 'DROID_PORT_IN_USE',
      message: expect.stringContaining(`127.0.0.1:${first.port}`),
    });
  });

  it('refuses an address that this device does not have', async () => {
    await expect(serve(new FakeBackend(), { host: '192.0.2.1' })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      cause: { code: 'EADDRNOTAVAIL' },
    });
  });

  it.each<HttpServerOptions>([
    { port: 65536 },
    { port: 1.5 },
    { host: '' },
    { apiKey: '' },
    { apiKey: ['a', ''] },
    { bodyLimit: 0 },
    { corsOrigin: '' },
  ])('refuses %j', async (options) => {
    await expect(serve(new FakeBackend(), options)).rejects.toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
  });

  it('warns when others can reach it without a key', async () => {
    const warnings: string[] = [];
    const onWarning = (message: string): void => void warnings.push(message);
    await serve(new FakeBackend(), { host: '127.0.0.1', onWarning });
    await serve(new FakeBackend(), { host: '0.0.0.0', apiKey: 'k', onWarning });
    expect(warnings).toEqual([]);
    const server = await serve(new FakeBackend(), { host: '0.0.0.0', onWarning });
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain(server.url);
    expect(warnings[0]).toMatch(/API key/);
  });

  it('warns through the process unless told otherwise', async () => {
    const warned = once(process, 'warning');
    await serve(new FakeBackend(), { host: '0.0.0.0' });
    expect(String((await warned)[0])).toMatch(/API key/);
  });
});

describe('close', () => {
  async function refused(port: number): Promise<boolean> {
    const socket: Socket = connect(port, '127.0.0.1');
    try {
      await once(socket, 'connect');
      return false;
    } catch {
      return true;
    } finally {
      socket.destroy();
    }
  }

  it('stops a stream, cuts its connection, and waits for the engine', async () => {
    let ended = false;
    async function* produce(signal: AbortSignal): AsyncGenerator<Uint8Array> {
      try {
        yield Buffer.from('data: 1\n\n');
        yield await untilAborted(signal);
      } finally {
        await turn();
        ended = true;
      }
    }
    const backend = new FakeBackend(({ signal }) => events(produce(signal)));
    const server = await serve(backend);
    const client = open(server, 'POST', CHAT);
    client.end('{}');
    const response = await responseOf(client);
    const cut = once(response, 'error');
    await once(response, 'data');
    await server.close();
    expect(ended).toBe(true);
    expect(backend.last.signal.reason).toMatchObject({ code: 'DROID_CLOSED' });
    expect((await cut)[0]).toMatchObject({ code: 'ECONNRESET' });
    expect(await refused(server.port)).toBe(true);
  });

  it('does not wait for idle connections, nor for a request that is half sent', async () => {
    const server = await serve();
    const idle = connect(server.port, server.host).on('error', () => {});
    const half = connect(server.port, server.host).on('error', () => {});
    half.write(`POST ${CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{`);
    const agent = new Agent({ keepAlive: true });
    cleanUps.push(() => agent.destroy());
    const client = open(server, 'GET', '/health', { agent });
    client.end();
    await collect(await responseOf(client));
    const closed = [once(idle, 'close'), once(half, 'close')];
    await server.close();
    await Promise.all(closed);
  });

  it('can be called twice and in the middle of itself', async () => {
    const server = await serve();
    const first = server.close();
    expect(server.close()).toBe(first);
    await first;
    await server[Symbol.asyncDispose]();
    expect(await refused(server.port)).toBe(true);
  });

  it('frees the port', async () => {
    const first = await serve();
    await first.close();
    const second = await serve(new FakeBackend(), { port: first.port });
    expect(second.port).toBe(first.port);
  });

  it('works while the model loads, whose end then changes nothing', async () => {
    let failed: (error: Error) => void = () => {};
    const server = await serve(new Promise<HttpBackend>((_, reject) => (failed = reject)));
    await server.close();
    failed(new Error('cancelled'));
    await turn();
  });

  it('follows the signal', async () => {
    const controller = new AbortController();
    const server = await serve(new FakeBackend(), { signal: controller.signal });
    controller.abort();
    await server.close();
    expect(await refused(server.port)).toBe(true);
    const late = startHttpServer(routes, new FakeBackend(), { port: 0, signal: controller.signal });
    await expect(late).rejects.toBe(controller.signal.reason);
  });

  it('undoes a start that the signal interrupts', async () => {
    const probe = createServer().listen(0, '127.0.0.1');
    await once(probe, 'listening');
    const { port } = probe.address() as { port: number };
    probe.close();
    await once(probe, 'close');
    const controller = new AbortController();
    const start = startHttpServer(routes, new FakeBackend(), { port, signal: controller.signal });
    controller.abort(new Error('enough'));
    await expect(start).rejects.toThrow('enough');
    expect(await refused(port)).toBe(true);
  });
});
