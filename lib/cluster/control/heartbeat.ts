/** Exchanges that the round trip is the shortest of: about the last 16 seconds. */
const RECENT = 16;

export interface HeartbeatOptions {
  readonly heartbeatMs: number;
  /** Silence after which the other end is taken for dead. */
  readonly lostAfterMs: number;
  readonly send: (sequence: number) => void;
  readonly onSilence: () => void;
}

/** Sends heartbeats, times their echoes, and notices when nothing comes any more. */
export class Heartbeat {
  readonly #options: HeartbeatOptions;
  readonly #sentAt = new Map<number, number>();
  readonly #roundTrips: number[] = [];
  #sequence = 0;
  #heardAt = performance.now();
  #beating: NodeJS.Timeout | undefined;
  #watching: NodeJS.Timeout | undefined;

  constructor(options: HeartbeatOptions) {
    this.#options = options;
  }

  start(): void {
    this.#heardAt = performance.now();
    this.#beating = setInterval(() => this.#beat(), this.#options.heartbeatMs);
    this.#beating.unref();
    this.#watch(this.#options.lostAfterMs);
    this.#beat();
  }

  /** Something came, whatever it is. */
  heard(): void {
    this.#heardAt = performance.now();
  }

  echoed(sequence: number): void {
    const sentAt = this.#sentAt.get(sequence);
    if (sentAt === undefined) return;
    this.#sentAt.delete(sequence);
    this.#roundTrips.push(performance.now() - sentAt);
    if (this.#roundTrips.length > RECENT) this.#roundTrips.shift();
  }

  /** Milliseconds; null until the first echo. */
  get roundTripMs(): number | null {
    return this.#roundTrips.length > 0 ? Math.min(...this.#roundTrips) : null;
  }

  get silentMs(): number {
    return performance.now() - this.#heardAt;
  }

  stop(): void {
    clearInterval(this.#beating);
    clearTimeout(this.#watching);
    this.#beating = undefined;
    this.#watching = undefined;
  }

  #beat(): void {
    const sequence = this.#sequence++;
    this.#sentAt.set(sequence, performance.now());
    this.#sentAt.delete(sequence - RECENT);
    this.#options.send(sequence);
  }

  #watch(waitMs: number): void {
    this.#watching = setTimeout(() => {
      // When this process itself stood still, what came meanwhile is still to be read: look after the next poll.
      setImmediate(() => setImmediate(() => this.#look()));
    }, waitMs);
    this.#watching.unref();
  }

  #look(): void {
    if (!this.#watching) return;
    const leftMs = this.#options.lostAfterMs - this.silentMs;
    if (leftMs <= 0) this.#options.onSilence();
    else this.#watch(leftMs);
  }
}
