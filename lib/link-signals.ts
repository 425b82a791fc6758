export interface LinkedSignal {
  readonly signal: AbortSignal;
  /** To be called when what it was for is over. */
  unlink(): void;
}

/**
 * A signal that aborts with the first of several, and what lets go of them: what `AbortSignal.any()` makes stays with a
 * signal that lives long (nodejs/node#55351).
 *
 * @param signals undefined stands for none
 */
export function linkSignals(...signals: readonly (AbortSignal | undefined)[]): LinkedSignal {
  const linked = new AbortController();
  const unlinking: (() => void)[] = [];
  for (const signal of signals) {
    if (!signal) continue;
    const abort = (): void => linked.abort(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    unlinking.push(() => signal.removeEventListener('abort', abort));
  }
  return { signal: linked.signal, unlink: () => unlinking.forEach((unlink) => void unlink()) };
}

/** A signal that also aborts when the time is over, with the reason that is asked for then. */
export function limitTime(
  milliseconds: number,
  reason: () => unknown,
  ...signals: readonly (AbortSignal | undefined)[]
): LinkedSignal {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(reason()), milliseconds);
  const { signal, unlink } = linkSignals(late.signal, ...signals);
  return {
    signal,
    unlink: () => {
      clearTimeout(timer);
      unlink();
    },
  };
}
