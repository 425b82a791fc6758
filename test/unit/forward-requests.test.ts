/** chat() and its like over anything that sends requests. */
import { describe, expect, it } from 'vitest';
import { DroidLlamaError } from '../../lib/errors.js';
import { type RequestSender, requestJson, streamRequest } from '../../lib/requests.js';

const asked: unknown[][] = [];

function senderOf(status: number, text: string, failure?: RequestSender['failure']): RequestSender {
  async function* body(): AsyncGenerator<Uint8Array> {
    yield Buffer.from(text);
  }
  return {
    failure,
    request: async (...call) => {
      asked.push(call);
      return { status, headers: {}, body: body() };
    },
  };
}

async function chunksOf(sender: RequestSender, request: object = { a: 1 }): Promise<unknown[]> {
  const chunks: unknown[] = [];
  for await (const chunk of streamRequest(sender, '/chat', request, {})) chunks.push(chunk);
  return chunks;
}

it('asks for a stream and gives its chunks', async () => {
  expect(await chunksOf(senderOf(200, 'data: {"x":1}\n\ndata: {"x":2}\n\ndata: [DONE]\n\n'))).toEqual([
    { x: 1 },
    { x: 2 },
  ]);
  expect(asked.pop()).toEqual(['POST', '/chat', { a: 1, stream: true }, {}]);
  expect(await requestJson(senderOf(200, '{"y":3}'), '/tokenize', { b: 2 }, {})).toEqual({ y: 3 });
  expect(asked.pop()).toEqual(['POST', '/tokenize', { b: 2 }, {}]);
  await expect(chunksOf(senderOf(200, ''), [])).rejects.toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
});

describe('an answer that is an error', () => {
  const error = (fields: object) => JSON.stringify({ error: fields });

  it.each<[string, number, string, object]>([
    [
      'with a status of its own',
      400,
      error({ message: 'no', code: 422 }),
      { code: 'DROID_REQUEST_FAILED', message: 'no', status: 400 },
    ],
    [
      'with a code in its text',
      503,
      error({ message: 'no (DROID_NOT_READY)' }),
      { code: 'DROID_NOT_READY', message: 'no', status: 503 },
    ],
    [
      'with fields of other types',
      500,
      error({ message: 5, code: 'x' }),
      { code: 'DROID_REQUEST_FAILED', status: 500 },
    ],
    [
      'without an error',
      404,
      '{"error":null}',
      { code: 'DROID_REQUEST_FAILED', message: '{"error":null}', status: 404 },
    ],
    ['that is no JSON', 502, 'Bad Gateway', { code: 'DROID_REQUEST_FAILED', message: 'Bad Gateway', status: 502 }],
    ['that is empty', 500, '', { code: 'DROID_REQUEST_FAILED', status: 500 }],
  ])('%s', async (_, status, text, expected) => {
    await expect(chunksOf(senderOf(status, text))).rejects.toMatchObject(expected);
    await expect(requestJson(senderOf(status, text), '/x', {}, {})).rejects.toMatchObject(expected);
  });

  it('in the middle of a stream ends it', async () => {
    const text = `data: {"x":1}\n\ndata: ${error({ message: 'b hung up (DROID_WORKER_LOST)' })}\n\n`;
    const stream = streamRequest(senderOf(200, text), '/chat', {}, {});
    expect(await stream.next()).toEqual({ done: false, value: { x: 1 } });
    await expect(stream.next()).rejects.toMatchObject({ code: 'DROID_WORKER_LOST', message: 'b hung up', status: 500 });
  });

  it('is a worker’s failure, unless the caller did wrong', async () => {
    const failure = new DroidLlamaError('DROID_WORKER_LOST', 'b hung up');
    await expect(chunksOf(senderOf(500, error({ message: 'x' }), failure))).rejects.toMatchObject({
      code: 'DROID_WORKER_LOST',
      message: 'b hung up',
    });
    await expect(chunksOf(senderOf(400, error({ message: 'x' }), failure))).rejects.toMatchObject({ message: 'x' });
  });
});
