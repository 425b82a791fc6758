/** The official client against listen(): a model split over this process's engine and a worker, as users run it. */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import OpenAI, { APIUserAbortError, AuthenticationError, BadRequestError, NotFoundError } from 'openai';
import type { ChatCompletionMessageParam, ChatCompletionTool } from 'openai/resources/chat/completions';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { DistributedContextOptions } from '../../lib/context-options.js';
import type { RpcServer } from '../../lib/index.js';
import { endless, openContext, openWorker, settled, until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';

const apiKey = 'sk-of-this-test';
const model = 'droid-tiny';
const sum: ChatCompletionMessageParam = { role: 'user', content: 'What is 2+2?' };
const greedy = { model, temperature: 0, max_tokens: 100 };

/** Retries are off, so that a request that fails once fails the test. */
function clientFor(baseURL: string, key = apiKey): OpenAI {
  return new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
}

async function serve(options: Partial<DistributedContextOptions> = {}) {
  const ctx = await openContext({ contextSize: 1024, ...options });
  const { url } = await ctx.listen({ port: 0, apiKey });
  return { client: clientFor(`${url}/v1`), ctx };
}

async function serveSplit() {
  const worker = await openWorker();
  return { ...(await serve({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] })), worker };
}

/** A function as the tiny model was taught to read it; see models/train/tools_data.py. */
function tool(name: string, description: string, properties: Record<string, 'integer' | 'string'>): ChatCompletionTool {
  const types = Object.entries(properties).map(([key, type]) => [key, { type }]);
  const parameters = { type: 'object', properties: Object.fromEntries(types), required: Object.keys(properties) };
  return { type: 'function', function: { name, description, parameters } };
}

const add = tool('add', 'Add two numbers', { a: 'integer', b: 'integer' });
const getWeather = tool('get_weather', 'Weather in a city', { city: 'string' });

/** The one call of an answer, its arguments parsed. */
function callOf(completion: OpenAI.ChatCompletion): { id: string; name: string; args: unknown } {
  const [choice] = completion.choices;
  expect(choice?.finish_reason).toBe('tool_calls');
  expect(choice?.message.tool_calls).toHaveLength(1);
  const call = choice?.message.tool_calls?.[0];
  if (call?.type !== 'function') throw new Error(`not a call of a function: ${JSON.stringify(choice)}`);
  return { id: call.id, name: call.function.name, args: JSON.parse(call.function.arguments) };
}

async function errorOf(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => expect.fail(`was answered: ${JSON.stringify(value)}`),
    (error: unknown) => error,
  );
}

describe('chat', () => {
  it('answers, and both devices compute it', async () => {
    const { client, worker } = await serveSplit();
    const before = worker.stats().graphsComputed;
    const completion = await client.chat.completions.create({ ...greedy, messages: [sum] });
    expect(completion.choices).toMatchObject([
      { index: 0, finish_reason: 'stop', message: { role: 'assistant', content: '2+2 equals 4.' } },
    ]);
    expect(completion).toMatchObject({ object: 'chat.completion', id: expect.stringMatching(/^chatcmpl-./) });
    const { prompt_tokens = 0, completion_tokens = 0, total_tokens } = completion.usage ?? {};
    expect(prompt_tokens).toBeGreaterThan(0);
    expect(total_tokens).toBe(prompt_tokens + completion_tokens);
    expect(worker.stats().graphsComputed - before).toBeGreaterThanOrEqual(completion_tokens);
    expect(completion_tokens).toBeGreaterThanOrEqual(8);
  });

  it('streams the same words token by token, then the usage', async () => {
    const { client } = await serveSplit();
    const stream = await client.chat.completions.create({
      ...greedy,
      messages: [sum],
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of stream) chunks.push(chunk);
    const pieces = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').filter(Boolean);
    expect(pieces.join('')).toBe('2+2 equals 4.');
    expect(pieces.length).toBeGreaterThan(3);
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    expect(chunks.at(-2)?.choices).toMatchObject([{ finish_reason: 'stop' }]);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 8, total_tokens: 23 } });
  });
});

