import { getEventListeners } from 'node:events';
import { expect, it } from 'vitest';
import { linkSignals } from '../../lib/link-signals.js';

it('aborts with the reason of the first that aborts', () => {
  const [a, b] = [new AbortController(), new AbortController()];
  const { signal } = linkSignals(a.signal, undefined, b.signal);
  expect(signal.aborted).toBe(false);
  b.abort('b');
  a.abort('a');
  expect(signal.reason).toBe('b');
});

it('is aborted at once by one that was aborted before', () => {
  expect(linkSignals(new AbortController().signal, AbortSignal.abort('before')).signal.reason).toBe('before');
});

it('lets go of signals that live on', () => {
  const { signal } = new AbortController();
  const linked = linkSignals(signal);
  expect(getEventListeners(signal, 'abort')).toHaveLength(1);
  linked.unlink();
  expect(getEventListeners(signal, 'abort')).toEqual([]);
});
