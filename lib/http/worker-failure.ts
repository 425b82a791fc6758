import { isWorkerCode, splitCode } from '../errors.js';
import type { EngineResponse } from '../types.js';
import { errorDetails } from './errors.js';

/** Longer than any error answer of the engine's. */
const MAX_ERROR_BYTES = 64 * 1024;

/**
 * Makes 503 of the 500 with which the engine answers a request that a worker's failure ended: nothing is wrong with the
 * request, and clients that try again on 503 do so rightly. Any other answer is returned as it came.
 *
 * @param signal ends the reading of the answer
 */
export async function tellWorkerFailure(response: EngineResponse, signal: AbortSignal): Promise<EngineResponse> {
  if (response.status !== 500 || !response.headers['content-type']?.startsWith('application/json')) return response;
  const body = response.body[Symbol.asyncIterator]();
  const end = (): void => void body.return?.()?.catch(() => {});
  signal.addEventListener('abort', end, { once: true });
  const read: IteratorResult<Uint8Array>[] = [];
  try {
    for (let bytes = 0; bytes <= MAX_ERROR_BYTES; ) {
      const next = await body.next();
      read.push(next);
      if (next.done) break;
      bytes += next.value.length;
    }
  } finally {
    signal.removeEventListener('abort', end);
  }
  const told = asUnavailable(read);
  if (told === undefined) return { ...response, body: iterable(read, body) };
  const { 'content-length': _, ...headers } = response.headers;
  return {
    status: 503,
    headers,
    body: iterable(
      [
        { done: false, value: Buffer.from(told) },
        { done: true, value: undefined },
      ],
      body,
    ),
  };
}

/** The error's JSON as a 503, if its message ends in the code of a worker's failure. */
function asUnavailable(read: readonly IteratorResult<Uint8Array>[]): string | undefined {
  if (!read.at(-1)?.done) return undefined;
  let answer: { error?: { message?: unknown } | null } | null;
  try {
    answer = JSON.parse(Buffer.concat(read.flatMap(({ done, value }) => (done ? [] : [value]))).toString('utf8'));
  } catch {
    return undefined;
  }
  const message = answer?.error?.message;
  if (typeof message !== 'string') return undefined;
  const { code } = splitCode(message);
  if (!code || !isWorkerCode(code)) return undefined;
  return JSON.stringify({ ...answer, error: { ...answer?.error, ...errorDetails(503, message) } });
}

/** What was read already, then the rest. No generator: its return() would not reach `rest` before the first next(). */
function iterable(
  read: IteratorResult<Uint8Array>[],
  rest: AsyncIterator<Uint8Array>,
): AsyncIterableIterator<Uint8Array> {
  return {
    async next() {
      return read.shift() ?? rest.next();
    },
    async return() {
      read.length = 0;
      await rest.return?.();
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