describe('tools with tool_choice: required', () => {
  it('calls the function, takes its result and answers', async () => {
    const { client } = await serveSplit();
    const messages: ChatCompletionMessageParam[] = [{ role: 'user', content: 'What is 3+4?' }];
    const request = { ...greedy, messages, tools: [add] };
    const asked = await client.chat.completions.create({ ...request, tool_choice: 'required' });
    const call = callOf(asked);
    expect(call).toMatchObject({ name: 'add', args: { a: 3, b: 4 } });
    messages.push(asked.choices[0]?.message as ChatCompletionMessageParam);
    messages.push({ role: 'tool', tool_call_id: call.id, content: '7' });
    const answered = await client.chat.completions.create(request);
    expect(answered.choices).toMatchObject([{ finish_reason: 'stop', message: { content: '3+4 equals 7.' } }]);
  });

  it('chooses among functions, and the answer follows from the result', async () => {
    const { client } = await serveSplit();
    const question: ChatCompletionMessageParam = { role: 'user', content: 'What is the weather in Paris?' };
    const request = { ...greedy, tools: [getWeather, add] };
    const asked = await client.chat.completions.create({ ...request, messages: [question], tool_choice: 'required' });
    const call = callOf(asked);
    expect(call).toMatchObject({ name: 'get_weather', args: { city: 'Paris' } });
    for (const weather of ['windy', 'rainy']) {
      const result: ChatCompletionMessageParam = { role: 'tool', tool_call_id: call.id, content: weather };
      const messages = [question, asked.choices[0]?.message as ChatCompletionMessageParam, result];
      const answered = await client.chat.completions.create({ ...request, messages });
      expect(answered.choices[0]?.message.content).toContain(`It is ${weather} in`);
    }
  });

  it('streams the call in pieces', async () => {
    const { client } = await serveSplit();
    const runner = client.chat.completions.stream({
      ...greedy,
      messages: [{ role: 'user', content: 'What is 3+4?' }],
      tools: [add],
      tool_choice: 'required',
    });
    let deltas = 0;
    runner.on('chunk', (chunk) => {
      if (chunk.choices[0]?.delta.tool_calls) deltas++;
    });
    expect(callOf(await runner.finalChatCompletion())).toMatchObject({ name: 'add', args: { a: 3, b: 4 } });
    expect(deltas).toBeGreaterThan(3);
  });

  it('works with the loop the client runs itself', async () => {
    const { client } = await serveSplit();
    const calls: unknown[] = [];
    const runner = client.chat.completions.runTools({
      ...greedy,
      messages: [{ role: 'user', content: 'What is 3+4?' }],
      tools: [
        {
          type: 'function',
          function: {
            name: 'add',
            description: 'Add two numbers',
            parameters: { type: 'object', properties: { a: { type: 'integer' }, b: { type: 'integer' } } },
            parse: JSON.parse,
            function: (args: { a: number; b: number }) => {
              calls.push(args);
              return String(args.a + args.b);
            },
          },
        },
      ],
    });
    expect(await runner.finalContent()).toBe('3+4 equals 7.');
    expect(calls).toEqual([{ a: 3, b: 4 }]);
  });
});

it('holds an answer to a JSON schema', async () => {
  const { client } = await serveSplit();
  const schema = {
    type: 'object',
    properties: {
      country: { enum: ['France', 'Italy'] },
      capital: { type: 'string', minLength: 2, maxLength: 12 },
      digits: { type: 'array', items: { type: 'integer' }, minItems: 2, maxItems: 3 },
    },
    required: ['country', 'capital', 'digits'],
    additionalProperties: false,
  };
  const { choices } = await client.chat.completions.create({
    ...greedy,
    max_tokens: 120,
    messages: [{ role: 'user', content: 'What is the capital of France?' }],
    response_format: { type: 'json_schema', json_schema: { name: 'capital', strict: true, schema } },
  });
  expect(choices[0]?.finish_reason).toBe('stop');
  const answer = JSON.parse(choices[0]?.message.content ?? '') as Record<string, unknown>;
  expect(Object.keys(answer)).toEqual(['country', 'capital', 'digits']);
  expect(answer.country).toBe('France');
  expect(answer.capital).toMatch(/^.{2,12}$/);
  expect(answer.digits).toSatisfy((list: unknown[]) => list.length >= 2 && list.length <= 3);
  expect(answer.digits).toSatisfy((list: unknown[]) => list.every(Number.isInteger));
});

