/**
 * A signal that aborts with the first of several, and what lets go of them: what `AbortSignal.any()` makes stays with a
 * signal that lives long (nodejs/node#55351).
 *
 * @param signals undefined stands for none
 */
export function linkSignals(...signals: readonly (AbortSignal | undefined)[]): {
  readonly signal: AbortSignal;
  unlink(): void;
} {
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
