import type { Peer } from '../types.js';
import { MAX_PEERS } from './record-schemas.js';
import { compareOrder, type RecordOrder } from './records.js';

/** A message is closed once it has this many bytes, which leaves room in a frame for the largest record. */
const MESSAGE_BYTES = 256 * 1024;

export interface GossipOptions {
  /** The newest record of a peer. */
  readonly record: (id: string) => Peer | undefined;
  /** Sends a `records` message, given as JSON. */
  readonly send: (json: string) => void;
  /** False while what was sent before still waits. */
  readonly writable: () => boolean;
  /** Least time between two messages; changes that come meanwhile go together. */
  readonly intervalMs: number;
}

/**
 * What one neighbour is still to be told. Only ids wait here and the records are taken when they are sent, so a
 * neighbour that reads slowly gets the newest ones and costs no memory.
 */
export class Gossip {
  readonly #options: GossipOptions;
  readonly #pending = new Set<string>();
  /** The newest order of each record that went over the connection, in either direction. */
  readonly #known = new Map<string, RecordOrder>();
  #timer: NodeJS.Timeout | undefined;
  #lastSent = Number.NEGATIVE_INFINITY;
  #closed = false;

  constructor(options: GossipOptions) {
    this.#options = options;
  }

  /** The neighbour sent this record itself: it need not come back. */
  heard(record: Peer): void {
    const known = this.#known.get(record.id);
    if (!known || compareOrder(record, known) > 0) this.#remember(record);
  }

  tell(ids: Iterable<string>): void {
    for (const id of ids) this.#pending.add(id);
    this.#schedule();
  }

  /** What was sent before has been read. */
  drained(): void {
    this.#schedule();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#pending.clear();
  }

  #schedule(): void {
    if (this.#closed || this.#timer || this.#pending.size === 0) return;
    const waitMs = Math.max(0, this.#lastSent + this.#options.intervalMs - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#flush();
    }, waitMs);
    this.#timer.unref();
  }

  #flush(): void {
    const { record, send, writable } = this.#options;
    let parts: string[] = [];
    let bytes = 0;
    const sendParts = (): void => {
      if (parts.length > 0) send(`{"type":"records","peers":[${parts.join(',')}]}`);
      parts = [];
      bytes = 0;
    };
    for (const id of this.#pending) {
      if (!writable()) break;
      this.#pending.delete(id);
      const peer = record(id);
      const known = this.#known.get(id);
      if (!peer || (known && compareOrder(peer, known) <= 0)) continue;
      this.#remember(peer);
      const json = JSON.stringify(peer);
      parts.push(json);
      bytes += Buffer.byteLength(json);
      this.#lastSent = performance.now();
      if (bytes >= MESSAGE_BYTES || parts.length >= MAX_PEERS) sendParts();
    }
    sendParts();
    // The rest goes when the connection has drained.
  }

  #remember({ id, incarnation, revision }: Peer): void {
    this.#known.delete(id);
    this.#known.set(id, { incarnation, revision });
    // A neighbour that sends records of ever new peers must not fill the memory.
    const oldest = this.#known.keys().next();
    if (this.#known.size > 4 * MAX_PEERS && !oldest.done) this.#known.delete(oldest.value);
  }
}
