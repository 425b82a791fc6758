/** Who leads and who works: a pure function of what the members know of each other, the same on every one of them. */
import { Links } from './reach.js';
import type { Link, Peer, Roles, WorkerRole } from './types.js';

export interface RolesInput {
  /** Everybody who is there, in any order. */
  readonly peers: readonly Peer[];
  /** What all of them found out, in any order. */
  readonly links: readonly Link[];
  /** The master of the moment, if there is one. */
  readonly incumbent: string | null;
}

/** Another device must bring so many times the memory to take over from a master that leads already. */
const TAKEOVER = 1.1;

/**
 * Gives out the roles, by these rules, the first one that decides:
 * 1. the master has a model, and its user did not pin it as a worker; one that is pinned as master goes first;
 * 2. it reaches the most, by memory (its own included), then by number: directly, or over a stream that the worker dials;
 * 3. a device that can only dial out leads one that accepts connections, whoever was first;
 * 4. the master of the moment stays, so that nothing loads again for a better one;
 * 5. the larger model file, more memory, the quicker processor, the one that charges, the smaller id.
 *
 * Every peer is the master, a worker, or left out.
 */
export function assignRoles({ peers: given, links: known, incumbent }: RolesInput): Roles {
  const peers = [...given].sort((a, b) => (a.id < b.id ? -1 : 1));
  const links = new Links(peers, known);
  const reasons: string[] = [];
  const candidates = candidatesOf(peers, reasons);
  if (candidates.length === 0) {
    const reason = reasons.at(-1) ?? '';
    return { master: null, workers: [], leftOut: peers.map(({ id }) => ({ id, reason })), reasons };
  }

  const master = chooseMaster(
    candidates.map((peer) => reachOf(peer, peers, links)),
    incumbent,
    reasons,
  );
  const workers: WorkerRole[] = [];
  const leftOut: { id: string; reason: string }[] = [];
  for (const peer of peers) {
    if (peer === master) continue;
    const way = links.way(master.id, peer.id);
    if (way === 'direct' || way === 'reverse') workers.push({ id: peer.id, via: way });
    else leftOut.push({ id: peer.id, reason: whyLeftOut(master, peer, way, links) });
    if (way === 'reverse') {
      reasons.push(`${peer.name} opens the connection itself: ${links.attempt(master, peer)}.`);
    }
  }
  return { master: master.id, workers, leftOut, reasons };
}

/** Those who could lead. Adds to the reasons what came of pins, and last why there is nobody. */
function candidatesOf(peers: readonly Peer[], reasons: string[]): readonly Peer[] {
  const pinned = peers.filter(({ pin }) => pin === 'master');
  for (const { name } of pinned.filter(({ model }) => !model)) {
    reasons.push(`${name} is pinned as master but has no model: start it with -m model.gguf.`);
  }
  const able = pinned.filter(({ model }) => model);
  if (able.length > 1) {
    reasons.push(
      `${able.map(({ name }) => name).join(' and ')} are pinned as master; there can be one, and the rules choose.`,
    );
  }
  if (able.length > 0) return able;

  const willing = peers.filter(({ model, pin }) => model && pin !== 'worker');
  if (willing.length === 0) {
    const kept = peers.filter(({ model }) => model).map(({ name }) => name);
    reasons.push(
      kept.length > 0
        ? `Nobody may lead: ${kept.join(' and ')}, with a model, pinned as a worker. Start one of them without --role worker.`
        : 'No device has a model: start one of them with -m model.gguf.',
    );
  }
  return willing;
}

interface Reach {
  readonly peer: Peer;
  /** Of the device and of all that it reaches. */
  readonly memory: number;
  readonly count: number;
  /** The same if all that is not tried yet works. */
  readonly possibleMemory: number;
  readonly onlyDialsOut: boolean;
}

function reachOf(peer: Peer, peers: readonly Peer[], links: Links): Reach {
  let [memory, count, possibleMemory] = [0, 0, 0];
  for (const other of peers) {
    const way = other === peer ? 'direct' : links.way(peer.id, other.id);
    if (way === 'none') continue;
    possibleMemory += other.memory;
    if (way === 'unknown') continue;
    memory += other.memory;
    count++;
  }
  return { peer, memory, count, possibleMemory, onlyDialsOut: links.onlyDialsOut(peer.id) };
}

