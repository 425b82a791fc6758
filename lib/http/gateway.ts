import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { DroidLlamaError } from '../errors.js';
import type { EngineRoute } from '../types.js';
import { createApp } from './app.js';
import { isPublicPath } from './auth.js';
import type { HttpBackend } from './backend.js';
import { readBody } from './body.js';
import { JSON_CONTENT_TYPE, messageOf } from './errors.js';
import { abortOnHangUp } from './hang-up.js';
import type { ResolvedOptions } from './options.js';
import { concretePath, engineHeaders, engineQuery } from './request.js';
import { sendResponse } from './stream.js';
import { tellWorkerFailure } from './worker-failure.js';

/** The routes over a backend, ready to be given connections. */
export interface Gateway {
  readonly app: FastifyInstance;
  /** Aborts running requests and closes the server; resolves when the engine has let go of all. Idempotent. */
  close(): Promise<void>;
}

/**
 * @param backend until it resolves every route answers 503 `Loading model`, and if it rejects, 503 with the error's
 * message; a rejection never goes unhandled
 */
export async function createGateway(
  routes: readonly EngineRoute[],
  backend: Promise<HttpBackend>,
  settings: Pick<ResolvedOptions, 'apiKeys' | 'bodyLimit' | 'corsOrigin'>,
): Promise<Gateway> {
  let unavailable: string | undefined = 'Loading model';
  let closing: Promise<void> | undefined;
  backend.then(
    () => becomes(undefined),
    (error: unknown) => becomes(messageOf(error)),
  );

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
  return { app, close };

  function becomes(reason: string | undefined): void {
    if (!closing) unavailable = reason;
  }

  function close(): Promise<void> {
    closing ??= shutDown();
    return closing;
  }

  async function shutDown(): Promise<void> {
    unavailable = 'The server is closing';
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
      const { body, files } = await readBody(request, settings.bodyLimit);
      hangUp.throwIfAborted();
      const engine = await backend;
      const health = route.method === 'GET' && isPublicPath(route.path) ? engine.health?.() : undefined;
      if (health) {
        await reply.code(health.status).header('content-type', JSON_CONTENT_TYPE).send(JSON.stringify(health.body));
        return;
      }
      const params = request.params as Record<string, string>;
      const response = await engine.request(route.method, concretePath(route, params), body, {
        signal: hangUp,
        query: engineQuery(request.query, params),
        headers: engineHeaders(request.raw),
        ...(files && { files }),
      });
      await sendResponse(await tellWorkerFailure(response, hangUp), reply, { signal: hangUp, path: route.path });
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
