import { formatEndpoint } from '../../endpoint.js';
import type { ErrorCode } from '../../errors.js';
import type { Peer } from '../types.js';
import { Allowance } from './allowance.js';
import type { ConnectionEnd, ControlConnection } from './control-connection.js';

/** Another device was turned away, or turned this one away. */
export interface Rejection {
  /** `host:port` that was dialled; of a device that came by itself the address alone. */
  readonly endpoint: string;
  readonly code: ErrorCode;
  readonly reason: string;
}

const ONCE_MS = 60_000;
/** Of all endpoints together: strangers can have any number of them. */
const TOLD = { burst: 20, perSecond: 20 / 60 };
/** More than the longest wait between two attempts of a device that is turned away. */
const FORGET_MS = 30_000;
/** How long a process that sent nonsense is kept out. */
const BANNED_MS = 60_000;
const MAX_REMEMBERED = 256;

export interface RejectionsOptions {
  readonly emit: (rejection: Rejection) => void;
  /** This device's. */
  readonly id: string;
  /** How long two processes with one id must keep coming until they are two devices, and no restart. */
  readonly rivalryMs: number;
}

/** Where a connection goes to or comes from, and whose it is as far as that is known. */
type From = Pick<ControlConnection, 'address' | 'dialled' | 'id'>;

/** Tells each rejection once a minute, and not more than some in all, and finds out whether two devices share an id. */
export class Rejections {
  readonly #options: RejectionsOptions;
  readonly #allowance = new Allowance(TOLD.burst, TOLD.perSecond);
  readonly #toldAt = new Map<string, number>();
  readonly #rivals = new Map<string, { firstAt: number; lastAt: number }>();
  readonly #banned = new Map<string, { incarnation: number; until: number }>();

  constructor(options: RejectionsOptions) {
    this.#options = options;
  }

  tell({ address, dialled }: Omit<From, 'id'>, code: ErrorCode, reason: string): void {
    const endpoint = dialled ? formatEndpoint(address) : address.host;
    const now = performance.now();
    const key = `${endpoint} ${code}`;
    if (now - (this.#toldAt.get(key) ?? Number.NEGATIVE_INFINITY) < ONCE_MS || !this.#allowance.take(1)) return;
    remember(this.#toldAt, key, now);
    this.#options.emit({ endpoint, code, reason });
  }

  /** Tells what there is to tell of the end of a connection. True when two devices have the same id. */
  tellEnd(from: From, { code, reason: said, by }: ConnectionEnd): boolean {
    const reason = by === 'them' ? `it says: ${said}` : said;
    if (code === 'version') this.tell(from, 'DROID_VERSION_MISMATCH', reason);
    if (code === 'protocol' || code === 'full') this.tell(from, 'DROID_MEMBER_REFUSED', reason);
    // Nothing when it was replaced: a device that was restarted is, a second one comes again and is refused.
    if (code !== 'id-in-use') return false;
    // The id is that of the one who was turned away.
    const id = by === 'us' ? (from.id ?? this.#options.id) : this.#options.id;
    return this.#isShared(id) && this.tellSharedId(id, from);
  }

  tellSharedId(id: string, from: From): true {
    this.tell(
      from,
      'DROID_MEMBER_REFUSED',
      `two devices have the id ${id}, so only the one that was started last is a member; ` +
        'probably the files of one were copied to the other: give one of them a new id',
    );
    return true;
  }

  ban(id: string, incarnation: number): void {
    remember(this.#banned, id, { incarnation, until: performance.now() + BANNED_MS });
  }

  isBanned({ id, incarnation }: Pick<Peer, 'id' | 'incarnation'>): boolean {
    const banned = this.#banned.get(id);
    return banned?.incarnation === incarnation && banned.until > performance.now();
  }

  /** A process was refused for its id, which also happens for some seconds when a device is restarted. */
  #isShared(id: string): boolean {
    const now = performance.now();
    const seen = this.#rivals.get(id);
    const firstAt = seen && now - seen.lastAt < FORGET_MS ? seen.firstAt : now;
    remember(this.#rivals, id, { firstAt, lastAt: now });
    return now - firstAt >= this.#options.rivalryMs;
  }
}

function remember<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  map.set(key, value);
  const oldest = map.keys().next();
  if (map.size > MAX_REMEMBERED && !oldest.done) map.delete(oldest.value);
}
