/** Transports of several devices in one process, over socket pairs instead of a network, without encryption. */
import { Socket } from 'node:net';
import { addon } from '../../lib/addon.js';
import { DroidLlamaError } from '../../lib/errors.js';
import type { EndpointAddress } from '../../lib/probe.js';
import type {
  DialOptions,
  ListenOptions,
  SecureStream,
  StreamKind,
  Transport,
  TransportStats,
} from '../../lib/transport/transport.js';

export type Fate = 'open' | 'drop' | 'refuse' | 'unreachable';

export interface FakeNetworkOptions {
  /** One way. */
  latencyMs?: number;
  /** Of each stream and direction. */
  bytesPerSecond?: number;
}

/** Bytes that are on their way at once; the sender waits with the rest. */
const IN_FLIGHT_BYTES = 256 * 1024;
const keyOf = ({ host, port }: EndpointAddress): string => `${host} ${port}`;

export class FakeNetwork {
  /** What becomes of a dial from one device's (first) address to another one's. */
  fate: (from: string, to: EndpointAddress) => Fate = () => 'open';
  readonly options: FakeNetworkOptions;
  readonly listeners = new Map<string, FakeTransport>();
  #ports = 50_000;
  #streams = 0;

  constructor(options: FakeNetworkOptions = {}) {
    this.options = options;
  }

  /** A device with these addresses. Devices with another token reject each other. */
  transport(addresses: readonly string[], token = 'token'): FakeTransport {
    return new FakeTransport(this, addresses, token);
  }

  nextPort(): number {
    return this.#ports++;
  }

  nextStream(): number {
    return this.#streams++;
  }
}

export class FakeTransport implements Transport {
  readonly addresses: readonly string[];
  readonly token: string;
  listening: ListenOptions | undefined;
  readonly #network: FakeNetwork;
  readonly #relays = new Map<number, readonly [Socket, Socket]>();
  #handshakes = 0;
  #rejected = 0;

  constructor(network: FakeNetwork, addresses: readonly string[], token: string) {
    this.#network = network;
    this.addresses = addresses;
    this.token = token;
  }

  async listen(options: ListenOptions): Promise<EndpointAddress> {
    const port = options.port || this.#network.nextPort();
    const taken = this.addresses.some((host) => this.#network.listeners.has(keyOf({ host, port })));
    if (taken) throw new DroidLlamaError('DROID_PORT_IN_USE', `port ${port} is taken`);
    this.listening = options;
    for (const host of this.addresses) this.#network.listeners.set(keyOf({ host, port }), this);
    return { host: options.host, port };
  }

  async dial(address: EndpointAddress, kind: StreamKind, options: DialOptions = {}): Promise<SecureStream> {
    const { timeoutMs = 10_000, preamble = new Uint8Array(), signal } = options;
    signal?.throwIfAborted();
    const [from = ''] = this.addresses;
    const fate = this.#network.fate(from, address);
    await wait(fate === 'drop' ? timeoutMs : 2 * (this.#network.options.latencyMs ?? 0), signal);
    const other = this.#network.listeners.get(keyOf(address));
    const failed = (code: 'TIMEOUT' | 'REFUSED' | 'UNREACHABLE'): DroidLlamaError =>
      new DroidLlamaError(`DROID_ENDPOINT_${code}`, `${address.host}:${address.port}: ${code}`);
    if (fate === 'drop') throw failed('TIMEOUT');
    if (fate === 'unreachable') throw failed('UNREACHABLE');
    if (fate === 'refuse' || !other?.listening) throw failed('REFUSED');
    if (other.token !== this.token || !other.listening.kinds.includes(kind)) {
      other.#rejected++;
      throw new DroidLlamaError('DROID_TOKEN_REJECTED', `${address.host}:${address.port}: another token`);
    }
    const asked = other.listening.preambleBytes?.[kind] ?? 0;
    if (preamble.length !== asked) throw new Error(`the preamble of a ${kind} stream has ${asked} bytes`);

    const [mine, nearRelay] = addon().createSocketPair();
    const [theirs, farRelay] = addon().createSocketPair();
    const near = new Socket({ fd: nearRelay, readable: true, writable: true, allowHalfOpen: true });
    const far = new Socket({ fd: farRelay, readable: true, writable: true, allowHalfOpen: true });
    relay(near, far, this.#network.options);
    relay(far, near, this.#network.options);
    const record = (end: FakeTransport, fd: number, extra: Partial<SecureStream>): SecureStream => {
      const id = this.#network.nextStream();
      end.#relays.set(id, [near, far]);
      near.once('close', () => end.#relays.delete(id));
      end.#handshakes++;
      return { id, kind, fd, remote: address, localAddress: from, preamble: new Uint8Array(), ...extra };
    };
    const remote = { host: from, port: this.#network.nextPort() };
    other.listening.onStream(record(other, theirs, { remote, localAddress: address.host, preamble }));
    return record(this, mine, {});
  }

  cut(id: number): void {
    for (const socket of this.#relays.get(id) ?? []) socket.destroy();
  }

  stats(): TransportStats {
    return { open: this.#relays.size, handshakes: this.#handshakes, rejected: this.#rejected };
  }

  async close(): Promise<void> {
    this.listening = undefined;
    for (const [key, transport] of this.#network.listeners) {
      if (transport === this) this.#network.listeners.delete(key);
    }
    for (const id of [...this.#relays.keys()]) this.cut(id);
  }
}

function relay(
  from: Socket,
  to: Socket,
  { latencyMs = 0, bytesPerSecond = Number.POSITIVE_INFINITY }: FakeNetworkOptions,
): void {
  const immediate = latencyMs === 0 && bytesPerSecond === Number.POSITIVE_INFINITY;
  let free = 0;
  let inFlight = 0;
  const deliver = (bytes: number, act: () => void): void => {
    const now = performance.now();
    free = Math.max(now, free) + (bytes / bytesPerSecond) * 1000;
    if (immediate) act();
    else setTimeout(act, free + latencyMs - now);
  };
  from.on('data', (chunk) => {
    inFlight += chunk.length;
    if (inFlight >= IN_FLIGHT_BYTES) from.pause();
    deliver(chunk.length, () => {
      const arrived = (): void => {
        inFlight -= chunk.length;
        if (inFlight < IN_FLIGHT_BYTES) from.resume();
      };
      if (to.destroyed || to.write(chunk)) arrived();
      else to.once('drain', arrived);
    });
  });
  from.on('end', () => deliver(0, () => to.end()));
  from.on('error', () => {});
  from.on('close', () => deliver(0, () => to.destroySoon()));
}

function wait(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(finish, ms);
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    function finish(): void {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}
