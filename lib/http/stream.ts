import { once } from 'node:events';
import type { FastifyReply } from 'fastify';
import type { EngineResponse } from '../types.js';
import { errorDetails, messageOf, statusOf } from './errors.js';

export interface SendOptions {
  /** Aborted when the client is gone or the server closes; ends the engine's iterator at once. */
  readonly signal: AbortSignal;
  /** The route's path: an error in the middle of `/v1/messages` takes Anthropic's form. */
  readonly path: string;
}

/**
 * Sends the engine's answer chunk by chunk. The next chunk is asked for only when the socket has taken the last one,
 * so a slow reader slows generation down instead of filling memory.
 *
 * @throws what the engine threw before the headers were sent; nothing once they are.
 */
export async function sendResponse(
  response: EngineResponse,
  reply: FastifyReply,
  { signal, path }: SendOptions,
): Promise<void> {
  const chunks = response.body[Symbol.asyncIterator]();
  let ended: Promise<void> | undefined;
  const end = (): void => {
    ended ??= endIteration(chunks);
  };
  signal.addEventListener('abort', end, { once: true });
  try {
    if (!signal.aborted) await writeResponse(response, chunks, reply, { signal, path });
  } finally {
    // However it went: after a HEAD, a hang-up or a failure on this side the engine would go on for nobody.
    signal.removeEventListener('abort', end);
    end();
    await ended;
  }
}

async function writeResponse(
  { status, headers }: EngineResponse,
  chunks: AsyncIterator<Uint8Array>,
  reply: FastifyReply,
  { signal, path }: SendOptions,
): Promise<void> {
  const isEventStream = headers['content-type']?.startsWith('text/event-stream') ?? false;
  const isHead = reply.request.method === 'HEAD';
  // The headers of an event stream go out at once, as its first token may be minutes away. Any other answer waits for
  // its first chunk, so that a failure until then still gets a status of its own.
  let next = isEventStream || isHead ? undefined : await chunks.next();
  if (signal.aborted) return;

  const res = reply.raw;
  // A socket that breaks between two writes makes `write` emit an error; the hang-up is seen on `close` instead.
  res.on('error', () => {});
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    if (value !== undefined) res.setHeader(name, value);
  }
  // nginx would hold the events back until it has a buffer full of them.
  if (isEventStream) res.setHeader('x-accel-buffering', 'no');
  res.writeHead(status, headers);
  // Only now, so that Fastify still answers if a header of the engine's cannot be sent.
  reply.hijack();
  if (isHead) {
    res.end();
    return;
  }
  if (isEventStream) res.flushHeaders();
  try {
    for (next ??= await chunks.next(); !next.done; next = await chunks.next()) {
      if (signal.aborted) return;
      if (!res.write(next.value)) await once(res, 'drain', { signal });
    }
    if (!signal.aborted) res.end();
  } catch (error) {
    if (signal.aborted) return;
    if (isEventStream) res.end(errorEvent(error, path));
    // The status said the answer would be whole; a broken connection is the only way left to say that it is not.
    else res.destroy();
  }
}

/** The last event of a stream that failed: OpenAI clients look for `error` in the data, Anthropic's for the event. */
function errorEvent(error: unknown, path: string): string {
  const details = errorDetails(statusOf(error), messageOf(error));
  return path === '/v1/messages'
    ? `event: error\ndata: ${JSON.stringify({ type: 'error', error: details })}\n\n`
    : `data: ${JSON.stringify({ error: details })}\n\n`;
}

async function endIteration(chunks: AsyncIterator<Uint8Array>): Promise<void> {
  try {
    await chunks.return?.();
  } catch {
    // The client is gone: there is nobody left to tell.
  }
}
