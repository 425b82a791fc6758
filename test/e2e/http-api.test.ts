/** Every endpoint of llama-server's single-model mode, asked over HTTP of a model split over two devices. */
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { type IncomingMessage, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import * as droid from '../../lib/index.js';
import { endless, openContext, openWorker, question, until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';
import { upstreamSources } from '../upstream/build.mjs';

let worker: droid.RpcServer;
let ctx: droid.DistributedContext;
let server: droid.HttpServer;

beforeAll(async () => {
  worker = await droid.startRpcServer({ threads: 1 });
  const split = { rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] };
  ctx = await droid.createDistributedContext({ model: tinyModel, threads: 1, contextSize: 512, ...split });
  server = await ctx.listen({ port: 0 });
});

afterAll(async () => {
  await ctx?.close();
  await worker?.close();
});

interface Answer {
  readonly status: number;
  readonly type: string | null;
  readonly text: string;
  readonly json: unknown;
}

async function ask(method: string, path: string, body?: object | FormData, url = server.url): Promise<Answer> {
  const payload = body && (body instanceof FormData ? body : JSON.stringify(body));
  const response = await fetch(url + path, { method, body: payload });
  const text = await response.text();
  const type = response.headers.get('content-type');
  return { status: response.status, type, text, json: type?.startsWith('application/json') ? JSON.parse(text) : null };
}

/** The JSON of an answer that must be 200. */
async function ok(method: string, path: string, body?: object): Promise<unknown> {
  const { status, text, json } = await ask(method, path, body);
  expect(status, text).toBe(200);
  return json;
}

/** Events of a stream as [name, data]; the name is '' where the format has none. */
function eventsOf(text: string): [name: string, data: { [field: string]: unknown }][] {
  return text
    .split('\n\n')
    .filter((event) => event.includes('data: {'))
    .map((event) => [/^event: (.*)$/m.exec(event)?.[1] ?? '', JSON.parse(/^data: (.*)$/m.exec(event)?.[1] ?? '')]);
}

function refusal(code: number, type: string, message: string) {
  return { error: { code, type, message: expect.stringContaining(message) } };
}

const messages = [question];
const prompt = '<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n';
const promptTokens = 15;
const greedy = { temperature: 0, max_tokens: 30 };
const answer = '2+2 equals 4.';

it('serves the paths that llama-server registers, and no others', async () => {
  const source = await readFile(join(await upstreamSources(), 'tools/server/server.cpp'), 'utf8');
  // Router mode has routes of its own; the rest are its page's, its tools', and streams that outlive their clients.
  const single = source.replace(/if \(is_router_server\) \{.*?\n {4}\}/s, '');
  const leftOut = /^\/(v1\/streams?\b|cors-proxy|tools)/;
  const registered = [...single.matchAll(/ctx_http\.(get|post|del) *\("([^"]+)"/g)]
    .map(([, method = '', path = '']) => ({ method: method.toUpperCase(), path }))
    .filter(({ path }) => !leftOut.test(path));
  const inOrder = (list: readonly { method: string; path: string }[]) =>
    list.map((r) => `${r.method} ${r.path}`).sort();
  expect(registered.length).toBeGreaterThan(35);
  expect(inOrder(ctx.routes)).toEqual(inOrder(registered));
  // Each of them is reached over HTTP: what comes back is the engine's answer, never the server's 404.
  for (const { method, path } of ctx.routes) {
    const { text } = await ask(method, path.replace(':id_slot', '0'), method === 'POST' ? {} : undefined);
    expect(text, path).not.toContain('File Not Found');
  }
  expect(await ask('GET', '/v1/stream/x')).toMatchObject({ status: 404, json: refusal(404, 'not_found_error', '') });
});

describe('what the server says of itself', () => {
  it.each(['/health', '/v1/health'])('%s', async (path) => {
    expect(await ok('GET', path)).toEqual({ status: 'ok' });
  });

  it.each(['/models', '/v1/models'])('%s', async (path) => {
    const meta = { n_vocab: 1024, n_embd: 256, n_ctx: 512, n_ctx_train: 1024, ftype: 'F16' };
    expect(await ok('GET', path)).toMatchObject({ object: 'list', data: [{ id: tinyModel, object: 'model', meta }] });
  });

  it('/props', async () => {
    expect(await ok('GET', '/props')).toMatchObject({
      total_slots: 1,
      model_path: tinyModel,
      default_generation_settings: { n_ctx: 512, params: { top_k: 40 } },
      chat_template: expect.stringContaining('<tools>'),
    });
    expect((await ask('POST', '/props', {})).json).toEqual(refusal(501, 'not_supported_error', '--props'));
  });

  it('/metrics and /slots count what was generated', async () => {
    const predicted = async () => {
      const { status, type, text } = await ask('GET', '/metrics');
      expect({ status, type }).toEqual({ status: 200, type: 'text/plain; version=0.0.4' });
      return Number(/^llamacpp:tokens_predicted_total (\d+)$/m.exec(text)?.[1]);
    };
    const before = await predicted();
    await ok('POST', '/completion', { prompt: 'Once', n_predict: 7, ignore_eos: true });
    expect((await predicted()) - before).toBe(7);
    expect(await ok('GET', '/slots')).toMatchObject([
      { id: 0, n_ctx: 512, is_processing: false, params: { n_predict: 7 } },
    ]);
  });
});

describe('generation', () => {
  it.each(['/completion', '/completions'])('%s', async (path) => {
    const body = { prompt, n_predict: 30, temperature: 0, return_tokens: true };
    const json = (await ok('POST', path, body)) as { tokens: number[] };
    expect(json).toMatchObject({ content: answer, stop: true, stop_type: 'eos', tokens_evaluated: promptTokens });
    expect(await ok('POST', '/detokenize', { tokens: json.tokens })).toMatchObject({
      content: expect.stringContaining(answer),
    });
  });

  it('/v1/completions', async () => {
    expect(await ok('POST', '/v1/completions', { prompt, ...greedy })).toMatchObject({
      object: 'text_completion',
      choices: [{ text: answer, finish_reason: 'stop' }],
      usage: { prompt_tokens: promptTokens },
    });
  });

  it.each(['/chat/completions', '/v1/chat/completions'])('%s', async (path) => {
    expect(await ok('POST', path, { messages, ...greedy })).toMatchObject({
      object: 'chat.completion',
      choices: [{ message: { role: 'assistant', content: answer }, finish_reason: 'stop' }],
      usage: { prompt_tokens: promptTokens },
    });
    const { type, text } = await ask('POST', path, { messages, ...greedy, stream: true });
    expect(type).toBe('text/event-stream');
    expect(text).toMatch(/data: \[DONE\]\n\n$/);
    const deltas = eventsOf(text).map(([, data]) => data.choices as { delta: { content?: string } }[]);
    expect(deltas.map(([choice]) => choice?.delta.content ?? '').join('')).toBe(answer);
  });

  it('/v1/chat/completions/control', async () => {
    const path = '/v1/chat/completions/control';
    const unknown = { success: false, message: 'no active completion for this id' };
    expect(await ok('POST', path, { id: 'nobody', action: 'reasoning_end' })).toEqual(unknown);
    expect((await ask('POST', path, {})).json).toEqual(refusal(400, 'invalid_request_error', 'missing completion id'));
  });

  it.each(['/responses', '/v1/responses'])('%s', async (path) => {
    const body = { input: 'What is 2+2?', temperature: 0, max_output_tokens: 30 };
    expect(await ok('POST', path, body)).toMatchObject({
      object: 'response',
      status: 'completed',
      output: [{ type: 'message', role: 'assistant', content: [{ type: 'output_text', text: answer }] }],
      usage: { input_tokens: promptTokens },
    });
    const events = eventsOf((await ask('POST', path, { ...body, stream: true })).text);
    expect(events[0]?.[0]).toBe('response.created');
    expect(events.at(-1)?.[0]).toBe('response.completed');
    const deltas = events.filter(([name]) => name === 'response.output_text.delta');
    expect(deltas.map(([, data]) => data.delta).join('')).toBe(answer);
  });

  it('/v1/messages', async () => {
    const body = { model: 'x', messages, ...greedy };
    expect(await ok('POST', '/v1/messages', body)).toMatchObject({
      type: 'message',
      role: 'assistant',
      content: [{ type: 'text', text: answer }],
      stop_reason: 'end_turn',
    });
    const events = eventsOf((await ask('POST', '/v1/messages', { ...body, stream: true })).text);
    expect([events[0]?.[0], events.at(-1)?.[0]]).toEqual(['message_start', 'message_stop']);
    const deltas = events.filter(([name]) => name === 'content_block_delta').map(([, data]) => data.delta);
    expect((deltas as { text: string }[]).map(({ text }) => text).join('')).toBe(answer);
  });
});

describe('tokens and templates', () => {
  it('/tokenize and /detokenize', async () => {
    const text = 'Once upon a time, there was a child — ü.';
    const { tokens } = (await ok('POST', '/tokenize', { content: text })) as { tokens: number[] };
    expect(tokens.length).toBeGreaterThan(5);
    expect(await ok('POST', '/detokenize', { tokens })).toEqual({ content: text });
    const pieces = await ok('POST', '/tokenize', { content: 'Hello', with_pieces: true });
    expect(pieces).toEqual({ tokens: [{ id: 580, piece: 'Hello' }] });
  });

  it('/apply-template', async () => {
    expect(await ok('POST', '/apply-template', { messages })).toEqual({ prompt });
  });

  it.each([
    ['/chat/completions/input_tokens', { messages }],
    ['/v1/chat/completions/input_tokens', { messages }],
    ['/responses/input_tokens', { input: 'What is 2+2?' }],
    ['/v1/responses/input_tokens', { input: 'What is 2+2?' }],
    ['/v1/messages/count_tokens', { model: 'x', messages }],
  ])('%s', async (path, body) => {
    expect(await ok('POST', path, body)).toMatchObject({ input_tokens: promptTokens });
  });
});

describe("what a model or a setting does not allow is refused in llama-server's words", () => {
  const speech = new FormData();
  speech.set('file', new Blob(['RIFF']), 'speech.wav');
  it.each<[string, object, string]>([
    ['/infill', { input_prefix: 'a', input_suffix: 'b' }, 'prefix token is missing. suffix token is missing. middle'],
    ['/rerank', { query: 'a', documents: ['b'] }, '--reranking'],
    ['/reranking', { query: 'a', documents: ['b'] }, '--reranking'],
    ['/v1/rerank', { query: 'a', documents: ['b'] }, '--reranking'],
    ['/v1/reranking', { query: 'a', documents: ['b'] }, '--reranking'],
    ['/embedding', { content: 'a' }, '--embeddings'],
    ['/embeddings', { input: 'a' }, '--embeddings'],
    ['/v1/embeddings', { input: 'a' }, '--embeddings'],
    ['/v1/audio/transcriptions', speech, 'does not support audio input'],
    ['/audio/transcriptions', speech, 'does not support audio input'],
    ['/slots/0?action=erase', {}, '--slot-save-path'],
  ])('%s', async (path, body, message) => {
    const { status, json } = await ask('POST', path, body);
    expect({ status, json }).toEqual({ status: 501, json: refusal(501, 'not_supported_error', message) });
  });
});

it('/lora-adapters', async () => {
  expect(await ok('GET', '/lora-adapters')).toEqual([]);
  expect(await ok('POST', '/lora-adapters', [])).toEqual({ success: true });
  const { json } = await ask('POST', '/lora-adapters', {});
  expect(json).toEqual(refusal(400, 'invalid_request_error', 'must be an array'));
});

it('/slots/:id saves, erases and restores what is in the KV cache of both devices', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'droid-slots-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const second = await openWorker();
  const rpc = { rpc: [second.endpoint], tensorSplit: [0.5, 0.5] };
  const own = await openContext({ ...rpc, llamaArgs: ['--slot-save-path', `${dir}/`] });
  const { url } = await own.listen({ port: 0 });
  const generate = async () => {
    const body = { prompt, n_predict: 4, temperature: 0, cache_prompt: true };
    return (await ask('POST', '/completion', body, url)).json as { timings: { cache_n: number } };
  };
  await generate();
  const saved = (await ask('POST', '/slots/0?action=save', { filename: 'a.bin' }, url)).json;
  expect(saved).toMatchObject({ id_slot: 0, filename: 'a.bin', n_saved: expect.any(Number) });
  expect((await stat(join(dir, 'a.bin'))).size).toBe((saved as { n_written: number }).n_written);
  await ask('POST', '/slots/0?action=erase', {}, url);
  expect((await generate()).timings.cache_n).toBe(0);
  await ask('POST', '/slots/0?action=erase', {}, url);
  const restored = (await ask('POST', '/slots/0?action=restore', { filename: 'a.bin' }, url)).json;
  expect(restored).toMatchObject({ n_restored: (saved as { n_saved: number }).n_saved });
  expect((await generate()).timings.cache_n).toBe(promptTokens - 1);
});

it('embeds in the formats of all three paths', async () => {
  const own = await openContext({ embeddings: true, pooling: 'mean' });
  const { url } = await own.listen({ port: 0 });
  const openai = (await ask('POST', '/v1/embeddings', { input: 'hot' }, url)).json as {
    data: { embedding: number[] }[];
  };
  const vector = openai.data[0]?.embedding;
  expect(vector).toHaveLength(256);
  for (const path of ['/embedding', '/embeddings']) {
    expect((await ask('POST', path, { content: 'hot' }, url)).json).toEqual([{ index: 0, embedding: [vector] }]);
  }
});

it('ends a stream with a conversation id when its client hangs up', async () => {
  const tokens = 450;
  const before = ctx.stats().engine.tokensGenerated;
  const headers = { 'X-Conversation-Id': 'a-conversation' };
  const client = request(`${server.url}/v1/chat/completions`, { method: 'POST', headers });
  client.on('error', () => {}).end(JSON.stringify({ ...endless(tokens), stream: true }));
  const [response] = (await once(client, 'response')) as [IncomingMessage];
  await once(
    response.on('error', () => {}),
    'data',
  );
  expect(ctx.stats().engine.activeRequests).toBe(1);
  client.destroy();
  await until('the request has ended', () => ctx.stats().engine.activeRequests === 0);
  expect(ctx.stats().engine.tokensGenerated - before).toBeLessThan(tokens);
  // The slot is asked for while the last token is in the making, too.
  await expect.poll(() => ok('GET', '/slots')).toMatchObject([{ is_processing: false }]);
});
