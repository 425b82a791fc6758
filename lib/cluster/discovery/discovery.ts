/** Finds addresses at which other members may listen, in every way this device has. What listens there proves itself later. */
import { EventEmitter } from 'node:events';
import { isIP, isIPv4 } from 'node:net';
import { DEFAULT_CLUSTER_PORT, type EndpointAddress } from '../../endpoint.js';
import { AddressWatch, type AddressWatchOptions } from './addresses.js';
import { inNetworkOf, isLoopback, isPrivateIPv4, type OwnAddress } from './ip.js';
import { Mdns } from './mdns.js';
import { type ScanConnect, scanNetworks } from './scan.js';
import { tailscalePeers } from './tailscale.js';

export type CandidateSource = 'peer' | 'mdns' | 'scan' | 'tailscale';

export interface DiscoveryOptions {
  /** Public mark of the cluster; see `clusterTag` of the transport. */
  tag: string;
  /** Port this device accepts streams on, 0 for none. */
  port: number;
  /** Address it listens on; of the others nothing is told, announced or scanned. Default: all of them. */
  host?: string;
  /** Offered again every 5 seconds; whoever takes candidates knows with whom it is connected. */
  peers: readonly EndpointAddress[];
  mdns: boolean;
  /**
   * Whether to connect to every host of the private IPv4 networks (at most a /24 of each) this device is in, on `port`:
   * at the start, when its addresses change, and then after 5 to 60 seconds. `'auto'` rests in a network where a member
   * is connected, unless this device may be the network's hotspot, which nobody else can find; `true` never rests.
   */
  scan: 'auto' | boolean;
  tailscale: boolean;
  /** Numeric addresses this device is connected with. */
  known: () => readonly string[];
  /** Port that is scanned and tried on Tailscale's devices. Default: `port`, or 60000 without one. */
  scanPort?: number;
  /** For tests: how things are really done. */
  system?: {
    readonly watch?: AddressWatchOptions;
    readonly connect?: ScanConnect;
    readonly tailscalePeers?: (signal: AbortSignal) => Promise<readonly string[]>;
    readonly mdnsPort?: number;
    readonly platform?: NodeJS.Platform;
  };
}

interface DiscoveryEvents {
  candidate: [address: EndpointAddress, source: CandidateSource];
  /** This device's own addresses at which it listens, numeric: at the start and when they change. */
  addresses: [readonly string[]];
  /** For the user to know; not an error. */
  warning: [line: string];
}

const PEER_MS = 5000;
const SCAN_PAUSES_MS = [5000, 10_000, 20_000, 40_000, 60_000];
const TAILSCALE_MS = 60_000;
const SETTLE_MS = 5000;
/** Time that the first answers of multicast DNS have. */
const MDNS_SETTLE_MS = 1500;

export class Discovery extends EventEmitter<DiscoveryEvents> {
  readonly #options: DiscoveryOptions;
  readonly #watch: AddressWatch;
  readonly #mdns: Mdns | undefined;
  readonly #abort = new AbortController();
  readonly #timers = new Map<'peers' | 'scan' | 'tailscale', NodeJS.Timeout>();
  readonly #settled: Promise<void>;
  /** Cuts the scan of networks this device is no longer in. */
  #scanning: AbortController | undefined;
  #scans = 0;
  readonly #warned = new Set<string>();
  #closing: Promise<void> | undefined;

  /** Begins at once; what it finds is told from the next turn of the event loop on. Does not hold the process. */
  static start(options: DiscoveryOptions): Discovery {
    return new Discovery(options);
  }

  private constructor(options: DiscoveryOptions) {
    super();
    this.#options = options;
    this.#watch = new AddressWatch(options.system?.watch);
    if (options.mdns) {
      const { tag, port } = options;
      this.#mdns = new Mdns({ tag, port, mdnsPort: options.system?.mdnsPort });
      this.#mdns.on('member', (address) => this.#found(address, 'mdns'));
      this.#mdns.on('warning', (line) => this.emit('warning', line));
    }
    this.#settled = this.#begin();
  }

  /** Resolves when everything was tried once, at the latest after 5 seconds or when it is closed. */
  settled(): Promise<void> {
    return this.#settled;
  }

