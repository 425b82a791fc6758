/** One request to the engine, from a JS call to an {@link EngineResponse}. */
import { addon, type NativeEngine, type NativeRequest, toDroidLlamaError } from './addon.js';
import { DroidLlamaError } from './errors.js';
import { serialIterator } from './serial-iterator.js';
import type { EngineResponse, EngineRoute, RequestOptions } from './types.js';
import { invalid, plainObject, show } from './validate.js';

/** What may be given as a body: JSON by value, or the bytes as they are. */
export type RequestBody = string | Uint8Array | object | undefined;

export async function sendRequest(
  engine: NativeEngine,
  method: string,
  target: string,
  body: RequestBody,
  options: RequestOptions,
): Promise<EngineResponse> {
  plainObject('options', options);
  const { signal } = options;
  if (signal !== undefined && !(signal instanceof AbortSignal)) invalid('signal must be an AbortSignal.');
  if (typeof method !== 'string' || typeof target !== 'string') invalid('method and path must be strings.');
  signal?.throwIfAborted();
  const [path = '/', queryString = ''] = target.split(/\?(.*)/s);
  const match = matchRoute(addon().buildInfo().routes, method, path);
  let native: NativeRequest;
  try {
    native = engine.request({
      method,
      route: match?.route.path ?? path,
      path,
      queryString,
      params: { ...Object.fromEntries(new URLSearchParams(queryString)), ...options.query, ...match?.params },
      headers: withoutConversation(options.headers),
      body: toBytes(body),
      files: options.files ?? {},
    });
  } catch (error) {
    throw toDroidLlamaError(error);
  }
  const cancel = () => native.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  const head = await native.head();
  if (!head) {
    signal?.removeEventListener('abort', cancel);
    throw cancellationOf(signal);
  }
  return { status: head.status, headers: head.headers, body: readBody(native, signal, cancel) };
}

/**
 * The body as an iterator of its own rather than a generator: return() must end the generation at once, also before
 * the first next() and while one is waiting, and a generator's does neither.
 */
function readBody(
  native: NativeRequest,
  signal: AbortSignal | undefined,
  cancel: () => void,
): AsyncIterableIterator<Uint8Array> {
  let ended = false;
  const end = () => {
    ended = true;
    native.cancel();
    signal?.removeEventListener('abort', cancel);
  };
  const read = async (): Promise<IteratorResult<Uint8Array>> => {
    if (ended) return { done: true, value: undefined };
    const chunk = await native.next();
    if (chunk) return { done: false, value: chunk };
    const stopped = ended;
    end();
    if (chunk === undefined && !stopped) throw cancellationOf(signal);
    return { done: true, value: undefined };
  };
  return serialIterator(read, end);
}

/** What an ended request rejects with: the caller's own reason, or that the context went away. */
function cancellationOf(signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) return signal.reason;
  return new DroidLlamaError('DROID_CLOSED', 'The context was closed before the answer was complete.');
}

/** Finds the route of a path; `:name` parts match one segment and are handed over decoded. */
export function matchRoute(
  routes: readonly EngineRoute[],
  method: string,
  path: string,
): { route: EngineRoute; params: Record<string, string> } | undefined {
  const parts = path.split('/');
  for (const route of routes) {
    if (route.method !== method) continue;
    const pattern = route.path.split('/');
    if (pattern.length !== parts.length) continue;
    const params: Record<string, string> = {};
    const matches = pattern.every((name, i) => {
      const part = parts[i] as string;
      if (!name.startsWith(':')) return name === part;
      params[name.slice(1)] = decode(part);
      return part !== '';
    });
    if (matches) return { route, params };
  }
  return undefined;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** With this header llama-server keeps a stream running after its client has gone, in a map of the whole process. */
function withoutConversation(headers: Record<string, string> = {}): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => name.toLowerCase() !== 'x-conversation-id'));
}

export function toBytes(body: RequestBody): Uint8Array {
  if (body === undefined) return new Uint8Array();
  if (body instanceof Uint8Array) return body;
  if (typeof body === 'string') return new TextEncoder().encode(body);
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  if (typeof body === 'object' && body !== null) {
    try {
      return new TextEncoder().encode(JSON.stringify(body));
    } catch (cause) {
      invalid(`The body cannot be sent as JSON: ${(cause as Error).message.split('\n')[0]}`);
    }
  }
  return invalid(`The body is ${show(body)}; it must be an object, a string or bytes.`);
}
