/**
 * Decides which connections may try to prove that they have the token. Pure: it holds no socket and reads no clock of
 * its own.
 *
 * The rules: only so many are unproven at a time, in all and from one address, and a new one takes the place of the
 * oldest, so that silent strangers cannot keep a member out, who is through in milliseconds. Whoever spoke and did not
 * prove it pays from its address' budget, and the door is closed while that has not enough for a wrong token. Addresses with a proven stream
 * are exempt from that and the last to be dropped.
 */

export interface AdmissionLimits {
  /** Unproven connections at a time. */
  readonly halfOpen: number;
  readonly halfOpenPerAddress: number;
  /** What an address can spend at once. */
  readonly budget: number;
  /** What it gets back per second. */
  readonly refillPerSecond: number;
  /** Addresses that are remembered. */
  readonly addresses: number;
}

export const ADMISSION_LIMITS: AdmissionLimits = {
  halfOpen: 128,
  halfOpenPerAddress: 32,
  // Twenty wrong tokens at once, and some hundred handshakes that are begun: seldom more than a blink of computing, and
  // enough that a flood from a member's own address does not lock that out before it is noticed.
  budget: 400,
  refillPerSecond: 20,
  addresses: 1024,
};

/** How a connection stopped being unproven, other than by proof, and what that costs. */
export const COST = {
  /** It never said anything: a port scan, or somebody who only takes up room, which the limits are for. */
  silent: 0,
  spoke: 1,
  'wrong-token': 20,
} as const;
export type Outcome = keyof typeof COST;

interface AddressRecord {
  budget: number;
  /** When `budget` was right. */
  at: number;
  halfOpen: number;
  proven: number;
}

export interface Admitted {
  readonly ticket: number;
  /** The ticket of the connection that has to make room: it is to be cut, and to be reported with `failed`. */
  readonly drop?: number;
}

export class Admission {
  readonly #limits: AdmissionLimits;
  readonly #now: () => number;
  /** In the order of their last use. */
  readonly #addresses = new Map<string, AddressRecord>();
  /** Unproven connections, the oldest first. */
  readonly #halfOpen = new Map<number, string>();
  #lastTicket = 0;

  /** @param now milliseconds that never go back */
  constructor(limits: AdmissionLimits, now: () => number) {
    this.#limits = limits;
    this.#now = now;
  }

  get halfOpen(): number {
    return this.#halfOpen.size;
  }

  get addresses(): number {
    return this.#addresses.size;
  }

  /** A connection came in; undefined when it is to be closed at once. */
  enter(address: string): Admitted | undefined {
    const key = addressKey(address);
    const record = this.#use(key);
    if (record.proven === 0 && record.budget < COST['wrong-token']) return undefined;
    const drop = this.#toDrop(key, record);
    const ticket = ++this.#lastTicket;
    record.halfOpen++;
    this.#halfOpen.set(ticket, key);
    return drop === undefined ? { ticket } : { ticket, drop };
  }

  /** It went away or was cut before it proved anything. Does nothing for a ticket that is gone. */
  failed(ticket: number, outcome: Outcome): void {
    const key = this.#remove(ticket);
    if (key === undefined) return;
    const record = this.#use(key);
    record.budget = Math.max(0, record.budget - COST[outcome]);
  }

  /** It has the token. Its end is to be reported with {@link closed}. */
  proved(ticket: number): void {
    const key = this.#remove(ticket);
    if (key !== undefined) this.#use(key).proven++;
  }

  /** A proven stream with that address was dialled. */
  opened(address: string): void {
    this.#use(addressKey(address)).proven++;
  }

  closed(address: string): void {
    const record = this.#addresses.get(addressKey(address));
    if (record && record.proven > 0) record.proven--;
  }

  #remove(ticket: number): string | undefined {
    const key = this.#halfOpen.get(ticket);
    if (key === undefined) return undefined;
    this.#halfOpen.delete(ticket);
    const record = this.#addresses.get(key);
    if (record) record.halfOpen--;
    return key;
  }

  #toDrop(key: string, record: AddressRecord): number | undefined {
    if (record.halfOpen >= this.#limits.halfOpenPerAddress) {
      for (const [ticket, owner] of this.#halfOpen) if (owner === key) return ticket;
    }
    if (this.#halfOpen.size < this.#limits.halfOpen) return undefined;
    for (const [ticket, owner] of this.#halfOpen) {
      if ((this.#addresses.get(owner)?.proven ?? 0) === 0) return ticket;
    }
    return this.#halfOpen.keys().next().value;
  }

  #use(key: string): AddressRecord {
    const now = this.#now();
    const { budget, refillPerSecond } = this.#limits;
    let record = this.#addresses.get(key);
    if (record) {
      this.#addresses.delete(key);
      record.budget = Math.min(budget, record.budget + ((now - record.at) / 1000) * refillPerSecond);
      record.at = now;
    } else {
      this.#makeRoom(now);
      record = { budget, at: now, halfOpen: 0, proven: 0 };
    }
    this.#addresses.set(key, record);
    return record;
  }

  /** Forgets what an unknown address would be anyway, and when that is not enough, who was silent for longest. */
  #makeRoom(now: number): void {
    if (this.#addresses.size < this.#limits.addresses) return;
    const { budget, refillPerSecond } = this.#limits;
    let idle: string | undefined;
    for (const [key, record] of this.#addresses) {
      if (record.halfOpen > 0 || record.proven > 0) continue;
      idle ??= key;
      if (record.budget + ((now - record.at) / 1000) * refillPerSecond >= budget) this.#addresses.delete(key);
    }
    // One in use may not be forgotten; there are only as many of those as there are open connections.
    if (this.#addresses.size >= this.#limits.addresses && idle !== undefined) this.#addresses.delete(idle);
  }
}

/** IPv6 hosts have a /64 of their own: changing the rest of the address must not make them another one. */
function addressKey(address: string): string {
  if (!address.includes(':')) return address;
  const [left = '', right] = address.toLowerCase().replace(/%.*$/, '').split('::');
  const head = left === '' ? [] : left.split(':');
  const tail = right ? right.split(':') : [];
  const zeros = right === undefined ? 0 : Math.max(0, 8 - head.length - tail.length);
  const groups = [...head, ...Array<string>(zeros).fill('0'), ...tail].slice(0, 4);
  return `${groups.map((group) => group.replace(/^0+(?=.)/, '')).join(':')}::/64`;
}
