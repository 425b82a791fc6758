/** A worker that walks out of range in the middle of a stream, and comes back. */
import { describe, expect, it } from 'vitest';
import {
  answer,
  chat,
  chatWithWorkers,
  newToken,
  peerNamed,
  phonesUp,
  post,
  READY_MS,
  readyAs,
  statusWhen,
  up,
} from '../phones/scene.js';
import { tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

/** How soon a worker that fell silent must be noticed. */
const NOTICED_MS = 5000;

describe.skipIf(unavailable)('a worker whose link is cut in mid-stream', () => {
  it('is noticed in time; the master goes on alone, and takes it in again', async () => {
    const phones = await phonesUp({ hotspot: 'A', phones: { A: { incoming: 'drop' }, B: {} } });
    const token = newToken();
    const [a, b] = await Promise.all([
      up(phones, 'A', '--token', token, '-m', tinyModel, '-c', '1024'),
      up(phones, 'B', '--token', token, '--role', 'worker'),
    ]);
    await readyAs(a, 'master');
    const withB = (status: Parameters<typeof peerNamed>[0]) => (peerNamed(status, 'B')?.layers ?? 0) > 0;
    await statusWhen(phones, 'A', 'B holds layers', withB, READY_MS);
    await chatWithWorkers(phones, 'A', ['B']);

    // Longer than it takes to cut the link: each token needs a round trip of 5 ms.
    const story = { messages: [{ role: 'user', content: 'Tell me a story.' }], max_tokens: 900, stream: true };
    const stream = post(phones, 'A', '/v1/chat/completions', { ...story, ignore_eos: true });
    await stream.waitFor('the stream runs', ({ event }) => event === 'chunk');
    const from = a.process.events.length;
    await phones.cut('B');
    const cutAt = Date.now();
    const lost = await a.process.waitFor('A notices', ({ event }) => event === 'lost', { from });
    expect(lost.at - cutAt).toBeLessThan(NOTICED_MS);
    expect(lost).toMatchObject({ peer: b.id, code: 'DROID_WORKER_LOST' });

    const { text, status } = await answer(phones, stream);
    expect(status).toBe(200);
    // The end of the stream says what happened, and does not look like an end.
    expect(text).toContain('DROID_WORKER_LOST');
    expect(text).not.toContain('[DONE]');

    // Asked while the next plan may still load: such a request waits.
    expect((await chat(phones, 'A', 'What is 2+2?')).content).toContain('4');
    const alone = await statusWhen(phones, 'A', 'A holds everything', (s) => peerNamed(s, 'A')?.layers === 6);
    expect(peerNamed(alone, 'B')?.layers ?? 0).toBe(0);
    const gone = ({ event, id, state }: { event: string; id?: unknown; state?: unknown }) =>
      event === 'peer' && id === b.id && state === 'lost';
    await a.process.waitFor('A says that B is gone', gone, { from });

    const back = a.process.events.length;
    await phones.restore('B');
    const joined = ({ event, id, state }: { event: string; id?: unknown; state?: unknown }) =>
      event === 'peer' && id === b.id && state === 'joined';
    await a.process.waitFor('B is back', joined, { from: back });
    await statusWhen(phones, 'A', 'B holds layers again', withB, READY_MS);
    const { content } = await chatWithWorkers(phones, 'A', ['B']);
    expect(content).toContain('4');
    expect(a.process.alive && b.process.alive).toBe(true);
  });

  it('that ends is noticed at once', async () => {
    const phones = await phonesUp({ hotspot: 'A', phones: { A: { incoming: 'drop' }, B: {} } });
    const token = newToken();
    const [a, b] = await Promise.all([
      up(phones, 'A', '--token', token, '-m', tinyModel),
      up(phones, 'B', '--token', token, '--role', 'worker'),
    ]);
    await readyAs(a, 'master');
    await statusWhen(phones, 'A', 'B holds layers', (s) => (peerNamed(s, 'B')?.layers ?? 0) > 0, READY_MS);
    const from = a.process.events.length;
    b.process.signal('SIGINT');
    expect((await b.process.ended()).status).toBe(0);
    await a.process.waitFor('A knows', ({ event, id, state }) => event === 'peer' && id === b.id && state === 'lost', {
      from,
      timeoutMs: NOTICED_MS,
    });
    expect((await chat(phones, 'A', 'What is 2+2?')).content).toContain('4');
    a.process.signal('SIGTERM');
    expect((await a.process.ended()).status).toBe(0);
  });
});
