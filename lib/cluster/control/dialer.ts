import { setMaxListeners } from 'node:events';
import { type EndpointAddress, formatEndpoint } from '../../endpoint.js';

export interface DialTimes {
  /** Wait after the first failure; twice as long after each further one, up to the last. */
  readonly firstMs: number;
  readonly lastMs: number;
  /** Between attempts at a member that others reach and this device never did. */
  readonly slowMs: number;
  /** After a refusal that will not pass by itself: another version, another token. */
  readonly rejectedMs: number;
}

export const DIAL_TIMES: DialTimes = { firstMs: 500, lastMs: 15_000, slowMs: 60_000, rejectedMs: 60_000 };

const MAX_ENDPOINTS = 256;
const MAX_DIALS = 16;
/** More of them are for endpoints that a user named or that worked before: strangers who keep silent take the others. */
const MAX_PREFERRED_DIALS = 4;
/** Attempts at an endpoint nobody ever answered at; afterwards it must be offered again. */
const MAX_TRIES = 6;
/** The same peer's next address is not dialled while the one before may just be answering. */
const SAME_PEER_MS = 300;
/** An endpoint that worked once is dialled for this long. */
const REMEMBERED_MS = 60 * 60_000;
/** For as long it is believed who is at an endpoint: addresses are given to other devices in time. */
const BELIEVED_MS = 10 * 60_000;

/** How a dial ended, and with whom. */
export type DialOutcome =
  /** Connected, now or already over another connection. */
  { readonly how: 'connected'; readonly id: string } | { readonly how: 'failed' | 'rejected' | 'ourselves' };

export interface DialerOptions {
  /** Never rejects; an abort ends it soon. */
  readonly dial: (address: EndpointAddress, signal: AbortSignal) => Promise<DialOutcome>;
  /** What is known of a peer: connected with this device, a member by way of others, or neither. */
  readonly standing: (id: string) => 'connected' | 'member' | 'unknown';
  readonly times?: DialTimes;
  /** From 0 to 1; for tests. */
  readonly random?: () => number;
}

interface Endpoint {
  readonly address: EndpointAddress;
  id: string | undefined;
  /** A user named it. */
  named: boolean;
  tries: number;
  /** When it may be dialled because somebody asks. */
  notBefore: number;
  /** When it is dialled by itself; infinite for never. */
  due: number;
  dialling: boolean;
  dialledAt: number;
  /** Until then it is dialled for good, because it worked. */
  rememberedUntil: number;
}

/** Decides which endpoints are dialled, and when: one table for what is discovered, told by others, or was lost. */
export class Dialer {
  readonly #options: DialerOptions;
  readonly #times: DialTimes;
  readonly #random: () => number;
  /** In the order of their use, the oldest first. */
  readonly #endpoints = new Map<string, Endpoint>();
  readonly #dials = new Set<Promise<void>>();
  readonly #closing = new AbortController();
  #timer: NodeJS.Timeout | undefined;

