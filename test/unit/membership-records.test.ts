import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  byId,
  compareOrder,
  compareViews,
  deepFreeze,
  lookAround,
  mergeRecords,
  reachableIds,
  trimRecords,
} from '../../lib/cluster/control/records.js';
import { dialAddresses, recordEndpoints, routeTo } from '../../lib/cluster/control/routes.js';
import type { Peer } from '../../lib/cluster/types.js';
import { idOf, linkOf, peerOf } from '../support/peers.js';

const names = ['a', 'b', 'c', 'd', 'e', 'f'] as const;
const name = fc.constantFrom(...names);
// What a record says follows from its order, as it does for a peer that tells the truth.
const record = fc
  .record({ name, incarnation: fc.integer({ min: 1, max: 3 }), revision: fc.integer({ min: 0, max: 5 }) })
  .map(({ name, incarnation, revision }) =>
    peerOf(name, { incarnation, revision, memory: incarnation * 10 + revision }),
  );

const sorted = (records: Iterable<Peer>): Peer[] => [...records].sort(byId);

describe('records', () => {
  it('give the same set in any order, in any portions, however often', () => {
    const deliveries = fc.array(record, { maxLength: 30 }).chain((records) =>
      fc.record({
        records: fc.constant(records),
        shuffled: fc.shuffledSubarray(records, { minLength: records.length }),
        repeated: fc.subarray(records),
        at: fc.nat({ max: records.length }),
      }),
    );
    fc.assert(
      fc.property(deliveries, ({ records, shuffled, repeated, at }) => {
        const once = mergeRecords(new Map(), records);
        const first = mergeRecords(new Map(), shuffled.slice(0, at));
        const other = mergeRecords(mergeRecords(first, shuffled.slice(at)), repeated);
        expect(sorted(other.values())).toEqual(sorted(once.values()));
        for (const kept of once.values()) {
          for (const seen of records.filter(({ id }) => id === kept.id)) {
            expect(compareOrder(kept, seen)).toBeGreaterThanOrEqual(0);
          }
        }
      }),
    );
  });

  it('leave the set they are merged into as it was', () => {
    const before = mergeRecords(new Map(), [peerOf('a')]);
    mergeRecords(before, [peerOf('a', { revision: 2 }), peerOf('b')]);
    expect([...before.values()]).toEqual([peerOf('a')]);
  });
});

describe('reachability', () => {
  it('is that of a walk over the edges that reachable members claim', () => {
    const edges = fc.array(fc.tuple(name, name), { maxLength: 20 });
    fc.assert(
      fc.property(edges, fc.subarray([...names]), (claims, known) => {
        const of = (owner: string): string[] => claims.filter(([from]) => from === owner).map(([, to]) => idOf(to));
        const self = peerOf('self', { neighbours: of('a') });
        const records = new Map(known.map((owner) => [idOf(owner), peerOf(owner, { neighbours: of(owner) })]));
        // The closure, the slow way.
        const expected = new Set([self.id]);
        for (let round = 0; round <= names.length; round++) {
          for (const id of [...expected]) {
            const neighbours = id === self.id ? self.neighbours : (records.get(id)?.neighbours ?? []);
            for (const neighbour of neighbours) if (records.has(neighbour)) expected.add(neighbour);
          }
        }
        expect([...reachableIds(self, records)].sort()).toEqual([...expected].sort());
      }),
    );
  });

  it('counts nothing that an unreachable member claims', () => {
    const records = mergeRecords(new Map(), [
      peerOf('b', { neighbours: [idOf('c')] }),
      peerOf('c', { neighbours: [idOf('b')] }),
    ]);
    expect([...reachableIds(peerOf('a'), records)]).toEqual([idOf('a')]);
    expect(reachableIds(peerOf('a', { neighbours: [idOf('b')] }), records).size).toBe(3);
  });

  it('survives when there are too many records, and what was heard of last does', () => {
    const many = Array.from({ length: 20 }, (_, number) => peerOf(`p${number}`));
    const records = mergeRecords(new Map(), many);
    const kept = trimRecords(records, new Set([idOf('p0'), idOf('p1')]), 4);
    expect([...kept.keys()]).toEqual(['p0', 'p1', 'p18', 'p19'].map(idOf));
    expect(trimRecords(records, new Set(), 20)).toBe(records);

    const self = peerOf('self', { neighbours: ['p5', 'p6', 'p7', 'ghost'].map(idOf) });
    const { records: left, view } = lookAround(self, records, { keep: 10, see: 2 });
    expect([...view.keys()]).toEqual(['p5', 'p6'].map(idOf));
    expect(left.size).toBe(10);
    expect(left.has(idOf('p7'))).toBe(true);
  });
});

