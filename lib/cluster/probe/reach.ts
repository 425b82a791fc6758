/** Finds the one of a peer's addresses that is best to dial. */
import { setMaxListeners } from 'node:events';
import type { EndpointAddress } from '../../endpoint.js';
import { DroidLlamaError } from '../../errors.js';
import type { Transport } from '../../transport/transport.js';
import type { DialResult } from '../types.js';
import { ProbeClient } from './client.js';

/** Once one address has answered, the others have this long to be better. */
const GRACE_MS = 250;

/** What dialling one address came to. */
export interface Attempt {
  readonly endpoint: string;
  readonly result: DialResult;
  /** Open and proven to be the peer, or null. */
  readonly client: ProbeClient | null;
}

export interface ReachOptions {
  transport: Pick<Transport, 'dial' | 'cut'>;
  /** Ids of this device and of the one that is meant. */
  self: string;
  peer: string;
  addresses: readonly EndpointAddress[];
  signal: AbortSignal;
}

/**
 * Dials all addresses at once and keeps the one that answers fastest; where none does, tells the most telling failure,
 * and null where there was none to dial. Does not reject.
 */
export async function reachPeer({ addresses, signal, ...options }: ReachOptions): Promise<Attempt | null> {
  if (addresses.length === 0) return null;
  const controller = new AbortController();
  // Each dial listens, and Node takes more than ten for a leak.
  setMaxListeners(0, controller.signal);
  const onAbort = (): void => controller.abort();
  signal.addEventListener('abort', onAbort, { once: true });
  const done: Attempt[] = [];
  let decided = false;
  await new Promise<void>((resolve) => {
    let timer: NodeJS.Timeout | undefined;
    for (const address of addresses) {
      void dialOne({ ...options, address, signal: controller.signal }).then((attempt) => {
        if (decided) {
          attempt.client?.destroy();
          return;
        }
        done.push(attempt);
        if (attempt.client) timer ??= setTimeout(resolve, GRACE_MS);
        if (done.length === addresses.length) {
          clearTimeout(timer);
          resolve();
        }
      });
    }
  });
  decided = true;
  controller.abort();
  signal.removeEventListener('abort', onAbort);
  const [best = null, ...others] = done.sort(byUse);
  for (const other of others) other.client?.destroy();
  return best;
}

async function dialOne({
  transport,
  ...options
}: Omit<ReachOptions, 'addresses'> & { address: EndpointAddress }): Promise<Attempt> {
  const endpoint = endpointName(options.address);
  try {
    return { endpoint, result: 'open', client: await ProbeClient.open(transport, options) };
  } catch (error) {
    return { endpoint, result: dialResult(error), client: null };
  }
}

/** From the most to the least telling; what another device answered says nothing of the peer. */
const RANK: readonly DialResult[] = ['open', 'refused', 'timeout', 'unreachable', 'unknown'];

function byUse(a: Attempt, b: Attempt): number {
  const trip = ({ client }: Attempt): number => client?.roundTripMs ?? Number.MAX_VALUE;
  return RANK.indexOf(a.result) - RANK.indexOf(b.result) || trip(a) - trip(b);
}

/** How a failed dial counts. A device with another token, or another member, is not the one that was meant. */
function dialResult(error: unknown): DialResult {
  if (!(error instanceof DroidLlamaError)) return 'unknown';
  switch (error.code) {
    case 'DROID_ENDPOINT_REFUSED':
      return 'refused';
    case 'DROID_ENDPOINT_TIMEOUT':
      return 'timeout';
    case 'DROID_ENDPOINT_UNREACHABLE':
      return 'unreachable';
    default:
      return 'unknown';
  }
}

export function endpointName({ host, port }: EndpointAddress): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
