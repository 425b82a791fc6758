/** Upstream's own programs, built without our patches: the same answers alone, and the same tokens mixed with ours. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { probeEndpoint } from '../../lib/index.js';
import { greedyCompletion, greedyTokens, openContext, openWorker, question } from '../support/contexts.js';
import { guideModel } from '../support/guide.js';
import { ensureUpstream } from '../upstream/build.mjs';
import { startUpstreamServer, startUpstreamWorker } from '../upstream/processes.js';

const tokens = 64;
const prompts = [
  '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n',
  `<|im_start|>user\n${'Count from 1 to 20 and tell me a story about a dog. '.repeat(12)}<|im_end|>\n`,
];

// The first build of llama-server takes minutes.
beforeAll(() => ensureUpstream(), 30 * 60_000);

async function upstreamTokens(url: string, prompt: string): Promise<number[]> {
  const body = JSON.stringify(greedyCompletion(prompt, tokens));
  const response = await fetch(`${url}/completion`, { method: 'POST', body });
  return ((await response.json()) as { tokens: number[] }).tokens;
}

/** What upstream's llama-server alone makes of each prompt. */
async function reference(): Promise<number[][]> {
  const url = await startUpstreamServer();
  const all: number[][] = [];
  for (const prompt of prompts) all.push(await upstreamTokens(url, prompt));
  expect(all.map((ids) => ids.length)).toEqual([tokens, tokens]);
  expect(all[0]).not.toEqual(all[1]);
  return all;
}

// F16 weights: quantized ones are repacked on a master and not on a worker, and those kernels round differently.
describe('greedy output of an F16 model', () => {
  it('equals llama-server token for token on every split', async () => {
    const expected = await reference();
    const worker = await openWorker();
    for (const tensorSplit of [
      [1, 0],
      [0.5, 0.5],
      [0, 1],
    ]) {
      const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit });
      for (const [i, prompt] of prompts.entries()) {
        expect(await greedyTokens(ctx, prompt, tokens), `split ${tensorSplit}, prompt ${i}`).toEqual(expected[i]);
      }
      await ctx.close();
    }
  });

  it('is the same with ggml-rpc-server as the worker', async () => {
    const expected = await reference();
    const endpoint = await startUpstreamWorker();
    for (const tensorSplit of [
      [0.5, 0.5],
      [0, 1],
    ]) {
      const ctx = await openContext({ rpc: [endpoint], tensorSplit });
      expect(ctx.placement[1]?.layers).toHaveLength(tensorSplit[0] === 0 ? 6 : 3);
      for (const [i, prompt] of prompts.entries()) {
        expect(await greedyTokens(ctx, prompt, tokens), `split ${tensorSplit}, prompt ${i}`).toEqual(expected[i]);
      }
      expect(ctx.stats().workers[0]?.graphs).toBeGreaterThanOrEqual(prompts.length * tokens);
      // It serves one master at a time: the next must find it free.
      await ctx.close();
    }
  });

  // The head included, all six layers with the head here, three of them; all at once on one worker, beside one of ours.
  const headHere = ['-ot', '^(output|output_norm|token_embd)\\.weight$=CPU'];
  it.each([
    ['every layer and the head', ['-ngl', '99'], 5e6],
    ['every layer', ['-ngl', '99', ...headHere], 5e6],
    ['half of the layers', ['-ngl', '4', ...headHere], 2.5e6],
  ])('is the same with ours as the worker of llama-server --rpc, with %s', async (_, args, bytes) => {
    const expected = await reference();
    const worker = await openWorker();
    const url = await startUpstreamServer('--rpc', worker.endpoint, ...args);
    for (const [i, prompt] of prompts.entries()) {
      expect(await upstreamTokens(url, prompt), `prompt ${i}`).toEqual(expected[i]);
    }
    expect(worker.stats().bytesWeights).toBeGreaterThan(bytes);
    expect(worker.stats().graphsComputed).toBeGreaterThanOrEqual(prompts.length * tokens);
    expect(worker.stats()).toMatchObject({ clientsDropped: 0, clientsRefused: 0 });
  });

  it('is the same for a llama-server and a context of ours that use one worker at once', async () => {
    const expected = await reference();
    const worker = await openWorker();
    const url = await startUpstreamServer('--rpc', worker.endpoint, '-ngl', '4', ...headHere);
    const theirs = worker.stats().bytesWeights;
    const ctx = await openContext({ rpc: [worker.endpoint], tensorSplit: [0.5, 0.5] });
    expect(worker.stats().bytesWeights).toBeLessThanOrEqual(theirs + (ctx.placement[1]?.bytes ?? 0));
    for (let round = 0; round < 3; round++) {
      for (const [i, prompt] of prompts.entries()) {
        const both = [upstreamTokens(url, prompt), greedyTokens(ctx, prompt, tokens)];
        expect(await Promise.all(both), `prompt ${i}`).toEqual([expected[i], expected[i]]);
      }
    }
  });
});

