import { describe, expect, it } from 'vitest';
import { toDroidLlamaError, workerFailure } from '../../lib/addon.js';
import { matchRoute } from '../../lib/engine-request.js';
import { DroidLlamaError, ERROR_CODES, isErrorCode, isWorkerCode, splitCode } from '../../lib/errors.js';
import { parseServerSentEvents } from '../../lib/sse.js';

describe('parseServerSentEvents', () => {
  async function* cut(text: string, size: number): AsyncGenerator<Uint8Array> {
    const bytes = new TextEncoder().encode(text);
    for (let i = 0; i < bytes.length; i += size) yield bytes.subarray(i, i + size);
  }
  const stream = 'data: {"a":"hé 🙂"}\n\n:\n\nevent: x\ndata: {"b":2}\n\ndata: [DONE]\n\ndata: {"c":3}\n\n';

  it.each([1, 2, 3, 7, 1000])('reads payloads however the bytes are cut (%i at a time)', async (size) => {
    const events: unknown[] = [];
    for await (const event of parseServerSentEvents(cut(stream, size))) events.push(event);
    expect(events).toEqual([{ a: 'hé 🙂' }, { b: 2 }]);
  });
});

describe('matchRoute', () => {
  const routes = [
    { method: 'GET', path: '/slots' },
    { method: 'POST', path: '/slots/:id_slot' },
    { method: 'POST', path: '/v1/chat/completions' },
  ] as const;

  it('finds exact paths and parameters, and nothing else', () => {
    expect(matchRoute(routes, 'POST', '/slots/7%20')).toMatchObject({
      route: { path: '/slots/:id_slot' },
      params: { id_slot: '7 ' },
    });
    expect(matchRoute(routes, 'GET', '/slots')?.params).toEqual({});
    for (const [method, path] of [
      ['GET', '/slots/7'],
      ['POST', '/slots/'],
      ['POST', '/slots/7/8'],
      ['POST', '/v1/chat/completions/'],
      ['POST', '/'],
    ] as const) {
      expect(matchRoute(routes, method, path), `${method} ${path}`).toBeUndefined();
    }
  });
});

describe('error codes', () => {
  it('are what the table says and nothing inherited', () => {
    expect(Object.keys(ERROR_CODES).every((code) => code.startsWith('DROID_'))).toBe(true);
    expect(isErrorCode('DROID_CLOSED')).toBe(true);
    expect(isErrorCode('toString')).toBe(false);
    expect(isWorkerCode('DROID_WORKER_BUSY')).toBe(true);
    expect(isWorkerCode('DROID_CLOSED')).toBe(false);
  });

  it.each([
    ['10.0.0.2:1 is gone (DROID_WORKER_LOST)', '10.0.0.2:1 is gone', 'DROID_WORKER_LOST'],
    ['two\nlines (x) (DROID_WORKER_OUT_OF_MEMORY)', 'two\nlines (x)', 'DROID_WORKER_OUT_OF_MEMORY'],
    ['it (DROID_WORKER_LOST) was', 'it (DROID_WORKER_LOST) was', undefined],
    ['an unknown one (DROID_NOPE)', 'an unknown one (DROID_NOPE)', undefined],
    ['(DROID_WORKER_LOST)', '(DROID_WORKER_LOST)', undefined],
    ['', '', undefined],
  ])('come off the end of %j', (text, message, code) => {
    expect(splitCode(text)).toEqual(code === undefined ? { message } : { message, code });
  });

  it('of a worker win over that of the load they ended', () => {
    const native = Object.assign(new Error('cannot load: a:1 is gone (DROID_WORKER_LOST)'), {
      code: 'DROID_LOAD_FAILED',
    });
    const error = toDroidLlamaError(native) as DroidLlamaError;
    expect(error).toBeInstanceOf(DroidLlamaError);
    expect([error.code, error.message, error.cause]).toEqual(['DROID_WORKER_LOST', 'cannot load: a:1 is gone', native]);
    const other = new Error('a bug (DROID_WORKER_LOST)');
    expect(toDroidLlamaError(other)).toBe(other);
  });

  it('of a failure are known ones', () => {
    const failure = { message: 'gone (DROID_WORKER_LOST)', endpoint: 'a:1' };
    expect(workerFailure({ ...failure, code: 'DROID_WORKER_REFUSED' })).toEqual({
      code: 'DROID_WORKER_REFUSED',
      message: 'gone',
      endpoint: 'a:1',
    });
    expect(workerFailure({ ...failure, code: 'EPIPE' }).code).toBe('DROID_WORKER_LOST');
  });
});
