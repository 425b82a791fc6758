import type { FastifyReply, FastifyRequest } from 'fastify';
import { DroidLlamaError } from '../errors.js';
import type { EngineResponse, EngineRoute, RequestOptions } from '../types.js';
import { createApp } from './app.js';
import { readBody } from './body.js';
import { messageOf } from './errors.js';
import { abortOnHangUp } from './hang-up.js';
import { isLoopback, listen, urlOf } from './listen.js';
import { type HttpServerOptions, resolveOptions } from './options.js';
import { concretePath, engineHeaders, engineQuery } from './request.js';
import { sendResponse } from './stream.js';

export type { HttpServerOptions } from './options.js';

/** What the HTTP layer needs of a context; `DistributedContext` satisfies it structurally. */
export interface HttpBackend {
  /** Every endpoint; a path may hold parameters such as `:id_slot`. */
  readonly routes: readonly EngineRoute[];
  request(method: string, path: string, body: Uint8Array | undefined, options: RequestOptions): Promise<EngineResponse>;
}

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
  let unavailable: string | undefined = 'Loading model';
  let closing: Promise<void> | undefined;
  const ready = Promise.resolve(backend);
  // Before anything may throw: a load that fails is answered to clients and must never go unhandled.
  ready.then(
    () => becomes(undefined),
    (error: unknown) => becomes(messageOf(error)),
  );

  const settings = resolveOptions(options);
  const { signal, bodyLimit } = settings;
  signal?.throwIfAborted();

  /** Requests the engine has to do with, each with what stops it. */
  const running = new Map<Promise<void>, AbortController>();

  const app = await createApp(settings, () => unavailable);
  for (const route of routes) {
    app.route({
      method: route.method === 'GET' ? ['GET', 'HEAD'] : route.method,
      url: route.path,
      handler: (request, reply) => {
        const controller = new AbortController();
        const answered = answer(route, request, reply, controller).finally(() => running.delete(answered));
        running.set(answered, controller);
        return answered;
      },
    });
  }

  try {
    const address = await listen(app, settings.host, settings.port);
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

  function becomes(reason: string | undefined): void {
    if (!closing) unavailable = reason;
  }

  function close(): Promise<void> {
    closing ??= shutDown();
    return closing;
  }

  async function shutDown(): Promise<void> {
    unavailable = 'The server is closing';
    signal?.removeEventListener('abort', close);
    const reason = new DroidLlamaError('DROID_CLOSED', 'The HTTP server was closed while it answered the request.');
    for (const controller of running.values()) controller.abort(reason);
    await app.close();
    await Promise.allSettled(running.keys());
  }

  async function answer(
    route: EngineRoute,
    request: FastifyRequest,
    reply: FastifyReply,
    controller: AbortController,
  ): Promise<void> {
    abortOnHangUp(request.raw, reply.raw, controller);
    const hangUp = controller.signal;
    try {
      const { body, files } = await readBody(request, bodyLimit);
      hangUp.throwIfAborted();
      const params = request.params as Record<string, string>;
      const engine = await ready;
      const response = await engine.request(route.method, concretePath(route, params), body, {
        signal: hangUp,
        query: engineQuery(request.query, params),
        headers: engineHeaders(request.raw),
        ...(files && { files }),
      });
      await sendResponse(response, reply, { signal: hangUp, path: route.path });
    } catch (error) {
      if (!hangUp.aborted) throw error;
    }
    if (hangUp.aborted) {
      // Nobody is there to read an answer, and Fastify would send an empty one.
      reply.hijack();
      reply.raw.destroy();
    }
  }
}