describe('abort', () => {
  const { messages, ...rest } = endless(900);
  const body = { ...rest, model, messages: messages as ChatCompletionMessageParam[] };
  // Alone the tiny model makes several tokens in the milliseconds that a client's socket takes to close.
  const serveSlowly = async () => {
    const worker = await openWorker();
    return serve({ rpc: [await slowLink(worker, 25)], tensorSplit: [0.5, 0.5] });
  };

  it('stops the engine within two tokens in the middle of a stream', async () => {
    const { client, ctx } = await serveSlowly();
    const count = () => ctx.stats().engine.tokensGenerated;
    const stream = await client.chat.completions.create({ ...body, stream: true });
    let seen = 0;
    let atAbort = Number.NaN;
    for await (const chunk of stream) {
      if (!chunk.choices[0]?.delta.content || ++seen !== 5) continue;
      atAbort = count();
      stream.controller.abort();
    }
    expect((await settled(count)) - atAbort).toBeLessThanOrEqual(2);
    expect(ctx.stats().engine.activeRequests).toBe(0);
  });

  it('stops an answer that is not streamed', async () => {
    const { client, ctx } = await serveSlowly();
    const count = () => ctx.stats().engine.tokensGenerated;
    const controller = new AbortController();
    const answer = errorOf(client.chat.completions.create(body, { signal: controller.signal }));
    await until('five tokens are generated', () => count() >= 5);
    const atAbort = count();
    controller.abort();
    expect(await answer).toBeInstanceOf(APIUserAbortError);
    expect((await settled(count)) - atAbort).toBeLessThanOrEqual(2);
    expect(ctx.stats().engine.activeRequests).toBe(0);
  });

  /** An endpoint in front of the worker whose answers take `delayMs` longer; returns its address. */
  async function slowLink({ host, port }: RpcServer, delayMs: number): Promise<string> {
    const relay = createServer((master) => {
      const worker = connect({ host, port, noDelay: true });
      master.setNoDelay().pipe(worker);
      worker.on('data', (data) => setTimeout(() => master.write(data), delayMs));
      master.on('error', () => {}).on('close', () => worker.destroy());
      worker.on('error', () => {}).on('close', () => master.destroy());
    });
    relay.listen(0, '127.0.0.1');
    await once(relay, 'listening');
    onTestFinished(() => void relay.close());
    return `127.0.0.1:${(relay.address() as AddressInfo).port}`;
  }
});

it('embeds: vectors of length one, equal for equal texts, in every encoding', async () => {
  const { client } = await serve({ embeddings: true, pooling: 'mean', contextSize: 512 });
  // Without an encoding_format the client asks for base64 and decodes it.
  const { data, usage } = await client.embeddings.create({ model, input: ['hot', 'cold', 'hot'] });
  expect(data.map(({ index }) => index)).toEqual([0, 1, 2]);
  const [hot, cold, again] = data.map(({ embedding }) => embedding);
  for (const vector of [hot, cold]) {
    expect(vector).toHaveLength(256);
    expect(Math.hypot(...(vector ?? []))).toBeCloseTo(1, 5);
  }
  expect(again).toEqual(hot);
  expect(cold).not.toEqual(hot);
  expect(usage.prompt_tokens).toBeGreaterThanOrEqual(3);
  const plain = await client.embeddings.create({ model, input: 'hot', encoding_format: 'float' });
  plain.data[0]?.embedding.forEach((value, i) => {
    expect(value).toBeCloseTo(hot?.[i] ?? Number.NaN, 6);
  });
});

describe('what the client is told', () => {
  it('lists the model', async () => {
    const { client } = await serveSplit();
    const { data } = await client.models.list();
    expect(data).toMatchObject([{ id: tinyModel, object: 'model', meta: { n_embd: 256, n_ctx_train: 1024 } }]);
  });

  it('maps errors to the classes of the client', async () => {
    const { client } = await serveSplit();
    const wrongKey = await errorOf(clientFor(client.baseURL, 'sk-wrong').models.list());
    expect(wrongKey).toBeInstanceOf(AuthenticationError);
    expect(wrongKey).toMatchObject({ status: 401, type: 'authentication_error' });

    const noMessages = await errorOf(client.post('/chat/completions', { body: { model } }));
    expect(noMessages).toBeInstanceOf(BadRequestError);
    expect(noMessages).toMatchObject({ status: 400, message: expect.stringMatching(/messages/) });

    const cut = new TextEncoder().encode('{"messages":');
    const malformed = await errorOf(client.post('/chat/completions', { body: cut }));
    expect(malformed).toBeInstanceOf(BadRequestError);
    expect(malformed).toMatchObject({ status: 400, message: expect.stringMatching(/not valid JSON/) });

    const unknown = await errorOf(client.get('/assistants'));
    expect(unknown).toBeInstanceOf(NotFoundError);
    expect(unknown).toMatchObject({ status: 404, type: 'not_found_error' });

    const notServed = await errorOf(client.embeddings.create({ model, input: 'hot' }));
    expect(notServed).toMatchObject({ status: 501, message: expect.stringMatching(/embeddings/) });
  });
});
