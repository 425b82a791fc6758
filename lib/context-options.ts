/** The options of createDistributedContext: what they mean, their defaults, and the checks that need no I/O. */
import { isLogLevel, type LogLevel, type NativeEngineOptions, type NativeTimeouts } from './addon.js';
import { defaultThreads } from './cpu.js';
import { parseEndpoint } from './endpoint.js';
import type { DroidLlamaError } from './errors.js';
import { checkTensorSplit } from './placement.js';
import { checkSecurity } from './security.js';
import type { LoadProgress } from './types.js';
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
} from './validate.js';

const POOLING = ['none', 'mean', 'cls', 'last', 'rank'] as const;

/**
 * After how many milliseconds a worker is given up. A worker that is given up is a failure of the context, see
 * `DistributedContext.failure`; a dead connection is noticed by whichever of these comes first.
 */
export interface WorkerTimeouts {
  /** Until the connection stands; before loading, until the worker has also told its memory. Default 10 s. */
  connectMs?: number;
  /** Until the worker has greeted. Default 10 s. */
  handshakeMs?: number;
  /** Until an answer is there, on top of the time that the work asked for takes to compute and to send. Default 15 s. */
  answerMs?: number;
  /** Silence after which TCP asks whether the worker is still there. Default 5 s, and always that with a token. */
  keepAliveIdleMs?: number;
  /** From one such question to the next. Default 2 s; with a token always 1 s. */
  keepAliveIntervalMs?: number;
  /**
   * Until TCP gives up on what was sent and not acknowledged, where the system has such a limit. Default 15 s; with a
   * token there is none but `answerMs`.
   */
  userTimeoutMs?: number;
}

export interface DistributedContextOptions {
  /** Path of a GGUF file; of a split model, the first one. */
  model: string;
  /** Workers as `'host:port'`, in the order of their layers. Default: none, everything stays here. */
  rpc?: readonly string[];
  /**
   * The join token that the workers were started with: RPC is encrypted, and both ends prove that they have it. Without
   * one RPC is plain, which needs `insecure` as soon as a worker is on another device.
   */
  token?: string;
  /**
   * Speak plain RPC with workers on other devices too, such as llama.cpp's own `ggml-rpc-server`: whoever is in the
   * network can read and change it. Default false.
   */
  insecure?: boolean;
  /**
   * The share of the layers' bytes each device holds, master first; only the ratio counts.
   * `[0, 1]` puts every layer on the worker, `[1, 0]` none. Default: layers follow the devices' free memory.
   */
  tensorSplit?: readonly number[];
  /**
   * Who holds the output head. With `'master'`, the default, a token brings one hidden state back from each worker;
   * with `'worker'` the last worker sends the logits, hundreds of kilobytes a token for a large vocabulary.
   */
  head?: 'master' | 'worker';
  /**
   * How hidden states travel between the devices. `'f32'`, the default, is exact. `'f16'` halves most of what a token
   * sends, for slow links, and rounds each value to 11 significant bits, so that outputs differ slightly; every worker
   * must be one of this package that knows how, else loading fails with `DROID_INVALID_ARGUMENT`.
   */
  activations?: 'f32' | 'f16';
  /** Tokens of context, `-c` of llama-server; shared by `parallel` streams. Default, and 0: what the model was trained for. */
  contextSize?: number;
  /** Tokens handed to one decode, `-b`. Default 2048. */
  batchSize?: number;
  /**
   * Tokens computed at once, `-ub`. Default 64 with workers, whose computing then overlaps with the master's; 512
   * without, and for embeddings.
   */
  ubatchSize?: number;
  /**
   * Threads of the master, `-t`. Default: what llama.cpp thinks best for the machine; on Android one for each fast core, at
   * most 4.
   */
  threads?: number;
  /** Map the file into memory instead of reading it. Default true. */
  mmap?: boolean;
  /** Streams that are answered at once, `-np`. Default 1. */
  parallel?: number;
  /** Serve embeddings. Default false. */
  embeddings?: boolean;
  /** Serve reranking, which needs a model made for it. Default false. */
  reranking?: boolean;
  /** How an embedding is pooled. Default: the model's own way. */
  pooling?: (typeof POOLING)[number];
  /** LoRA adapters to apply, by path or with a scale (default 1). */
  loras?: readonly (string | { path: string; scale?: number })[];
  /** A draft model for speculative decoding, kept on the master; see llama-server's `--spec-type` for other kinds. */
  draft?: string;
  /** A Jinja template, or the name of one that llama.cpp has built in. Default: the model's own. */
  chatTemplate?: string;
  /** Further flags of llama-server, as on its command line. Those this package owns are refused by name. */
  llamaArgs?: readonly string[];
  /** Heed `LLAMA_ARG_*` variables of the environment. Default false. */
  llamaEnv?: boolean;
  /** From which level on llama.cpp's log goes to stderr; it belongs to the whole process. Default: left as it is. */
  logLevel?: LogLevel;
  /** How long to wait for a worker, in milliseconds. */
  timeouts?: WorkerTimeouts;
  /**
   * Called once for each worker that fails, also while the model loads, which then fails too. Requests that need it
   * fail with the error's code from now on: close the context, and make a new one once the worker is back.
   */
  onWorkerLost?: (error: DroidLlamaError, endpoint: string) => void;
  onProgress?: (progress: LoadProgress) => void;
  /** Ends loading when aborted; the call then rejects with its reason. */
  signal?: AbortSignal;
}

