/** A worker that goes away is an error to handle; one that falls silent is not noticed yet, but holds nothing up. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { describe, expect, it, onTestFinished } from 'vitest';
import { createDistributedContext, startRpcServer } from '../../lib/index.js';
import {
  answerOf,
  endless,
  greedyCompletion,
  greedyTokens,
  openContext,
  question,
  until,
} from '../support/contexts.js';
import { guideModel } from '../support/guide.js';
import { cliMain, tinyModel } from '../support/paths.js';

async function workerProcess(port = 0): Promise<{
  endpoint: string;
  port: number;
  freeze(): void;
  kill(): Promise<void>;
}> {
  const args = [cliMain, 'worker', '--port', String(port), '--threads', '1', '--json'];
  const child: ChildProcess = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  onTestFinished(() => {
    child.kill('SIGKILL');
  });
  const [line] = (await once(child.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
  const { endpoint } = JSON.parse(String(line)) as { endpoint: string };
  const kill = async () => {
    const closed = once(child, 'close');
    child.kill('SIGKILL');
    await closed;
  };
  return { endpoint, port: Number(endpoint.split(':').at(-1)), freeze: () => child.kill('SIGSTOP'), kill };
}

const split = (endpoint: string) => ({ rpc: [endpoint], tensorSplit: [0.5, 0.5] });
const prompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';

describe('a worker frozen', () => {
  it('holds up neither an abort nor close()', async () => {
    const worker = await workerProcess();
    const ctx = await openContext(split(worker.endpoint));
    const abort = new AbortController();
    const reading = (async () => {
      for await (const _ of ctx.chat(endless(), { signal: abort.signal }));
    })();
    await until('tokens are generated', () => ctx.stats().engine.tokensGenerated > 5);
    worker.freeze();
    const start = performance.now();
    abort.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    expect(performance.now() - start).toBeLessThan(1000);
    await ctx.close();
    expect(performance.now() - start).toBeLessThan(6000);
  });

  it('holds up neither the cancelling of a load', async () => {
    const model = await guideModel();
    const worker = await workerProcess();
    const abort = new AbortController();
    const loading = createDistributedContext({
      model,
      ...split(worker.endpoint),
      mmap: false,
      signal: abort.signal,
      onProgress: ({ fraction }) => {
        if (fraction === 0 || abort.signal.aborted) return;
        worker.freeze();
        abort.abort(new Error('no longer'));
      },
    });
    await expect(loading).rejects.toThrow('no longer');
  }, 30_000);
});

describe('a worker killed', () => {
  it('in the middle of a stream ends it with an error after a prefix of the right tokens', async () => {
    const reference = await greedyTokens(await openContext(), prompt, 400);
    for (let i = 0; i < 5; i++) {
      const worker = await workerProcess();
      const ctx = await openContext(split(worker.endpoint));
      const body = { ...greedyCompletion(prompt, 400), stream: true };
      const response = await ctx.request('POST', '/completion', body);
      let text = '';
      let killed: Promise<void> | undefined;
      for await (const chunk of response.body) {
        text += Buffer.from(chunk).toString();
        if (!killed && ctx.stats().engine.tokensGenerated > 10) killed = worker.kill();
      }
      await killed;
      const events = text.split('\n\n').filter((event) => event.startsWith('data: {'));
      const parsed = events.map((event) => JSON.parse(event.slice(6)) as { tokens?: number[]; error?: object });
      expect(parsed.at(-1)?.error).toMatchObject({ message: expect.stringContaining('worker is gone') });
      const tokens = parsed.flatMap((event) => event.tokens ?? []);
      expect(tokens.length).toBeGreaterThan(5);
      expect(tokens).toEqual(reference.slice(0, tokens.length));
      await ctx.close();
    }
  });

  it('while idle fails the next request, and the endpoint works again once a worker is back', async () => {
    const worker = await workerProcess();
    const ctx = await openContext(split(worker.endpoint));
    expect(await answerOf(ctx, [question])).toBe('2+2 equals 4.');
    await worker.kill();
    for (let i = 0; i < 3; i++) {
      await expect(answerOf(ctx, [question], { cache_prompt: false })).rejects.toMatchObject({
        code: 'DROID_REQUEST_FAILED',
        status: 500,
      });
    }
    await ctx.close();
    const back = await workerProcess(worker.port);
    expect(back.endpoint).toBe(worker.endpoint);
    const again = await openContext(split(back.endpoint));
    expect(await answerOf(again, [question])).toBe('2+2 equals 4.');
  });

  it('while a model loads fails the load', async () => {
    const outcomes: string[] = [];
    for (let delay = 0; delay < 60; delay += 6) {
      const worker = await workerProcess();
      const loading = createDistributedContext({
        model: tinyModel,
        threads: 1,
        contextSize: 256,
        ...split(worker.endpoint),
      });
      const result = loading.then(
        (ctx) => ctx.close().then(() => 'loaded'),
        (error) => error.code,
      );
      setTimeout(() => worker.kill(), delay);
      outcomes.push(await result);
      expect(outcomes.at(-1)).toMatch(/^(loaded|DROID_(LOAD_FAILED|OUT_OF_MEMORY|ENDPOINT_\w+|VERSION_MISMATCH))$/);
    }
    // Some must have met the load, or this shows nothing.
    expect(outcomes.filter((outcome) => outcome !== 'loaded')).not.toEqual([]);
  });

  it('before its context is closed lets it close', async () => {
    const worker = await startRpcServer({ threads: 1 });
    const ctx = await openContext(split(worker.endpoint));
    const stream = ctx.chat(endless());
    await stream.next();
    await worker.close();
    await expect(
      (async () => {
        for await (const _ of stream);
      })(),
    ).rejects.toMatchObject({ code: 'DROID_REQUEST_FAILED' });
    await until('the request has ended', () => ctx.stats().engine.activeRequests === 0);
    await ctx.close();
  });
});
