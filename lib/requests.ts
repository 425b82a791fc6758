/** Calls in OpenAI's format over whatever sends a request to an engine: one in this process, or another device's. */
import type { RequestBody } from './engine-request.js';
import { DroidLlamaError, splitCode } from './errors.js';
import { parseServerSentEvents } from './sse.js';
import type { EngineResponse, RequestOptions, WorkerFailure } from './types.js';
import { plainObject } from './validate.js';

/** What the calls are made of; its answers hold an error in their status, not in a rejection. */
export interface RequestSender {
  request(method: string, path: string, body: RequestBody, options: RequestOptions): Promise<EngineResponse>;
  /** The failure of a worker that the engine needs, if there is one; then it is why a request fails. */
  readonly failure?: Pick<WorkerFailure, 'code' | 'message'> | null | undefined;
}

/** Of an answer that tells an error; what is told of it is shorter. */
const MAX_ERROR_BYTES = 64 * 1024;
const MAX_ERROR_TEXT = 4000;

interface SignalOptions {
  signal?: AbortSignal;
}

/**
 * The chunks of a streamed answer. Ending the loop early ends the generation.
 *
 * @param request the body; `stream: true` is added
 * @throws {@link DroidLlamaError} of the answer: with the code that its message ends in or `DROID_REQUEST_FAILED`, and
 * with its status; or what the sender rejects with
 */
export async function* streamRequest<Chunk>(
  sender: RequestSender,
  path: string,
  request: object,
  options: SignalOptions,
): AsyncGenerator<Chunk, void, undefined> {
  plainObject('the request', request);
  const response = await sender.request('POST', path, { ...request, stream: true }, options);
  if (response.status >= 400) throw await requestFailed(sender, response);
  for await (const event of parseServerSentEvents(response.body)) {
    if (isErrorEvent(event)) throw errorOf(sender, event, 500);
    yield event as Chunk;
  }
}

/** The whole answer of a request that is not streamed, a GET where there is no body; throws like {@link streamRequest}. */
export async function requestJson(
  sender: RequestSender,
  path: string,
  body: object | undefined,
  options: SignalOptions,
): Promise<unknown> {
  const response = await sender.request(body === undefined ? 'GET' : 'POST', path, body, options);
  if (response.status >= 400) throw await requestFailed(sender, response);
  try {
    return JSON.parse(await readText(response.body));
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
    throw new DroidLlamaError('DROID_REQUEST_FAILED', `What answers ${path} is not JSON: is this a llama-server?`, {
      cause,
    });
  }
}

/** One vector for each text, in order; throws like {@link streamRequest}. */
export async function requestEmbeddings(
  sender: RequestSender,
  input: string | readonly string[],
  options: SignalOptions,
): Promise<number[][]> {
  const answer = (await requestJson(sender, '/v1/embeddings', { input }, options)) as {
    data: { embedding: number[] }[];
  };
  return answer.data.map(({ embedding }) => embedding);
}

/** The token ids of a text; throws like {@link streamRequest}. */
export async function requestTokens(
  sender: RequestSender,
  content: string,
  { addSpecial = false, ...options }: SignalOptions & { addSpecial?: boolean },
): Promise<number[]> {
  const body = { content, add_special: addSpecial };
  const answer = (await requestJson(sender, '/tokenize', body, options)) as { tokens?: unknown } | null;
  const tokens = answer?.tokens;
  if (Array.isArray(tokens)) return tokens;
  throw new DroidLlamaError('DROID_REQUEST_FAILED', 'What answers /tokenize holds no tokens: is this a llama-server?');
}

async function requestFailed(sender: RequestSender, response: EngineResponse): Promise<DroidLlamaError> {
  const text = await readText(response.body, MAX_ERROR_BYTES);
  try {
    const body: unknown = JSON.parse(text);
    if (isErrorEvent(body)) return errorOf(sender, { error: { message: body.error.message } }, response.status);
  } catch {
    // Not JSON: the text itself is the message.
  }
  return errorOf(
    sender,
    { error: { message: text || `The engine answered with status ${response.status}.` } },
    response.status,
  );
}

function errorOf(sender: RequestSender, { error }: ErrorEvent, defaultStatus: number): DroidLlamaError {
  const status = typeof error.code === 'number' ? error.code : defaultStatus;
  // What the caller did wrong stays that, also when a worker is lost.
  const failure = status >= 500 ? sender.failure : undefined;
  if (failure) return new DroidLlamaError(failure.code, failure.message, { status });
  const told = typeof error.message === 'string' ? error.message : 'The engine answered with an error.';
  const { code, message } = splitCode(told);
  return new DroidLlamaError(code ?? 'DROID_REQUEST_FAILED', readable(message), { status });
}

/** It may come from another device, so nothing is known of its fields. */
interface ErrorEvent {
  error: { message?: unknown; code?: unknown };
}

function isErrorEvent(event: unknown): event is ErrorEvent {
  const error = (event as Partial<ErrorEvent> | null)?.error;
  return typeof error === 'object' && error !== null;
}

/** Fit for a terminal and a log: no control characters but line breaks and tabs, and no more than a screen of it. */
function readable(message: string): string {
  const text = message.replace(/[^\P{Cc}\n\t]/gu, ' ');
  return text.length > MAX_ERROR_TEXT ? `${text.slice(0, MAX_ERROR_TEXT)}…` : text;
}

/** @param limit after so many bytes the rest is not read */
async function readText(body: AsyncIterable<Uint8Array>, limit = Number.POSITIVE_INFINITY): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    bytes += chunk.byteLength;
    if (bytes >= limit) break;
  }
  return Buffer.concat(chunks).toString('utf8');
}
