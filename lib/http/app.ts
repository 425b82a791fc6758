import fastifyCors from '@fastify/cors';
import fastifyMultipart from '@fastify/multipart';
import { type FastifyInstance, type FastifyReply, fastify } from 'fastify';
import { createKeyCheck, isPublicPath } from './auth.js';
import { isMultipart } from './body.js';
import {
  answerClientError,
  bodyTooLarge,
  messageOf,
  SERVER_NAME,
  sendError,
  setRetryAfter,
  statusOf,
} from './errors.js';
import type { ResolvedOptions } from './options.js';

/** A client that takes longer than this over its headers is not a client but a way to hold connections open. */
export const HEADERS_TIMEOUT_MS = 30_000;

/**
 * The server around the routes: limits, timeouts, CORS, the API key, and every error that does not come from a route.
 *
 * @param unavailable - why no request is answered at the moment, if so; asked once a request.
 */
export async function createApp(
  { bodyLimit, corsOrigin, apiKeys }: Pick<ResolvedOptions, 'bodyLimit' | 'corsOrigin' | 'apiKeys'>,
  unavailable: () => string | undefined,
): Promise<FastifyInstance> {
  const app = fastify({
    bodyLimit,
    // Computing a long prompt on a phone takes minutes, during which neither side sends anything.
    requestTimeout: 0,
    connectionTimeout: 0,
    // Phones leave the network without saying goodbye; TCP's own probes find out.
    http: { headersTimeout: HEADERS_TIMEOUT_MS, requestTimeout: 0, keepAlive: true, keepAliveInitialDelay: 30_000 },
    forceCloseConnections: true,
    // Its answer has another shape; the hook that says 503 while loading says it while closing, too.
    return503OnClosing: false,
    // Fastify's HEAD routes need a reply that it sends itself; a route here answers HEAD along with its GET.
    exposeHeadRoutes: false,
    frameworkErrors: (error, _request, reply) => sendError(reply as FastifyReply, statusOf(error), error.message),
    clientErrorHandler: answerClientError,
  });

  app.setNotFoundHandler((_request, reply) => sendError(reply, 404, 'File Not Found'));
  app.setErrorHandler<Error & { code?: string }>((error, _request, reply) => {
    const known = error.code === 'FST_ERR_CTP_BODY_TOO_LARGE' ? bodyTooLarge(bodyLimit) : error;
    setRetryAfter(reply, known);
    sendError(reply, statusOf(known), messageOf(known));
  });

  app.addHook('onRequest', (request, reply, done) => {
    reply.header('server', SERVER_NAME);
    // llama-server takes JSON under any content type, even a malformed one, which Fastify would answer with 415.
    if (!isMultipart(request.headers['content-type'])) delete request.raw.headers['content-type'];
    done();
  });

  // Pages of any origin may call the server, as with llama-server, but never with credentials: the key travels in a
  // header that the page itself must know, and there are no cookies, so `*` lends nobody's authority. The requested
  // headers are reflected, because a wildcard would not cover `Authorization`.
  await app.register(fastifyCors, {
    origin: typeof corsOrigin === 'object' ? [...corsOrigin] : corsOrigin,
    methods: ['GET', 'HEAD', 'POST', 'OPTIONS'],
    optionsSuccessStatus: 200,
    strictPreflight: false,
  });

  const hasKey = createKeyCheck(apiKeys);
  app.addHook('onRequest', (request, reply, done) => {
    // The order is llama-server's: an unready server says so to everybody, and only then asks for the key.
    const reason = unavailable();
    const needsKey = request.method !== 'OPTIONS' && !isPublicPath(request.routeOptions.url);
    if (reason !== undefined) sendError(reply, 503, reason);
    else if (needsKey && !hasKey(request.headers)) sendError(reply, 401, 'Invalid API Key');
    else done();
  });

  app.removeAllContentTypeParsers();
  await app.register(fastifyMultipart);
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));
  return app;
}
