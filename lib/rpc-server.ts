import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  addon,
  type NativeRpcServer,
  type NativeRpcServerOptions,
  type NativeRpcServerStats,
  toDroidLlamaError,
} from './addon.js';
import { defaultThreads } from './cpu.js';
import { type EndpointAddress, formatEndpoint } from './endpoint.js';
import { acceptMasters } from './rpc-stream.js';
import { checkSecurity } from './security.js';
import type { Transport } from './transport/transport.js';
import type { RpcDevice } from './types.js';
import { invalid, knownKeys, optionalInteger, optionalString, plainObject } from './validate.js';

export interface RpcServerOptions {
  /** Address to listen on. Default `'127.0.0.1'`; any other needs `token` or `insecure`. */
  host?: string;
  /** Port to listen on; 0 takes any that is free. Default 0. */
  port?: number;
  /**
   * A join token, 22 to 256 of the characters `A-Z a-z 0-9 _ -`: RPC is encrypted, and only masters that have the same
   * one get in. Default: none, RPC is plain.
   */
  token?: string;
  /**
   * Serve plain RPC on an address other devices can reach, e.g. for llama.cpp's own `llama-server --rpc`: whoever
   * reaches the port can use the worker, and read and change what goes over it. Default false.
   */
  insecure?: boolean;
  /** Threads that compute. Default: one for each fast core that this process may use, on Android at most 4. */
  threads?: number;
  /** Masters that may be connected at once; further ones are told that the worker is busy. Default 8. */
  maxClients?: number;
  /**
   * Bytes that all masters together may use. Default: 80 % of what the system can give without swapping, on Android at
   * most half of what is built in.
   */
  memoryLimit?: number;
  /** Bytes that one master may use. Default: `memoryLimit`. */
  clientMemoryLimit?: number;
  /**
   * Directory that keeps all weights under the hash of their content, so that no later load need send them again, under
   * whatever name the model's file has. Made if missing; several workers may share it. Default: none.
   */
  cacheDir?: string;
  /**
   * Bytes the cache may take on the disk; the weights that were not used for longest go first.
   * Default: half of what was free at the start plus what it held.
   */
  cacheLimit?: number;
  /** Milliseconds a client has to greet in. Default 10000. */
  handshakeTimeoutMs?: number;
  /** Called with a line of text for each client that comes or goes, with `verbose` also for each command. */
  onEvent?: (line: string) => void;
  verbose?: boolean;
  /** Closes the server when aborted. */
  signal?: AbortSignal;
}

/** The options of a server that has no port of its own. */
export type AdoptingRpcServerOptions = Omit<RpcServerOptions, keyof ListenOptions>;
type ListenOptions = Pick<RpcServerOptions, 'host' | 'port' | 'token' | 'insecure'>;

const LISTEN_OPTION_NAMES: readonly (keyof ListenOptions)[] = ['host', 'port', 'token', 'insecure'];
const OPTION_NAMES: readonly (keyof AdoptingRpcServerOptions)[] = [
  'threads',
  'maxClients',
  'memoryLimit',
  'clientMemoryLimit',
  'cacheDir',
  'cacheLimit',
  'handshakeTimeoutMs',
  'onEvent',
  'verbose',
  'signal',
];

/**
 * Counters since the server was started; sizes are bytes. With a token, connections that did not prove that they have it
 * count among `clientsRefused`: they never become clients.
 */
export type RpcServerStats = Readonly<NativeRpcServerStats>;

/** For the last words of a worker that ends to pass through the encryption. */
const FAREWELL_MS = 500;

/** Where a server listens. */
interface Listening {
  readonly address: EndpointAddress;
  /** What its streams come out of, unless they are plain. */
  readonly transport?: Transport;
}

/** A running worker. It keeps the process alive until it is closed. */
export class RpcServer {
  readonly host: string;
  readonly port: number;
  /** What a master passes in `rpc`, e.g. `'127.0.0.1:50123'`; empty where there is no port. */
  readonly endpoint: string;
  /** Whether masters need its token, and what they send is encrypted. */
  readonly encrypted: boolean;
  /** As masters see them at the start: `memoryTotal` is what they may use in all, `memoryFree` what is left of it. */
  readonly devices: readonly RpcDevice[];
  readonly cacheDir?: string;
  readonly #native: NativeRpcServer;
  readonly #transport: Transport | undefined;
  #closing?: Promise<void>;

  /** Use {@link startRpcServer}. */
  constructor(native: NativeRpcServer, listening: Listening | undefined, cacheDir?: string) {
    this.#native = native;
    this.#transport = listening?.transport;
    this.host = listening?.address.host ?? '';
    this.port = listening?.address.port ?? 0;
    this.endpoint = listening ? formatEndpoint(listening.address) : '';
    this.encrypted = listening?.transport !== undefined;
    this.devices = native.devices();
    if (cacheDir) this.cacheDir = cacheDir;
  }

  /**
   * Serves a master on a stream socket that is connected to it already.
   * @param fd its descriptor, the server's from here on
   * @param peer what the master is called in `onEvent`, e.g. its address
   */
  adopt(fd: number, peer: string): void {
    this.#native.adopt(fd, peer);
  }

  /** Keeps its last values after {@link close}. */
  stats(): RpcServerStats {
    const stats = this.#native.stats();
    const strangers = this.#transport?.stats().rejected ?? 0;
    return { ...stats, clientsRefused: stats.clientsRefused + strangers };
  }