/** The options of a context whose workers are reached over streams that are safe already. */
export type LinkedContextOptions = Omit<DistributedContextOptions, 'rpc' | 'token' | 'insecure'>;

/** The options with their defaults; where they go to the engine as they are, 0 and '' stand for its own default. */
export interface CheckedOptions extends Omit<NativeEngineOptions, 'workers' | 'tensors'> {
  tensorSplit: readonly number[] | undefined;
  logLevel: LogLevel | undefined;
  onWorkerLost: (error: DroidLlamaError, endpoint: string) => void;
  onProgress: (progress: LoadProgress) => void;
  signal: AbortSignal | undefined;
}

const OPTION_NAMES: readonly (keyof DistributedContextOptions)[] = [
  'model',
  'rpc',
  'token',
  'insecure',
  'tensorSplit',
  'head',
  'activations',
  'contextSize',
  'batchSize',
  'ubatchSize',
  'threads',
  'mmap',
  'parallel',
  'embeddings',
  'reranking',
  'pooling',
  'loras',
  'draft',
  'chatTemplate',
  'llamaArgs',
  'llamaEnv',
  'logLevel',
  'timeouts',
  'onWorkerLost',
  'onProgress',
  'signal',
];

const MAX_TOKENS = 1 << 24;
const MAX_MS = 2 ** 31 - 1;

/** A phone whose Wi-Fi sleeps takes seconds to answer the first packet; one that is out of range never will. */
const DEFAULT_TIMEOUTS: Readonly<NativeTimeouts> = {
  connectMs: 10_000,
  handshakeMs: 10_000,
  answerMs: 15_000,
  keepAliveIdleMs: 5_000,
  keepAliveIntervalMs: 2_000,
  userTimeoutMs: 15_000,
};

export interface CheckedAccess {
  readonly rpc: readonly string[];
  /** Undefined for plain RPC. */
  readonly token: string | undefined;
}

/** Throws `DROID_INVALID_ARGUMENT` or `DROID_INSECURE`. */
export function checkOptions(options: DistributedContextOptions, maxWorkers: number): CheckedOptions & CheckedAccess {
  plainObject('options', options);
  knownKeys('createDistributedContext()', options, OPTION_NAMES);
  const rpc = checkEndpoints(options.rpc);
  const token = checkSecurity(
    options,
    rpc.map((endpoint) => parseEndpoint(endpoint).host),
  );
  return { ...checkLinkedOptions(options, rpc.length, maxWorkers), rpc, token };
}