it('keeps large tensors of a llama-server in the cache, and tells by their hash that it has them', async () => {
  const model = await guideModel();
  const cacheDir = await mkdtemp(join(tmpdir(), 'droid-cache-'));
  onTestFinished(() => rm(cacheDir, { recursive: true, force: true }));
  const loads: { reused: number; received: number; answer: number[] }[] = [];
  for (let i = 0; i < 2; i++) {
    const worker = await openWorker({ cacheDir });
    const url = await startUpstreamServer('--model', model, '--rpc', worker.endpoint, '-ngl', '1');
    const body = JSON.stringify(greedyCompletion('Once', 4));
    const answer = await fetch(`${url}/completion`, { method: 'POST', body });
    const { bytesWeightsReused: reused, bytesReceived: received } = worker.stats();
    loads.push({ reused, received, answer: ((await answer.json()) as { tokens: number[] }).tokens });
    await worker.close();
  }
  // The head is 138 MiB, far above the 10 MiB from which on llama-server asks.
  expect(loads[0]?.reused).toBe(0);
  expect(loads[1]?.reused).toBeGreaterThan(100 * 1048576);
  expect(loads[1]?.received).toBeLessThan((loads[0]?.received ?? 0) - 100 * 1048576);
  expect(loads[1]?.answer).toEqual(loads[0]?.answer);
});

it('probes ggml-rpc-server, which is free again at once', async () => {
  const endpoint = await startUpstreamWorker();
  for (let i = 0; i < 3; i++) {
    const info = await probeEndpoint(endpoint);
    expect(info).toMatchObject({ endpoint, protocol: expect.stringMatching(/^7\.\d+\.\d+$/), extended: false });
    expect(info.devices).toHaveLength(1);
    expect(info.devices[0]?.memoryTotal).toBeGreaterThan(2 ** 28);
    expect(info.roundTripMs).toBeGreaterThan(0);
  }
});

describe('listen() gives the answers of llama-server', () => {
  const messages = [question];
  const greedy = { temperature: 0, max_tokens: 24 };
  const add = {
    type: 'function',
    function: { name: 'add', parameters: { type: 'object', properties: { a: { type: 'integer' } }, required: ['a'] } },
  };
  const schema = { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] };
  const requests: [path: string, body?: object][] = [
    ['/health'],
    ['/v1/models'],
    ['/props'],
    ['/slots'],
    ['/lora-adapters'],
    ['/completion', { prompt: 'Once', n_predict: 8, temperature: 0, n_probs: 2 }],
    ['/completion', { prompt: ['Once', 'What'], n_predict: 4, temperature: 0 }],
    ['/completion', { prompt: 'Once', n_predict: 8, temperature: 0, stream: true }],
    ['/completion', { prompt: 'Once', n_predict: 8, seed: 7, temperature: 1.5 }],
    ['/completion', { prompt: 'Once '.repeat(600) }],
    ['/completion', { prompt: 'Once', json_schema: { type: 'nonsense' } }],
    ['/v1/completions', { prompt: 'Once', ...greedy, logprobs: 1 }],
    ['/v1/chat/completions', { messages, ...greedy }],
    ['/v1/chat/completions', { messages, ...greedy, stream: true, stream_options: { include_usage: true } }],
    ['/v1/chat/completions', { messages, ...greedy, max_tokens: 80, tools: [add], tool_choice: 'required' }],
    [
      '/v1/chat/completions',
      { messages, ...greedy, response_format: { type: 'json_schema', json_schema: { schema } } },
    ],
    ['/v1/chat/completions', { messages: 'none' }],
    ['/v1/responses', { input: 'What is 2+2?', ...greedy, stream: true }],
    ['/v1/messages', { messages, ...greedy, stream: true }],
    ['/v1/messages', { ...greedy }],
    ['/tokenize', { content: 'Hello <|im_end|>', with_pieces: true }],
    ['/apply-template', { messages, tools: [add] }],
    ['/infill', { input_prefix: 'a', input_suffix: 'b' }],
    ['/v1/embeddings', { input: 'a' }],
    ['/rerank', { query: 'a', documents: ['b'] }],
    ['/no/such/path'],
  ];

  it('word for word', async () => {
    const upstream = await startUpstreamServer();
    const ctx = await openContext();
    const { url } = await ctx.listen({ port: 0 });
    for (const [path, body] of requests) {
      const what = `${path} ${JSON.stringify(body)?.slice(0, 200)}`;
      expect.soft(await answerOf(url, path, body), what).toEqual(await answerOf(upstream, path, body));
    }
  });

  async function answerOf(url: string, path: string, body?: object): Promise<object> {
    const response = await fetch(url + path, body ? { method: 'POST', body: JSON.stringify(body) } : {});
    const text = await response.text();
    const type = response.headers.get('content-type');
    return { status: response.status, type, lines: text.split('\n').map(withoutChance) };
  }

  /** A line of an answer without what differs from run to run: ids, times and the build's name. */
  function withoutChance(line: string): unknown {
    const [, field, json] = /^(data: )?([[{].*)$/.exec(line) ?? [];
    if (!json || json === '[DONE]') return line;
    const chance =
      /^(id|item_id|created|created_at|completed_at|modified_at|timings|system_fingerprint|build_info|media_marker)$/;
    return [field, JSON.parse(json, (key, value) => (chance.test(key) ? typeof value : value))];
  }
});
