/** The two-phone guide's scene, by two commands: phone A hosts a hotspot and takes no connections, phone B joined it. */
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { chatWithWorkers, peerNamed, phonesUp, READY_MS, readyAs, statusWhen, up } from '../phones/scene.js';
import { guideModel } from '../support/guide.js';
import { tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
// In CI a missing tool is a failure, not a reason to look away.
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

const joinAndChat = fileURLToPath(new URL('../phones/join-and-chat.mjs', import.meta.url));
/** One processor each, as two phones have nothing in common. */
const hotspot = { hotspot: 'A', phones: { A: { incoming: 'drop', cores: '0' }, B: { cores: '1' } } } as const;

describe.skipIf(unavailable)('the guide: two phones and a hotspot whose host takes no connections', () => {
  it.each([
    ['A', 'B'],
    ['B', 'A'],
  ] as const)('makes A the master and B the worker, %s started first', async (first, second) => {
    const model = await guideModel();
    const phones = await phonesUp(hotspot);
    const args = (name: string): string[] => (name === 'A' ? ['-m', model] : []);
    const one = await up(phones, first, ...args(first));
    // 128 bits, printed by the first one.
    expect(one.token).toMatch(/^[\w-]{22,}$/);
    const two = await up(phones, second, '--token', one.token, ...args(second));
    const [a, b] = first === 'A' ? [one, two] : [two, one];
    await Promise.all([readyAs(a, 'master'), readyAs(b, 'worker')]);

    const worker = (name: string) => (status: { peers: readonly { name: string; layers: number }[] }) =>
      status.peers.some((peer) => peer.name === name && peer.layers > 0);
    const status = await statusWhen(phones, 'A', 'B holds layers', worker('B'));
    expect(status.self).toMatchObject({ id: a.id, name: 'A', role: 'master' });
    expect(peerNamed(status, 'B')).toMatchObject({ id: b.id, role: 'worker' });
    expect(peerNamed(status, 'B')?.bytes).toBeGreaterThan(2 ** 20);
    const layers = status.peers.reduce((sum, peer) => sum + peer.layers, 0);
    expect(layers).toBe(24);
    const dials = status.links.map(({ from, to, dial }) => [from, to, dial]);
    expect(dials).toContainEqual([a.id, b.id, 'open']);
    expect(dials).toContainEqual([b.id, a.id, 'timeout']);

    const { tokens, content } = await chatWithWorkers(phones, 'A', ['B'], 16);
    expect(tokens).toBe(16);
    expect(content).not.toBe('');
    // Both see the same cluster.
    const other = await statusWhen(phones, 'B', 'B knows its layers', worker('B'));
    expect(other.self).toMatchObject({ id: b.id, role: 'worker' });
    expect(peerNamed(other, 'A')).toMatchObject({ id: a.id, role: 'master' });
  });

  it('makes B the master when the model is there, over a stream that A opens', async () => {
    const phones = await phonesUp(hotspot);
    const a = await up(phones, 'A', '--role', 'worker');
    const b = await up(phones, 'B', '--token', a.token, '-m', tinyModel);
    await Promise.all([readyAs(a, 'worker'), readyAs(b, 'master')]);
    const status = await statusWhen(phones, 'B', 'A holds layers', (s) => (peerNamed(s, 'A')?.layers ?? 0) > 0);
    expect(status.self.role).toBe('master');
    expect(status.links.find(({ from, to }) => from === b.id && to === a.id)?.dial).toBe('timeout');
    const { content } = await chatWithWorkers(phones, 'B', ['A']);
    expect(content).toContain('4');
  });

  it('answers a program on the worker, whose requests go to the master', async () => {
    const phones = await phonesUp(hotspot);
    const a = await up(phones, 'A', '-m', tinyModel);
    const program = phones.run('B', [process.execPath, joinAndChat, a.token, 'What is 2+2?']);
    const { text, role } = await program.waitFor('it has its answer', ({ event }) => event === 'answer', {
      timeoutMs: READY_MS,
    });
    expect(text).toContain('4');
    expect(role).toBe('worker');
    // Everything it opened is closed: nothing keeps it alive.
    expect((await program.ended()).status).toBe(0);
    await a.process.waitFor('A knows that it left', ({ event, state }) => event === 'peer' && state === 'lost');
  });
});