function chooseMaster(candidates: readonly Reach[], incumbent: string | null, reasons: string[]): Peer {
  if (candidates.length === 1) {
    const [only] = candidates as [Reach];
    reasons.push(
      only.peer.pin === 'master' ? `${only.peer.name} is pinned as master.` : `${only.peer.name} has the model.`,
    );
    return only.peer;
  }
  const most = Math.max(...candidates.map(({ memory }) => memory));
  const current = candidates.find(({ peer }) => peer.id === incumbent);
  // What the master of the moment has not tried yet must not cost it the lead.
  const withstands = ({ possibleMemory }: Reach) => most <= possibleMemory * TAKEOVER;
  const holds = current !== undefined && withstands(current);
  const reaching = holds
    ? candidates.filter((other) => withstands(other) && reachesAsMuch(other, current))
    : reachingMost(candidates, most);
  if (!holds && reaching.length < candidates.length)
    reasons.push('Those who reach less of the others were passed over.');

  const dialling = reaching.filter(({ onlyDialsOut }) => onlyDialsOut);
  if (dialling.length > 0) {
    const { peer } = holds && current.onlyDialsOut ? current : best(dialling);
    reasons.push(
      `${peer.name} leads: it can dial out, but nobody can connect to it, as with a phone that hosts a hotspot.`,
    );
    return peer;
  }
  if (holds) {
    reasons.push(`${current.peer.name} goes on leading.`);
    return current.peer;
  }
  const { peer } = best(reaching);
  reasons.push(`${peer.name} leads${reaching.length > 1 ? `, chosen by ${decidedBy(reaching, peer)}` : ''}.`);
  return peer;
}

function reachesAsMuch(a: Reach, b: Reach): boolean {
  return a.memory > b.memory || (a.memory === b.memory && a.count >= b.count);
}

function reachingMost(candidates: readonly Reach[], memory: number): readonly Reach[] {
  const most = candidates.filter((candidate) => candidate.memory === memory);
  const count = Math.max(...most.map((candidate) => candidate.count));
  return most.filter((candidate) => candidate.count === count);
}

/** In the order in which they decide; the larger value wins. */
const MERITS: readonly { name: string; of: (peer: Peer) => number }[] = [
  { name: 'its larger model', of: ({ model }) => model?.bytes ?? 0 },
  { name: 'its memory', of: ({ memory }) => memory },
  { name: 'its speed', of: ({ compute }) => compute?.weightBytesPerSecond ?? 0 },
  { name: 'its charger', of: ({ battery }) => (battery && !battery.charging ? 0 : 1) },
  { name: 'its battery', of: ({ battery }) => battery?.percent ?? 100 },
];

/** The first one wins where nothing else decides: candidates come by id. */
function best(candidates: readonly Reach[]): Reach {
  return candidates.reduce((a, b) => {
    const merit = MERITS.find(({ of }) => of(a.peer) !== of(b.peer));
    return merit && merit.of(b.peer) > merit.of(a.peer) ? b : a;
  });
}

function decidedBy(candidates: readonly Reach[], winner: Peer): string {
  const decisive = MERITS.find(({ of }) => candidates.some(({ peer }) => of(peer) !== of(winner)));
  return decisive?.name ?? 'its id, as all else is equal';
}

function whyLeftOut(master: Peer, peer: Peer, way: 'none' | 'unknown', links: Links): string {
  const tried = `${links.attempt(master, peer)}, and ${links.attempt(peer, master)}`;
  if (way === 'none') return `${tried}. ${links.hint(master.id, peer.id)}`;
  const connected = master.neighbours.includes(peer.id) || peer.neighbours.includes(master.id);
  return connected
    ? `It is connected with ${master.name}, but which of the two can dial is not known yet: ${tried}.`
    : `Not probed yet: ${tried}.`;
}
