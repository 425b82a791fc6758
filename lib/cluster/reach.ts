/** Who can connect to whom: what the links say of two members, and why a connection is not possible. */
import type { Link, Peer } from './types.js';

/** `unknown`: nothing has worked yet, and not everything was tried. */
export type Way = 'direct' | 'reverse' | 'none' | 'unknown';

/** What was found out about every ordered pair of members. */
export class Links {
  readonly #peers: ReadonlyMap<string, Peer>;
  readonly #links = new Map<string, Link>();

  constructor(peers: readonly Peer[], links: readonly Link[]) {
    this.#peers = new Map(peers.map((peer) => [peer.id, peer]));
    for (const link of links) {
      const key = `${link.from} ${link.to}`;
      const known = this.#links.get(key);
      // Of two, the one that works; then one order for everybody, so that all members come to the same end.
      if (!known || rank(link) < rank(known)) this.#links.set(key, link);
    }
  }

  /** How one member would open streams to another one: by dialling, or by asking it to dial. */
  way(from: string, to: string): Way {
    const [there, back] = [this.#dial(from, to), this.#dial(to, from)];
    if (there === 'open') return 'direct';
    if (back === 'open') return 'reverse';
    return there === 'unknown' || back === 'unknown' ? 'unknown' : 'none';
  }

  /** Whether it reaches somebody by dialling and is known to accept nobody: a phone that hosts a hotspot. */
  onlyDialsOut(id: string): boolean {
    const others = [...this.#peers.keys()].filter((other) => other !== id);
    return (
      others.some((other) => this.#dial(id, other) === 'open') &&
      others.every((other) => !['open', 'unknown'].includes(this.#dial(other, id)))
    );
  }

  /** What was tried from one to the other, in words. */
  attempt(from: Peer, to: Peer): string {
    const link = this.#links.get(`${from.id} ${to.id}`);
    if (to.port === 0) return `${to.name} accepts no connections`;
    const target = link?.endpoint ? `${to.name} at ${link.endpoint}` : to.name;
    switch (link?.dial) {
      case 'open':
        return `${from.name} can connect to ${target}`;
      case 'timeout':
        return `${from.name} got no answer from ${target}`;
      case 'refused':
        return `${from.name} was refused by ${target}`;
      case 'unreachable':
        return `${from.name} has no route to ${target}`;
      default:
        return `${from.name} has not tried ${target} yet`;
    }
  }

  /** What people can do when neither can dial the other. */
  hint(a: string, b: string): string {
    const results = [this.#dial(a, b), this.#dial(b, a)];
    if (results.includes('refused')) return 'See whether droid-llama runs there and has that port.';
    if (results.includes('timeout')) {
      return 'Android drops incoming connections on many paths: let one phone join the hotspot of the other, or use Tailscale.';
    }
    return 'Put both into one network, or use Tailscale.';
  }

  #dial(from: string, to: string): Link['dial'] {
    const link = this.#links.get(`${from} ${to}`);
    if (link && link.dial !== 'unknown') return link.dial;
    // Whoever does not listen will not answer: there is nothing to wait for.
    return this.#peers.get(to)?.port === 0 ? 'unreachable' : 'unknown';
  }
}

const ORDER: readonly Link['dial'][] = ['open', 'refused', 'timeout', 'unreachable', 'unknown'];

function rank({ dial, endpoint }: Link): string {
  return `${ORDER.indexOf(dial)} ${endpoint ?? ''}`;
}
