/** Plain records that the stages of the package hand to each other and to users. */
import type { ErrorCode } from './errors.js';

/** One contiguous part of the model and the device that holds it. */
export interface Placement {
  /** `'master'`, or the worker's endpoint as it was given in `rpc`. */
  readonly device: string;
  /** Indices of the repeating layers the device holds, ascending; empty when it holds none. */
  readonly layers: readonly number[];
  /** Whether the device holds the output head (`output`, `output_norm`, or the tied embedding). */
  readonly head: boolean;
  /** Bytes of weights on the device: the sum over its tensors, without padding, KV cache or compute buffers. */
  readonly bytes: number;
}

/** A compute device of an RPC endpoint, as the endpoint reports it. Sizes are bytes. */
export interface RpcDevice {
  readonly name: string;
  readonly description: string;
  readonly memoryTotal: number;
  readonly memoryFree: number;
}

export interface LoadProgress {
  /**
   * The weights are hashed first, to find out which of them the workers have already (`'weights'`, only with workers
   * that hold some); then the model itself is loaded, the draft model, and the multimodal projector.
   */
  readonly stage: 'weights' | 'text_model' | 'spec_model' | 'mmproj_model';
  /** 0 to 1 within the stage. */
  readonly fraction: number;
}

/** Traffic between this master and one worker since the context was created. */
export interface WorkerTraffic {
  readonly endpoint: string;
  /** Graphs this master asked the worker to compute. */
  readonly graphs: number;
  readonly messagesSent: number;
  readonly messagesReceived: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  /** System calls that sent them: the messages of one step leave together. */
  readonly writes: number;
  /** Times the master had to wait for an answer. */
  readonly waits: number;
  /** Milliseconds spent waiting for the worker's answers. */
  readonly waitMs: number;
  /** Milliseconds the worker computed for this master, by its own clock; 0 when it is not a droid-llama worker. */
  readonly computeMs: number;
  /** Bytes of weights that were sent, and that the worker already had, in memory or in its cache. */
  readonly weightsSent: number;
  readonly weightsReused: number;
}

/** Why a context cannot be used any more. */
export interface WorkerFailure {
  /** Of a model that had loaded: `DROID_WORKER_LOST`, `…_PROTOCOL`, `…_REFUSED` or `…_OUT_OF_MEMORY`. */
  readonly code: ErrorCode;
  readonly message: string;
  /** The worker, as it was given in `rpc`. */
  readonly endpoint: string;
}

export interface EngineStats {
  /** Tokens sampled so far, over all requests; this is the engine's own counter and moves with every token. */
  readonly tokensGenerated: number;
  /** Prompt tokens computed so far; what came out of the prompt cache does not count. */
  readonly promptTokens: number;
  /** Mean generation speed of the requests that have ended, in tokens per second of one stream; 0 before the first. */
  readonly tokensPerSecond: number;
  /** Mean prompt processing speed, in tokens per second; 0 before the first. */
  readonly promptTokensPerSecond: number;
  /** Requests that are being answered at the moment. */
  readonly activeRequests: number;
}

export interface ContextStats {
  readonly workers: readonly WorkerTraffic[];
  readonly engine: EngineStats;
}

/** What `ctx.request()` resolves to: a status, lower-case headers, and the body as the engine produces it. */
export interface EngineResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** Ending the iteration early (`break`, `return()`) stops generation. */
  readonly body: AsyncIterable<Uint8Array>;
}

export interface UploadedFile {
  readonly data: Uint8Array;
  readonly filename: string;
  readonly contentType: string;
}

export interface RequestOptions {
  signal?: AbortSignal;
  /** Query parameters, e.g. `{ action: 'save' }`. */
  query?: Record<string, string>;
  headers?: Record<string, string>;
  /** Files of a multipart upload, by field name. */
  files?: Record<string, UploadedFile>;
}

/** One endpoint of the engine; `path` may hold `:name` parameters. */
export interface EngineRoute {
  readonly method: 'GET' | 'POST';
  readonly path: string;
}
