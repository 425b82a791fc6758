/** Requests from a member to the master over a stream, with an engine that plays one and with a real one. */
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it, onTestFinished } from 'vitest';
import { addon } from '../../lib/addon.js';
import { forwardRequest } from '../../lib/cluster/forward/forward.js';
import type { ChatCompletionChunk } from '../../lib/context.js';
import type { RequestBody } from '../../lib/engine-request.js';
import { DroidLlamaError } from '../../lib/errors.js';
import { createHttpHandler, type HttpBackend, startHttpServer } from '../../lib/http/server.js';
import { requestJson, streamRequest } from '../../lib/requests.js';
import type { EngineResponse, EngineRoute, RequestOptions } from '../../lib/types.js';
import { endless, openContext, openWorker, question, readJson, settled, until } from '../support/contexts.js';

const routes: readonly EngineRoute[] = [
  { method: 'GET', path: '/props' },
  { method: 'POST', path: '/slots/:id_slot' },
  { method: 'POST', path: '/v1/chat/completions' },
  { method: 'POST', path: '/v1/audio/transcriptions' },
];
const CHAT = '/v1/chat/completions';

/** A stream whose other end `accept` has. */
function openStream(accept: (socket: Socket) => void): { fd: number } {
  const [fd, other] = addon().createSocketPair();
  const socket = new Socket({ fd: other, readable: true, writable: true }).on('error', () => {});
  onTestFinished(() => void socket.destroy());
  accept(socket);
  return { fd };
}

function forwarderTo(accept: (socket: Socket) => void) {
  return {
    routes,
    request: (method: string, path: string, body: RequestBody, options: RequestOptions = {}) =>
      forwardRequest(async () => openStream(accept), method, path, body, options),
  };
}

/** A member's requests, as they arrive at a master with this backend. */
function memberOf(backend: HttpBackend) {
  const handler = createHttpHandler(backend.routes, backend);
  onTestFinished(() => handler.close());
  return forwarderTo((socket) => handler.handle(socket));
}

interface Call {
  method: string;
  path: string;
  body: Uint8Array | undefined;
  options: RequestOptions;
}

function fakeMaster(respond: (call: Call) => EngineResponse | Promise<EngineResponse> = () => answer(bytes('{}'))) {
  const calls: Call[] = [];
  const member = memberOf({
    routes,
    request: async (method, path, body, options) => {
      const call = { method, path, body, options };
      calls.push(call);
      return respond(call);
    },
  });
  return { member, calls };
}

async function* bytes(...chunks: (string | Uint8Array)[]): AsyncGenerator<Uint8Array> {
  for (const chunk of chunks) yield Buffer.from(chunk);
}

function answer(body: AsyncIterable<Uint8Array>, status = 200, headers: Record<string, string> = {}): EngineResponse {
  return { status, headers: { 'content-type': 'text/event-stream', ...headers }, body };
}

