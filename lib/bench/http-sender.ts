/** Requests to a llama-server by HTTP, for measuring: no timeout that a slow phone would run into. */
import { type ClientRequest, type IncomingMessage, Agent as PlainAgent, request as plainRequest } from 'node:http';
import { request as secureRequest, Agent as TlsAgent } from 'node:https';
import { connectFault, errorParts } from '../connect-errors.js';
import type { RequestBody } from '../engine-request.js';
import { toBytes } from '../engine-request.js';
import { DroidLlamaError } from '../errors.js';
import type { RequestSender } from '../requests.js';
import type { EngineResponse, RequestOptions } from '../types.js';
import { invalid, show } from '../validate.js';

const CONNECT_TIMEOUT_MS = 10_000;
/** A peer that vanished is noticed by this; answers themselves may take as long as they need. */
const KEEP_ALIVE_MS = 10_000;
/** An event of a stream takes some 300 bytes, so this is enough for 100,000 tokens; a phone has to hold it. */
const MAX_ANSWER_BYTES = 32 * 1024 * 1024;

/** What was being done when no connection came about. */
const CONNECTING = ['connect', 'getaddrinfo'];

/** Sends the engine's requests to a server. Close it to hang up. */
export class HttpSender implements RequestSender {
  /** As it was given, without a slash at the end. */
  readonly url: string;
  readonly #base: URL;
  readonly #agent: PlainAgent | TlsAgent;
  readonly #headers: Readonly<Record<string, string>>;

  /** Throws `DROID_INVALID_ARGUMENT` for what is no http or https URL. */
  constructor(url: string, apiKey?: string) {
    this.#base = checkUrl(url);
    this.url = url.replace(/\/+$/, '');
    // A connection for each request: one that is kept may be closed by the server just when it is used again.
    const options = { keepAlive: false, maxSockets: Number.POSITIVE_INFINITY };
    this.#agent = this.#base.protocol === 'https:' ? new TlsAgent(options) : new PlainAgent(options);
    this.#headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  }

  /**
   * Resolves with whatever status the server answers. Rejects with `DROID_ENDPOINT_*` when it cannot be reached, with
   * `DROID_CLOSED` when it hangs up, with `DROID_REQUEST_FAILED` when it wants another key or tells an error as no
   * llama-server does, or with the signal's reason.
   */
  async request(method: string, path: string, body: RequestBody, options: RequestOptions): Promise<EngineResponse> {
    const { signal } = options;
    signal?.throwIfAborted();
    const bytes = body === undefined ? undefined : toBytes(body);
    const send = this.#base.protocol === 'https:' ? secureRequest : plainRequest;
    const request = send({
      method,
      protocol: this.#base.protocol,
      hostname: this.#base.hostname.replace(/^\[|\]$/g, ''),
      port: this.#base.port,
      path: `${this.#base.pathname.replace(/\/+$/, '')}${path}`,
      agent: this.#agent,
      headers: {
        ...this.#headers,
        ...options.headers,
        ...(bytes && { 'content-type': 'application/json', 'content-length': bytes.byteLength }),
      },
    });
    const abort = () => request.destroy();
    signal?.addEventListener('abort', abort, { once: true });
    try {
      const response = await this.#answer(request, bytes);
      const refusal = this.#refusal(path, response);
      if (refusal) {
        response.destroy();
        throw refusal;
      }
      const headers = Object.fromEntries(
        Object.entries(response.headers).map(([name, value]) => [name, String(value ?? '')]),
      );
      return { status: response.statusCode ?? 0, headers, body: this.#read(response, signal, abort) };
    } catch (error) {
      signal?.removeEventListener('abort', abort);
      signal?.throwIfAborted();
      throw this.#failure(error);
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  #answer(request: ClientRequest, body: Uint8Array | undefined): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      request.on('socket', (socket) => {
        socket.setNoDelay(true).setKeepAlive(true, KEEP_ALIVE_MS);
        if (!socket.connecting) return;
        const late = Object.assign(new Error('it did not answer in time'), { code: 'ETIMEDOUT' });
        timer = setTimeout(() => request.destroy(late), CONNECT_TIMEOUT_MS);
        socket.once('connect', () => clearTimeout(timer));
      });
      request.on('response', resolve);
      // It stays for what happens after the answer's head, which the body's reader tells.
      request.on('error', (error) => {
        clearTimeout(timer);
        reject(error);
      });
      request.end(body);
    });
  }

  /** What an answer says by its head alone; undefined where there is more in it. */
  #refusal(path: string, { statusCode: status = 0, headers }: IncomingMessage): DroidLlamaError | undefined {
    if (status < 400) return undefined;
    const refused = (what: string) => new DroidLlamaError('DROID_REQUEST_FAILED', what, { status });
    if (status === 401 || status === 403) {
      const wants = this.#headers.authorization === undefined ? 'wants a key' : 'wants another key';
      return refused(`${this.url} ${wants} (status ${status}): give it with --api-key`);
    }
    // A page, of a web server or of a proxy before the right one, is not for a terminal.
    if (/\bjson\b/i.test(headers['content-type'] ?? '')) return undefined;
    return refused(
      `${this.url} is no llama-server or droid-llama: it answers ${path} with status ${status} and no JSON`,
    );
  }

  async *#read(
    response: IncomingMessage,
    signal: AbortSignal | undefined,
    abort: () => void,
  ): AsyncGenerator<Uint8Array, void, undefined> {
    let total = 0;
    try {
      for await (const chunk of response as AsyncIterable<Uint8Array>) {
        total += chunk.byteLength;
        if (total > MAX_ANSWER_BYTES) throw new Error('its answer has no end');
        yield chunk;
      }
    } catch (error) {
      signal?.throwIfAborted();
      throw this.#failure(error);
    } finally {
      signal?.removeEventListener('abort', abort);
      response.destroy();
    }
  }

  #failure(error: unknown): unknown {
    if (!(error instanceof Error) || error instanceof DroidLlamaError) return error;
    const parts = errorParts(error);
    const why = parts.map(({ code, message }) => message || code).join(', ');
    if (parts.some(({ syscall }) => CONNECTING.includes(syscall ?? ''))) {
      return new DroidLlamaError(connectFault(error).code, `${this.url} cannot be reached: ${why}`, { cause: error });
    }
    return new DroidLlamaError('DROID_CLOSED', `${this.url} ended the connection: ${why}`, { cause: error });
  }
}

function checkUrl(url: string): URL {
  const rule = 'it must be the address of a llama-server or droid-llama, e.g. http://127.0.0.1:8080';
  if (typeof url !== 'string' || !URL.canParse(url)) invalid(`url is ${show(url)}; ${rule}.`);
  const parsed = new URL(url);
  if (parsed.protocol !== 'http:' && parsed.protocol !== 'https:') invalid(`url is ${show(url)}; ${rule}.`);
  return parsed;
}
