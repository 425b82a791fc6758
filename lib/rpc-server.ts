import { isIPv6 } from 'node:net';
import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { addon, type NativeRpcServer, type NativeRpcServerStats, toDroidLlamaError } from './addon.js';
import type { RpcDevice } from './types.js';
import { invalid, knownKeys, optionalInteger, optionalString, plainObject } from './validate.js';

export interface RpcServerOptions {
  /** Address to listen on. Default `'127.0.0.1'`. RPC is neither encrypted nor authenticated: open it to nobody else. */
  host?: string;
  /** Port to listen on; 0 takes any that is free. Default 0. */
  port?: number;
  /** Threads that compute. Default: the number of cores this process may use. */
  threads?: number;
  /** Masters that may be connected at once; further ones are told that the worker is busy. Default 8. */
  maxClients?: number;
  /** Bytes that all masters together may use. Default: 80 % of what the system can give without swapping. */
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

const OPTION_NAMES: readonly (keyof RpcServerOptions)[] = [
  'host',
  'port',
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

/** Counters since the server was started; sizes are bytes. */
export type RpcServerStats = Readonly<NativeRpcServerStats>;

/** A running worker. It keeps the process alive until it is closed. */
export class RpcServer {
  readonly host: string;
  readonly port: number;
  /** What a master passes in `rpc`, e.g. `'127.0.0.1:50123'`. */
  readonly endpoint: string;
  /** As masters see them at the start: `memoryTotal` is what they may use in all, `memoryFree` what is left of it. */
  readonly devices: readonly RpcDevice[];
  readonly cacheDir?: string;
  readonly #native: NativeRpcServer;
  #closing?: Promise<void>;

  /** Use {@link startRpcServer}. */
  constructor(native: NativeRpcServer, host: string, cacheDir?: string) {
    this.#native = native;
    this.host = host;
    this.port = native.port;
    this.endpoint = `${isIPv6(host) ? `[${host}]` : host}:${native.port}`;
    this.devices = native.devices();
    if (cacheDir) this.cacheDir = cacheDir;
  }

  /** Keeps its last values after {@link close}. */
  stats(): RpcServerStats {
    return this.#native.stats();
  }

  /** Disconnects every master, waits for the graph that is being computed, and frees the memory. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#native.close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Makes this process a worker: it lends its memory and cores to masters over ggml's RPC protocol.
 * Rejects with `DROID_PORT_IN_USE`, `DROID_INVALID_ARGUMENT` or `DROID_ADDON_NOT_FOUND`.
 */
export async function startRpcServer(options: RpcServerOptions = {}): Promise<RpcServer> {
  plainObject('options', options);
  knownKeys('startRpcServer()', options, OPTION_NAMES);
  const { signal, onEvent } = options;
  signal?.throwIfAborted();
  const host = optionalString('host', options.host) ?? '127.0.0.1';
  const cacheDir = optionalString('cacheDir', options.cacheDir);
  const cacheLimit = optionalBytes('cacheLimit', options.cacheLimit);
  if (cacheLimit !== undefined && cacheDir === undefined) invalid('cacheLimit is given, but there is no cacheDir.');
  const memoryLimit = optionalBytes('memoryLimit', options.memoryLimit);
  const clientMemoryLimit = optionalBytes('clientMemoryLimit', options.clientMemoryLimit);
  if (memoryLimit !== undefined && clientMemoryLimit !== undefined && clientMemoryLimit > memoryLimit) {
    invalid(`clientMemoryLimit is ${clientMemoryLimit}, more than all masters may use: memoryLimit is ${memoryLimit}.`);
  }
  if (onEvent !== undefined && typeof onEvent !== 'function') {
    invalid('onEvent must be a function.');
  }
  const native = {
    host,
    port: optionalInteger('port', options.port, { min: 0, max: 65535 }) ?? 0,
    threads: optionalInteger('threads', options.threads, { min: 1, max: 512 }) ?? availableParallelism(),
    maxClients: optionalInteger('maxClients', options.maxClients, { min: 1, max: 1024 }) ?? 8,
    memoryLimit: memoryLimit ?? 0,
    clientMemoryLimit: clientMemoryLimit ?? 0,
    cacheDir: cacheDir ? resolve(cacheDir) : '',
    cacheLimit: cacheLimit ?? 0,
    handshakeTimeoutMs:
      optionalInteger('handshakeTimeoutMs', options.handshakeTimeoutMs, { min: 1, max: 2 ** 31 - 1 }) ?? 10_000,
    verbose: options.verbose === true,
  };
  try {
    const server = new RpcServer(new (addon().RpcServer)(native, onEvent), host, native.cacheDir || undefined);
    signal?.addEventListener('abort', () => void server.close(), { once: true });
    return server;
  } catch (error) {
    throw toDroidLlamaError(error);
  }
}

function optionalBytes(name: string, value: unknown): number | undefined {
  return optionalInteger(name, value, { min: 1, max: Number.MAX_SAFE_INTEGER });
}
