import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Dialer, type DialOutcome } from '../../lib/cluster/control/dialer.js';
import { type EndpointAddress, formatEndpoint } from '../../lib/endpoint.js';
import { idOf } from '../support/peers.js';

const at = (number: number): EndpointAddress => ({ host: `10.0.0.${number}`, port: 60_000 });

/** A dialer whose dials end as `outcome` says, and when each of them began, in milliseconds. */
function rig(outcome: (address: EndpointAddress) => DialOutcome | Promise<DialOutcome> = () => ({ how: 'failed' })) {
  const dials: [endpoint: string, at: number][] = [];
  const standings = new Map<string, 'connected' | 'member'>();
  const running = { now: 0, most: 0 };
  const started = performance.now();
  const dialer = new Dialer({
    random: () => 0.5,
    standing: (id) => standings.get(id) ?? 'unknown',
    dial: async (address, signal) => {
      dials.push([formatEndpoint(address), Math.round(performance.now() - started)]);
      running.most = Math.max(running.most, ++running.now);
      try {
        return await Promise.race([
          Promise.resolve(outcome(address)),
          new Promise<DialOutcome>((resolve) => {
            signal.addEventListener('abort', () => resolve({ how: 'failed' }));
          }),
        ]);
      } finally {
        running.now--;
      }
    },
  });
  const times = (number: number): number[] =>
    dials.filter(([endpoint]) => endpoint === formatEndpoint(at(number))).map(([, time]) => time);
  return { dialer, dials, times, standings, running };
}

