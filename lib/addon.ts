/** The one place that loads the native addon; everything it exports is typed here. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { DroidLlamaError, type ErrorCode, isErrorCode, splitCode } from './errors.js';
import { packageFile } from './package-file.js';
import type { EngineRoute, RpcDevice, WorkerFailure, WorkerTraffic } from './types.js';

export interface ModelInfo {
  readonly architecture: string;
  readonly name: string;
  /** Tokens the model was trained for; 0 when the file does not say. */
  readonly contextLength: number;
  /** Bytes of weights of each repeating layer. */
  readonly layerBytes: readonly number[];
  /** Bytes outside the layers: embeddings, head, projectors. */
  readonly outerBytes: number;
  /** Bytes of the output head; where it is tied, those of the embedding. */
  readonly headBytes: number;
  /** Bytes of F16 keys and values of one token in one layer; 0 where attention is not of the plain kind. */
  readonly kvBytesPerTokenLayer: number;
  /** Bytes of each layer's weights that one token reads; smaller than `layerBytes` in a mixture of experts. */
  readonly activeBytesPerLayer: readonly number[];
  readonly embeddingLength: number;
  /** The largest one of all layers; in a mixture of experts, those that one token uses added up. */
  readonly feedForwardLength: number;
  readonly headCount: number;
  readonly vocabularySize: number;
  readonly tensors: readonly TensorInFile[];
}

export interface TensorInFile {
  readonly name: string;
  /** The file it lies in, one of several where the model is split. */
  readonly path: string;
  /** Bytes from the beginning of that file. */
  readonly offset: number;
  readonly size: number;
  /** The repeating layer it belongs to; -1 for one outside the layers. */
  readonly layer: number;
}

/** How fast this machine computes; see `ComputeSpeed` of cluster/types.ts. */
export interface NativeComputeSpeed {
  weightBytesPerSecond: number;
  flopsPerSecond: number;
}

export interface BuildInfo {
  readonly llamaCpp: string;
  readonly systemInfo: string;
  /** The level of instructions in use, see docs/prebuilds.md; `native` where it was compiled on this machine. */
  readonly cpuLevel: string;
  readonly rpcProtocol: string;
  readonly maxWorkers: number;
  readonly routes: readonly EngineRoute[];
}

export interface NativeWorkerOptions {
  endpoint: string;
  host: string;
  port: number;
  /** A stream socket that is connected to the worker already, the engine's from here on; -1 to connect to host:port. */
  fd: number;
  /** Repeating layers it gets; 0 for none. */
  layers: number;
}

/** Milliseconds; see `WorkerTimeouts` of context-options.ts. */
export interface NativeTimeouts {
  connectMs: number;
  handshakeMs: number;
  answerMs: number;
  keepAliveIdleMs: number;
  keepAliveIntervalMs: number;
  userTimeoutMs: number;
}

/** Validated by lib/; 0 and '' mean llama.cpp's default. */
export interface NativeEngineOptions {
  model: string;
  workers: NativeWorkerOptions[];
  headOnWorker: boolean;
  halfActivations: boolean;
  tensors: readonly TensorInFile[];
  contextSize: number;
  batchSize: number;
  ubatchSize: number;
  parallel: number;
  threads: number;
  mmap: boolean;
  embeddings: boolean;
  reranking: boolean;
  pooling: string;
  loras: { path: string; scale: number }[];
  draft: string;
  chatTemplate: string;
  llamaArgs: readonly string[];
  llamaEnv: boolean;
  timeouts: NativeTimeouts;
}

export interface NativeRequestOptions {
  method: string;
  route: string;
  path: string;
  queryString: string;
  params: Record<string, string>;
  headers: Record<string, string>;
  body: Uint8Array;
  files: Record<string, { data: Uint8Array; filename: string; contentType: string }>;
}

export interface NativeRequest {
  /** Null when the request was cancelled first. */
  head(): Promise<{ status: number; headers: Record<string, string> } | null>;
  /** The next chunk, null at the end, undefined after a cancellation. One call at a time. */
  next(): Promise<Uint8Array | null | undefined>;
  cancel(): void;
}

export interface NativePlacement {
  layers: number[];
  head: boolean;
  bytes: number;
}

export interface NativeEngineStats {
  tokensGenerated: number;
  promptTokens: number;
  tokensPerSecond: number;
  promptTokensPerSecond: number;
  activeRequests: number;
  workers: WorkerTraffic[];
}

export interface NativeEngine {
  /** Settles when the model is loaded: the master's placement, then each worker's. */
  loaded(): Promise<NativePlacement[]>;
  request(options: NativeRequestOptions): NativeRequest;
  stats(): NativeEngineStats;
  /** The first failure of a worker, at any time since loading began. */
  failure(): NativeFailure | null;
  close(): Promise<void>;
}

export interface NativeFailure {
  code: string;
  message: string;
  endpoint: string;
}

/** Validated by lib/; a limit of 0 means the native default. Sizes are bytes. */
export interface NativeRpcServerOptions {
  /** Empty: no port of its own; clients come by adopt() alone. */
  host: string;
  port: number;
  threads: number;
  maxClients: number;
  memoryLimit: number;
  clientMemoryLimit: number;
  cacheDir: string;
  cacheLimit: number;
  handshakeTimeoutMs: number;
  verbose: boolean;
}

