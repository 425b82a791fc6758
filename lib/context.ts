import { access, constants } from 'node:fs/promises';
import { freemem } from 'node:os';
import {
  addon,
  type NativeEngine,
  type NativePlacement,
  setLogLevel,
  toDroidLlamaError,
  workerFailure,
} from './addon.js';
import { type CheckedOptions, checkOptions, type DistributedContextOptions } from './context-options.js';
import { type RequestBody, sendRequest } from './engine-request.js';
import { DroidLlamaError, splitCode } from './errors.js';
import type { HttpServer, HttpServerOptions } from './http/server.js';
import { type DeviceMemory, planLayers } from './placement.js';
import { parseEndpoint, probeEndpoint } from './probe.js';
import { parseServerSentEvents } from './sse.js';
import type {
  ContextStats,
  EngineResponse,
  EngineRoute,
  LoadProgress,
  Placement,
  RequestOptions,
  WorkerFailure,
} from './types.js';
import { plainObject } from './validate.js';

/** A chunk of a streamed chat completion in OpenAI's format; llama-server's own fields are there too. */
export interface ChatCompletionChunk {
  readonly id: string;
  readonly object: 'chat.completion.chunk';
  readonly created: number;
  readonly model: string;
  readonly choices: readonly {
    readonly index: number;
    readonly delta: { readonly role?: string; readonly content?: string | null; readonly [field: string]: unknown };
    readonly finish_reason: string | null;
  }[];
  /** In the last chunk, with `stream_options: { include_usage: true }`. */
  readonly usage?: TokenUsage;
  /** In the last chunk: llama-server's own measurements. */
  readonly timings?: Timings;
  readonly [field: string]: unknown;
}

export interface TokenUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
}

export interface Timings {
  readonly prompt_n: number;
  readonly prompt_per_second: number;
  readonly predicted_n: number;
  readonly predicted_per_second: number;
  readonly [field: string]: number | readonly number[] | undefined;
}

/** A chunk of a streamed completion in OpenAI's format. */
export interface CompletionChunk {
  readonly choices: readonly { readonly index: number; readonly text: string; readonly finish_reason: string | null }[];
  readonly [field: string]: unknown;
}

/** A request body of OpenAI's format; any further field goes to llama-server as it is. */
export interface ChatRequest {
  readonly messages: readonly object[];
  readonly max_tokens?: number;
  readonly temperature?: number;
  readonly [field: string]: unknown;
}

export interface CompletionRequest {
  readonly prompt: string | readonly number[];
  readonly max_tokens?: number;
  readonly temperature?: number;
  readonly [field: string]: unknown;
}

export interface CallOptions {
  /** Ends the generation; the call then rejects with its reason. */
  signal?: AbortSignal;
}

/**
 * A loaded model on this device and its workers, and llama-server's API to it.
 * Made by {@link createDistributedContext}. Close it to free the memory on every device.
 */
export class DistributedContext {
  /** What llama.cpp really did, read from the tensors' buffers: the master first, then each worker of `rpc`. */
  readonly placement: readonly Placement[];
  readonly #engine: NativeEngine;
  readonly #servers = new Set<HttpServer>();
  #closing?: Promise<void>;

  /** Use {@link createDistributedContext}. */
  constructor(engine: NativeEngine, placement: readonly Placement[]) {
    this.#engine = engine;
    this.placement = placement;
  }

  /**
   * The first failure of a worker, if there was one. It is final: what needs that worker fails from then on, and
   * `/health` answers 503. Close the context, and make a new one once the worker is back.
   */
  get failure(): WorkerFailure | undefined {
    const failure = this.#engine.failure();
    return failure ? workerFailure(failure) : undefined;
  }

  /** The endpoints {@link request} and {@link listen} answer: llama-server's in single-model mode. */
  get routes(): readonly EngineRoute[] {
    return addon().buildInfo().routes;
  }

  /**
   * Streams a chat completion. Ending the loop early ends the generation.
   * Throws `DROID_REQUEST_FAILED` with the engine's status, `DROID_WORKER_*` with it when a worker's failure is the
   * reason, `DROID_CLOSED`, or the signal's reason.
   */
  chat(request: ChatRequest, options: CallOptions = {}): AsyncGenerator<ChatCompletionChunk, void, undefined> {
    return this.#stream('/v1/chat/completions', request, options);
  }

