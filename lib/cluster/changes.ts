/** Lets several wait for the next time that anything changes. */
export class Changes {
  readonly #waiters = new Set<() => void>();

  /** Resolves with the next {@link tell}, or after `ms`; rejects with the signal's reason. */
  next(signal?: AbortSignal, ms?: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        this.#waiters.delete(done);
        clearTimeout(timer);
        signal?.removeEventListener('abort', done);
        if (signal?.aborted) reject(signal.reason);
        else resolve();
      };
      const timer = ms === undefined ? undefined : setTimeout(done, ms);
      this.#waiters.add(done);
      signal?.addEventListener('abort', done, { once: true });
      // An abort that came before is told to nobody any more.
      if (signal?.aborted) done();
    });
  }

  tell(): void {
    for (const wake of [...this.#waiters]) wake();
  }
}