/** The same without `rpc` and its security, for a context with that many workers. Throws `DROID_INVALID_ARGUMENT`. */
export function checkLinkedOptions(options: LinkedContextOptions, workers: number, maxWorkers: number): CheckedOptions {
  plainObject('options', options);
  knownKeys('createDistributedContext()', options, OPTION_NAMES);
  if (workers > maxWorkers) {
    invalid(`rpc names ${workers} workers; ggml takes at most ${maxWorkers} beside the master.`);
  }
  const head = optionalOneOf('head', options.head, ['master', 'worker']) ?? 'master';
  if (head === 'worker' && workers === 0) invalid("head is 'worker', but rpc names no worker.");
  if (options.tensorSplit !== undefined) {
    if (!Array.isArray(options.tensorSplit)) {
      invalid(`tensorSplit is ${show(options.tensorSplit)}; it must be an array of numbers.`);
    }
    checkTensorSplit([...options.tensorSplit], workers);
  }
  for (const name of ['onProgress', 'onWorkerLost'] as const) {
    if (options[name] !== undefined && typeof options[name] !== 'function') invalid(`${name} must be a function.`);
  }
  if (options.signal !== undefined && !(options.signal instanceof AbortSignal))
    invalid('signal must be an AbortSignal.');
  if (options.logLevel !== undefined && !isLogLevel(options.logLevel)) {
    invalid(`logLevel is ${show(options.logLevel)}; it must be none, error, warn, info or debug.`);
  }
  const parallel = optionalInteger('parallel', options.parallel, { min: 1, max: 256 }) ?? 1;
  // A token of each stream must fit one batch, and llama.cpp's warm-up decodes two; it aborts otherwise.
  const batchMin = Math.max(2, parallel);
  const ubatchMin = options.embeddings || options.reranking ? batchMin : 1;
  return {
    model: optionalString('model', options.model) ?? invalid('model is missing; it must be the path of a GGUF file.'),
    tensorSplit: options.tensorSplit && [...options.tensorSplit],
    headOnWorker: head === 'worker',
    halfActivations: optionalOneOf('activations', options.activations, ['f32', 'f16']) === 'f16',
    contextSize:
      optionalInteger('contextSize', options.contextSize === 0 ? undefined : options.contextSize, {
        min: 2,
        max: MAX_TOKENS,
      }) ?? 0,
    batchSize: optionalInteger('batchSize', options.batchSize, { min: batchMin, max: MAX_TOKENS }) ?? 0,
    ubatchSize: optionalInteger('ubatchSize', options.ubatchSize, { min: ubatchMin, max: MAX_TOKENS }) ?? 0,
    threads:
      optionalInteger('threads', options.threads, { min: 1, max: 512 }) ??
      (process.platform === 'android' ? defaultThreads() : 0),
    mmap: optionalBoolean('mmap', options.mmap) ?? true,
    parallel,
    embeddings: optionalBoolean('embeddings', options.embeddings) ?? false,
    reranking: optionalBoolean('reranking', options.reranking) ?? false,
    pooling: optionalOneOf('pooling', options.pooling, POOLING) ?? '',
    loras: checkLoras(options.loras),
    draft: optionalString('draft', options.draft) ?? '',
    chatTemplate: optionalString('chatTemplate', options.chatTemplate) ?? '',
    llamaArgs: stringArray('llamaArgs', options.llamaArgs),
    llamaEnv: optionalBoolean('llamaEnv', options.llamaEnv) ?? false,
    logLevel: options.logLevel,
    timeouts: checkTimeouts(options.timeouts),
    onWorkerLost: options.onWorkerLost ?? (() => {}),
    onProgress: options.onProgress ?? (() => {}),
    signal: options.signal,
  };
}

function checkEndpoints(value: unknown): readonly string[] {
  const endpoints = stringArray('rpc', value);
  const seen = new Set<string>();
  for (const endpoint of endpoints) {
    const { host, port } = parseEndpoint(endpoint);
    if (seen.has(`${host}:${port}`)) invalid(`rpc names the worker ${endpoint} twice.`);
    seen.add(`${host}:${port}`);
  }
  return endpoints;
}

function checkTimeouts(value: DistributedContextOptions['timeouts'] = {}): NativeTimeouts {
  plainObject('timeouts', value);
  const names = Object.keys(DEFAULT_TIMEOUTS) as (keyof NativeTimeouts)[];
  knownKeys('timeouts', value, names);
  const timeouts = { ...DEFAULT_TIMEOUTS };
  for (const name of names) {
    timeouts[name] = optionalInteger(`timeouts.${name}`, value[name], { min: 1, max: MAX_MS }) ?? timeouts[name];
  }
  return timeouts;
}

function checkLoras(value: DistributedContextOptions['loras']): { path: string; scale: number }[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) invalid('loras must be an array of paths or { path, scale }.');
  return value.map((lora, i) => {
    if (typeof lora === 'string') return { path: lora, scale: 1 };
    plainObject(`loras[${i}]`, lora);
    const scale = lora.scale ?? 1;
    if (!Number.isFinite(scale)) invalid(`loras[${i}].scale is ${show(lora.scale)}; it must be a finite number.`);
    return { path: optionalString(`loras[${i}].path`, lora.path) ?? invalid(`loras[${i}].path is missing.`), scale };
  });
}