  /** Disconnects every master, waits for the graph that is being computed, and frees the memory. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    try {
      await this.#native.close();
      // It told its masters why, and has hung up; closing the transport cuts what is still on the way.
      const end = performance.now() + FAREWELL_MS;
      while (this.#transport && this.#transport.stats().open > 0 && performance.now() < end) await sleep(5);
    } finally {
      await this.#transport?.close();
    }
  }
}

/**
 * Makes this process a worker: it lends its memory and cores to masters over ggml's RPC protocol, encrypted with a
 * `token`, plain without. Rejects with `DROID_PORT_IN_USE`, `DROID_INVALID_ARGUMENT`, `DROID_INSECURE` or
 * `DROID_ADDON_NOT_FOUND`.
 */
export async function startRpcServer(options: RpcServerOptions = {}): Promise<RpcServer> {
  plainObject('options', options);
  knownKeys('startRpcServer()', options, [...LISTEN_OPTION_NAMES, ...OPTION_NAMES]);
  options.signal?.throwIfAborted();
  const host = optionalString('host', options.host) ?? '127.0.0.1';
  const port = optionalInteger('port', options.port, { min: 0, max: 65535 }) ?? 0;
  const checked = checkOptions(options);
  const token = checkSecurity(options, [host]);
  if (token === undefined) {
    const native = startNative({ ...checked, host, port }, options.onEvent);
    return closedBy(options.signal, new RpcServer(native, { address: { host, port: native.port } }, checked.cacheDir));
  }

  const { startTransport } = await import('./transport/tls-transport.js');
  const transport = await startTransport({ token, onWarning: options.onEvent });
  let native: NativeRpcServer | undefined;
  try {
    options.signal?.throwIfAborted();
    const worker = startNative({ ...checked, host: '', port: 0 }, options.onEvent);
    native = worker;
    const bound = await acceptMasters(transport, { host, port }, (fd, peer) => worker.adopt(fd, peer));
    options.signal?.throwIfAborted();
    const listening = { address: { host, port: bound.port }, transport };
    return closedBy(options.signal, new RpcServer(worker, listening, checked.cacheDir));
  } catch (error) {
    await Promise.all([transport.close(), native?.close()]);
    throw error;
  }
}

/**
 * A worker without a port: its masters come by {@link RpcServer.adopt} alone, which is where they have to have proven
 * who they are. Rejects as {@link startRpcServer} does.
 */
export async function startAdoptingRpcServer(options: AdoptingRpcServerOptions = {}): Promise<RpcServer> {
  plainObject('options', options);
  knownKeys('startAdoptingRpcServer()', options, OPTION_NAMES);
  options.signal?.throwIfAborted();
  const checked = checkOptions(options);
  const native = startNative({ ...checked, host: '', port: 0 }, options.onEvent);
  return closedBy(options.signal, new RpcServer(native, undefined, checked.cacheDir));
}

function checkOptions(options: AdoptingRpcServerOptions): Omit<NativeRpcServerOptions, 'host' | 'port'> {
  const cacheDir = optionalString('cacheDir', options.cacheDir);
  const cacheLimit = optionalBytes('cacheLimit', options.cacheLimit);
  if (cacheLimit !== undefined && cacheDir === undefined) invalid('cacheLimit is given, but there is no cacheDir.');
  const memoryLimit = optionalBytes('memoryLimit', options.memoryLimit);
  const clientMemoryLimit = optionalBytes('clientMemoryLimit', options.clientMemoryLimit);
  if (memoryLimit !== undefined && clientMemoryLimit !== undefined && clientMemoryLimit > memoryLimit) {
    invalid(`clientMemoryLimit is ${clientMemoryLimit}, more than all masters may use: memoryLimit is ${memoryLimit}.`);
  }
  if (options.onEvent !== undefined && typeof options.onEvent !== 'function') {
    invalid('onEvent must be a function.');
  }
  return {
    threads: optionalInteger('threads', options.threads, { min: 1, max: 512 }) ?? defaultThreads(),
    maxClients: optionalInteger('maxClients', options.maxClients, { min: 1, max: 1024 }) ?? 8,
    memoryLimit: memoryLimit ?? 0,
    clientMemoryLimit: clientMemoryLimit ?? 0,
    cacheDir: cacheDir ? resolve(cacheDir) : '',
    cacheLimit: cacheLimit ?? 0,
    handshakeTimeoutMs:
      optionalInteger('handshakeTimeoutMs', options.handshakeTimeoutMs, { min: 1, max: 2 ** 31 - 1 }) ?? 10_000,
    verbose: options.verbose === true,
  };
}

function startNative(options: NativeRpcServerOptions, onEvent: RpcServerOptions['onEvent']): NativeRpcServer {
  try {
    return new (addon().RpcServer)(options, onEvent);
  } catch (error) {
    throw toDroidLlamaError(error);
  }
}

function closedBy(signal: AbortSignal | undefined, server: RpcServer): RpcServer {
  signal?.addEventListener('abort', () => void server.close(), { once: true });
  return server;
}

function optionalBytes(name: string, value: unknown): number | undefined {
  return optionalInteger(name, value, { min: 1, max: Number.MAX_SAFE_INTEGER });
}
