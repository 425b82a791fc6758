/** The options of Cluster.join(): what they mean, their defaults, and the checks that need no I/O. */
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { DEFAULT_CLUSTER_PORT, type EndpointAddress, parseEndpoint } from '../endpoint.js';
import { checkToken } from '../transport/token.js';
import {
  invalid,
  knownKeys,
  optionalBoolean,
  optionalInteger,
  optionalOneOf,
  optionalString,
  plainObject,
  show,
  stringArray,
} from '../validate.js';
import { createPeerId, isPeerId } from './control/peer-id.js';
import type { Objective } from './types.js';

export interface DiscoveryOptions {
  /** Announce this device and look for others by mDNS. Default true. */
  mdns?: boolean;
  /**
   * Knock at the cluster's port of every address of this device's private /24 networks: Android takes no part in
   * multicast, and a phone that hosts a hotspot must find its clients. `'auto'` stops once members are connected.
   * Default `'auto'`.
   */
  scan?: boolean | 'auto';
  /** Try the peers that `tailscale status` names, where there is such a program. Default true. */
  tailscale?: boolean;
}

export interface ClusterOptions {
  /** The join token, the same on every device: 22 or more URL-safe characters; `createToken()` makes one. */
  token: string;
  /** Path of a GGUF file. A device that has one can become the master. Default: none. */
  model?: string;
  /** What people call this device. Default: the host's name, or a part of the id where that says nothing. */
  name?: string;
  /** What this device is to be, whatever the roles would say. Default: decided by the cluster. */
  role?: 'master' | 'worker';
  /** Where streams are accepted; any device that can be reached there with the token may join. */
  listen?: {
    /** Default `'0.0.0.0'`. */
    host?: string;
    /** Default 60000; 0 takes any that is free, which scans do not find. */
    port?: number;
  };
  /** Devices to try first, as `'host:port'`. */
  peers?: readonly string[];
  discovery?: DiscoveryOptions;
  /**
   * What the split is for, where this device is the master. `'share'` uses every worker that helps the model fit or the
   * prompt speed; `'fastest'` leaves out whoever slows generation down, down to no split at all. Default `'share'`.
   */
  objective?: Objective;
  /**
   * How hidden states travel, where this device is the master: `'f32'`, the default, is exact; `'f16'` halves them, for
   * slow links, and rounds.
   */
  activations?: 'f32' | 'f16';
  /** Tokens of context, `-c`. Default: the planner chooses, at most 4096. */
  contextSize?: number;
  /** `-b`. Default: the planner chooses. */
  batchSize?: number;
  /** `-ub`. Default: the planner chooses. */
  ubatchSize?: number;
  /** Streams that are answered at once, `-np`. Default 1. */
  parallel?: number;
  /** Threads to compute with, as master and as worker. Default: one for each big core. */
  threads?: number;
  /** Bytes to lend to a model. Default: 80 % of what the system can give without swapping. */
  memoryLimit?: number;
  /** Directory that keeps received weights for later loads. Default: none. */
  cacheDir?: string;
  /** Bytes that directory may take. Default: half of what was free plus what it held. */
  cacheLimit?: number;
  /** 22 URL-safe characters that name this device for good. Default: made anew at each join. */
  id?: string;
  /** Further flags of llama-server for the engine, where this device is the master. */
  llamaArgs?: readonly string[];
  /** Milliseconds a request waits for a model to be loaded. Default 60000. */
  requestWaitMs?: number;
  /** Milliseconds to look around before a device leads without the others. Default 8000. */
  settleMs?: number;
  /** Leaves the cluster when aborted. */
  signal?: AbortSignal;
}

/** The options with their defaults. */
export interface CheckedClusterOptions {
  readonly token: string;
  readonly model: string | undefined;
  readonly name: string;
  readonly pin: 'master' | 'worker' | null;
  readonly host: string;
  readonly port: number;
  readonly peers: readonly EndpointAddress[];
  readonly mdns: boolean;
  readonly scan: boolean | 'auto';
  readonly tailscale: boolean;
  readonly objective: Objective;
  readonly activations: 'f32' | 'f16';
  readonly contextSize: number | undefined;
  readonly batchSize: number | undefined;
  readonly ubatchSize: number | undefined;
  readonly parallel: number | undefined;
  readonly threads: number | undefined;
  readonly memoryLimit: number | undefined;
  readonly cacheDir: string | undefined;
  readonly cacheLimit: number | undefined;
  readonly id: string;
  readonly llamaArgs: readonly string[];
  readonly requestWaitMs: number;
  readonly settleMs: number;
  readonly signal: AbortSignal | undefined;
}

