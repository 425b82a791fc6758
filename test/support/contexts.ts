/** Contexts and workers that are closed when the test ends, and the few things tests do with them. */
import { onTestFinished } from 'vitest';
import type { DistributedContextOptions } from '../../lib/context-options.js';
import { createDistributedContext, type DistributedContext, type RpcServer, startRpcServer } from '../../lib/index.js';
import type { RpcServerOptions } from '../../lib/rpc-server.js';
import { tinyModel } from './paths.js';

export async function openWorker(options: RpcServerOptions = {}): Promise<RpcServer> {
  const worker = await startRpcServer({ threads: 1, ...options });
  onTestFinished(() => worker.close());
  return worker;
}

/** The tiny model with one thread and a small context, unless told otherwise. */
export async function openContext(options: Partial<DistributedContextOptions> = {}): Promise<DistributedContext> {
  const ctx = await createDistributedContext({ model: tinyModel, threads: 1, contextSize: 512, ...options });
  onTestFinished(() => ctx.close());
  return ctx;
}

export const question = { role: 'user', content: 'What is 2+2?' };
export const story = { role: 'user', content: 'Tell me a story.' };

/** A request that goes on for `tokens` tokens whatever the model wants to say. */
export function endless(tokens = 400) {
  return { messages: [story], temperature: 0, max_tokens: tokens, ignore_eos: true, cache_prompt: false };
}

/** A `/completion` of exactly `tokens` tokens by greedy decoding, with their ids in the answer. */
export function greedyCompletion(prompt: string, tokens: number) {
  return { prompt, n_predict: tokens, temperature: 0, ignore_eos: true, return_tokens: true, cache_prompt: false };
}

/** The ids of the tokens that greedy decoding gives. */
export async function greedyTokens(ctx: DistributedContext, prompt: string, tokens: number): Promise<number[]> {
  const response = await ctx.request('POST', '/completion', greedyCompletion(prompt, tokens));
  return ((await readJson(response)) as { tokens: number[] }).tokens;
}

export async function readJson(response: { body: AsyncIterable<Uint8Array> }): Promise<unknown> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of response.body) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString('utf8'));
}

export async function answerOf(ctx: DistributedContext, messages: object[], more: object = {}): Promise<string> {
  let text = '';
  for await (const chunk of ctx.chat({ messages, temperature: 0, max_tokens: 50, ...more })) {
    text += chunk.choices[0]?.delta.content ?? '';
  }
  return text;
}

/** Resolves once `condition` holds; the error names the state that was waited for. */
export async function until(what: string, condition: () => boolean, timeoutMs = 20_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`waited ${timeoutMs} ms in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Resolves with the value once it has stayed the same for `quietMs`. */
export async function settled(read: () => number, quietMs = 300): Promise<number> {
  let value = read();
  let since = Date.now();
  while (Date.now() - since < quietMs) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (read() !== value) {
      value = read();
      since = Date.now();
    }
  }
  return value;
}
