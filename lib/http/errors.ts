import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyError, FastifyReply } from 'fastify';
import { DroidLlamaError, isWorkerCode, splitCode } from '../errors.js';

export const JSON_CONTENT_TYPE = 'application/json; charset=utf-8';
export const SERVER_NAME = 'droid-llama';

/** The names llama-server gives to its errors; clients written for it match them. */
const ERROR_TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  501: 'not_supported_error',
  503: 'unavailable_error',
};

export interface ErrorDetails {
  readonly message: string;
  readonly type: string;
  readonly code: number;
}

/**
 * The object every error answer holds under `error`, as llama-server shapes it.
 *
 * @param status - HTTP status, repeated in `code`.
 */
export function errorDetails(status: number, message: string): ErrorDetails {
  const type = ERROR_TYPES[status] ?? (status < 500 ? 'invalid_request_error' : 'server_error');
  return { message, type, code: status };
}

/** An error of this package's own making that the HTTP layer answers with `status`. */
export function requestError(status: number, message: string, cause?: unknown): DroidLlamaError {
  return new DroidLlamaError('DROID_INVALID_ARGUMENT', message, { status, cause });
}

/** The 413 of a request body over the limit; the client is told the limit, so that it need not guess. */
export function bodyTooLarge(limit: number): DroidLlamaError {
  return requestError(413, `The request body is larger than the limit of ${limit} bytes.`);
}

/** Seconds after which a client may ask again when the cluster had no model; loading one takes that long at least. */
const RETRY_AFTER_SECONDS = 5;

/** What went wrong in one line: the message alone, since a stack names files that are no client's business. */
export function messageOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  // As the engine writes it (see splitCode), for a member that asked for another: it gets its code back from the text.
  const code = error instanceof DroidLlamaError ? error.code : undefined;
  const told = code === 'DROID_NOT_READY' || (code !== undefined && isWorkerCode(code));
  if (told && splitCode(message).code === undefined) return `${message} (${code})`;
  return message === '' ? 'Unknown error' : message;
}

/** Tells when to try again, if it is only a matter of time. */
export function setRetryAfter(reply: FastifyReply, error: unknown): void {
  if (isNotReady(error)) reply.header('retry-after', String(RETRY_AFTER_SECONDS));
}

function isNotReady(error: unknown): error is DroidLlamaError {
  return error instanceof DroidLlamaError && error.code === 'DROID_NOT_READY';
}

/** The HTTP status that an error thrown before the answer began is sent with. */
export function statusOf(error: unknown): number {
  if (error instanceof DroidLlamaError) {
    // Nothing is wrong with the request, and a new context with the worker back could answer it.
    if (isWorkerCode(error.code)) return 503;
    if (isErrorStatus(error.status)) return error.status;
    if (error.code === 'DROID_CLOSED' || error.code === 'DROID_NOT_READY') return 503;
    return error.code === 'DROID_INVALID_ARGUMENT' ? 400 : 500;
  }
  // Fastify's own errors carry `statusCode`; any other error that does is not trusted to speak HTTP.
  const { code, statusCode } = (error ?? {}) as Partial<FastifyError>;
  return code?.startsWith('FST_') && isErrorStatus(statusCode) ? statusCode : 500;
}

function isErrorStatus(status: number | undefined): status is number {
  return status !== undefined && status >= 400 && status <= 599;
}

/** Answers with an error in llama-server's shape. */
export function sendError(reply: FastifyReply, status: number, message: string): void {
  // Closing on a client that is still uploading resets the connection, and the reset destroys the answer in the
  // client's hands. Left open, Node discards the rest of the body.
  if (isUploading(reply.request.raw)) reply.header('connection', 'keep-alive');
  reply
    .code(status)
    .header('server', SERVER_NAME)
    .header('content-type', JSON_CONTENT_TYPE)
    .send(JSON.stringify({ error: errorDetails(status, message) }));
}

function isUploading({ complete, headers }: IncomingMessage): boolean {
  return !complete && (headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0);
}

/**
 * Answers what Node's parser refused before there was a request: malformed HTTP, too many header bytes,
 * headers that never end.
 */
export function answerClientError(error: NodeJS.ErrnoException, socket: Socket): void {
  // After the first byte of an answer a second status line would land in the middle of a body.
  if (!socket.writable || socket.bytesWritten > 0) {
    socket.destroy();
    return;
  }
  const [status, reason, message] = describeClientError(error.code);
  const body = JSON.stringify({ error: errorDetails(status, message) });
  socket.write(
    `HTTP/1.1 ${status} ${reason}\r\nServer: ${SERVER_NAME}\r\nConnection: close\r\n` +
      `Content-Type: ${JSON_CONTENT_TYPE}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
  socket.destroySoon();
}

function describeClientError(code: string | undefined): [status: number, reason: string, message: string] {
  switch (code) {
    case 'HPE_HEADER_OVERFLOW':
      return [431, 'Request Header Fields Too Large', 'The request headers are too large.'];
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return [408, 'Request Timeout', 'The request headers did not arrive in time.'];
    default:
      return [400, 'Bad Request', 'The request is not valid HTTP.'];
  }
}
