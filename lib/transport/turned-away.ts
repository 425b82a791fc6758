/** Words for the user about strangers, few enough that a flood of them does not fill a terminal. Pure. */

const QUIET_MS = 60_000;
/** All addresses together: a flood has many. */
const LINES_PER_MINUTE = 20;
const ADDRESSES = 256;

export class TurnedAway {
  readonly #now: () => number;
  readonly #addresses = new Map<string, { toldAt: number; since: number }>();
  #minute = { start: Number.NEGATIVE_INFINITY, lines: 0 };

  /** @param now milliseconds that never go back */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** The line to show, if it is time for one: at most one a minute and address. `reason` is a clause: `it …`. */
  note(address: string, reason: string): string | undefined {
    const now = this.#now();
    const known = this.#addresses.get(address);
    if (known && now - known.toldAt < QUIET_MS) {
      known.since++;
      return undefined;
    }
    if (now - this.#minute.start >= QUIET_MS) this.#minute = { start: now, lines: 0 };
    if (this.#minute.lines >= LINES_PER_MINUTE) {
      if (known) known.since++;
      return undefined;
    }
    this.#minute.lines++;
    const times = (known?.since ?? 0) + 1;
    this.#addresses.delete(address);
    if (this.#addresses.size >= ADDRESSES) this.#addresses.delete(this.#addresses.keys().next().value ?? '');
    this.#addresses.set(address, { toldAt: now, since: 0 });
    return `turned away ${address}${times > 1 ? ` ${times} times` : ''}: ${reason}`;
  }
}
