import { closeDescriptor } from '../addon.js';
import { type EndpointAddress, formatEndpoint } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import type { Transport } from '../transport/transport.js';
import type { Peer } from './types.js';

/** When peers that the user named are looked at, and how often one that does not answer is worth a line. */
const FIRST_MS = 10_000;
const AGAIN_MS = 60_000;
const DIAL_MS = 5_000;

export interface PeerWatchOptions {
  readonly transport: Pick<Transport, 'dial'>;
  /** This device's id, in bytes. */
  readonly preamble: Uint8Array;
  readonly named: readonly EndpointAddress[];
  /** The other members as they are known now. */
  readonly members: () => readonly Peer[];
  readonly warn: (line: string) => void;
}

/** Tells about devices that the user named and that are no members: why they cannot be reached, and what to do. */
export class PeerWatch {
  readonly #options: PeerWatchOptions;
  readonly #abort = new AbortController();
  readonly #told = new Map<string, string>();
  #timer: NodeJS.Timeout | undefined;

  constructor(options: PeerWatchOptions) {
    this.#options = options;
    if (options.named.length > 0) this.#later(FIRST_MS);
  }

  /** Idempotent. */
  close(): void {
    this.#abort.abort();
    clearTimeout(this.#timer);
  }

  #later(ms: number): void {
    this.#timer = setTimeout(() => {
      void Promise.all(this.#options.named.map((address) => this.#look(address))).then(() => {
        if (!this.#abort.signal.aborted) this.#later(AGAIN_MS);
      });
    }, ms);
    this.#timer.unref();
  }

  async #look(address: EndpointAddress): Promise<void> {
    const { transport, preamble, members, warn } = this.#options;
    const endpoint = formatEndpoint(address);
    const isMember = members().some(({ addresses, port }) => port === address.port && addresses.includes(address.host));
    if (isMember) return void this.#told.delete(endpoint);
    try {
      const { signal } = this.#abort;
      const stream = await transport.dial(address, 'probe', { timeoutMs: DIAL_MS, preamble, signal });
      closeDescriptor(stream.fd);
      this.#told.delete(endpoint);
    } catch (error) {
      if (this.#abort.signal.aborted || !(error instanceof DroidLlamaError)) return;
      // The same trouble is told once.
      if (this.#told.get(endpoint) === error.code) return;
      this.#told.set(endpoint, error.code);
      warn(error.message);
    }
  }
}
