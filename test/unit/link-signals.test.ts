import { getEventListeners } from 'node:events';
import { expect, it, onTestFinished, vi } from 'vitest';
import { limitTime, linkSignals } from '../../lib/link-signals.js';

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

it('aborts when the time is over, with the reason of that moment', () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  let reason = 'early';
  const limited = limitTime(1000, () => reason, new AbortController().signal);
  vi.advanceTimersByTime(999);
  expect(limited.signal.aborted).toBe(false);
  reason = 'late';
  vi.advanceTimersByTime(1);
  expect(limited.signal.reason).toBe('late');
  limitTime(1000, () => reason).unlink();
  expect(vi.getTimerCount()).toBe(0);
});
