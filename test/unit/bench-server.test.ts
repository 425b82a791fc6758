/** Benchmarks of a server, here one that answers as llama-server does, or does not. */
import { EventEmitter, once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { type BenchProgress, benchCluster, benchUrl } from '../../lib/bench/index.js';
import type { ClusterStatus } from '../../lib/cluster/status.js';

interface Asked {
  readonly prompt: number[];
  readonly n_predict: number;
  readonly stream?: boolean;
  readonly [field: string]: unknown;
}

type Answers = Readonly<Record<string, (body: Asked, response: ServerResponse, request: IncomingMessage) => void>>;

const json = (response: ServerResponse, body: unknown, status = 200) =>
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
const event = (body: unknown) => `data: ${JSON.stringify(body)}\n\n`;

/** Two slots of 1024 tokens; 100 tokens/s of prompt, then 50, and generation at 20. */
const llama: Answers = {
  '/props': (_, response) =>
    json(response, { total_slots: 2, model_path: 'a.gguf', default_generation_settings: { n_ctx: 1024 } }),
  '/tokenize': (_, response) => json(response, { tokens: Array.from({ length: 50 }, (_, i) => i) }),
  '/completion': ({ prompt, n_predict, stream }, response) => {
    const timings = {
      prompt_n: prompt.length,
      prompt_per_second: 100,
      predicted_n: n_predict,
      predicted_per_second: 20,
    };
    if (!stream) return json(response, { content: '', timings });
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    // The last two tokens are one character.
    for (const tokens of [...Array(n_predict - 2).keys()].map((i) => i + 1).concat(n_predict)) {
      response.write(event({ content: 'x', stop: false, tokens_predicted: tokens }));
    }
    return response.end(event({ content: '', stop: true, tokens_predicted: n_predict, timings }));
  },
};

async function serve(answers: Answers): Promise<{ url: string; asked: (Asked & { path: string; key?: string })[] }> {
  const asked: (Asked & { path: string; key?: string })[] = [];
  const server = createServer((request, response) => {
    let text = '';
    request.on('data', (chunk) => (text += chunk));
    request.on('end', () => {
      const path = request.url ?? '';
      const body = text === '' ? {} : JSON.parse(text);
      asked.push({ ...body, path, key: request.headers.authorization });
      const answer = answers[path];
      if (answer) answer(body, response, request);
      else json(response, { error: { code: 404, message: 'not found' } }, 404);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked };
}

const short = { promptTokens: [32], generatedTokens: [8], repetitions: 2 };

describe('a benchmark of a server', () => {
  it('asks as many times as it was told, for exactly that, and reports what the server measured', async () => {
    const { url, asked } = await serve(llama);
    const steps: string[] = [];
    const report = await benchUrl(`${url}/`, {
      promptTokens: [32, 64],
      generatedTokens: [8],
      streams: [2],
      repetitions: 3,
      apiKey: 'secret',
      onProgress: ({ test, run, runs }: BenchProgress) => void steps.push(`${test} ${run}/${runs}`),
    });
    expect(report).toMatchObject({ model: 'a.gguf', repetitions: 3, links: [], error: null });
    const [entry] = report.cases;
    expect(entry).toMatchObject({ name: url, placement: null, loads: [], workers: [] });
    expect(entry?.prompts.map(({ tokens, tokensPerSecond }) => [tokens, tokensPerSecond.samples])).toEqual([
      [32, [100, 100, 100]],
      [64, [100, 100, 100]],
    ]);
    expect(entry?.generations).toMatchObject([
      { tokens: 8, tokensPerSecond: { median: 20 }, floor: null, breakdown: null },
    ]);
    expect(entry?.streams).toMatchObject([{ streams: 2, perStream: { samples: { length: 6 } } }]);
    expect(entry?.streams[0]?.tokensPerSecond.samples).toHaveLength(3);

    const runs = asked.filter(({ path }) => path === '/completion').map((body) => [body.prompt.length, body.n_predict]);
    const times = (count: number, run: number[]) => Array.from({ length: count }, () => run);
    const streams = [...times(2, [16, 4]), ...times(6, [16, 8])];
    expect(runs).toEqual([[64, 4], ...times(3, [32, 1]), ...times(3, [64, 1]), ...times(3, [1, 8]), ...streams]);
    for (const { path, key, ...body } of asked) {
      expect(key).toBe('Bearer secret');
      if (path === '/completion') {
        expect(body).toMatchObject({ temperature: 0, ignore_eos: true, cache_prompt: false });
      }
    }
    expect(steps).toEqual([
      'answer 1/1',
      'warm-up 1/1',
      ...['pp32', 'pp64', 'tg8', '2 streams'].flatMap((test) => [1, 2, 3].map((run) => `${test} ${run}/3`)),
    ]);
  });

  it('gives every request a prompt of its own', async () => {
    const { url, asked } = await serve(llama);
    await benchUrl(url, { ...short, streams: [2], repetitions: 3 });
    const prompts = asked.filter(({ path, n_predict }) => path === '/completion' && n_predict === 8);
    const starts = prompts.filter(({ prompt }) => prompt.length === 16).map(({ prompt }) => prompt[0]);
    expect(new Set(starts).size).toBe(starts.length);
  });

  it('refuses what the server has no room for, before it measures', async () => {
    const { url, asked } = await serve(llama);
    const refused = (options: object) =>
      expect(benchUrl(url, { ...short, ...options })).rejects.toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
    await refused({ streams: [1, 3] });
    await refused({ promptTokens: [1020] });
    await refused({ generatedTokens: [1024] });
    expect(asked.filter(({ path }) => path === '/completion')).toEqual([]);
  });

  it('gives up on one that takes the connection and never answers', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    const heard = new EventEmitter();
    const { url } = await serve({ ...llama, '/props': () => heard.emit('/props') });
    const [error] = await Promise.all([
      benchUrl(url, short).catch((failure) => failure),
      once(heard, '/props').then(() => vi.advanceTimersByTime(120_000)),
    ]);
    const message = expect.stringContaining(`${url} did not answer /props in 120 s`);
    expect(error).toMatchObject({ code: 'DROID_ENDPOINT_TIMEOUT', message });
  });

  it.each([
    ['an address that is none', 'localhost:8080', 'DROID_INVALID_ARGUMENT'],
    ['nobody there', 'http://127.0.0.1:1', 'DROID_ENDPOINT_REFUSED'],
    ['no such host', 'http://no-such-host.invalid', 'DROID_ENDPOINT_UNREACHABLE'],
  ])('tells of %s', async (_, url, code) => {
    await expect(benchUrl(url, short)).rejects.toMatchObject({ code });
  });

  it.each<[string, Answers, string, RegExp]>([
    [
      'a wrong key',
      { ...llama, '/tokenize': (_, r) => json(r, { error: { code: 401, message: 'Invalid API Key' } }, 401) },
      'DROID_REQUEST_FAILED',
      /^http:\S+ wants a key \(status 401\): give it with --api-key$/,
    ],
    [
      'a web server',
      Object.fromEntries(
        ['/props', '/tokenize'].map((path) => [
          path,
          (_, r) => r.writeHead(404, { 'content-type': 'text/html' }).end('<html>\n<h1>not here</h1>'),
        ]),
      ),
      'DROID_REQUEST_FAILED',
      /^http:\S+ is no llama-server or droid-llama: it answers \/tokenize with status 404 and no JSON$/,
    ],
    [
      'a gateway before a server that is gone',
      { ...llama, '/completion': (_, r) => r.writeHead(502).end('Bad Gateway') },
      'DROID_REQUEST_FAILED',
      /status 502 and no JSON$/,
    ],
    ['another program', { '/props': (_, r) => r.end('<html>') }, 'DROID_REQUEST_FAILED', /is this a llama-server/],
    ['no timings', { ...llama, '/completion': (_, r) => json(r, {}) }, 'DROID_REQUEST_FAILED', /timings/],
    [
      'a hang-up',
      { ...llama, '/completion': (_, __, request) => void request.socket.destroy() },
      'DROID_CLOSED',
      /ended/,
    ],
    [
      'a generation that ended early',
      {
        ...llama,
        '/completion': ({ prompt }, r) =>
          json(r, {
            timings: { prompt_n: prompt.length, prompt_per_second: 1, predicted_n: 3, predicted_per_second: 1 },
          }),
      },
      'DROID_REQUEST_FAILED',
      /generated 3 of 4 tokens/,
    ],
    [
      'a lost worker, by its own code',
      {
        ...llama,
        '/completion': (_, r) => json(r, { error: { code: 500, message: 'w: gone (DROID_WORKER_LOST)' } }, 500),
      },
      'DROID_WORKER_LOST',
      /w: gone/,
    ],
  ])('tells of %s', async (_, answers, code, message) => {
    const { url } = await serve(answers);
    await expect(benchUrl(url, short)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('tells that a key which was given is not the right one', async () => {
    const { url } = await serve({ '/props': (_, response) => json(response, {}, 403) });
    const message = `${url} wants another key (status 403): give it with --api-key`;
    await expect(benchUrl(url, { ...short, apiKey: 'secret' })).rejects.toMatchObject({ status: 403, message });
  });

  it('warns of no leak, however many streams there are', async () => {
    const warnings: string[] = [];
    const onWarning = ({ name }: Error) => void warnings.push(name);
    process.on('warning', onWarning);
    onTestFinished(() => void process.off('warning', onWarning));
    const props = { total_slots: 32, default_generation_settings: { n_ctx: 1024 } };
    const { url } = await serve({ ...llama, '/props': (_, response) => json(response, props) });
    const report = await benchUrl(url, { ...short, streams: [32], signal: new AbortController().signal });
    expect(report.cases[0]?.streams).toMatchObject([{ streams: 32 }]);
    expect(warnings).toEqual([]);
  });

  it('measures a server that says nothing of itself', async () => {
    const { '/props': _, ...rest } = llama;
    const report = await benchUrl((await serve(rest)).url, short);
    expect(report.model).toBeNull();
    expect(report.cases[0]?.prompts).toHaveLength(1);
  });

  it('ends all streams when one fails, and when it is told to', async () => {
    let streaming = 0;
    const ended: Promise<void>[] = [];
    const stuck: Answers = {
      ...llama,
      '/completion': (body, response, request) => {
        if (!body.stream) return llama['/completion']?.(body, response, request);
        ended.push(new Promise((resolve) => response.on('close', resolve)));
        streaming++;
        response.writeHead(200, { 'content-type': 'text/event-stream' });
        // One of them is refused, the other would go on for ever.
        if (streaming === 2) response.end(event({ error: { code: 500, message: 'no more' } }));
        else response.write(event({ content: 'x', stop: false, tokens_predicted: 1 }));
      },
    };
    await expect(benchUrl((await serve(stuck)).url, { ...short, streams: [2] })).rejects.toMatchObject({
      code: 'DROID_REQUEST_FAILED',
      message: 'no more',
    });
    await Promise.all(ended);

    const stop = new AbortController();
    const reason = new Error('enough');
    const silent: Answers = { ...llama, '/completion': () => stop.abort(reason) };
    await expect(benchUrl((await serve(silent)).url, { ...short, signal: stop.signal })).rejects.toBe(reason);
  });
});

describe('a benchmark of a cluster', () => {
  const status = {
    peers: [
      { id: 'a', name: 'fold' },
      { id: 'b', name: 'pixel' },
    ],
    links: [
      { from: 'a', to: 'b', dial: 'open', endpoint: null, roundTripMs: 5, bytesPerSecond: 6e6 },
      { from: 'b', to: 'a', dial: 'open', endpoint: null, roundTripMs: 5.5, bytesPerSecond: 4e6 },
    ],
    plan: {
      fits: true,
      ubatchSize: 64,
      prediction: { loadSeconds: 9, promptTokensPerSecond: 150, generationTokensPerSecond: 24 },
      parts: [
        { id: 'a', firstLayer: 0, layers: 1, bytes: 300, memoryNeeded: 400 },
        { id: 'b', firstLayer: 1, layers: 3, bytes: 100, memoryNeeded: 200 },
      ],
    },
  } as unknown as ClusterStatus;

  it('has the plan beside what was measured', async () => {
    const { url } = await serve(llama);
    const [entry] = (await benchUrl(url, { ...short, cluster: status })).cases;
    expect(entry?.prompts[0]?.predicted).toBe(150);
    expect(entry?.generations[0]?.predicted).toBe(24);
    expect(entry).toMatchObject({ ubatchSize: 64, masterShare: 0.25 });
    expect(entry?.placement).toEqual([
      { device: 'master', layers: [0], head: true, bytes: 300 },
      { device: 'pixel', layers: [1, 2, 3], head: false, bytes: 100 },
    ]);
  });

  it('waits for a member to be ready, and knows its links', async () => {
    const calls: string[] = [];
    const body = async function* (value: unknown) {
      yield new TextEncoder().encode(JSON.stringify(value));
    };
    const cluster = {
      async ready() {
        calls.push('ready');
      },
      status: () => status,
      async request(_method: string, path: string, asked?: unknown) {
        calls.push(path);
        const { prompt = [], n_predict = 0 } = (asked ?? {}) as Partial<Asked>;
        const timings = {
          prompt_n: prompt.length,
          prompt_per_second: 9,
          predicted_n: n_predict,
          predicted_per_second: 7,
        };
        const answers: Record<string, unknown> = {
          '/props': {},
          '/tokenize': { tokens: [1, 2] },
          '/completion': { timings },
        };
        return { status: 200, headers: {}, body: body(answers[path]) };
      },
    };
    const report = await benchCluster(cluster as never, { ...short, repetitions: 1 });
    expect(calls.slice(0, 2)).toEqual(['ready', '/props']);
    expect(report.links).toEqual([
      { endpoint: 'pixel', roundTripMs: 5, upBytesPerSecond: 6e6, downBytesPerSecond: 4e6 },
    ]);
    expect(report.cases[0]?.generations[0]?.tokensPerSecond.median).toBe(7);
  });
});
