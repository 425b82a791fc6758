/** Loops of one fault, each in the state that the test asserts, and what must hold after every one of them. */
import { expect, it } from 'vitest';
import type { DistributedContextOptions } from '../../lib/context-options.js';
import { createDistributedContext, type DistributedContext } from '../../lib/index.js';
import { parseServerSentEvents } from '../../lib/sse.js';
import { greedyCompletion, greedyTokens, until } from './contexts.js';
import { tinyModel } from './paths.js';
import { hasOneArena, processUsage, type Usage } from './process-usage.js';
import { COMMANDS } from './rpc-frames.mjs';
import { RpcProxy } from './rpc-proxy.mjs';
import { WorkerProcess, type WorkerProcessOptions } from './worker-process.js';

/** CI runs each fault a few times, test/faults/run.mjs more often. */
export const iterations = Number(process.env.DROID_FAULT_ITERATIONS ?? 5);

/** Short, so that a deadline is met in a test's time; long enough for a busy machine to answer within them. */
export const shortTimeouts = { connectMs: 5000, handshakeMs: 5000, answerMs: 1000 };
/** Deadlines that no test waits for: whatever ends a wait sooner was not one of them. */
export const longTimeouts = { connectMs: 60_000, handshakeMs: 60_000, answerMs: 60_000, userTimeoutMs: 60_000 };
/** How long a close may take, or an abort, with a busy machine's delays; freeing is local, so it waits for nobody. */
export const PROMPTLY_MS = 3000;

/** Tokens that a story goes on for; every fault strikes before its end. */
export const storyTokens = 400;
export const storyPrompt = '<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n';
/** Several hundred tokens, which are a dozen graphs of `longPromptOptions`. */
export const longPrompt = `<|im_start|>user\n${'Count to 20 and tell me a story. '.repeat(36)}<|im_end|>\n`;
export const longPromptOptions = { ubatchSize: 32, batchSize: 512 };

/** What one iteration opened; closed when it ends, latest first. */
export class Scope implements AsyncDisposable {
  readonly #closers: (() => unknown)[] = [];

  defer(close: () => unknown): void {
    this.#closers.push(close);
  }

  async worker(options?: WorkerProcessOptions): Promise<WorkerProcess> {
    const worker = await WorkerProcess.start(options);
    this.defer(() => worker[Symbol.asyncDispose]());
    return worker;
  }

  async proxy(target: number | { host: string; port: number }): Promise<RpcProxy> {
    const proxy = await RpcProxy.start(target);
    this.defer(() => proxy.close());
    return proxy;
  }

  /** The tiny model, half of its layers on the worker. */
  async context(endpoint: string, options: Partial<DistributedContextOptions> = {}): Promise<DistributedContext> {
    const ctx = await createDistributedContext(halfOn(endpoint, options));
    this.defer(() => ctx.close());
    return ctx;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const close of this.#closers.splice(0).reverse()) await close();
  }
}

export function halfOn(endpoint: string, options: Partial<DistributedContextOptions> = {}): DistributedContextOptions {
  const model = { model: tinyModel, tensorSplit: [0.5, 0.5], threads: 1, contextSize: 512 };
  // Some workers are in a network namespace of their own; what breaks here is plain RPC.
  return { rpc: [endpoint], insecure: true, ...model, ...options };
}

/**
 * A test that brings the fault about again and again in one process, and then asserts that the process holds on to
 * nothing: no thread, no descriptor, no memory.
 */
export function faultLoop(name: string, fault: (scope: Scope, iteration: number) => Promise<void>): void {
  it(
    `${name}, ${iterations} times`,
    async () => {
      await warmUpProcess();
      const warmUp = Math.min(10, Math.max(1, Math.floor(iterations / 2)));
      let before: Usage | undefined;
      for (let i = 0; i < iterations; i++) {
        if (i === warmUp) before = processUsage();
        await using scope = new Scope();
        await fault(scope, i);
      }
      if (!before) return; // a single iteration, to look at one
      await expectNoGrowth(before);
    },
    60_000 + iterations * 15_000,
  );
}

async function expectNoGrowth(before: Usage): Promise<void> {
  // The last sockets and threads are gone a moment after their owners.
  await until(
    `there are no more than ${before.threads} threads and ${before.descriptors} descriptors`,
    () => {
      const now = processUsage();
      return now.threads <= before.threads && now.descriptors <= before.descriptors;
    },
    5000,
  ).catch((error) => {
    throw new Error(`${error.message}; now ${JSON.stringify(processUsage())}`);
  });
  const growth = processUsage().residentMiB - before.residentMiB;
  if (process.env.DROID_FAULT_USAGE)
    console.log(`memory grew by ${growth.toFixed(1)} MiB from ${JSON.stringify(before)}`);
  if (hasOneArena()) expect(growth, 'growth of memory in MiB').toBeLessThan(MEMORY_SLACK_MIB);
}

/**
 * Measured: less than 2, and up to 6 when only a few iterations come before the first look. A context of the tiny model
 * takes 8 on the master, and every iteration opens two or more.
 */
