/** The addresses of this device, also where Android hides them, and their changes. */
import { createSocket } from 'node:dgram';
import { EventEmitter } from 'node:events';
import { isIPv4 } from 'node:net';
import { type NetworkInterfaceInfo, networkInterfaces } from 'node:os';
import { isDialable, isLoopback, type OwnAddress } from './ip.js';

const POLL_MS = 4000;
/** Guesses are looked through once in so many polls. */
const POLLS_PER_SWEEP = 8;
/** The network a phone's hotspot makes, and almost any home's. */
const ASSUMED_PREFIX_IPV4 = 24;
const ASSUMED_PREFIX_IPV6 = 64;
const MAX_ADDRESSES = 16;

type Interfaces = () => NodeJS.Dict<NetworkInterfaceInfo[]>;

/**
 * Addresses that another device may be able to dial, IPv4 first; loopback ones only when there are no others, so that a
 * machine without a network can still talk to itself.
 */
export function listAddresses(interfaces: Interfaces = networkInterfaces): OwnAddress[] {
  const found: OwnAddress[] = [];
  const loopback: OwnAddress[] = [];
  for (const entry of Object.values(interfaces()).flatMap((entries) => entries ?? [])) {
    const { address, cidr } = entry;
    const own = { address, prefix: prefixOf(cidr, address) };
    if (isLoopback(address)) loopback.push(own);
    else if (!entry.internal && isDialable(address)) found.push(own);
  }
  return arrange(found.length > 0 ? found : loopback);
}

function prefixOf(cidr: string | null, address: string): number {
  const prefix = Number(cidr?.split('/')[1]);
  if (Number.isInteger(prefix)) return prefix;
  return isIPv4(address) ? ASSUMED_PREFIX_IPV4 : ASSUMED_PREFIX_IPV6;
}

function arrange(addresses: readonly OwnAddress[]): OwnAddress[] {
  const byAddress = new Map(addresses.map((own) => [own.address, own]));
  return [...byAddress.values()]
    .sort((a, b) => Number(isIPv4(b.address)) - Number(isIPv4(a.address)) || (a.address < b.address ? -1 : 1))
    .slice(0, MAX_ADDRESSES);
}

/** Where the default route, Tailscale and the usual private networks begin. */
const COMMON_DESTINATIONS = [
  '1.1.1.1',
  '100.100.100.100',
  '10.0.0.1',
  '10.42.0.1',
  '172.16.0.1',
  '172.20.10.1',
  '2606:4700:4700::1111',
];
/** A phone's hotspot is a /24 of these, picked at random since Android 11. */
const HOTSPOT_DESTINATIONS = Array.from({ length: 256 }, (_, third) => `192.168.${third}.1`);

/**
 * The addresses that this device would send from, which is what is left to ask where the system does not list them
 * (Android 13 and later). Connecting a UDP socket picks a route and sends nothing. Rejects when no socket can be made.
 */
export async function guessAddresses(destinations: readonly string[]): Promise<OwnAddress[]> {
  const destinations4 = destinations.filter((destination) => isIPv4(destination));
  const destinations6 = destinations.filter((destination) => !isIPv4(destination));
  const found4 = await sourceAddresses('udp4', destinations4);
  // There are systems without IPv6.
  const found6 = await sourceAddresses('udp6', destinations6).catch(() => new Set<string>());
  return arrange(
    [...found4, ...found6]
      .filter(isDialable)
      .map((address) => ({ address, prefix: isIPv4(address) ? ASSUMED_PREFIX_IPV4 : ASSUMED_PREFIX_IPV6 })),
  );
}

async function sourceAddresses(type: 'udp4' | 'udp6', destinations: readonly string[]): Promise<Set<string>> {
  const found = new Set<string>();
  if (destinations.length === 0) return found;
  const socket = createSocket(type);
  socket.unref();
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject);
      socket.bind(0, resolve);
    });
    socket.on('error', () => {});
    for (const destination of destinations) {
      // Without a route there is an error, which is an answer too.
      const connected = await new Promise<boolean>((resolve) => {
        socket.connect(9, destination, ((error?: Error) => resolve(error === undefined)) as () => void);
      });
      if (!connected) continue;
      found.add(socket.address().address);
      socket.disconnect();
    }
  } finally {
    socket.close();
  }
  return found;
}

export interface AddressWatchOptions {
  /** Milliseconds between two looks. Default 4000. */
  pollMs?: number;
  interfaces?: Interfaces;
  guess?: (destinations: readonly string[]) => Promise<readonly OwnAddress[]>;
}

/** Tells the addresses of this device when it is started and whenever they change. Does not hold the process. */
export class AddressWatch extends EventEmitter<{ change: [readonly OwnAddress[]] }> {
  readonly #interfaces: Interfaces;
  readonly #guess: (destinations: readonly string[]) => Promise<readonly OwnAddress[]>;
  readonly #timer: NodeJS.Timeout;
  #addresses: readonly OwnAddress[] | undefined;
  #guessed: readonly OwnAddress[] = [];
  #polls = 0;
  #polling = false;
  #closed = false;

  constructor({ pollMs = POLL_MS, interfaces = networkInterfaces, guess = guessAddresses }: AddressWatchOptions = {}) {
    super();
    this.#interfaces = interfaces;
    this.#guess = guess;
    this.#timer = setInterval(() => void this.poll(), pollMs);
    this.#timer.unref();
  }

  get addresses(): readonly OwnAddress[] {
    return this.#addresses ?? [];
  }

  /** Looks now. Does not reject. */
  async poll(): Promise<void> {
    if (this.#polling || this.#closed) return;
    this.#polling = true;
    try {
      const found = await this.#read();
      if (this.#closed || (this.#addresses && keyOf(found) === keyOf(this.#addresses))) return;
      this.#addresses = found;
      this.emit('change', found);
    } finally {
      this.#polling = false;
    }
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
    this.removeAllListeners();
  }

  async #read(): Promise<readonly OwnAddress[]> {
    try {
      return listAddresses(this.#interfaces);
    } catch {
      // Android does not let it (EACCES), or there are no descriptors left (EMFILE).
    }
    const sweep = this.#polls++ % POLLS_PER_SWEEP === 0;
    const known = sweep ? [] : this.#guessed.map((own) => own.address);
    try {
      this.#guessed = await this.#guess([...COMMON_DESTINATIONS, ...(sweep ? HOTSPOT_DESTINATIONS : known)]);
    } catch {
      // No descriptor left to ask with: nothing is known to have changed.
      if (this.#addresses) return this.#addresses;
    }
    return this.#guessed.length > 0 ? this.#guessed : [{ address: '127.0.0.1', prefix: 8 }];
  }
}

function keyOf(addresses: readonly OwnAddress[]): string {
  return addresses.map((own) => `${own.address}/${own.prefix}`).join(' ');
}