  /** Idempotent. No event follows it. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#abort.abort();
    this.removeAllListeners();
    this.#watch.close();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    await this.#mdns?.close();
  }

  async #begin(): Promise<void> {
    // Whoever starts it has to attach listeners first.
    await Promise.resolve();
    const { signal } = this.#abort;
    if (signal.aborted) return;
    let finish = (): void => {};
    const bound = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const timer = setTimeout(finish, SETTLE_MS);
    timer.unref();
    signal.addEventListener('abort', finish, { once: true });
    this.#offerPeers();
    await Promise.race([bound, this.#firstPass()]);
    clearTimeout(timer);
    signal.removeEventListener('abort', finish);
  }

  async #firstPass(): Promise<void> {
    await this.#watch.poll();
    if (this.#closing) return;
    this.#watch.on('change', () => this.#startOver());
    this.#announce();
    await Promise.all([
      this.#scan(),
      this.#askTailscale(),
      this.#mdns && new Promise((resolve) => setTimeout(resolve, MDNS_SETTLE_MS).unref()),
    ]);
  }

  #startOver(): void {
    this.#announce();
    this.#offerPeers();
    this.#scans = 0;
    void this.#scan();
    void this.#askTailscale();
  }

  #announce(): void {
    const own = this.#own();
    this.emit(
      'addresses',
      own.map(({ address }) => address),
    );
    this.#mdns?.update(own);
  }

  #own(): readonly OwnAddress[] {
    return listeningAddresses(this.#watch.addresses, this.#options.host);
  }

  #found(address: EndpointAddress, source: CandidateSource): void {
    if (!this.#closing) this.emit('candidate', address, source);
  }

  /** Once at a time for each name, and never after close(). */
  #later(name: 'peers' | 'scan' | 'tailscale', ms: number, run: () => void): void {
    clearTimeout(this.#timers.get(name));
    if (this.#closing) return;
    const timer = setTimeout(run, ms);
    timer.unref();
    this.#timers.set(name, timer);
  }

  #offerPeers(): void {
    if (this.#options.peers.length === 0) return;
    // Also those whose host is known: another member may listen there on another port.
    for (const peer of this.#options.peers) this.#found(peer, 'peer');
    this.#later('peers', PEER_MS, () => this.#offerPeers());
  }

  async #scan(): Promise<void> {
    const { scan } = this.#options;
    if (scan === false) return;
    this.#scanning?.abort();
    const scanning = new AbortController();
    this.#scanning = scanning;
    const onAbort = (): void => scanning.abort();
    this.#abort.signal.addEventListener('abort', onAbort, { once: true });
    const port = this.#scanPort();
    const own = this.#watch.addresses.map(({ address }) => address);
    const networks = this.#networksToScan();
    const { denied, exhausted } = await scanNetworks({
      networks,
      port,
      skip: (address) => own.includes(address) || this.#options.known().includes(address),
      onOpen: (host) => this.#found({ host, port }, 'scan'),
      signal: scanning.signal,
      connect: this.#options.system?.connect,
    });
    this.#abort.signal.removeEventListener('abort', onAbort);
    if (scanning.signal.aborted) return;
    if (denied.length > 0) {
      this.#warnOnce(
        `this device may not or cannot connect to hosts of its network (${denied.map(({ address }) => address).join(', ')}); ` +
          'newer Android asks for a local network permission',
      );
    }
    if (exhausted) this.#warnOnce('the scan for devices was cut short: this process has no file descriptors left');
    const pause = SCAN_PAUSES_MS[Math.min(this.#scans++, SCAN_PAUSES_MS.length - 1)] ?? 0;
    this.#later('scan', pause, () => void this.#scan());
  }

  #networksToScan(): readonly OwnAddress[] {
    const { scan, known, system } = this.#options;
    const networks = this.#own().filter(({ address }) => isPrivateIPv4(address));
    if (scan === true) return networks;
    const connected = known();
    // A phone's hotspot has any address since Android 11; before, and elsewhere, it is the first one.
    const anyAddress = (system?.platform ?? process.platform) === 'android';
    return networks.filter(
      (own) => anyAddress || own.address.endsWith('.1') || !connected.some((address) => inNetworkOf(own, address)),
    );
  }

  async #askTailscale(): Promise<void> {
    const { tailscale, system, known } = this.#options;
    if (!tailscale) return;
    const found = await (system?.tailscalePeers ?? tailscalePeers)(this.#abort.signal);
    if (this.#closing) return;
    const connected = known();
    for (const host of found) if (!connected.includes(host)) this.#found({ host, port: this.#scanPort() }, 'tailscale');
    this.#later('tailscale', TAILSCALE_MS, () => void this.#askTailscale());
  }

  #scanPort(): number {
    return this.#options.scanPort ?? (this.#options.port || DEFAULT_CLUSTER_PORT);
  }

  #warnOnce(line: string): void {
    if (this.#closing || this.#warned.has(line)) return;
    this.#warned.add(line);
    this.emit('warning', line);
  }
}

/** The addresses this device listens at, which are those that others are told to dial. */
export function listeningAddresses(own: readonly OwnAddress[], host?: string): readonly OwnAddress[] {
  if (host === '0.0.0.0') return own.filter(({ address }) => isIPv4(address));
  const only = host === 'localhost' ? '127.0.0.1' : host;
  // A name is left to the resolver of whoever listens.
  if (only === undefined || only === '::' || isIP(only) === 0) return own;
  const known = own.find(({ address }) => address === only);
  return [known ?? { address: only, prefix: isLoopback(only) && isIPv4(only) ? 8 : isIPv4(only) ? 32 : 128 }];
}