describe('two views', () => {
  it('tell who came, who went, and who was restarted', () => {
    const view = (...peers: Peer[]): Map<string, Peer> => new Map(peers.map((peer) => [peer.id, peer]));
    const before = view(peerOf('a'), peerOf('b', { incarnation: 1 }), peerOf('c'));
    const after = view(peerOf('a', { revision: 9 }), peerOf('b', { incarnation: 2 }), peerOf('d'));
    const { lost, joined } = compareViews(before, after);
    expect(lost.map((peer) => [peer.name, peer.incarnation])).toEqual([
      ['b', 1],
      ['c', peerOf('c').incarnation],
    ]);
    expect(joined.map((peer) => peer.name)).toEqual(['b', 'd']);
  });
});

describe('the ways to a member', () => {
  const record = peerOf('b', { port: 7000, addresses: ['10.0.0.2', 'fe80::1', '10.0.0.3'] });
  const address = { host: '10.9.9.9', port: 5555 };
  const send = (): boolean => true;

  it('begin with what is known to work, each once', () => {
    expect(recordEndpoints(record).map(({ host }) => host)).toEqual(['10.0.0.2', '10.0.0.3']);
    expect(recordEndpoints({ ...record, port: 0 })).toEqual([]);
    const link = linkOf('a', 'b', { endpoint: '10.0.0.3:7000' });
    const ways = { record, link, control: { dialled: true, address, send } };
    expect(routeTo(ways).endpoints).toEqual([
      address,
      { host: '10.0.0.3', port: 7000 },
      { host: '10.0.0.2', port: 7000 },
    ]);
    // A port that it dialled from is none to dial.
    const accepted = routeTo({ record, control: { dialled: false, address, send } });
    expect(accepted.endpoints[0]).toEqual({ host: '10.9.9.9', port: 7000 });
  });

  it('are tried out at the address where it was reached, too, which it may not know', () => {
    expect(dialAddresses(record, undefined)).toEqual(record.addresses);
    expect(dialAddresses(record, { host: '100.64.0.2', port: 7000 })).toEqual(['100.64.0.2', ...record.addresses]);
    expect(dialAddresses(record, { host: '10.0.0.2', port: 7000 }).sort()).toEqual([...record.addresses].sort());
    // A port that is handed on: there is no saying where the others are.
    expect(dialAddresses(record, address)).toEqual(record.addresses);
  });

  it('prefer that the member dials where that is what works', () => {
    const link = (dial: 'open' | 'timeout') => linkOf('a', 'b', { dial });
    const control = (dialled: boolean) => ({ dialled, address, send });
    expect(routeTo({ record, control: control(false) }).reverseFirst).toBe(true);
    expect(routeTo({ record, control: control(false), link: link('timeout') }).reverseFirst).toBe(true);
    expect(routeTo({ record, control: control(false), link: link('open') }).reverseFirst).toBe(false);
    expect(routeTo({ record, control: control(true), link: link('timeout') }).reverseFirst).toBe(false);
    expect(routeTo({ record, link: link('timeout') })).toMatchObject({ reverseFirst: false, send: undefined });
  });
});

describe('freezing', () => {
  it('goes all the way down', () => {
    const peer = deepFreeze(peerOf('a', { links: [linkOf('a', 'b')] }));
    expect(Object.isFrozen(peer.links[0])).toBe(true);
  });
});
