/**
 * A connect scan of the networks this device is in. Multicast does not reach a phone whose system filters it (Android,
 * without a multicast lock), and a phone that hosts a hotspot has no other way to find who joined it.
 */
import { setMaxListeners } from 'node:events';
import { connect } from 'node:net';
import { hostsAround, type OwnAddress } from './ip.js';

/** Attempts at once; what a phone's Wi-Fi and its limit of descriptors bear. */
const CONCURRENCY = 64;
/** A host that is there answers at once; a sleeping one after a few hundred milliseconds. */
const TIMEOUT_MS = 600;
const MAX_NETWORKS = 4;
/** Hosts that may fail for a reason that is not theirs before the network is left alone. */
const MAX_LOCAL_FAILURES = 8;
const MAX_SHORTAGES = 3;

/**
 * How an attempt ended. `closed`: nobody listens there. `denied`: this device cannot or may not send there.
 * `shortage`: there are no descriptors or buffers left.
 */
export type ScanResult = 'open' | 'closed' | 'denied' | 'shortage';
export type ScanConnect = (host: string, port: number, timeoutMs: number, signal: AbortSignal) => Promise<ScanResult>;

export interface ScanOptions {
  networks: readonly OwnAddress[];
  port: number;
  /** Addresses to leave out. */
  skip: (address: string) => boolean;
  onOpen: (address: string) => void;
  signal: AbortSignal;
  /** Default 64. */
  concurrency?: number;
  /** Milliseconds for each host. Default 600. */
  timeoutMs?: number;
  connect?: ScanConnect;
}

export interface ScanSummary {
  readonly tried: number;
  readonly open: number;
  /** Networks that were given up because this device could not send to them. */
  readonly denied: readonly OwnAddress[];
  /** Given up for want of descriptors. */
  readonly exhausted: boolean;
}

/**
 * Connects to one port of every other host of at most a /24 of each network, and hangs up at once. Ends early when
 * aborted. Does not reject.
 */
export async function scanNetworks(options: ScanOptions): Promise<ScanSummary> {
  const { port, skip, onOpen, signal, timeoutMs = TIMEOUT_MS, connect: attempt = connectOnce } = options;
  const concurrency = Math.max(1, Math.min(options.concurrency ?? CONCURRENCY, CONCURRENCY));
  const summary = { tried: 0, open: 0, denied: [] as OwnAddress[], exhausted: false };
  const done = new Set<string>();
  // Each attempt listens, and Node takes more than ten for a leak.
  setMaxListeners(0, signal);

  for (const network of options.networks.slice(0, MAX_NETWORKS)) {
    const hosts = hostsAround(network).filter((host) => !done.has(host) && !skip(host));
    for (const host of hosts) done.add(host);
    const again: string[] = [];
    let lanes = concurrency;
    let next = 0;
    let denials = 0;
    let shortages = 0;
    const work = async (): Promise<void> => {
      while (!signal.aborted && denials < MAX_LOCAL_FAILURES) {
        const host = again.pop() ?? hosts[next++];
        if (host === undefined) break;
        const result = await attempt(host, port, timeoutMs, signal);
        if (signal.aborted) break;
        if (result === 'shortage') {
          // As many lanes go on as there are descriptors for; only the last one waits for better times.
          again.push(host);
          if (lanes > 1) break;
          if (++shortages >= MAX_SHORTAGES) {
            summary.exhausted = true;
            break;
          }
          await pause(timeoutMs, signal);
          continue;
        }
        summary.tried++;
        if (result === 'denied') denials++;
        if (result === 'open') {
          summary.open++;
          onOpen(host);
        }
      }
      lanes--;
    };
    await Promise.all(Array.from({ length: concurrency }, work));
    if (denials >= MAX_LOCAL_FAILURES) summary.denied.push(network);
    if (signal.aborted || summary.exhausted) break;
  }
  return summary;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const finish = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', finish);
      resolve();
    };
    const timer = setTimeout(finish, ms);
    timer.unref();
    signal.addEventListener('abort', finish, { once: true });
  });
}

const RESULTS: Readonly<Record<string, ScanResult>> = {
  EMFILE: 'shortage',
  ENFILE: 'shortage',
  ENOBUFS: 'shortage',
  ENOMEM: 'shortage',
  EADDRNOTAVAIL: 'shortage',
  EPERM: 'denied',
  EACCES: 'denied',
  ENETUNREACH: 'denied',
  ENETDOWN: 'denied',
};

export const connectOnce: ScanConnect = (host, port, timeoutMs, signal) =>
  new Promise((resolve) => {
    const finish = (result: ScanResult): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.destroy();
      resolve(result);
    };
    const onAbort = (): void => finish('closed');
    const socket = connect({ host, port });
    // A scan is no reason for the process to stay.
    socket.unref();
    const timer = setTimeout(() => finish('closed'), timeoutMs);
    timer.unref();
    signal.addEventListener('abort', onAbort, { once: true });
    socket.on('connect', () => finish('open'));
    socket.on('error', (error: NodeJS.ErrnoException) => finish(RESULTS[error.code ?? ''] ?? 'closed'));
  });
