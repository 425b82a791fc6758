/** Finds out which members this device can dial, and how fast the network between them is. */
import { EventEmitter } from 'node:events';
import { isIP } from 'node:net';
import { isDeepStrictEqual } from 'node:util';
import type { SecureStream, Transport } from '../transport/transport.js';
import { isDialable, isLoopback } from './discovery/ip.js';
import type { ProbeClient, Throughput } from './probe/client.js';
import { type Attempt, endpointName, reachPeer } from './probe/reach.js';
import { type ProbeReport, ProbeServer } from './probe/server.js';
import type { DialResult, Link, Peer } from './types.js';

const MEASURE_BYTES = 512 * 1024;
const MAX_ADDRESSES = 8;
const MAX_PARALLEL = 4;
const TICK_MS = 500;
/** A first failure may be chance. */
const CONFIRM_MS = 3000;
const FAILED_MS = 30_000;
const MEASURED_MS = 5 * 60_000;
/** Of two members that can dial each other the one with the smaller id measures; the other one gives it this time. */
const DEFER_MS = 1500;
const BUSY_MS = 5000;

export interface LinkProberOptions {
  transport: Pick<Transport, 'dial' | 'cut'>;
  /** This device's. */
  id: string;
  /** The members as they are known now; this device may be among them. */
  peers: () => readonly Peer[];
  /** Addresses to dial a peer at. Default: those it names itself. */
  addressesOf?: (peer: Peer) => readonly string[];
  /** Bytes sent to measure one direction, at most; 1 MiB is the most. Default 512 KiB. */
  measureBytes?: number;
  /** While a generation runs nothing is measured anew, and the throughput of nothing. Default: never. */
  busy?: () => boolean;
}

interface Target {
  key: string;
  dial: DialResult;
  endpoint: string | null;
  roundTripMs: number | null;
  bytesPerSecond: number | null;
  /** What the other one measured of the same direction. */
  told: ProbeReport;
  dueAt: number;
  failures: number;
  /** Tries that got no throughput, in a row. */
  unmeasured: number;
  running: AbortController | null;
}

const NOTHING: ProbeReport = { roundTripMs: null, bytesPerSecond: null };

/** Emits `links`: one Link from this device to every other member, whenever one of them changed. */
export class LinkProber extends EventEmitter<{ links: [readonly Link[]] }> {
  readonly #options: Required<LinkProberOptions>;
  readonly #targets = new Map<string, Target>();
  readonly #server: ProbeServer;
  readonly #timer: NodeJS.Timeout;
  #links: readonly Link[] = [];
  /** Two transfers at once would each get half; `acquire` and `release` hand it out. */
  #transferring = false;
  #closed = false;

  /** Begins with the next turn of the event loop, so that listeners can be attached. Does not hold the process. */
  static start(options: LinkProberOptions): LinkProber {
    return new LinkProber(options);
  }

