import {
  addon,
  type NativeEngine,
  type NativePlacement,
  setLogLevel,
  toDroidLlamaError,
  workerFailure,
} from './addon.js';
import {
  type CheckedOptions,
  checkLinkedOptions,
  checkOptions,
  type DistributedContextOptions,
  type LinkedContextOptions,
} from './context-options.js';
import { type RequestBody, sendRequest } from './engine-request.js';
import { DroidLlamaError } from './errors.js';
import type { HttpServer, HttpServerOptions } from './http/server.js';
import { requestEmbeddings, requestTokens, streamRequest } from './requests.js';
import { startEngine } from './start-engine.js';
import type { ContextStats, EngineResponse, EngineRoute, Placement, RequestOptions, WorkerFailure } from './types.js';
import { linkAccess, plainAccess, type WorkerAccess, type WorkerLink } from './worker-link.js';

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
  readonly #onClosed: (() => Promise<void>) | undefined;
  #closing?: Promise<void>;

  /** Use {@link createDistributedContext}. */
  constructor(engine: NativeEngine, placement: readonly Placement[], onClosed?: () => Promise<void>) {
    this.#engine = engine;
    this.placement = placement;
    this.#onClosed = onClosed;
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
    return streamRequest(this, '/v1/chat/completions', request, options);
  }

  /** Streams the completion of a prompt; like {@link chat}. */
  complete(request: CompletionRequest, options: CallOptions = {}): AsyncGenerator<CompletionChunk, void, undefined> {
    return streamRequest(this, '/v1/completions', request, options);
  }

  /**
   * Embeds one or more texts; needs `embeddings: true`.
   * @returns one vector for each text, in order
   */
  embed(input: string | readonly string[], options: CallOptions = {}): Promise<number[][]> {
    return requestEmbeddings(this, input, options);
  }

  /** The token ids of a text; `addSpecial` adds those the model puts around a text. Default false. */
  tokenize(content: string, options: CallOptions & { addSpecial?: boolean } = {}): Promise<number[]> {
    return requestTokens(this, content, options);
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
    this.#closing ??= Promise.all([...this.#servers].map((server) => server.close()))
      .then(() => this.#engine.close())
      .finally(() => this.#onClosed?.());
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Makes this process a master: checks the model and the workers, places the layers, loads, and returns when requests
 * can be answered. With a `token` RPC is encrypted; without one it is plain, which `insecure` allows with other devices.
 *
 * Rejects with a code of {@link DroidLlamaError}: `DROID_INVALID_ARGUMENT`, `DROID_INSECURE`, `DROID_MODEL_*`,
 * `DROID_ENDPOINT_*`, `DROID_TOKEN_REJECTED`, `DROID_VERSION_MISMATCH`, `DROID_WORKER_BUSY` and most of
 * `DROID_OUT_OF_MEMORY` before anything is loaded; `DROID_WORKER_*` when a worker fails meanwhile; or with the signal's
 * reason.
 */
export async function createDistributedContext(options: DistributedContextOptions): Promise<DistributedContext> {
  const { rpc, token, ...checked } = checkOptions(options, addon().buildInfo().maxWorkers);
  checked.signal?.throwIfAborted();
  if (token === undefined || rpc.length === 0) return loadContext(checked, rpc.map(plainAccess));

  const [{ startTransport }, { workerLink }] = await Promise.all([
    import('./transport/tls-transport.js'),
    import('./rpc-stream.js'),
  ]);
  const transport = await startTransport({ token });
  const links = rpc.map((endpoint) => workerLink(transport, endpoint, checked.timeouts.connectMs));
  return loadContext(checked, links.map(linkAccess), () => transport.close());
}

/**
 * Like {@link createDistributedContext}, with workers whose streams somebody else opens: two for each worker, one to ask
 * for its memory and one for the model. Also rejects with what opening them does.
 */
export async function createContextOverLinks(
  options: LinkedContextOptions,
  workers: readonly WorkerLink[],
): Promise<DistributedContext> {
  const checked = checkLinkedOptions(options, workers.length, addon().buildInfo().maxWorkers);
  checked.signal?.throwIfAborted();
  return loadContext(checked, workers.map(linkAccess));
}

/** `onClosed` is called once the engine is gone, also when there will be no context. */
async function loadContext(
  options: CheckedOptions,
  workers: readonly WorkerAccess[],
  onClosed?: () => Promise<void>,
): Promise<DistributedContext> {
  const { signal } = options;
  let engine: NativeEngine | undefined;
  const abort = () => void engine?.close();
  try {
    signal?.throwIfAborted();
    if (options.logLevel) setLogLevel(options.logLevel);
    engine = await startEngine(options, workers);
    signal?.addEventListener('abort', abort, { once: true });
    if (signal?.aborted) abort();
    const native = await engine.loaded();
    return new DistributedContext(engine, namePlacement(native, workers), onClosed);
  } catch (error) {
    try {
      await engine?.close();
    } finally {
      await onClosed?.();
    }
    signal?.throwIfAborted();
    throw toDroidLlamaError(error);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

function namePlacement(
  native: readonly NativePlacement[],
  workers: readonly Pick<WorkerAccess, 'endpoint'>[],
): readonly Placement[] {
  return native.map(({ layers, head, bytes }, i) => ({
    device: i === 0 ? 'master' : (workers[i - 1]?.endpoint as string),
    layers,
    head,
    bytes,
  }));
}