const MEMORY_SLACK_MIB = iterations < 20 ? 16 : 8;

let warm: Promise<void> | undefined;

/** What the first loop of a process would otherwise be blamed for: compiled code, heaps that find their size. */
function warmUpProcess(): Promise<void> {
  warm ??= (async () => {
    await undisturbedTokens();
    await undisturbedTokens(longPrompt);
    for (let i = 0; i < 3; i++) {
      await using scope = new Scope();
      const proxy = await scope.proxy((await scope.worker()).port);
      await new TokenStream(await scope.context(proxy.endpoint), storyPrompt, 64).ended;
    }
  })();
  return warm;
}

let undisturbed: Map<string, number[]> | undefined;

/** What greedy decoding gives for the prompt when nothing goes wrong; computed once. */
export async function undisturbedTokens(prompt = storyPrompt): Promise<number[]> {
  undisturbed ??= new Map();
  let tokens = undisturbed.get(prompt);
  if (!tokens) {
    const ctx = await createDistributedContext({ model: tinyModel, threads: 1, contextSize: 512 });
    tokens = await greedyTokens(ctx, prompt, prompt === storyPrompt ? storyTokens : 16);
    await ctx.close();
    undisturbed.set(prompt, tokens);
  }
  return tokens;
}

/** A stream of greedy tokens that a test watches while it runs. */
export class TokenStream {
  readonly tokens: number[] = [];
  /** The error event that ended it, if one did. */
  errorEvent: { message: string; code?: unknown } | undefined;
  /** What reading rejected with, if it did. */
  rejection: (Error & { code?: string }) | undefined;
  over = false;
  readonly ended: Promise<void>;

  constructor(ctx: DistributedContext, prompt: string, tokens: number, signal?: AbortSignal) {
    this.ended = this.#read(ctx, { ...greedyCompletion(prompt, tokens), stream: true }, signal);
  }

  async #read(ctx: DistributedContext, body: object, signal?: AbortSignal): Promise<void> {
    try {
      const response = await ctx.request('POST', '/completion', body, { signal });
      if (response.status !== 200) {
        let text = '';
        for await (const chunk of response.body) text += Buffer.from(chunk).toString();
        this.errorEvent = JSON.parse(text).error;
        return;
      }
      for await (const event of parseServerSentEvents(response.body)) {
        const { tokens = [], error } = event as { tokens?: number[]; error?: { message: string } };
        this.tokens.push(...tokens);
        if (error) this.errorEvent = error;
      }
    } catch (error) {
      this.rejection = error as Error;
    } finally {
      this.over = true;
    }
  }
}

/** The stream ended with an error that names the worker and what it was asked last, after a prefix of the right tokens. */
export async function expectStreamLost(stream: TokenStream, endpoint: string, expected: number[]): Promise<void> {
  await stream.ended;
  expect(stream.rejection, 'a raw stream ends with an error event').toBeUndefined();
  expect(stream.errorEvent?.message).toContain('DROID_WORKER_LOST');
  expect(stream.errorEvent?.message).toContain(endpoint);
  expect(stream.errorEvent?.message).toMatch(lastCommand);
  expect(stream.tokens.length).toBeLessThan(expected.length);
  expect(stream.tokens).toEqual(expected.slice(0, stream.tokens.length));
}

const lastCommand = new RegExp(`\\b(${Object.keys(COMMANDS).join('|')})\\b`);

/** The context says that the worker is gone to whoever asks, and fails what is asked of it. */
export async function expectContextLost(ctx: DistributedContext, endpoint: string): Promise<void> {
  await expect
    .poll(() => ctx.failure, { timeout: 10_000 })
    .toMatchObject({
      code: 'DROID_WORKER_LOST',
      message: expect.stringContaining(endpoint),
    });
  const health = await ctx.request('GET', '/health');
  expect(health.status).toBe(503);
  let text = '';
  for await (const chunk of health.body) text += Buffer.from(chunk).toString();
  expect(text).toContain(endpoint);
  const chat = ctx.chat({ messages: [{ role: 'user', content: 'Hi' }], max_tokens: 4 });
  await expect(chat.next()).rejects.toMatchObject({
    code: 'DROID_WORKER_LOST',
    message: expect.stringContaining(endpoint),
  });
}

export async function expectPromptly<T>(what: string, action: () => Promise<T>): Promise<T> {
  const start = performance.now();
  const result = await action();
  expect(performance.now() - start, `milliseconds until ${what}`).toBeLessThan(PROMPTLY_MS);
  return result;
}

export function closePromptly(ctx: DistributedContext): Promise<void> {
  return expectPromptly('the context is closed', () => ctx.close());
}

/** A new context on the endpoint computes what it should. */
export async function expectUsable(scope: Scope, endpoint: string): Promise<void> {
  const ctx = await scope.context(endpoint);
  expect(await greedyTokens(ctx, storyPrompt, 16)).toEqual((await undisturbedTokens()).slice(0, 16));
  expect(ctx.placement[1]?.layers).toHaveLength(3);
  await ctx.close();
}
