import type { Socket } from 'node:net';
import type { EngineRoute } from '../types.js';
import type { HttpBackend } from './backend.js';
import { createGateway, type Gateway } from './gateway.js';
import { isLoopback, listen, urlOf } from './listen.js';
import { type HttpServerOptions, resolveOptions, type SocketLimits } from './options.js';
import { serveSockets } from './sockets.js';

export type { HealthAnswer, HttpBackend } from './backend.js';
export type { HttpServerOptions } from './options.js';

export interface HttpServer {
  /** Where the server listens, e.g. `http://127.0.0.1:8080` or `http://[::1]:8080`. */
  readonly url: string;
  /** The address that was bound. */
  readonly host: string;
  readonly port: number;
  /** Stops listening, aborts running requests, cuts every connection; resolves when the engine has let go of all. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * Serves llama-server's single-model HTTP API over an engine in this process.
 *
 * It may be started before the model is loaded: until `backend` resolves every route answers 503 `Loading model`, and
 * if it rejects, 503 with the error's message. The server never closes the backend.
 *
 * @param routes - the endpoints to serve, known before the backend is.
 * @throws {@link DroidLlamaError} `DROID_PORT_IN_USE`, or `DROID_INVALID_ARGUMENT` for a bad option or address;
 * the signal's reason if it aborts before the server listens.
 */
export async function startHttpServer(
  routes: readonly EngineRoute[],
  backend: Promise<HttpBackend> | HttpBackend,
  options: HttpServerOptions = {},
): Promise<HttpServer> {
  const ready = handled(backend);
  const settings = resolveOptions(options);
  const { signal } = settings;
  signal?.throwIfAborted();
  const gateway = await createGateway(routes, ready, settings);
  try {
    const address = await listen(gateway.app, settings.host, settings.port);
    signal?.throwIfAborted();
    signal?.addEventListener('abort', close, { once: true });
    const url = urlOf(address);
    if (settings.apiKeys.length === 0 && !isLoopback(address.address)) {
      settings.onWarning(
        `${url} is open to every device that can reach it: no API key is set. ` +
          'Set one (apiKey, --api-key), or listen on 127.0.0.1.',
      );
    }
    return { url, host: address.address, port: address.port, close, [Symbol.asyncDispose]: close };
  } catch (error) {
    await close();
    throw error;
  }

  function close(): Promise<void> {
    signal?.removeEventListener('abort', close);
    return gateway.close();
  }
}

/** Serves connections that somebody else has accepted. */
export interface HttpHandler {
  /** Serves the requests of one connection; the socket is the handler's from here on. */
  handle(socket: Socket): void;
  /** Aborts running requests and cuts every connection; resolves when the engine has let go of all. Idempotent. */
  close(): Promise<void>;
}

/**
 * The same API for clients that are connected and proven already: no port, no API key, no pages of other origins.
 *
 * @param backend as with {@link startHttpServer}
 * @param options the limit of a body, as with {@link startHttpServer}, and those of the connections
 * @throws {@link DroidLlamaError} `DROID_INVALID_ARGUMENT` for a bad limit
 */
export function createHttpHandler(
  routes: readonly EngineRoute[],
  backend: Promise<HttpBackend> | HttpBackend,
  { bodyLimit, ...limits }: Pick<HttpServerOptions, 'bodyLimit'> & SocketLimits = {},
): HttpHandler {
  const ready = handled(backend);
  const settings = resolveOptions({ corsOrigin: false, ...(bodyLimit !== undefined && { bodyLimit }) });
  const gateway: Promise<Gateway> = createGateway(routes, ready, settings);
  return serveSockets(gateway, limits);
}

/** Before anything may throw: a load that fails is answered to clients and must never go unhandled. */
function handled(backend: Promise<HttpBackend> | HttpBackend): Promise<HttpBackend> {
  const ready = Promise.resolve(backend);
  ready.catch(() => {});
  return ready;
}
