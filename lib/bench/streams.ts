/** Several requests at once: how fast all of them are together, and what each one notices of the others. */
import { setMaxListeners } from 'node:events';
import { performance } from 'node:perf_hooks';
import { z } from 'zod';
import { linkSignals } from '../link-signals.js';
import { type RequestSender, streamRequest } from '../requests.js';
import { completionBody, noServer, type Prompts, unlike } from './completion.js';
import { percentiles, spread } from './spread.js';
import type { StreamsResult } from './types.js';

/** Tokens of each stream's prompt: as many as a short question. */
export const STREAM_PROMPT = 16;

/** When the tokens of one stream arrived. Milliseconds. */
export interface StreamTimes {
  readonly sent: number;
  /** The tokens that were there by then; characters of several tokens arrive with the last one of them. */
  readonly arrivals: readonly { readonly at: number; readonly tokens: number }[];
}

const chunkSchema = z.object({ stop: z.boolean(), tokens_predicted: z.number().int().nonnegative() });

async function runStream(
  sender: RequestSender,
  prompt: readonly number[],
  tokens: number,
  signal: AbortSignal,
): Promise<StreamTimes> {
  const arrivals: { at: number; tokens: number }[] = [];
  const sent = performance.now();
  for await (const chunk of streamRequest(sender, '/completion', completionBody(prompt, tokens), { signal })) {
    const at = performance.now();
    const known = chunkSchema.safeParse(chunk);
    if (!known.success) throw noServer('/completion does not stream tokens');
    const last = arrivals.at(-1)?.tokens ?? 0;
    // The last chunk tells how many there were, and may hold none of them.
    if (known.data.tokens_predicted > last) arrivals.push({ at, tokens: known.data.tokens_predicted });
  }
  const got = arrivals.at(-1)?.tokens ?? 0;
  if (got !== tokens) throw unlike('generated', got, tokens, 'and then stopped');
  return { sent, arrivals };
}

/** Sends so many requests at the same time and waits for all. The first one that fails ends the others. */
export async function runStreams(
  sender: RequestSender,
  prompts: Prompts,
  { streams, tokens, signal }: { streams: number; tokens: number; signal?: AbortSignal },
): Promise<StreamTimes[]> {
  const failed = new AbortController();
  const all = linkSignals(signal, failed.signal);
  // Every stream listens to it, which is no leak.
  setMaxListeners(0, all.signal);
  const running = Array.from({ length: streams }, () =>
    runStream(sender, prompts.next(STREAM_PROMPT), tokens, all.signal),
  );
  for (const stream of running) stream.catch((error) => failed.abort(error));
  const results = await Promise.allSettled(running);
  all.unlink();
  signal?.throwIfAborted();
  failed.signal.throwIfAborted();
  return results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
}

/** @param runs each repetition's streams */
export function summarizeStreams(runs: readonly (readonly StreamTimes[])[]): StreamsResult {
  const all = runs.flat();
  return {
    streams: runs[0]?.length ?? 0,
    tokensPerSecond: spread(runs.map(togetherPerSecond)),
    perStream: spread(all.map((stream) => togetherPerSecond([stream]))),
    firstTokenMs: percentiles(all.map(({ sent, arrivals }) => (arrivals[0]?.at ?? sent) - sent)),
    tokenMs: percentiles(all.flatMap(tokenGaps)),
  };
}

function togetherPerSecond(streams: readonly StreamTimes[]): number {
  const first = Math.min(...streams.map(({ arrivals }) => arrivals[0]?.at ?? Number.POSITIVE_INFINITY));
  const last = Math.max(...streams.map(({ arrivals }) => arrivals.at(-1)?.at ?? Number.NEGATIVE_INFINITY));
  const tokens = streams.reduce(
    (sum, { arrivals }) => sum + (arrivals.at(-1)?.tokens ?? 0) - (arrivals[0]?.tokens ?? 0),
    0,
  );
  return last > first ? (1000 * tokens) / (last - first) : 0;
}

/** One value for each token after the first; tokens that arrived together share the time. */
function tokenGaps({ arrivals }: StreamTimes): number[] {
  return arrivals.slice(1).flatMap(({ at, tokens }, i) => {
    const before = arrivals[i] as { at: number; tokens: number };
    const count = tokens - before.tokens;
    return Array.from({ length: count }, () => (at - before.at) / count);
  });
}
