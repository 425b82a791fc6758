import { leaderOf } from './leads.js';
import type { Lead, Link, Measured, Peer, Plan, Roles } from './types.js';

export type MemberRole = 'master' | 'worker' | 'left-out' | 'undecided';

/** A member as `droid-llama status` shows it. Sizes are bytes. */
export interface MemberStatus {
  readonly id: string;
  readonly name: string;
  readonly role: MemberRole;
  /** Why it is left out; null otherwise. */
  readonly reason: string | null;
  /** How many of the model's layers it holds by the plan, and the bytes of weights. */
  readonly layers: number;
  readonly bytes: number;
  readonly graphsComputed: number;
  readonly memory: number;
  readonly model: string | null;
  readonly battery: Peer['battery'];
  readonly addresses: readonly string[];
  readonly port: number;
  readonly version: string;
}

/** One look at the cluster from one of its members. */
export interface ClusterStatus {
  readonly self: { readonly id: string; readonly name: string; readonly role: MemberRole };
  readonly state: Lead['state'] | 'searching';
  /** Why it waits or failed. */
  readonly reason: string | null;
  /** 0 to 1 while loading. */
  readonly progress: number;
  /** Everybody, this device too. */
  readonly peers: readonly MemberStatus[];
  readonly links: readonly Link[];
  readonly roles: Roles;
  readonly plan: Plan | null;
  readonly measured: Measured | null;
}

export function roleOf(id: string, roles: Roles, plan: Plan | null): MemberRole {
  if (roles.master === id) return 'master';
  if (roles.leftOut.some((peer) => peer.id === id)) return 'left-out';
  if (roles.workers.some((worker) => worker.id === id)) {
    return plan?.leftOut.some((peer) => peer.id === id) ? 'left-out' : 'worker';
  }
  return 'undecided';
}

export function clusterStatus(
  self: string,
  peers: readonly Peer[],
  links: readonly Link[],
  roles: Roles,
): ClusterStatus {
  const lead = leaderOf(peers)?.lead ?? null;
  const plan = lead?.plan ?? null;
  const members = peers.map((peer): MemberStatus => {
    const part = plan?.parts.find(({ id }) => id === peer.id);
    const role = roleOf(peer.id, roles, plan);
    const outOf = (list: Plan['leftOut'] | undefined) => list?.find(({ id }) => id === peer.id)?.reason;
    return {
      id: peer.id,
      name: peer.name,
      role,
      reason: role === 'left-out' ? (outOf(roles.leftOut) ?? outOf(plan?.leftOut) ?? null) : null,
      layers: part?.layers ?? 0,
      bytes: part?.bytes ?? 0,
      graphsComputed: peer.graphsComputed,
      memory: peer.memory,
      model: peer.model?.name ?? null,
      battery: peer.battery,
      addresses: peer.addresses,
      port: peer.port,
      version: peer.version,
    };
  });
  const own = peers.find(({ id }) => id === self);
  return {
    self: { id: self, name: own?.name ?? '', role: roleOf(self, roles, plan) },
    state: lead?.state ?? 'searching',
    reason: lead?.reason ?? (roles.master === null ? roles.reasons.join(' ') : null),
    progress: lead?.progress ?? 0,
    peers: members,
    links,
    roles,
    plan,
    measured: lead?.measured ?? null,
  };
}
