import { describe, expect, it } from 'vitest';
import { statusText } from '../../lib/cli/status.js';
import { leadSchema } from '../../lib/cluster/control/record-schemas.js';
import { highestEpoch, leaderOf, MAX_EPOCH } from '../../lib/cluster/leads.js';
import { clusterStatus, roleOf } from '../../lib/cluster/status.js';
import { StreamRegister } from '../../lib/cluster/stream-register.js';
import type { Lead, Link, Peer, Plan, Roles } from '../../lib/cluster/types.js';
import { peerOf } from '../support/peers.js';

const peer = (id: string, change: Partial<Peer> = {}): Peer => peerOf(id, { id, ...change });
const lead = (epoch: number, change: Partial<Lead> = {}): Lead => ({
  ...{ epoch, state: 'ready', progress: 1, reason: null, plan: null, measured: null },
  ...change,
});

const plan: Plan = {
  fits: true,
  missingBytes: 0,
  parts: [
    { id: 'A', firstLayer: 0, layers: 12, bytes: 300 * 1024 ** 2, memoryNeeded: 400 * 1024 ** 2 },
    { id: 'B', firstLayer: 12, layers: 12, bytes: 100 * 1024 ** 2, memoryNeeded: 200 * 1024 ** 2 },
  ],
  contextSize: 1024,
  batchSize: 128,
  ubatchSize: 64,
  prediction: { loadSeconds: 20, promptTokensPerSecond: 140, generationTokensPerSecond: 22 },
  leftOut: [{ id: 'C', reason: 'it has room for no layer' }],
  reasons: ['B makes prompts faster.'],
};
const roles: Roles = {
  master: 'A',
  workers: [
    { id: 'B', via: 'direct' },
    { id: 'C', via: 'reverse' },
  ],
  leftOut: [{ id: 'D', reason: 'nobody reaches it' }],
  reasons: ['A has the model.'],
};
const measured = { loadSeconds: 21, promptTokensPerSecond: null, generationTokensPerSecond: 23.4 };
const peers = [
  peer('A', { lead: lead(3, { plan, measured }) }),
  peer('B', { graphsComputed: 77 }),
  peer('C'),
  peer('D', { battery: { percent: 40, charging: true, temperatureCelsius: 30 } }),
];
const link: Link = {
  from: 'A',
  to: 'B',
  dial: 'open',
  endpoint: '10.0.0.2:60000',
  roundTripMs: 5,
  bytesPerSecond: 6.25e6,
};

describe('the lead that counts', () => {
  it('is the one with the highest epoch, then the oldest, then the smallest id', () => {
    expect(leaderOf([peer('A'), peer('B')])).toBeNull();
    const several = [peer('C', { lead: lead(2) }), peer('B', { lead: lead(2) }), peer('A', { lead: lead(1) })];
    expect(leaderOf(several)?.id).toBe('B');
    expect(leaderOf([...several].reverse())?.id).toBe('B');
    expect(highestEpoch(several)).toBe(2);
    expect(highestEpoch([])).toBe(0);
    expect(highestEpoch(several, 7)).toBe(7);
    // Who has just come with an epoch of its own does not overthrow who was there.
    const older = peer('D', { incarnation: 5, lead: lead(2) });
    expect(leaderOf([...several, older])?.id).toBe('D');
  });
});

describe('epochs', () => {
  it('always leave a next one that is a lead', () => {
    for (const epoch of [MAX_EPOCH, MAX_EPOCH - 1, Number.MAX_SAFE_INTEGER, 5]) {
      let last = highestEpoch([peer('A', { lead: lead(epoch) })]);
      for (let time = 0; time < 3; time++) {
        last++;
        expect(leadSchema.safeParse(lead(last)).error).toBeUndefined();
        last = highestEpoch([], last);
      }
    }
    expect(leadSchema.safeParse(lead(MAX_EPOCH + 1)).success).toBe(false);
  });
});

describe('the status', () => {
  const status = clusterStatus('B', peers, [link], roles);

  it('says what each device is, whoever is asked', () => {
    expect(status.self).toEqual({ id: 'B', name: 'B', role: 'worker' });
    expect(status.state).toBe('ready');
    expect(status.peers.map(({ role, layers, graphsComputed }) => ({ role, layers, graphsComputed }))).toEqual([
      { role: 'master', layers: 12, graphsComputed: 0 },
      { role: 'worker', layers: 12, graphsComputed: 77 },
      { role: 'left-out', layers: 0, graphsComputed: 0 },
      { role: 'left-out', layers: 0, graphsComputed: 0 },
    ]);
    expect(status.peers.map(({ reason }) => reason)).toEqual([
      null,
      null,
      'it has room for no layer',
      'nobody reaches it',
    ]);
  });

  it('searches while nobody leads, and says why', () => {
    const none: Roles = { master: null, workers: [], leftOut: [], reasons: ['No device has a model.'] };
    const alone = clusterStatus('B', [peer('B')], [], none);
    expect(alone).toMatchObject({ state: 'searching', reason: 'No device has a model.', plan: null });
    expect(alone.self.role).toBe('undecided');
    expect(roleOf('X', roles, plan)).toBe('undecided');
  });

  it('is a table with predicted beside measured', () => {
    const text = statusText(status);
    expect(text).toMatch(/^B is the worker; the cluster is ready$/m);
    expect(text).toMatch(/^B \(this device\) +worker +12 +100 MiB +4096 MiB +77$/m);
    expect(text).toMatch(/^D +left-out .* 40 % charging$/m);
    expect(text).toMatch(/^predicted +20\.0 +140 +22\.0$/m);
    expect(text).toMatch(/^measured +21\.0 +- +23\.4$/m);
    expect(text).toMatch(/^A → B +open +5\.0 ms +50\.0 Mbit\/s +10\.0\.0\.2:60000$/m);
    expect(text).toContain('C: it has room for no layer');
    // A phone held upright.
    const narrow = statusText(status, 40).split('\n');
    expect(narrow.filter((line) => line.length > 40)).toEqual([]);
    expect(narrow).toContain('  layers: 12');
  });
});

describe('StreamRegister', () => {
  it('cuts the streams of one member and forgets them', () => {
    const cut: number[] = [];
    const register = new StreamRegister((id) => cut.push(id));
    const stream = (id: number) => ({ id, fd: -1 }) as never;
    register.add('A', stream(1));
    register.add('B', stream(2));
    register.add('A', stream(3));
    register.cutAll('A');
    expect(cut).toEqual([1, 3]);
    register.cutAll('A');
    register.cutAll('nobody');
    expect(cut).toEqual([1, 3]);
  });
});