  private constructor(options: LinkProberOptions) {
    super();
    const { addressesOf = (peer: Peer) => peer.addresses, measureBytes = MEASURE_BYTES, busy = () => false } = options;
    this.#options = { ...options, addressesOf, measureBytes, busy };
    this.#server = new ProbeServer({
      transport: options.transport,
      self: options.id,
      acquire: () => this.#acquire(),
      release: () => this.#release(),
      onReport: (from, report) => this.#told(from, report),
    });
    this.#timer = setInterval(() => this.check(), TICK_MS);
    this.#timer.unref();
    setImmediate(() => this.check());
  }

  links(): readonly Link[] {
    return this.#links;
  }

  /** Takes over an incoming `probe` stream. */
  serve(stream: SecureStream): void {
    this.#server.serve(stream);
  }

  /** Looks for members that came, went or changed, and dials what is due. Cheap; it also does so on its own. */
  check(): void {
    if (this.#closed) return;
    const now = performance.now();
    const peers = this.#options.peers().filter((peer) => peer.id !== this.#options.id);
    this.#follow(peers, now);
    const running = [...this.#targets.values()].filter((target) => target.running).length;
    let free = MAX_PARALLEL - running;
    for (const peer of peers) {
      const target = this.#targets.get(peer.id);
      if (!target || target.running || target.dueAt > now || free <= 0) continue;
      if (target.dial === 'open' && bytesPerSecond(target) !== null && this.#options.busy()) continue;
      free--;
      void this.#probe(peer, target);
    }
    this.#publish();
  }

  /** This device's own network changed: every member is dialled again. What is known stays until the answer is there. */
  refresh(): void {
    for (const target of this.#targets.values()) {
      target.running?.abort();
      target.running = null;
      target.dueAt = 0;
      target.failures = 0;
      target.unmeasured = 0;
    }
    this.check();
  }

  /** Ends every probe, also those it serves. Idempotent. */
  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
    this.removeAllListeners();
    for (const target of this.#targets.values()) target.running?.abort();
    this.#targets.clear();
    this.#server.close();
  }

  #follow(peers: readonly Peer[], now: number): void {
    const present = new Set(peers.map((peer) => peer.id));
    for (const [id, target] of this.#targets) {
      if (present.has(id)) continue;
      target.running?.abort();
      this.#targets.delete(id);
    }
    for (const peer of peers) {
      const key = `${peer.incarnation} ${peer.port} ${[...this.#addresses(peer)].sort().join(' ')}`;
      const before = this.#targets.get(peer.id);
      if (before?.key === key) continue;
      before?.running?.abort();
      this.#targets.set(peer.id, {
        dial: 'unknown',
        endpoint: null,
        roundTripMs: null,
        bytesPerSecond: null,
        told: NOTHING,
        // A changed address is no reason to forget the link before the new one was dialled; a restart is.
        ...(before?.key.split(' ')[0] === String(peer.incarnation) ? before : {}),
        key,
        dueAt: now,
        failures: 0,
        unmeasured: 0,
        running: null,
      });
    }
  }

  #addresses(peer: Peer): readonly string[] {
    const usable = this.#options
      .addressesOf(peer)
      .filter((address) => isIP(address) !== 0 && (isDialable(address) || isLoopback(address)));
    // The first ones are the best.
    return [...new Set(usable)].slice(0, MAX_ADDRESSES);
  }

  /** Does not reject. */
  async #probe(peer: Peer, target: Target): Promise<void> {
    const controller = new AbortController();
    target.running = controller;
    const isCurrent = (): boolean => target.running === controller && !this.#closed;
    try {
      const best = await reachPeer({
        transport: this.#options.transport,
        self: this.#options.id,
        peer: peer.id,
        addresses: peer.port === 0 ? [] : this.#addresses(peer).map((host) => ({ host, port: peer.port })),
        signal: controller.signal,
      });
      const client = best?.client;
      if (!isCurrent()) {
        client?.destroy();
      } else if (client) {
        controller.signal.addEventListener('abort', () => client.destroy(), { once: true });
        await this.#measure(peer, target, client, isCurrent);
      } else {
        this.#failed(target, best);
      }
    } finally {
      if (target.running === controller) target.running = null;
      if (!this.#closed) this.check();
    }
  }

  async #measure(peer: Peer, target: Target, client: ProbeClient, isCurrent: () => boolean): Promise<void> {
    target.failures = 0;
    target.dial = 'open';
    target.endpoint = endpointName(client.address);
    target.roundTripMs = client.roundTripMs ?? target.roundTripMs;
    this.#publish();
    const deferred = peer.id < this.#options.id && target.unmeasured === 0 && target.bytesPerSecond === null;
    const throughput = client.roundTripMs === null || deferred ? null : await this.#throughput(client);
    await client.finish(throughput);
    if (!isCurrent()) return;
    target.bytesPerSecond = throughput?.up ?? target.bytesPerSecond;
    const measured = throughput !== null || target.told.bytesPerSecond !== null;
    target.unmeasured = measured ? 0 : target.unmeasured + 1;
    target.dueAt = performance.now() + (measured ? MEASURED_MS : this.#retryMs(target));
  }

  async #throughput(client: ProbeClient): Promise<Throughput | null> {
    if (!this.#acquire()) return null;
    try {
      return await client.measureThroughput(this.#options.measureBytes);
    } catch {
      return null;
    } finally {
      this.#release();
    }
  }

  /** Two that were in each other's way must not meet again. */
  #retryMs(target: Target): number {
    // With an older measure there is no hurry.
    if (bytesPerSecond(target) !== null) return FAILED_MS;
    const base = this.#options.busy() ? BUSY_MS : Math.min(DEFER_MS * target.unmeasured, FAILED_MS);
    return base * (1 + Math.random() / 2);
  }

  #failed(target: Target, attempt: Attempt | null): void {
    target.failures++;
    const first = target.failures === 1;
    target.dueAt = performance.now() + (first ? CONFIRM_MS : FAILED_MS);
    // A link that was open stays so until a second failure.
    if (first && target.dial === 'open') return;
    target.dial = attempt?.result ?? 'unknown';
    target.endpoint = attempt?.endpoint ?? null;
    target.roundTripMs = null;
    target.bytesPerSecond = null;
  }

  #told(from: string, report: ProbeReport): void {
    const target = this.#targets.get(from);
    if (!target || this.#closed) return;
    target.told = {
      roundTripMs: report.roundTripMs ?? target.told.roundTripMs,
      bytesPerSecond: report.bytesPerSecond ?? target.told.bytesPerSecond,
    };
    // Measured over the same network, so this device need not do it again.
    if (report.bytesPerSecond !== null && target.dial === 'open' && !target.running) {
      target.unmeasured = 0;
      target.dueAt = Math.max(target.dueAt, performance.now() + MEASURED_MS);
    }
    this.#publish();
  }

  #acquire(): boolean {
    if (this.#transferring || this.#options.busy()) return false;
    this.#transferring = true;
    return true;
  }

  #release(): void {
    this.#transferring = false;
  }

  #publish(): void {
    if (this.#closed) return;
    const links = [...this.#targets].map(([id, target]) => linkTo(this.#options.id, id, target));
    if (isDeepStrictEqual(links, this.#links)) return;
    this.#links = links;
    this.emit('links', links);
  }
}

function linkTo(self: string, peer: string, target: Target): Link {
  const roundTripMs = target.roundTripMs ?? target.told.roundTripMs;
  return {
    from: self,
    to: peer,
    dial: target.dial,
    endpoint: target.endpoint,
    roundTripMs: roundTripMs === null ? null : Math.round(roundTripMs * 1000) / 1000,
    bytesPerSecond: bytesPerSecond(target),
  };
}

function bytesPerSecond(target: Target): number | null {
  return target.bytesPerSecond ?? target.told.bytesPerSecond;
}

/**
 * Completes one's own links with what the members at their other ends found out. A direction that only the other one
 * can dial was measured by it: the round trip is the same both ways, the throughput that of the same direction.
 */
export function mergeMeasurements(own: readonly Link[], others: readonly Peer[]): Link[] {
  const byId = new Map(others.map((peer) => [peer.id, peer]));
  return own.map((link) => {
    const theirs = byId.get(link.to)?.links ?? [];
    const same = theirs.find(({ from, to }) => from === link.from && to === link.to);
    const back = theirs.find(({ from, to }) => from === link.to && to === link.from);
    return {
      ...link,
      roundTripMs: link.roundTripMs ?? same?.roundTripMs ?? back?.roundTripMs ?? null,
      bytesPerSecond: link.bytesPerSecond ?? same?.bytesPerSecond ?? null,
    };
  });
}
