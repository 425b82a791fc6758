/** What passed between the master and its workers for one generated token, from counters before and after. */
import type { WorkerTraffic } from '../types.js';
import type { Breakdown, WorkerResult } from './types.js';

/** Counters that are compared. */
const COUNTERS = [
  'messagesSent',
  'messagesReceived',
  'bytesSent',
  'bytesReceived',
  'waits',
  'waitMs',
  'computeMs',
] as const;

/** One worker's counters, summed up or divided by something. */
export type Counts = Readonly<Record<(typeof COUNTERS)[number], number>>;

/** What was counted between two looks, one for each worker. */
export function difference(after: readonly WorkerTraffic[], before: readonly WorkerTraffic[]): Counts[] {
  return after.map((worker, i) => counts((name) => worker[name] - (before[i]?.[name] ?? 0)));
}

/** What was counted during one request. */
export interface Counted {
  /** Tokens that it generated. */
  readonly tokens: number;
  readonly workers: readonly Counts[];
}

/**
 * The counts of one token: of two requests with prompts of the same length the difference is that of the longer
 * generation alone, without the prompt and without what the start and the end of a request cost.
 */
export function perToken(long: Counted, short: Counted): Counts[] {
  const tokens = long.tokens - short.tokens;
  return long.workers.map((worker, i) => counts((name) => (worker[name] - (short.workers[i]?.[name] ?? 0)) / tokens));
}

/** A worker whose counts are known, and what else is to be said of it. */
export interface CountedWorker {
  readonly endpoint: string;
  /** Whether it tells its compute time. */
  readonly extended: boolean;
  readonly memoryBytes: number | null;
  readonly token: Counts;
}

export function workerResult({ endpoint, extended, memoryBytes, token }: CountedWorker): WorkerResult {
  return {
    endpoint,
    bytesSentPerToken: token.bytesSent,
    bytesReceivedPerToken: token.bytesReceived,
    messagesSentPerToken: token.messagesSent,
    messagesReceivedPerToken: token.messagesReceived,
    roundTripsPerToken: token.waits,
    computeMsPerToken: extended ? Math.max(0, token.computeMs) : null,
    networkMsPerToken: extended ? networkMs(token) : null,
    memoryBytes,
  };
}

/** @param totalMs of one token */
export function breakdownOf(totalMs: number, workers: readonly Omit<CountedWorker, 'memoryBytes'>[]): Breakdown {
  const parts = workers.map(({ endpoint, extended, token }) => ({
    endpoint,
    waitMs: Math.max(0, token.waitMs),
    computeMs: extended ? Math.max(0, token.computeMs) : null,
    networkMs: extended ? networkMs(token) : null,
  }));
  const waited = parts.reduce((sum, { waitMs }) => sum + waitMs, 0);
  return { totalMs, masterMs: Math.max(0, totalMs - waited), workers: parts };
}

/** A worker that computes before the master begins to wait may compute for longer than the master waits. */
function networkMs({ waitMs, computeMs }: Counts): number {
  return Math.max(0, waitMs - Math.max(0, computeMs));
}

function counts(value: (name: (typeof COUNTERS)[number]) => number): Counts {
  return Object.fromEntries(COUNTERS.map((name) => [name, value(name)])) as Counts;
}
