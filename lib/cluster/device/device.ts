/** What this device can say of itself: the memory it can lend and how fast it computes. */
import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { addon, type NativeComputeSpeed } from '../../addon.js';
import { defaultThreads } from '../../cpu.js';
import type { ComputeSpeed } from '../types.js';

/** Of what is available, this part may be a model's: the rest of the phone needs some to move in. */
const LENT_PART = 0.8;
/** How long the measurement computes. Long enough for a phone's clock to rise, short enough to start with. */
const MEASURE_MS = 250;

export interface LendableMemory {
  /** Bytes the system could give out now, caches it can drop included. */
  available: number;
  /** Bytes of memory that this cluster's model takes on this device already; a mapped file does not count, as the
   * system counts it as available. Default 0. */
  held?: number;
  /** What the user lends at most. Default: no limit. */
  limit?: number;
}

/**
 * Bytes of a model that fit on this device: 80 % of what is available and of what a model takes of it now, so that
 * loading one does not change the answer. A user's limit is the user's word: it is not shortened, but what is not there
 * cannot be lent.
 */
export function lendableMemory({ available, held = 0, limit = Number.POSITIVE_INFINITY }: LendableMemory): number {
  const all = Math.max(0, available) + Math.max(0, held);
  return Math.floor(limit === Number.POSITIVE_INFINITY ? all * LENT_PART : Math.min(limit, all));
}

/** Bytes that could be given out now; `os.freemem` where there is no /proc/meminfo to read. */
export function availableMemory(readFile: (path: string) => string = readText): number {
  try {
    const kibibytes = Number(/^MemAvailable:\s+(\d+) kB$/m.exec(readFile('/proc/meminfo'))?.[1] ?? Number.NaN);
    if (Number.isFinite(kibibytes)) return kibibytes * 1024;
  } catch {
    // Not Linux, or hidden from apps.
  }
  return freemem();
}

/**
 * Bytes of memory that this process has for itself, without files it has mapped; undefined where the system does not
 * tell. What a model takes of it is what it has grown by.
 */
export function ownMemory(readFile: (path: string) => string = readText): number | undefined {
  try {
    const kibibytes = Number(/^RssAnon:\s+(\d+) kB$/m.exec(readFile('/proc/self/status'))?.[1] ?? Number.NaN);
    return Number.isFinite(kibibytes) ? kibibytes * 1024 : undefined;
  } catch {
    return undefined;
  }
}

type Measure = (threads: number, milliseconds: number) => Promise<NativeComputeSpeed>;
const measured = new Map<number, Promise<ComputeSpeed>>();

/**
 * How fast this device computes with so many threads. Measured once in a process, in about a quarter of a second; rejects
 * as the addon does, and then the next call measures again.
 */
export function computeSpeed(
  threads: number = defaultThreads(),
  measure: Measure = (count, milliseconds) => addon().measureCompute(count, milliseconds),
): Promise<ComputeSpeed> {
  const known = measured.get(threads);
  if (known) return known;
  const fresh = (async () => {
    const { weightBytesPerSecond, flopsPerSecond } = await measure(threads, MEASURE_MS);
    return { threads, weightBytesPerSecond, flopsPerSecond };
  })();
  measured.set(threads, fresh);
  fresh.catch(() => measured.delete(threads));
  return fresh;
}

/** Forgets what was measured; for tests. */
export function forgetComputeSpeed(): void {
  measured.clear();
}

function readText(path: string): string {
  return readFileSync(path, 'utf8');
}
