/** Where requests wait while there is no engine to answer them: a bounded queue with a time limit for each. */
import { DroidLlamaError } from '../../errors.js';

/** Requests that may wait at once; what is beyond would only time out, holding its body in memory. */
export const DEFAULT_WAITING_LIMIT = 256;
/** Milliseconds that a request waits for an engine. */
export const DEFAULT_REQUEST_WAIT_MS = 60_000;

export interface RequestGateOptions {
  waitMs: number;
  limit: number;
  /** Why requests wait at the moment, in words; asked when one waits no longer. */
  reason: () => string;
}

interface Waiter {
  /** Whether it went through. */
  admit(): boolean;
  reject(error: unknown): void;
}

export class RequestGate {
  readonly #options: RequestGateOptions;
  readonly #waiters = new Set<Waiter>();

  constructor(options: RequestGateOptions) {
    this.#options = options;
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#waiters.size;
  }

  /**
   * Resolves with what `take` returns, as soon as that is not undefined: now, or at a later {@link retry}. Whoever waits
   * longer goes first.
   *
   * Rejects with `DROID_NOT_READY` after the time limit, or at once when too many wait; with the signal's reason; or
   * with the error of {@link fail}.
   */
  async enter<T>(take: () => T | undefined, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted();
    // Nobody is overtaken: whoever comes while others wait goes behind them.
    const taken = this.#waiters.size === 0 ? take() : undefined;
    if (taken !== undefined) return taken;
    const { waitMs, limit, reason } = this.#options;
    if (this.#waiters.size >= limit) {
      throw notReady(`${reason()} ${limit} requests wait already.`);
    }
    return new Promise<T>((resolve, reject) => {
      const waiter: Waiter = {
        admit: () => {
          const value = take();
          if (value === undefined) return false;
          leave();
          resolve(value);
          return true;
        },
        reject: (error) => {
          leave();
          reject(error);
        },
      };
      const abort = () => waiter.reject(signal?.reason);
      const timer = setTimeout(
        () => waiter.reject(notReady(`${reason()} The request has waited for ${waitMs / 1000} s.`)),
        waitMs,
      );
      const leave = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
        this.#waiters.delete(waiter);
      };
      signal?.addEventListener('abort', abort, { once: true });
      this.#waiters.add(waiter);
    });
  }

  /** Lets those who wait try again, in order, until one cannot. */
  retry(): void {
    for (const waiter of [...this.#waiters]) {
      if (!waiter.admit()) return;
    }
  }

  /** Ends the waiting of all with this error; later ones wait again. */
  fail(error: DroidLlamaError): void {
    for (const waiter of [...this.#waiters]) waiter.reject(error);
  }
}

export function notReady(message: string, cause?: unknown): DroidLlamaError {
  return new DroidLlamaError('DROID_NOT_READY', message, { cause });
}