  /** Streams the completion of a prompt; like {@link chat}. */
  complete(request: CompletionRequest, options: CallOptions = {}): AsyncGenerator<CompletionChunk, void, undefined> {
    return this.#stream('/v1/completions', request, options);
  }

  /**
   * Embeds one or more texts; needs `embeddings: true`.
   * @returns one vector for each text, in order
   */
  async embed(input: string | readonly string[], options: CallOptions = {}): Promise<number[][]> {
    const answer = (await this.#json('/v1/embeddings', { input }, options)) as { data: { embedding: number[] }[] };
    return answer.data.map(({ embedding }) => embedding);
  }

  /** The token ids of a text; `addSpecial` adds those the model puts around a text. Default false. */
  async tokenize(content: string, options: CallOptions & { addSpecial?: boolean } = {}): Promise<number[]> {
    const body = { content, add_special: options.addSpecial ?? false };
    return ((await this.#json('/tokenize', body, options)) as { tokens: number[] }).tokens;
  }

  /**
   * Sends a request to one of llama-server's endpoints, without HTTP.
   * @param path may hold a query; see {@link routes} for the paths
   * @param body an object is sent as JSON
   * @returns the answer whatever its status; only an abort and a closed context reject
   */
  request(method: string, path: string, body?: RequestBody, options: RequestOptions = {}): Promise<EngineResponse> {
    return sendRequest(this.#engine, method, path, body, options);
  }

  /**
   * Serves llama-server's API over HTTP until the server or the context is closed.
   * Rejects with `DROID_PORT_IN_USE` or `DROID_INVALID_ARGUMENT`.
   */
  async listen(options: HttpServerOptions = {}): Promise<HttpServer> {
    if (this.#closing) throw new DroidLlamaError('DROID_CLOSED', 'The context is closed.');
    const { startHttpServer } = await import('./http/server.js');
    const inner = await startHttpServer(this.routes, this, options);
    const close = () => {
      this.#servers.delete(server);
      return inner.close();
    };
    const server: HttpServer = { ...inner, close, [Symbol.asyncDispose]: close };
    this.#servers.add(server);
    if (this.#closing) await close();
    return server;
  }

  /** Traffic with each worker and the engine's counters since loading; keeps its last values after {@link close}. */
  stats(): ContextStats {
    const { workers, ...engine } = this.#engine.stats();
    return { workers, engine };
  }

  /** Ends every request and server and frees the memory on every device; waits for the running batch. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= Promise.all([...this.#servers].map((server) => server.close())).then(() => this.#engine.close());
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async *#stream<Chunk>(path: string, request: object, options: CallOptions): AsyncGenerator<Chunk, void, undefined> {
    plainObject('the request', request);
    const response = await this.request('POST', path, { ...request, stream: true }, options);
    if (response.status >= 400) throw await this.#requestFailed(response);
    for await (const event of parseServerSentEvents(response.body)) {
      if (isErrorEvent(event)) throw this.#errorOf(event, event.error.code ?? 500);
      yield event as Chunk;
    }
  }

  async #json(path: string, body: object, options: CallOptions): Promise<unknown> {
    const response = await this.request('POST', path, body, options);
    if (response.status >= 400) throw await this.#requestFailed(response);
    return JSON.parse(await readText(response.body));
  }

  async #requestFailed(response: EngineResponse): Promise<DroidLlamaError> {
    const text = await readText(response.body);
    try {
      const body: unknown = JSON.parse(text);
      if (isErrorEvent(body)) return this.#errorOf(body, response.status);
    } catch {
      // Not JSON: the text itself is the message.
    }
    return this.#errorOf(
      { error: { message: text || `The engine answered with status ${response.status}.` } },
      response.status,
    );
  }

  #errorOf({ error }: ErrorEvent, status: number): DroidLlamaError {
    // What the caller did wrong stays that, also when a worker is lost.
    const failure = status >= 500 ? this.failure : undefined;
    if (failure) return new DroidLlamaError(failure.code, failure.message, { status });
    const { code, message } = splitCode(error.message ?? 'The engine answered with an error.');
    return new DroidLlamaError(code ?? 'DROID_REQUEST_FAILED', message, { status });
  }
}

interface ErrorEvent {
  error: { message?: string; code?: number };
}

function isErrorEvent(event: unknown): event is ErrorEvent {
  const error = (event as Partial<ErrorEvent> | null)?.error;
  return typeof error === 'object' && error !== null;
}

async function readText(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

/**
 * Makes this process a master: checks the model and the workers, places the layers, loads, and returns when requests
 * can be answered.
 *
 * Rejects with a code of {@link DroidLlamaError}: `DROID_INVALID_ARGUMENT`, `DROID_MODEL_*`, `DROID_ENDPOINT_*`,
 * `DROID_VERSION_MISMATCH`, `DROID_WORKER_BUSY` and most of `DROID_OUT_OF_MEMORY` before anything is loaded;
 * `DROID_WORKER_*` when a worker fails meanwhile; or with the signal's reason.
 */
export async function createDistributedContext(options: DistributedContextOptions): Promise<DistributedContext> {
  const checked = checkOptions(options, addon().buildInfo().maxWorkers);
  const { signal } = checked;
  signal?.throwIfAborted();
  if (checked.logLevel) setLogLevel(checked.logLevel);

  const engine = await startEngine(checked);
  const abort = () => void engine.close();
  signal?.addEventListener('abort', abort, { once: true });
  try {
    if (signal?.aborted) abort();
    const native = await engine.loaded();
    return new DistributedContext(engine, namePlacement(native, checked.rpc));
  } catch (error) {
    await engine.close();
    signal?.throwIfAborted();
    throw toDroidLlamaError(error);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

/** Everything that can be known to fail is checked here, before the engine sees the model. */
async function startEngine(options: CheckedOptions): Promise<NativeEngine> {
  const { signal } = options;
  try {
    const model = await addon().inspectModel(options.model);
    signal?.throwIfAborted();
    await Promise.all([...options.loras.map(({ path }) => path), options.draft].filter(Boolean).map(checkReadable));
    const workers = await Promise.all(options.rpc.map((endpoint) => describeWorker(endpoint, options)));
    signal?.throwIfAborted();
    const plan = planLayers({
      model,
      devices: [{ device: 'master', memoryFree: freemem() }, ...workers],
      tensorSplit: options.tensorSplit,
      headOnWorker: options.headOnWorker,
      contextSize: options.contextSize,
      mmap: options.mmap,
    });
    const { rpc, tensorSplit, logLevel, onProgress, onWorkerLost, signal: _, ...rest } = options;
    const native = {
      ...rest,
      workers: rpc.map((endpoint, i) => ({
        endpoint,
        ...parseEndpoint(endpoint),
        layers: plan.layers[i + 1] ?? 0,
      })),
      outerTensors: model.outerTensors,
    };
    return new (addon().Engine)(
      native,
      (stage, fraction) => onProgress({ stage: stage as LoadProgress['stage'], fraction }),
      (index, code, message) => {
        const failure = workerFailure({ code, message, endpoint: rpc[index] as string });
        onWorkerLost(new DroidLlamaError(failure.code, failure.message), failure.endpoint);
      },
    );
  } catch (error) {
    throw toDroidLlamaError(error);
  }
}

async function describeWorker(endpoint: string, options: CheckedOptions): Promise<DeviceMemory> {
  const info = await probeEndpoint(endpoint, { timeoutMs: options.timeouts.connectMs, signal: options.signal });
  return { device: endpoint, memoryFree: info.devices[0]?.memoryFree ?? 0 };
}

async function checkReadable(path: string): Promise<void> {
  try {
    await access(path, constants.R_OK);
  } catch (cause) {
    throw new DroidLlamaError('DROID_MODEL_NOT_FOUND', `Cannot open ${path}: ${(cause as Error).message}`, { cause });
  }
}

function namePlacement(native: readonly NativePlacement[], rpc: readonly string[]): readonly Placement[] {
  return native.map(({ layers, head, bytes }, i) => ({
    device: i === 0 ? 'master' : (rpc[i - 1] as string),
    layers,
    head,
    bytes,
  }));
}