const OPTION_NAMES: readonly (keyof ClusterOptions)[] = [
  'token',
  'model',
  'name',
  'role',
  'listen',
  'peers',
  'discovery',
  'objective',
  'activations',
  'contextSize',
  'batchSize',
  'ubatchSize',
  'parallel',
  'threads',
  'memoryLimit',
  'cacheDir',
  'cacheLimit',
  'id',
  'llamaArgs',
  'requestWaitMs',
  'settleMs',
  'signal',
];

const MAX_NAME = 64;
const MAX_TOKENS = 1 << 24;
const MAX_MS = 2 ** 31 - 1;
const MAX_PEERS = 64;

/** Throws `DROID_INVALID_ARGUMENT`. */
export function checkClusterOptions(options: ClusterOptions): CheckedClusterOptions {
  plainObject('options', options);
  knownKeys('Cluster.join()', options, OPTION_NAMES);
  const token = checkToken(options.token);
  const model = optionalString('model', options.model);
  const listen = group('listen', options.listen, ['host', 'port']);
  const discovery = group('discovery', options.discovery, ['mdns', 'scan', 'tailscale']);
  const role = optionalOneOf('role', options.role, ['master', 'worker']);
  if (role === 'master' && model === undefined) invalid("role is 'master', but there is no model to be the master of.");
  const { scan } = discovery;
  if (scan !== undefined && scan !== 'auto' && typeof scan !== 'boolean') {
    invalid(`discovery.scan is ${show(scan)}; it must be true, false or 'auto'.`);
  }
  const peers = stringArray('peers', options.peers);
  if (peers.length > MAX_PEERS) invalid(`peers names ${peers.length} devices; ${MAX_PEERS} are the most.`);
  const id = optionalString('id', options.id) ?? createPeerId();
  if (!isPeerId(id)) invalid(`id is ${show(id)}; it must be 16 bytes in base64url, as createPeerId() makes them.`);
  const cacheDir = optionalString('cacheDir', options.cacheDir);
  const cacheLimit = bytes('cacheLimit', options.cacheLimit);
  if (cacheLimit !== undefined && cacheDir === undefined) invalid('cacheLimit is given, but there is no cacheDir.');
  const tokens = (name: 'contextSize' | 'batchSize' | 'ubatchSize') =>
    optionalInteger(name, options[name], { min: 1, max: MAX_TOKENS });
  return {
    token,
    model: model === undefined ? undefined : resolve(model),
    name: checkName(optionalString('name', options.name), id),
    pin: role ?? null,
    host: optionalString('listen.host', listen.host) ?? '0.0.0.0',
    port: optionalInteger('listen.port', listen.port, { min: 0, max: 65535 }) ?? DEFAULT_CLUSTER_PORT,
    peers: peers.map(parseEndpoint),
    mdns: optionalBoolean('discovery.mdns', discovery.mdns) ?? true,
    scan: scan ?? 'auto',
    tailscale: optionalBoolean('discovery.tailscale', discovery.tailscale) ?? true,
    objective: optionalOneOf('objective', options.objective, ['share', 'fastest']) ?? 'share',
    activations: optionalOneOf('activations', options.activations, ['f32', 'f16']) ?? 'f32',
    contextSize: tokens('contextSize'),
    batchSize: tokens('batchSize'),
    ubatchSize: tokens('ubatchSize'),
    parallel: optionalInteger('parallel', options.parallel, { min: 1, max: 1024 }),
    threads: optionalInteger('threads', options.threads, { min: 1, max: 512 }),
    memoryLimit: bytes('memoryLimit', options.memoryLimit),
    cacheDir: cacheDir === undefined ? undefined : resolve(cacheDir),
    cacheLimit,
    id,
    llamaArgs: stringArray('llamaArgs', options.llamaArgs),
    requestWaitMs: optionalInteger('requestWaitMs', options.requestWaitMs, { min: 0, max: MAX_MS }) ?? 60_000,
    settleMs: optionalInteger('settleMs', options.settleMs, { min: 0, max: MAX_MS }) ?? 8_000,
    signal: options.signal,
  };
}

function group<T extends object>(name: string, value: T | undefined, known: readonly (keyof T & string)[]): T {
  if (value === undefined) return {} as T;
  plainObject(name, value);
  knownKeys(name, value, known);
  return value;
}

function bytes(name: string, value: unknown): number | undefined {
  return optionalInteger(name, value, { min: 1, max: Number.MAX_SAFE_INTEGER });
}

/** Others print it on their terminals. */
function checkName(given: string | undefined, id: string): string {
  const name = (given ?? hostname()).trim();
  const printable = name.replace(/[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu, '');
  // Android calls every device localhost.
  if (given === undefined && (printable === '' || printable === 'localhost')) return `device-${id.slice(0, 4)}`;
  if (given === undefined) return [...printable].slice(0, MAX_NAME).join('');
  if (printable !== name || name === '' || [...name].length > MAX_NAME) {
    invalid(`name is ${show(given)}; it must be 1 to ${MAX_NAME} printable characters.`);
  }
  return name;
}
