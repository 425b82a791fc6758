import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { ConnectionEnd } from '../../lib/cluster/control/control-connection.js';
import { type Rejection, Rejections } from '../../lib/cluster/control/rejections.js';
import { idOf } from '../support/peers.js';

const from = { address: { host: '10.0.0.2', port: 60_000 }, dialled: true, id: idOf('b') };
const came = { ...from, address: { host: '10.0.0.2', port: 12_345 }, dialled: false };
const end = (code: ConnectionEnd['code'], by: 'us' | 'them' = 'us'): ConnectionEnd => ({
  code,
  reason: 'why',
  by,
  established: false,
});

function rig(): { rejections: Rejections; told: Rejection[] } {
  const told: Rejection[] = [];
  const emit = (rejection: Rejection): unknown => told.push(rejection);
  return { told, rejections: new Rejections({ id: idOf('a'), rivalryMs: 10_000, emit: (one) => void emit(one) }) };
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

describe('rejections', () => {
  it('are told once a minute for each endpoint and code, by address for who came by itself', () => {
    const { rejections, told } = rig();
    for (let second = 0; second < 61; second++) {
      rejections.tellEnd(from, end('version'));
      rejections.tellEnd(came, end('protocol', 'them'));
      vi.advanceTimersByTime(1000);
    }
    expect(told).toEqual([
      { endpoint: '10.0.0.2:60000', code: 'DROID_VERSION_MISMATCH', reason: 'why' },
      { endpoint: '10.0.0.2', code: 'DROID_MEMBER_REFUSED', reason: 'it says: why' },
      { endpoint: '10.0.0.2:60000', code: 'DROID_VERSION_MISMATCH', reason: 'why' },
      { endpoint: '10.0.0.2', code: 'DROID_MEMBER_REFUSED', reason: 'it says: why' },
    ]);
  });

  it('are told 20 times at once and as often a minute, however many endpoints there are', () => {
    const { rejections, told } = rig();
    const flood = (): void => {
      for (let port = 1; port <= 500; port++) {
        rejections.tellEnd({ ...from, address: { host: '10.0.0.9', port } }, end('protocol'));
      }
    };
    flood();
    expect(told).toHaveLength(20);
    for (let second = 0; second < 60; second++) {
      vi.advanceTimersByTime(1000);
      flood();
    }
    expect(told.length).toBeGreaterThan(35);
    expect(told.length).toBeLessThanOrEqual(40);
  });

  it('are none when a connection just ends', () => {
    const { rejections, told } = rig();
    for (const code of ['leaving', 'duplicate', 'silent', 'hung-up', 'replaced'] as const) {
      expect(rejections.tellEnd(from, end(code))).toBe(false);
    }
    expect(told).toEqual([]);
  });

  it('say that two devices share an id when one is refused for longer than a restart takes', () => {
    const { rejections, told } = rig();
    for (let second = 0; second < 10; second++) {
      expect(rejections.tellEnd(came, end('id-in-use'))).toBe(false);
      vi.advanceTimersByTime(1000);
    }
    expect(rejections.tellEnd(came, end('id-in-use'))).toBe(true);
    expect(told[0]?.reason).toContain(`two devices have the id ${idOf('b')}`);
    // At the other end it is this device's own id.
    const other = rig();
    other.rejections.tellEnd(from, end('id-in-use', 'them'));
    vi.advanceTimersByTime(12_000);
    expect(other.rejections.tellEnd(from, end('id-in-use', 'them'))).toBe(true);
    expect(other.told[0]?.reason).toContain(`two devices have the id ${idOf('a')}`);
  });

  it('take a device that is restarted now and then for one', () => {
    const { rejections, told } = rig();
    for (let restart = 0; restart < 5; restart++) {
      rejections.tellEnd(came, end('id-in-use'));
      vi.advanceTimersByTime(4000);
      rejections.tellEnd(came, end('id-in-use'));
      vi.advanceTimersByTime(60_000);
    }
    expect(told).toEqual([]);
  });

  it('keep a process out for a minute, and not the next one of that device', () => {
    const { rejections } = rig();
    rejections.ban(idOf('b'), 1000);
    expect(rejections.isBanned({ id: idOf('b'), incarnation: 1000 })).toBe(true);
    expect(rejections.isBanned({ id: idOf('b'), incarnation: 1001 })).toBe(false);
    vi.advanceTimersByTime(60_001);
    expect(rejections.isBanned({ id: idOf('b'), incarnation: 1000 })).toBe(false);
  });
});
