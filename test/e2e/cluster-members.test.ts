/** Who is in a cluster: three phones, phones that cannot be reached, and two clusters in one network. */
import { describe, expect, it } from 'vitest';
import {
  chat,
  chatWithWorkers,
  newToken,
  peerNamed,
  phonesUp,
  READY_MS,
  readyAs,
  type Status,
  statusOf,
  statusWhen,
  type Up,
  up,
} from '../phones/scene.js';
import { tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

const holdsLayers =
  (...names: string[]) =>
  (status: Status): boolean =>
    names.every((name) => (peerNamed(status, name)?.layers ?? 0) > 0);
const names = (status: Status): string[] => status.peers.map(({ name }) => name).sort();

describe.skipIf(unavailable)('three phones', () => {
  it('share one model: the host of the hotspot leads, both others compute', async () => {
    const phones = await phonesUp({ hotspot: 'A', phones: { A: { incoming: 'drop' }, B: {}, C: {} } });
    const token = newToken();
    const [a] = await Promise.all([
      up(phones, 'A', '--token', token, '-m', tinyModel),
      up(phones, 'B', '--token', token, '--role', 'worker'),
      up(phones, 'C', '--token', token, '--role', 'worker'),
    ]);
    await readyAs(a, 'master');
    const status = await statusWhen(phones, 'A', 'B and C hold layers', holdsLayers('B', 'C'), READY_MS);
    expect(names(status)).toEqual(['A', 'B', 'C']);
    expect(status.peers.reduce((sum, { layers }) => sum + layers, 0)).toBe(6);
    const { content } = await chatWithWorkers(phones, 'A', ['B', 'C']);
    expect(content).toContain('4');
  });

  it('leave out the one that the master cannot reach in either direction, and say why', async () => {
    // A and C drop what comes in, so no stream can join the two; B knows both.
    const phones = await phonesUp({
      hotspot: 'A',
      phones: { A: { incoming: 'drop' }, B: {}, C: { incoming: 'drop' } },
    });
    const token = newToken();
    const [a, , c] = await Promise.all([
      up(phones, 'A', '--token', token, '-m', tinyModel, '--role', 'master'),
      up(phones, 'B', '--token', token, '--role', 'worker'),
      up(phones, 'C', '--token', token),
    ]);
    await readyAs(a, 'master');
    // Once both directions have been tried; until then that is what it says.
    const tried = (status: Status): boolean => /no answer[\s\S]*no answer/.test(peerNamed(status, 'C')?.reason ?? '');
    const status = await statusWhen(phones, 'A', 'C is left out for good', tried);
    expect(peerNamed(status, 'C')).toMatchObject({ role: 'left-out', layers: 0 });
    await a.process.waitFor('the event says it too', ({ event, leftOut }) => {
      return event === 'roles' && JSON.stringify(leftOut).includes(`"id":"${c.id}","name":"C","reason"`);
    });
    await statusWhen(phones, 'A', 'B holds layers', holdsLayers('B'), READY_MS);
    await chatWithWorkers(phones, 'A', ['B']);
  });

  it('do without one that can be reached by nobody and reaches nobody, and it says that it is alone', async () => {
    const phones = await phonesUp({
      hotspot: 'A',
      phones: { A: { incoming: 'drop' }, B: {}, C: { incoming: 'drop', outgoing: 'drop' } },
    });
    const token = newToken();
    const lonely = phones.address('C');
    const [a, , c] = await Promise.all([
      up(phones, 'A', '--token', token, '-m', tinyModel, '--peer', `${lonely}:60000`),
      up(phones, 'B', '--token', token, '--role', 'worker'),
      up(phones, 'C', '--token', token, '--peer', `${phones.address('B')}:60000`),
    ]);
    await readyAs(a, 'master');
    await statusWhen(phones, 'A', 'B holds layers', holdsLayers('B'), READY_MS);
    await chatWithWorkers(phones, 'A', ['B']);
    expect(names(await statusOf(phones, 'A'))).toEqual(['A', 'B']);
    expect(names(await statusOf(phones, 'C'))).toEqual(['C']);
    // Each side names the endpoint that does not answer.
    const says = (address: string) => (event: { event: string; message?: unknown }) =>
      event.event === 'warning' && String(event.message).includes(address);
    await a.process.waitFor('A says that C does not answer', says(lonely));
    await c.process.waitFor('C says that B does not answer', says(phones.address('B')));
  });
});

describe.skipIf(unavailable)('two clusters in one network', () => {
  it('do not mix when their tokens differ, though each finds the other', async () => {
    const phones = await phonesUp({ phones: { A: {}, B: {}, C: {}, D: {} } });
    const [one, two] = [newToken(), newToken()];
    const [a, b, c, d] = await Promise.all([
      // B and C are told of each other, so that nothing rests on who finds whom.
      up(phones, 'A', '--token', one, '-m', tinyModel),
      up(phones, 'B', '--token', one, '--role', 'worker', '--peer', `${phones.address('C')}:60000`),
      up(phones, 'C', '--token', two, '-m', tinyModel, '--peer', `${phones.address('B')}:60000`),
      up(phones, 'D', '--token', two, '--role', 'worker'),
    ]);
    await Promise.all([readyAs(a, 'master'), readyAs(c, 'master')]);
    await statusWhen(phones, 'A', 'B holds layers', holdsLayers('B'), READY_MS);
    await statusWhen(phones, 'C', 'D holds layers', holdsLayers('D'), READY_MS);
    await Promise.all([chatWithWorkers(phones, 'A', ['B']), chatWithWorkers(phones, 'C', ['D'])]);
    expect(names(await statusOf(phones, 'B'))).toEqual(['A', 'B']);
    expect(names(await statusOf(phones, 'D'))).toEqual(['C', 'D']);
    const met = (device: Up) => device.process.all('peer').map(({ id }) => id);
    expect([...met(a), ...met(b)]).not.toContain(c.id);
    expect([...met(a), ...met(b)]).not.toContain(d.id);
    expect([...met(c), ...met(d)]).not.toContain(a.id);
    expect([...met(c), ...met(d)]).not.toContain(b.id);
    expect((await chat(phones, 'C', 'What is 2+2?')).content).toContain('4');
  });
});
