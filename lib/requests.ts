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

/** The whole answer of a request that is not streamed; throws like {@link streamRequest}. */
export async function requestJson(
  sender: RequestSender,
  path: string,
  body: object,
  options: SignalOptions,
): Promise<unknown> {
  const response = await sender.request('POST', path, body, options);
  if (response.status >= 400) throw await requestFailed(sender, response);
  return JSON.parse(await readText(response.body));
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
  return ((await requestJson(sender, '/tokenize', body, options)) as { tokens: number[] }).tokens;
}

async function requestFailed(sender: RequestSender, response: EngineResponse): Promise<DroidLlamaError> {
  const text = await readText(response.body);
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
  return new DroidLlamaError(code ?? 'DROID_REQUEST_FAILED', message, { status });
}

/** It may come from another device, so nothing is known of its fields. */
interface ErrorEvent {
  error: { message?: unknown; code?: unknown };
}

function isErrorEvent(event: unknown): event is ErrorEvent {
  const error = (event as Partial<ErrorEvent> | null)?.error;
  return typeof error === 'object' && error !== null;
}

async function readText(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of body) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}