async function textOf(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

const openDescriptors = () => readdirSync('/proc/self/fd').length;

describe('a forwarded request', () => {
  it('arrives with method, path, query, headers and body, without what is this device’s own', async () => {
    const { member, calls } = fakeMaster();
    await member.request('POST', '/slots/a%2Fb?x=1', '{ "a" :1.0e0}', {
      query: { id_slot: 'a/b', action: 'säve' },
      headers: {
        'X-Custom': 'Value',
        Authorization: 'Bearer secret',
        'x-api-key': 'secret',
        Connection: 'upgrade',
        Host: 'phone',
        'Content-Length': '999',
        'transfer-encoding': 'chunked',
      },
    });
    const [call] = calls;
    expect(call).toMatchObject({ method: 'POST', path: '/slots/a%2Fb' });
    expect(call?.options.query).toEqual({ x: '1', id_slot: 'a/b', action: 'säve' });
    expect(Buffer.from(call?.body ?? []).toString()).toBe('{ "a" :1.0e0}');
    expect(call?.options.headers).toEqual({
      'x-custom': 'Value',
      connection: 'close',
      host: 'master',
      'content-length': '13',
      'content-type': 'application/json',
    });
  });

  it.each<[RequestBody, string | undefined]>([
    [undefined, undefined],
    [{ a: 'ü' }, '{"a":"ü"}'],
    [Buffer.from('[1]'), '[1]'],
  ])('carries %j', async (body, text) => {
    const { member, calls } = fakeMaster();
    await member.request('POST', CHAT, body, {});
    expect(calls[0]?.body && Buffer.from(calls[0].body).toString()).toBe(text);
  });

  it('carries large bodies whole, in both directions', async () => {
    const { member } = fakeMaster(({ body }) => answer(bytes(body ?? '')));
    const text = JSON.stringify(randomBytes(6_000_000).toString('hex'));
    const { body } = await member.request('POST', CHAT, text, {});
    expect((await textOf(body)) === text).toBe(true);
  });

  it('carries a form with files as the master would have got it', async () => {
    const { member, calls } = fakeMaster();
    const data = randomBytes(100_000);
    const name = 'vo"ice ü\r\n.wav';
    await member.request(
      'POST',
      '/v1/audio/transcriptions',
      { model: 'tiny', 'tags[]': ['a', 'ç'], n: 5, long: 'x'.repeat(2_000_000) },
      {
        headers: { 'content-type': 'multipart/form-data; boundary=of-another-form' },
        files: {
          file: { data, filename: name, contentType: 'audio/wav' },
          'f"2': { data, filename: '', contentType: '' },
        },
      },
    );
    const [call] = calls;
    expect(JSON.parse(Buffer.from(call?.body ?? []).toString())).toEqual({
      model: 'tiny',
      'tags[]': ['a', 'ç'],
      n: '5',
      long: 'x'.repeat(2_000_000),
    });
    const files = call?.options.files ?? {};
    expect(Object.keys(files)).toEqual(['file', 'f"2']);
    expect(files.file).toMatchObject({ filename: 'vo"ice ü%0D%0A.wav', contentType: 'audio/wav' });
    for (const file of Object.values(files)) expect(Buffer.compare(file.data, data)).toBe(0);
  });

  it('of a form without files is JSON', async () => {
    const { member, calls } = fakeMaster();
    const headers = { 'content-type': 'multipart/form-data; boundary=b' };
    await member.request('POST', CHAT, '{"a":"1"}', { headers, files: {} });
    expect(calls[0]?.options.headers?.['content-type']).toBe('application/json');
    expect(Buffer.from(calls[0]?.body ?? []).toString()).toBe('{"a":"1"}');
  });

  it.each<[string, string, RequestBody, RequestOptions]>([
    ['a path with a line break', '/a\r\nX: y', {}, {}],
    ['a header with one', '/props', {}, { headers: { x: 'a\r\nb: c' } }],
    ['a body that is no form', '/props', [1], { files: { f: { data: Buffer.of(1), filename: 'f', contentType: '' } } }],
    [
      'a file of a bad type',
      '/props',
      {},
      { files: { f: { data: Buffer.of(1), filename: 'f', contentType: 'a\r\nb' } } },
    ],
  ])('refuses %s', async (_, path, body, options) => {
    const { member, calls } = fakeMaster();
    await expect(member.request('POST', path, body, options)).rejects.toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
    expect(calls).toEqual([]);
  });

  it('brings status and headers back, and the body as it comes', async () => {
    let go = () => {};
    const wait = new Promise<void>((resolve) => {
      go = resolve;
    });
    async function* produce(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('data: 1\n\n');
      await wait;
      yield Buffer.from('data: 2\n\n');
    }
    const { member } = fakeMaster(() => answer(produce(), 207, { 'x-engine': 'e' }));
    const response = await member.request('POST', CHAT, {}, {});
    expect(response.status).toBe(207);
    expect(response.headers).toEqual({
      'content-type': 'text/event-stream',
      'x-engine': 'e',
      'x-accel-buffering': 'no',
    });
    const body = response.body[Symbol.asyncIterator]();
    const first = await body.next();
    expect(Buffer.from(first.value).toString()).toBe('data: 1\n\n');
    // Asked for at once, each gets its own.
    const [second, end] = [body.next(), body.next()];
    go();
    expect(Buffer.from((await second).value).toString()).toBe('data: 2\n\n');
    expect(await end).toEqual({ done: true, value: undefined });
    expect(await body.next()).toEqual({ done: true, value: undefined });
  });

  it('asks the master for no more than is read', async () => {
    let pulled = 0;
    async function* produce(): AsyncGenerator<Uint8Array> {
      for (; pulled < 1000; pulled++) yield Buffer.alloc(64 * 1024);
    }
    const { member } = fakeMaster(() => answer(produce()));
    const { body } = await member.request('POST', CHAT, {}, {});
    expect(await settled(() => pulled)).toBeLessThan(500);
    let received = 0;
    for await (const chunk of body) received += chunk.length;
    expect(received).toBe(1000 * 64 * 1024);
  });

  it('leaves no descriptor behind, however it ends', async () => {
    const { member } = fakeMaster(({ path }) => answer(bytes(path === '/props' ? 'x' : 'y'.repeat(200_000), 'z')));
    await textOf((await member.request('GET', '/props', undefined, {})).body);
    await turn();
    const before = openDescriptors();
    for (let i = 0; i < 20; i++) {
      await textOf((await member.request('GET', '/props', undefined, {})).body);
      for await (const _ of (await member.request('POST', CHAT, {}, {})).body) break;
      const { body } = await member.request('POST', CHAT, {}, {});
      await body[Symbol.asyncIterator]().return?.();
      await textOf((await member.request('POST', '/nowhere', {}, {})).body);
      await member.request('POST', '/a b', {}, {}).catch(() => {});
    }
    await until('the streams are closed', () => openDescriptors() <= before);
  });
});

describe('hanging up', () => {
  function stalling() {
    const seen: { signal?: AbortSignal; ended: boolean } = { ended: false };
    const master = fakeMaster(({ options, path }) => {
      seen.signal = options.signal;
      async function* produce(): AsyncGenerator<Uint8Array> {
        try {
          if (path === CHAT) yield Buffer.from('data: 1\n\n');
          await new Promise((_, reject) =>
            options.signal?.addEventListener('abort', () => reject(new Error('aborted'))),
          );
        } finally {
          seen.ended = true;
        }
      }
      return answer(produce(), 200, path === CHAT ? {} : { 'content-type': 'application/json' });
    });
    return { ...master, seen };
  }

  it.each(['return', 'abort'] as const)('by %s ends the generation, also while a chunk is awaited', async (how) => {
    const { member, seen } = stalling();
    const controller = new AbortController();
    const { body } = await member.request('POST', CHAT, {}, { signal: controller.signal });
    const iterator = body[Symbol.asyncIterator]();
    await iterator.next();
    const pending = iterator.next();
    if (how === 'abort') {
      controller.abort(new Error('enough'));
      await expect(pending).rejects.toThrow('enough');
    } else {
      await iterator.return?.();
      expect(await pending).toEqual({ done: true, value: undefined });
    }
    await until('the master has noticed', () => seen.ended && seen.signal?.aborted === true);
  });

  it('before the first byte rejects with the reason', async () => {
    const { member, seen, calls } = stalling();
    const controller = new AbortController();
    const request = member.request('GET', '/props', undefined, { signal: controller.signal });
    await until('the master has it', () => calls.length === 1);
    controller.abort(new Error('enough'));
    await expect(request).rejects.toThrow('enough');
    await until('the master has noticed', () => seen.signal?.aborted === true);
    await expect(member.request('GET', '/props', undefined, { signal: controller.signal })).rejects.toThrow('enough');
  });

  it('while the stream is opened closes it when it comes', async () => {
    let arrived: Socket | undefined;
    let give: (stream: { fd: number }) => void = () => {};
    const controller = new AbortController();
    const request = forwardRequest(() => new Promise((resolve) => (give = resolve)), 'GET', '/props', undefined, {
      signal: controller.signal,
    });
    controller.abort(new Error('enough'));
    await expect(request).rejects.toThrow('enough');
    give(openStream((socket) => (arrived = socket.resume())));
    await until('it is closed', () => arrived?.readableEnded === true || arrived?.destroyed === true);
  });
});

describe('a master that goes away', () => {
  it('cannot be reached', async () => {
    const cause = new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', 'nothing answered');
    await expect(forwardRequest(() => Promise.reject(cause), 'GET', '/props', undefined)).rejects.toMatchObject({
      code: 'DROID_NOT_READY',
      message: expect.stringContaining('nothing answered'),
      cause,
    });
  });

  it.each([
    ['before its answer', ''],
    ['with something else', 'SSH-2.0-OpenSSH\r\n'],
    ['in its headers', 'HTTP/1.1 200 OK\r\nContent-'],
    ['with endless headers', `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`],
  ])('%s', async (_, text) => {
    const member = forwarderTo((socket) => {
      socket.resume();
      socket.end(text);
    });
    await expect(member.request('POST', CHAT, {}, {})).rejects.toMatchObject({ code: 'DROID_NOT_READY' });
  });

  it.each([
    ['of known length', 'Content-Length: 100\r\n\r\nabc', ''],
    ['in chunks', 'Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n', ''],
    ['with garbage', 'Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n', 'nonsense\r\n'],
  ])('in the middle of an answer %s', async (_, text, rest) => {
    let socket: Socket | undefined;
    const member = forwarderTo((accepted) => {
      socket = accepted.resume();
      socket.write(`HTTP/1.1 200 OK\r\n${text}`);
    });
    const response = await member.request('POST', CHAT, {}, {});
    const body = response.body[Symbol.asyncIterator]();
    expect(Buffer.from((await body.next()).value).toString()).toBe('abc');
    const next = body.next();
    socket?.end(rest);
    await expect(next).rejects.toMatchObject({
      code: 'DROID_CLOSED',
      message: expect.stringContaining('master was lost'),
    });
    expect(await body.next()).toEqual({ done: true, value: undefined });
  });

  it('gives the code of its error to chat()', async () => {
    const { member } = fakeMaster(() => Promise.reject(new DroidLlamaError('DROID_NOT_READY', 'The cluster waits.')));
    const error = { code: 'DROID_NOT_READY', message: 'The cluster waits.', status: 503 };
    await expect(streamRequest(member, CHAT, {}, {}).next()).rejects.toMatchObject(error);
    await expect(requestJson(member, CHAT, {}, {})).rejects.toMatchObject(error);
  });
});

describe('with a real engine on the master', () => {
  async function realMember(options = {}) {
    const worker = await openWorker();
    const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5], ...options });
    return { ctx, member: memberOf(ctx), generated: () => ctx.stats().engine.tokensGenerated };
  }

  it('chat streams chunk by chunk', async () => {
    const { member, generated } = await realMember();
    const before = generated();
    const seen: number[] = [];
    for await (const _ of streamRequest(member, CHAT, endless(300), {})) seen.push(generated() - before);
    expect(seen[0]).toBeLessThan(150);
    expect(new Set(seen).size).toBeGreaterThan(10);
    expect(seen.at(-1)).toBe(300);
  });

  it('chat answers', async () => {
    const { member } = await realMember();
    let text = '';
    const request = { messages: [question], temperature: 0, max_tokens: 40 };
    for await (const { choices } of streamRequest<ChatCompletionChunk>(member, CHAT, request, {})) {
      text += choices[0]?.delta.content ?? '';
    }
    expect(text).toBe('2+2 equals 4.');
  });

  it('an abort stops the generation within a few tokens', async () => {
    const { ctx, member, generated } = await realMember();
    const controller = new AbortController();
    let atAbort = 0;
    const read = async () => {
      for await (const _ of streamRequest(member, CHAT, endless(), { signal: controller.signal })) {
        if (generated() < 5 || controller.signal.aborted) continue;
        atAbort = generated();
        controller.abort(new Error('enough'));
      }
    };
    await expect(read()).rejects.toThrow('enough');
    // The hang-up has to reach the master's event loop first, which is this one.
    expect(await settled(generated)).toBeLessThanOrEqual(atAbort + 8);
    expect(ctx.stats().engine.activeRequests).toBe(0);
  });

  it('a slow reader slows the generation down', async () => {
    const { ctx, member, generated } = await realMember({ contextSize: 4096 });
    const { body } = await member.request(
      'POST',
      '/completion',
      {
        prompt: 'Once',
        n_predict: 3000,
        ignore_eos: true,
        stream: true,
        n_probs: 200,
        temperature: 0,
      },
      {},
    );
    const iterator = body[Symbol.asyncIterator]();
    await iterator.next();
    expect(await settled(generated, 1000)).toBeLessThan(1500);
    expect(ctx.stats().engine.activeRequests).toBe(1);
    await iterator.return?.();
    await until('the request has ended', () => ctx.stats().engine.activeRequests === 0);
  });

  it('through the member’s own HTTP server an answer is what the master’s engine gives', async () => {
    const { ctx, member } = await realMember();
    const server = await startHttpServer(ctx.routes, { ...member, routes: ctx.routes }, { port: 0, apiKey: 'mine' });
    onTestFinished(() => server.close());
    const ask = (path: string, init: RequestInit = {}) =>
      fetch(server.url + path, { ...init, headers: { Authorization: 'Bearer mine', Origin: 'http://page' } });
    const body = JSON.stringify({ content: 'Hello' });
    const forwarded = await ask('/tokenize', { method: 'POST', body });
    expect(forwarded.headers.get('access-control-allow-origin')).toBe('*');
    expect(await forwarded.json()).toEqual(await readJson(await ctx.request('POST', '/tokenize', body)));
    expect((await ask('/v1/embeddings', { method: 'POST', body: '{"input":"a"}' })).status).toBe(501);
    const stream = await ask(CHAT, { method: 'POST', body: JSON.stringify({ ...endless(20), stream: true }) });
    expect(stream.headers.get('content-type')).toMatch(/^text\/event-stream/);
    expect((await stream.text()).trimEnd().endsWith('data: [DONE]')).toBe(true);
  });
});
