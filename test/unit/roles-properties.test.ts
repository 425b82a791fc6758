/** What holds of every assignment of roles. A failure prints its seed. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { assignRoles, type RolesInput } from '../../lib/cluster/roles.js';
import type { Link, Peer } from '../../lib/cluster/types.js';

const RUNS = { numRuns: 500 };
const IDS = ['a', 'b', 'c', 'd', 'e'];

const peer = (id: string): fc.Arbitrary<Peer> =>
  fc
    .record({
      pin: fc.constantFrom(null, null, null, 'master' as const, 'worker' as const),
      model: fc.constantFrom(null, { name: 'm', bytes: 5, layers: 2 }, { name: 'n', bytes: 6, layers: 2 }),
      memory: fc.constantFrom(1, 2, 4),
      port: fc.constantFrom(60000, 60000, 60000, 0),
      compute: fc.constantFrom(null, { threads: 1, weightBytesPerSecond: 3, flopsPerSecond: 3 }),
      battery: fc.constantFrom(null, { percent: 40, charging: false, temperatureCelsius: null }),
      neighbours: fc.subarray(IDS),
    })
    .map((random) => ({
      id,
      name: `phone ${id}`,
      incarnation: 1,
      revision: 1,
      version: '0.1.0',
      addresses: [],
      graphsComputed: 0,
      links: [],
      lead: null,
      ...random,
    }));

const linksOf = (ids: readonly string[]): fc.Arbitrary<Link[]> => {
  const pairs = ids.flatMap((from) => ids.filter((to) => to !== from).map((to) => ({ from, to })));
  return fc
    .tuple(
      ...pairs.map(() =>
        fc.constantFrom(
          null,
          'open' as const,
          'open' as const,
          'timeout' as const,
          'refused' as const,
          'unknown' as const,
        ),
      ),
    )
    .map((dials) =>
      pairs.flatMap((pair, i) => {
        const dial = dials[i];
        return dial ? [{ ...pair, dial, endpoint: null, roundTripMs: null, bytesPerSecond: null }] : [];
      }),
    );
};

const input: fc.Arbitrary<RolesInput> = fc.subarray(IDS, { minLength: 1 }).chain((ids) =>
  fc.record({
    peers: fc.tuple(...ids.map(peer)),
    links: linksOf(ids),
    incumbent: fc.constantFrom(null, ...IDS),
  }),
);

const isOpen = (links: readonly Link[], from: string, to: string) =>
  links.some((link) => link.from === from && link.to === to && link.dial === 'open');

describe('every assignment', () => {
  it('gives each peer one role or a reason', () => {
    fc.assert(
      fc.property(input, (given) => {
        const roles = assignRoles(given);
        const all = [
          ...(roles.master === null ? [] : [roles.master]),
          ...[...roles.workers, ...roles.leftOut].map(({ id }) => id),
        ];
        expect(all.sort()).toEqual(given.peers.map(({ id }) => id).sort());
        expect(roles.leftOut.every(({ reason }) => reason.length > 10)).toBe(true);
        expect(roles.reasons.length).toBeGreaterThan(0);
      }),
      RUNS,
    );
  });

  it('has a master that has a model and reaches every worker the way it says', () => {
    fc.assert(
      fc.property(input, (given) => {
        const { master, workers } = assignRoles(given);
        const leader = given.peers.find(({ id }) => id === master);
        if (master !== null) expect(leader?.model).toBeTruthy();
        for (const { id, via } of workers) {
          const [from, to] = via === 'direct' ? [master ?? '', id] : [id, master ?? ''];
          expect(isOpen(given.links, from, to)).toBe(true);
        }
        expect(workers.map(({ id }) => id)).toEqual(workers.map(({ id }) => id).sort());
      }),
      RUNS,
    );
  });

  it('leaves out nobody whom the master reaches', () => {
    fc.assert(
      fc.property(input, (given) => {
        const { master, leftOut } = assignRoles(given);
        if (master === null) return;
        for (const { id } of leftOut) {
          expect(isOpen(given.links, master, id) || isOpen(given.links, id, master)).toBe(false);
        }
      }),
      RUNS,
    );
  });

  it('respects pins', () => {
    fc.assert(
      fc.property(input, (given) => {
        const { master } = assignRoles(given);
        const leader = given.peers.find(({ id }) => id === master);
        if (leader) expect(leader.pin).not.toBe('worker');
        if (given.peers.some(({ pin, model }) => pin === 'master' && model)) expect(leader?.pin).toBe('master');
        if (!leader) expect(given.peers.every(({ pin, model }) => !model || pin === 'worker')).toBe(true);
      }),
      RUNS,
    );
  });

  it('is the same in whatever order peers and links come', () => {
    const shuffle = <T>(values: readonly T[]) =>
      fc.shuffledSubarray([...values], { minLength: values.length, maxLength: values.length });
    const shuffled = input.chain((given) => fc.tuple(fc.constant(given), shuffle(given.peers), shuffle(given.links)));
    fc.assert(
      fc.property(shuffled, ([given, peers, links]) => {
        expect(assignRoles({ ...given, peers, links })).toEqual(assignRoles(given));
      }),
      RUNS,
    );
  });

  it('stays as it is when its master is the master of the moment', () => {
    fc.assert(
      fc.property(input, (given) => {
        const first = assignRoles(given);
        const second = assignRoles({ ...given, incumbent: first.master });
        expect(second.master).toBe(first.master);
        expect(second.workers).toEqual(first.workers);
      }),
      RUNS,
    );
  });
});