  constructor(options: DialerOptions) {
    this.#options = options;
    this.#times = options.times ?? DIAL_TIMES;
    this.#random = options.random ?? Math.random;
    // Every dial listens to it, which is no leak.
    setMaxListeners(0, this.#closing.signal);
  }

  /** An endpoint where a member may be, or where a user says that one is; dialled now unless it was just before. */
  offer(address: EndpointAddress, named = false): void {
    const endpoint = this.#touch(address);
    endpoint.named ||= named;
    endpoint.due = Math.min(endpoint.due, Math.max(performance.now(), endpoint.notBefore));
    this.#schedule();
  }

  /** Where a member says that it can be reached. */
  suggest(id: string, addresses: readonly EndpointAddress[]): void {
    const now = performance.now();
    for (const address of addresses) {
      const known = this.#endpoints.has(formatEndpoint(address));
      const endpoint = this.#touch(address);
      // The address of a device that has left the network may be another one's by now.
      if (known && endpoint.id === id && endpoint.due < Number.POSITIVE_INFINITY) continue;
      endpoint.id = id;
      endpoint.due = Math.min(endpoint.due, Math.max(now, endpoint.notBefore));
    }
    this.#schedule();
  }

  /** The connection to a peer is gone, which used `address` or could have: its endpoints are dialled again. */
  lost(id: string, address: EndpointAddress | undefined, when: 'soon' | 'backing-off' | 'later'): void {
    if (address) this.#touch(address).id = id;
    const { firstMs, lastMs } = this.#times;
    const now = performance.now();
    for (const endpoint of this.#endpoints.values()) {
      if (endpoint.id !== id) continue;
      if (when === 'soon') endpoint.tries = 0;
      const waitMs = {
        soon: firstMs / 2,
        'backing-off': when === 'backing-off' ? this.#backoff(endpoint) : 0,
        later: lastMs / 3,
      }[when];
      endpoint.notBefore = now;
      endpoint.due = now + this.#jitter(waitMs);
      if (address && formatEndpoint(endpoint.address) === formatEndpoint(address)) {
        endpoint.rememberedUntil = now + REMEMBERED_MS;
      }
    }
    this.#schedule();
  }

  /** Puts off every endpoint of a peer that turned this device away. */
  rejectedBy(id: string): void {
    for (const endpoint of this.#endpoints.values()) {
      if (endpoint.id === id) this.#postpone(endpoint, this.#times.rejectedMs, Number.POSITIVE_INFINITY);
    }
  }

  get size(): number {
    return this.#endpoints.size;
  }

  /** Ends the dials that run, and waits for them. */
  async close(): Promise<void> {
    this.#closing.abort(new Error('closed'));
    clearTimeout(this.#timer);
    await Promise.all(this.#dials);
    this.#endpoints.clear();
  }

  #touch(address: EndpointAddress): Endpoint {
    const key = formatEndpoint(address);
    const endpoint = this.#endpoints.get(key) ?? {
      address,
      id: undefined,
      named: false,
      tries: 0,
      notBefore: 0,
      due: Number.POSITIVE_INFINITY,
      dialling: false,
      dialledAt: Number.NEGATIVE_INFINITY,
      rememberedUntil: Number.NEGATIVE_INFINITY,
    };
    this.#endpoints.delete(key);
    this.#endpoints.set(key, endpoint);
    if (this.#endpoints.size > MAX_ENDPOINTS) this.#forgetOne(key);
    return endpoint;
  }

  #forgetOne(except: string): void {
    const now = performance.now();
    const idle = [...this.#endpoints].filter(([key, { dialling }]) => !dialling && key !== except);
    const [oldest] = idle.find(([, endpoint]) => !isPreferred(endpoint, now)) ?? idle[0] ?? [];
    if (oldest !== undefined) this.#endpoints.delete(oldest);
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#closing.signal.aborted) return;
    const now = performance.now();
    let due = Number.POSITIVE_INFINITY;
    for (const endpoint of this.#endpoints.values()) {
      if (!endpoint.dialling && this.#hasRoom(endpoint, now)) due = Math.min(due, endpoint.due);
    }
    if (due === Number.POSITIVE_INFINITY) return;
    this.#timer = setTimeout(() => this.#dialDue(), Math.max(0, due - now));
    this.#timer.unref();
  }

  #dialDue(): void {
    const now = performance.now();
    const due = [...this.#endpoints.values()].filter((endpoint) => !endpoint.dialling && endpoint.due <= now);
    const rank = (endpoint: Endpoint): number => (isPreferred(endpoint, now) ? 0 : 1 + endpoint.tries);
    // Those that failed before come after the others: they may be many, and each takes long to fail again.
    for (const endpoint of due.sort((a, b) => rank(a) - rank(b) || a.due - b.due)) {
      if (!this.#hasRoom(endpoint, now)) break;
      if (this.#isConnected(endpoint.id) && now - endpoint.dialledAt < BELIEVED_MS) {
        endpoint.due = Number.POSITIVE_INFINITY;
      } else if (this.#isPeerDialled(endpoint.id, now)) {
        endpoint.due = now + SAME_PEER_MS;
      } else {
        const dial = this.#dial(endpoint).finally(() => {
          this.#dials.delete(dial);
          this.#schedule();
        });
        this.#dials.add(dial);
      }
    }
    this.#schedule();
  }

  #hasRoom(endpoint: Endpoint, now: number): boolean {
    return this.#dials.size < MAX_DIALS + (isPreferred(endpoint, now) ? MAX_PREFERRED_DIALS : 0);
  }

  #isConnected(id: string | undefined): boolean {
    return id !== undefined && this.#options.standing(id) === 'connected';
  }

  #isPeerDialled(id: string | undefined, now: number): boolean {
    if (id === undefined) return false;
    return [...this.#endpoints.values()].some(
      (other) => other.dialling && other.id === id && now - other.dialledAt < SAME_PEER_MS,
    );
  }

  async #dial(endpoint: Endpoint): Promise<void> {
    endpoint.dialling = true;
    endpoint.dialledAt = performance.now();
    endpoint.due = Number.POSITIVE_INFINITY;
    const outcome = await this.#options.dial(endpoint.address, this.#closing.signal);
    endpoint.dialling = false;
    const { firstMs, slowMs, rejectedMs } = this.#times;
    const now = performance.now();
    if (outcome.how === 'connected') {
      endpoint.id = outcome.id;
      endpoint.rememberedUntil = now + REMEMBERED_MS;
      // It may have been lost again before this dial was told of it.
      const gone = !this.#isConnected(outcome.id);
      this.#postpone(endpoint, firstMs, gone ? firstMs : Number.POSITIVE_INFINITY);
    } else if (outcome.how === 'ourselves') {
      this.#postpone(endpoint, BELIEVED_MS, Number.POSITIVE_INFINITY);
    } else if (outcome.how === 'rejected' && (endpoint.rememberedUntil < now || endpoint.tries > 0)) {
      // A member that ends or is flooded also hangs up like a stranger, so what worked before gets another chance.
      this.#postpone(endpoint, rejectedMs, Number.POSITIVE_INFINITY);
    } else {
      const waitMs = this.#jitter(this.#backoff(endpoint));
      const member = endpoint.id !== undefined && this.#options.standing(endpoint.id) === 'member';
      const again = endpoint.tries < MAX_TRIES || endpoint.rememberedUntil > now;
      this.#postpone(endpoint, waitMs, again ? waitMs : member ? this.#jitter(slowMs) : Number.POSITIVE_INFINITY);
    }
  }

  /** Longer each time. */
  #backoff(endpoint: Endpoint): number {
    return Math.min(this.#times.lastMs, this.#times.firstMs * 2 ** endpoint.tries++);
  }

  #postpone(endpoint: Endpoint, offerMs: number, ownMs: number): void {
    const now = performance.now();
    endpoint.notBefore = now + offerMs;
    endpoint.due = now + ownMs;
  }

  /** All who lost the same peer would dial it in step. */
  #jitter(ms: number): number {
    return ms * (0.75 + this.#random() / 2);
  }
}

function isPreferred({ named, rememberedUntil }: Endpoint, now: number): boolean {
  return named || rememberedUntil > now;
}
