/** Who is in the cluster, from the records that came so far. Pure: no clock, no I/O. */
import type { Peer } from '../types.js';

export type Records = ReadonlyMap<string, Peer>;

/** What orders the records of one peer. */
export type RecordOrder = Pick<Peer, 'incarnation' | 'revision'>;

/** Above 0 when `a` is newer. */
export function compareOrder(a: RecordOrder, b: RecordOrder): number {
  return a.incarnation - b.incarnation || a.revision - b.revision;
}

/** Whether a record tells something new, beside the one that is known. */
export function isNews(records: Records, record: Peer): boolean {
  const known = records.get(record.id);
  return !known || compareOrder(record, known) > 0;
}

/** The newest record of each peer. The order in which records come makes no difference. */
export function mergeRecords(records: Records, incoming: Iterable<Peer>): Map<string, Peer> {
  const merged = new Map(records);
  for (const record of incoming) {
    if (!isNews(merged, record)) continue;
    // At the end again: the order tells which ones were not heard of for longest.
    merged.delete(record.id);
    merged.set(record.id, record);
  }
  return merged;
}

/**
 * The ids of those that `self` can reach, itself first, then the nearest. An edge is a control connection that a
 * reachable member says it has: a member that is gone can claim nothing, so no record ever needs a time limit.
 */
export function reachableIds(self: Peer, records: Records): Set<string> {
  const reached = new Set([self.id]);
  // A set yields what is added to it while it is read.
  for (const id of reached) {
    const record = id === self.id ? self : records.get(id);
    for (const neighbour of record?.neighbours ?? []) {
      if (records.has(neighbour)) reached.add(neighbour);
    }
  }
  return reached;
}

/** What `self` sees of the records: those to keep, and of the peers that it can reach the nearest ones. */
export function lookAround(
  self: Peer,
  records: Records,
  { keep, see }: { keep: number; see: number },
): { records: Records; view: Records } {
  const reachable = reachableIds(self, records);
  const kept = trimRecords(records, reachable, keep);
  const view = new Map<string, Peer>();
  for (const id of reachable) {
    const record = kept.get(id);
    if (record && view.size < see) view.set(id, record);
  }
  return { records: kept, view };
}

/** At most `limit` records: those out of reach go first, the ones not heard of for longest before the others. */
export function trimRecords(records: Records, reachable: ReadonlySet<string>, limit: number): Records {
  if (records.size <= limit) return records;
  const nearest = [...reachable].filter((id) => records.has(id));
  const others = [...records.keys()].filter((id) => !reachable.has(id)).reverse();
  const kept = new Set([...nearest, ...others].slice(0, limit));
  return new Map([...records].filter(([id]) => kept.has(id)));
}

/** Who came and who went between two views. A peer that was restarted did both. */
export function compareViews(before: Records, after: Records): { lost: Peer[]; joined: Peer[] } {
  const same = (views: Records, { id, incarnation }: Peer): boolean => views.get(id)?.incarnation === incarnation;
  return {
    lost: [...before.values()].filter((peer) => !same(after, peer)),
    joined: [...after.values()].filter((peer) => !same(before, peer)),
  };
}

/** Ids in the order that every member puts them in. */
export function byId(a: Pick<Peer, 'id'>, b: Pick<Peer, 'id'>): number {
  return a.id < b.id ? -1 : a.id > b.id ? 1 : 0;
}

/** Frozen through and through, so that a listener cannot change what others see. */
export function deepFreeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value;
  for (const item of Object.values(value)) deepFreeze(item);
  return Object.freeze(value);
}
