/** The queue in which requests wait for an engine. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { RequestGate } from '../../lib/cluster/master/request-gate.js';
import { DroidLlamaError } from '../../lib/errors.js';

beforeEach(() => vi.useFakeTimers());
afterEach(() => {
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

function open() {
  let places = 0;
  const gate = new RequestGate({ waitMs: 1000, limit: 3, reason: () => `${places} places.` });
  const take = (name: string) => () => (places > 0 ? `${name}${places--}` : undefined);
  return {
    gate,
    enter: (name: string, signal?: AbortSignal) => gate.enter(take(name), signal),
    free: (count: number) => {
      places = count;
    },
  };
}
const notReady = (message: string) => ({ code: 'DROID_NOT_READY', message: expect.stringContaining(message) });

it('lets through at once, then in the order of their coming, and nobody past those who wait', async () => {
  const { gate, enter, free } = open();
  free(1);
  expect(await enter('a')).toBe('a1');
  const waiting = [enter('b'), enter('c')];
  free(9);
  // There is place now, but it has not been told: b and c come first.
  const last = enter('d');
  expect(gate.waiting).toBe(3);
  free(2);
  gate.retry();
  expect(gate.waiting).toBe(1);
  expect(await Promise.all(waiting)).toEqual(['b2', 'c1']);
  free(1);
  gate.retry();
  expect(await last).toBe('d1');
});

it('turns away who has waited too long, and who comes when too many wait', async () => {
  const { gate, enter, free } = open();
  const first = expect(enter('a')).rejects.toMatchObject(notReady('0 places. The request has waited for 1 s.'));
  vi.advanceTimersByTime(600);
  const second = enter('b');
  vi.advanceTimersByTime(400);
  await first;
  const more = [enter('c'), enter('d')];
  await expect(enter('e')).rejects.toMatchObject(notReady('0 places. 3 requests wait already.'));
  free(3);
  gate.retry();
  expect(await Promise.all([second, ...more])).toEqual(['b3', 'c2', 'd1']);
});

it('lets go of who is aborted, with the reason', async () => {
  const { gate, enter } = open();
  const controller = new AbortController();
  const waiting = expect(enter('a', controller.signal)).rejects.toThrow('enough');
  controller.abort(new Error('enough'));
  expect(gate.waiting).toBe(0);
  await waiting;
  await expect(enter('b', controller.signal)).rejects.toThrow('enough');
});

it('fails all who wait, and nobody after them', async () => {
  const { gate, enter, free } = open();
  const waiting = [enter('a'), enter('b')].map((entry) =>
    expect(entry).rejects.toMatchObject({ code: 'DROID_CLOSED' }),
  );
  gate.fail(new DroidLlamaError('DROID_CLOSED', 'closed'));
  await Promise.all(waiting);
  const later = enter('c');
  free(1);
  gate.retry();
  expect(await later).toBe('c1');
});