export interface NativeRpcServerStats {
  clients: number;
  clientsTotal: number;
  /** Turned away: above `maxClients`, or without a handshake. */
  clientsRefused: number;
  /** Disconnected for what they sent. */
  clientsDropped: number;
  graphsComputed: number;
  computeMs: number;
  messagesReceived: number;
  messagesSent: number;
  bytesReceived: number;
  bytesSent: number;
  /** Of all masters' buffers, as they asked for them. */
  bytesAllocated: number;
  /** Weights in memory; what several masters share counts once. */
  bytesWeights: number;
  /** Of those, the ones laid out for this processor's kernels. */
  bytesRepacked: number;
  /** Weights that came over the network. */
  bytesWeightsReceived: number;
  /** Weights that need not be sent, because they were in memory or in the cache. */
  bytesWeightsReused: number;
}

export interface NativeRpcServer {
  readonly port: number;
  devices(): RpcDevice[];
  /** Serves a client on a stream socket that is connected already, whose descriptor is the server's from here on. */
  adopt(fd: number, peer: string): void;
  stats(): NativeRpcServerStats;
  close(): Promise<void>;
}

interface NativeAddon {
  inspectModel(path: string): Promise<ModelInfo>;
  buildInfo(): BuildInfo;
  /**
   * Computes for about this long with that many threads and tells how fast that was; setting up comes on top, tens of
   * milliseconds. Uses less than 64 MiB. Rejects with `DROID_OUT_OF_MEMORY`.
   */
  measureCompute(threads: number, milliseconds: number): Promise<NativeComputeSpeed>;
  setLogLevel(level: number): void;
  /** Descriptors of two connected stream sockets; whoever gets one closes it. Throws when there are none left. */
  createSocketPair(): [number, number];
  /** Closes a descriptor of {@link createSocketPair} that nobody took. */
  closeDescriptor(fd: number): void;
  shutdown(): void;
  Engine: new (
    options: NativeEngineOptions,
    onProgress: (stage: string, fraction: number) => void,
    /** Once for each worker that fails; `index` into `workers`. */
    onWorkerLost?: (index: number, code: string, message: string) => void,
  ) => NativeEngine;
  RpcServer: new (options: NativeRpcServerOptions, onEvent?: (line: string) => void) => NativeRpcServer;
}

const require = createRequire(import.meta.url);
let loaded: NativeAddon | undefined;

/** The addon, loaded on first use. Throws `DROID_ADDON_NOT_FOUND`. */
export function addon(): NativeAddon {
  if (loaded) return loaded;
  let file: string | undefined;
  try {
    const nodeGypBuild = require('node-gyp-build') as { resolve(dir: string): string };
    file = nodeGypBuild.resolve(packageFile('.'));
    loaded = require(file) as NativeAddon;
  } catch (cause) {
    throw new DroidLlamaError('DROID_ADDON_NOT_FOUND', notFoundMessage(file, cause as Error), { cause });
  }
  // Environment hooks end our threads when a worker thread ends, but process.exit() on the main thread runs none.
  process.once('exit', () => loaded?.shutdown());
  return loaded;
}

function notFoundMessage(file: string | undefined, cause: Error): string {
  const target = `${process.platform}-${process.arch}`;
  const tried = file ? `${file} was found but does not load` : `there is no build/Release and no prebuilds/${target}`;
  const build = packageFile('scripts/build.mjs');
  const onTermux =
    process.platform === 'android' ? '\nIn Termux it needs:  pkg install nodejs-lts clang cmake ninja git' : '';
  const rebuild = existsSync(build) ? `Compile it with:  node ${build}${onTermux}` : 'Reinstall droid-llama.';
  return `The native addon of droid-llama is missing for ${target}, Node ${process.version}: ${tried}.
  in     ${packageFile('.')}
  cause  ${cause.message.split('\n')[0]}
${rebuild}
(npm install --ignore-scripts skips the step that compiles it.)`;
}

/** The HTTP endpoints the engine answers. */
export function engineRoutes(): readonly EngineRoute[] {
  return addon().buildInfo().routes;
}

/** Closes a descriptor that nobody took. */
export function closeDescriptor(fd: number): void {
  addon().closeDescriptor(fd);
}

/** Gives an error of the addon its class; anything else is returned as it is. */
export function toDroidLlamaError(error: unknown): unknown {
  if (error instanceof Error && !(error instanceof DroidLlamaError)) {
    const code = (error as Error & { code?: unknown }).code;
    if (isErrorCode(code)) {
      // A load that a worker's failure ended is more than a load that llama.cpp refused.
      const told = splitCode(error.message);
      return new DroidLlamaError(told.code ?? code, told.message, { cause: error });
    }
  }
  return error;
}

/** A worker's failure as the native side tells it, with a code of the list. */
export function workerFailure({ code, message, endpoint }: NativeFailure): WorkerFailure {
  const known: ErrorCode = isErrorCode(code) ? code : 'DROID_WORKER_LOST';
  return { code: known, message: splitCode(message).message, endpoint };
}

const LOG_LEVELS = { none: 0, error: 1, warn: 2, info: 3, debug: 4 } as const;
export type LogLevel = keyof typeof LOG_LEVELS;

/** llama.cpp's own log goes to stderr from this level on. It has one log for the whole process; the default is none. */
export function setLogLevel(level: LogLevel): void {
  addon().setLogLevel(LOG_LEVELS[level]);
}

export function isLogLevel(value: unknown): value is LogLevel {
  return typeof value === 'string' && Object.hasOwn(LOG_LEVELS, value);
}