const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
});
afterEach(() => {
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

describe('the dialer', () => {
  it('dials what is offered at once, then after longer and longer waits, then no more', async () => {
    const { dialer, times } = rig();
    dialer.offer(at(1));
    await pass(120_000);
    expect(times(1)).toEqual([0, 500, 1500, 3500, 7500, 15_500]);
    await dialer.close();
  });

  it('dials what is offered all the time no more often than that', async () => {
    const { dialer, times } = rig();
    for (let second = 0; second < 120; second++) {
      dialer.offer(at(1));
      await pass(1000);
    }
    expect(times(1).slice(0, 6)).toEqual([0, 500, 1500, 3500, 7500, 15_500]);
    expect(times(1).length).toBeLessThan(14);
    await dialer.close();
  });

  it('redials a lost peer soon, and goes on for as long as it takes', async () => {
    const { dialer, times, standings } = rig();
    standings.set(idOf('b'), 'connected');
    dialer.lost(idOf('b'), at(1), 'soon');
    standings.clear();
    await pass(300_000);
    expect(times(1).slice(0, 7)).toEqual([250, 750, 1750, 3750, 7750, 15_750, 30_750]);
    expect(times(1).length).toBeGreaterThan(20);
    const before = times(1).length;
    await pass(2 * 60 * 60_000);
    // Not for ever: after an hour somebody must offer it again.
    expect(times(1).length).toBeLessThan(before + 60 * 5);
    await dialer.close();
  });

  it('waits longer each time for a peer that is lost again and again', async () => {
    const { dialer, times, standings } = rig(() => {
      standings.set(idOf('b'), 'connected');
      setTimeout(() => {
        standings.clear();
        dialer.lost(idOf('b'), at(1), 'backing-off');
      }, 100);
      return { how: 'connected', id: idOf('b') };
    });
    dialer.offer(at(1));
    await pass(20_000);
    expect(times(1)).toEqual([0, 600, 1700, 3800, 7900, 16_000]);
    await dialer.close();
    await pass(100);
  });

  it('does not dial who is connected already', async () => {
    const { dialer, dials, standings } = rig(() => ({ how: 'connected', id: idOf('b') }));
    standings.set(idOf('b'), 'connected');
    dialer.suggest(idOf('b'), [at(1), at(2)]);
    dialer.offer(at(3));
    await pass(60_000);
    // 10.0.0.3 could have been anybody, once.
    for (let second = 0; second < 60; second++) {
      dialer.offer(at(3));
      await pass(1000);
    }
    expect(dials.filter(([endpoint]) => endpoint === '10.0.0.3:60000')).toHaveLength(1);
    await dialer.close();
  });

  it('looks again who is at an address after ten minutes', async () => {
    const { dialer, times, standings } = rig(() => ({ how: 'connected', id: idOf('b') }));
    standings.set(idOf('b'), 'connected');
    for (let minute = 0; minute < 25; minute++) {
      dialer.offer(at(1));
      await pass(60_000);
    }
    expect(times(1)).toHaveLength(3);
    await dialer.close();
  });

  it('leaves alone for a minute who turned it away, and itself for ten', async () => {
    const { dialer, times } = rig(({ host }) => ({ how: host.endsWith('.1') ? 'rejected' : 'ourselves' }));
    for (let second = 0; second < 130; second++) {
      dialer.offer(at(1));
      dialer.offer(at(2));
      await pass(1000);
    }
    expect(times(1)).toEqual([0, 60_000, 120_000]);
    expect(times(2)).toEqual([0]);
    await dialer.close();
  });

  it('gives an endpoint that worked before a second chance', async () => {
    const { dialer, times } = rig(() => ({ how: 'rejected' }));
    dialer.lost(idOf('b'), at(1), 'soon');
    await pass(50_000);
    expect(times(1)).toEqual([250, 750]);
    await dialer.close();
  });

  it('asks a member that only others reach once a minute', async () => {
    const { dialer, times, standings } = rig();
    standings.set(idOf('b'), 'member');
    for (let second = 0; second < 300; second++) {
      dialer.suggest(idOf('b'), [at(1)]);
      await pass(1000);
    }
    expect(times(1).slice(5)).toEqual([15_500, 75_500, 135_500, 195_500, 255_500]);
    await dialer.close();
  });

  it('tries the addresses of one peer one after the other', async () => {
    const { dialer, dials } = rig(() => new Promise(() => {}));
    dialer.suggest(idOf('b'), [at(1), at(2), at(3)]);
    await pass(1000);
    expect(dials).toEqual([
      ['10.0.0.1:60000', 0],
      ['10.0.0.2:60000', 300],
      ['10.0.0.3:60000', 600],
    ]);
    await dialer.close();
  });

  it('has sixteen dials at a time, and reaches all in the end', async () => {
    const { dialer, dials, running } = rig(
      () => new Promise((resolve) => setTimeout(() => resolve({ how: 'rejected' }), 1000)),
    );
    for (let number = 1; number <= 100; number++) dialer.offer(at(number));
    await pass(7500);
    expect(running.most).toBe(16);
    expect(new Set(dials.map(([endpoint]) => endpoint)).size).toBe(100);
    await dialer.close();
  });

  it('dials at once what a user named or what worked before, though strangers keep it waiting', async () => {
    const silent = (): Promise<DialOutcome> =>
      new Promise((resolve) => setTimeout(() => resolve({ how: 'failed' }), 5000));
    const { dialer, times, standings, running } = rig(({ host }) =>
      host === at(202).host ? { how: 'connected', id: idOf('b') } : silent(),
    );
    standings.set(idOf('b'), 'connected');
    dialer.offer(at(202));
    await pass(10);
    for (let number = 1; number <= 200; number++) dialer.offer(at(number));
    await pass(90);
    dialer.offer(at(201), true);
    await pass(100);
    standings.delete(idOf('b'));
    dialer.lost(idOf('b'), at(202), 'soon');
    await pass(400);
    expect([times(201), times(202).length]).toEqual([[100], 2]);
    expect(running.most).toBe(18);
    // The ones that were not dialled yet come before those that failed.
    await pass(58_000);
    expect([times(190).length, times(1).length]).toEqual([1, 1]);
    await pass(7000);
    expect([times(200).length, times(1).length]).toEqual([1, 2]);
    await dialer.close();
    await pass(5000);
  });

  it('remembers a bounded number of endpoints, those that worked before the others', async () => {
    const { dialer, times } = rig();
    dialer.lost(idOf('b'), at(1), 'later');
    for (let number = 0; number < 2000; number++)
      dialer.offer({ host: `10.1.${number >> 8}.${number & 255}`, port: 1 });
    expect(dialer.size).toBeLessThanOrEqual(256);
    await pass(600_000);
    expect(times(1).length).toBeGreaterThan(10);
    await dialer.close();
  });

  it('ends its dials when it is closed, and dials nothing after', async () => {
    const { dialer, dials, running } = rig(() => new Promise(() => {}));
    dialer.offer(at(1));
    await pass(10);
    expect(running.now).toBe(1);
    await dialer.close();
    expect(running.now).toBe(0);
    dialer.offer(at(2));
    await pass(1000);
    expect(dials).toHaveLength(1);
  });
});

describe('endpoints', () => {
  it('are written with brackets around IPv6', () => {
    expect(formatEndpoint({ host: '::1', port: 5 })).toBe('[::1]:5');
    expect(formatEndpoint({ host: 'phone.local', port: 5 })).toBe('phone.local:5');
  });
});
