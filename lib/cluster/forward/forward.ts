/** Requests to the master's engine from another member: HTTP/1.1 over a stream between the two, one for each request. */
import { type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http';
import { Socket } from 'node:net';
import type { RequestBody } from '../../engine-request.js';
import { DroidLlamaError } from '../../errors.js';
import type { SecureStream } from '../../transport/transport.js';
import type { EngineResponse, RequestOptions } from '../../types.js';
import { notReady } from '../master/request-gate.js';
import { forwardBody } from './forward-body.js';
import { streamBody } from './stream-body.js';

/** What the engine's headers need at most; more is no master's answer. */
const MAX_HEADER_BYTES = 16 * 1024;

/** Of one connection, or of its body's encoding; each side has its own. */
const OWN_HEADERS: ReadonlySet<string> = new Set([
  'connection',
  'content-length',
  'date',
  'expect',
  'host',
  'http2-settings',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'server',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
]);
/** This device's key opens this device, and the stream is proven already: nobody else need know it. */
const SECRET_HEADERS: ReadonlySet<string> = new Set(['authorization', 'cookie', 'x-api-key']);

/** Opens an `http` stream to the master; the descriptor is the caller's. */
export type OpenHttpStream = (signal?: AbortSignal) => Promise<Pick<SecureStream, 'fd'>>;

/**
 * Sends a request to the master and resolves with its answer, whatever its status. The body comes as it is generated,
 * and no faster than it is read; ending its iteration, or aborting, hangs up, which ends the generation.
 *
 * Rejects with `DROID_NOT_READY` when the stream does not open or breaks before the answer begins, with the cause; with
 * `DROID_INVALID_ARGUMENT` for what HTTP cannot carry; or with the signal's reason. After that the body's iteration
 * fails with `DROID_CLOSED` when the connection to the master is lost.
 *
 * @param open is told when the caller gives up
 * @param path may hold a query
 * @param body as in `DistributedContext.request`; with `options.files` an object (or its JSON) of the form's fields
 */
export async function forwardRequest(
  open: OpenHttpStream,
  method: string,
  path: string,
  body: RequestBody,
  options: RequestOptions = {},
): Promise<EngineResponse> {
  const { signal } = options;
  signal?.throwIfAborted();
  // Before the stream is opened, as it may find fault with the arguments.
  const { bytes, contentType } = forwardBody(body, options);
  const headers = endToEnd(options.headers ?? {}, SECRET_HEADERS);
  delete headers['content-type'];
  if (contentType !== undefined) headers['content-type'] = contentType;
  const target = withQuery(path, options.query);

  const socket = await openSocket(open, signal);
  let request: ClientRequest;
  try {
    request = httpRequest({
      createConnection: () => socket,
      method,
      path: target,
      headers: { ...headers, host: 'master', 'content-length': bytes.length },
      maxHeaderSize: MAX_HEADER_BYTES,
    });
  } catch (cause) {
    socket.destroy();
    const message = `The request cannot be sent: ${(cause as Error).message}`;
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', message, { cause });
  }
  // Errors of the socket's that come after the answer are the answer's.
  request.on('error', () => {});
  socket.on('error', () => {});
  const abort = (): void => void socket.destroy();
  signal?.addEventListener('abort', abort, { once: true });
  const end = (): void => {
    signal?.removeEventListener('abort', abort);
    socket.destroy();
  };
  try {
    request.end(bytes);
    const response = await answerTo(request);
    // Nothing is lost when it aborts right now: the body is read from a socket that is destroyed.
    return {
      status: response.statusCode ?? 500,
      headers: engineHeadersOf(response),
      body: streamBody(response, { signal, onEnd: end }),
    };
  } catch (cause) {
    end();
    signal?.throwIfAborted();
    throw notReady(`The master hung up before it answered: ${(cause as Error).message}`, cause);
  }
}

async function openSocket(open: OpenHttpStream, signal: AbortSignal | undefined): Promise<Socket> {
  const opening = (async () => open(signal))();
  let onAbort: () => void = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal?.reason);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
  try {
    const { fd } = await Promise.race([opening, aborted]);
    return socketOf(fd);
  } catch (cause) {
    // It may still come, to nobody.
    opening.then(({ fd }) => socketOf(fd).destroy(), ignore);
    signal?.throwIfAborted();
    throw notReady(`The master cannot be reached: ${(cause as Error).message}`, cause);
  } finally {
    signal?.removeEventListener('abort', onAbort);
    aborted.catch(ignore);
  }
}

function socketOf(fd: number): Socket {
  return new Socket({ fd, readable: true, writable: true }).on('error', ignore);
}

function answerTo(request: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    request.once('response', resolve);
    request.once('error', reject);
    request.once('close', () => reject(new Error('the stream was closed')));
  });
}

function withQuery(path: string, query: Record<string, string> = {}): string {
  const more = new URLSearchParams(query).toString();
  if (more === '') return path;
  return `${path}${path.includes('?') ? '&' : '?'}${more}`;
}

function endToEnd(headers: Readonly<Record<string, string>>, secret: ReadonlySet<string>): Record<string, string> {
  const kept = Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value] as const);
  return Object.fromEntries(kept.filter(([name]) => !OWN_HEADERS.has(name) && !secret.has(name)));
}

function engineHeadersOf({ headersDistinct }: IncomingMessage): Record<string, string> {
  const joined = Object.entries(headersDistinct).map(([name, values]) => [name, values?.join(', ') ?? '']);
  return endToEnd(Object.fromEntries(joined), new Set());
}

function ignore(): void {}
