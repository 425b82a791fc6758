/** What somebody sees and can do who is in the same network and does not have the token. */
import { randomBytes } from 'node:crypto';
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Capture } from '../phones/capture.js';
import {
  chat,
  chatWithWorkers,
  graphsOf,
  newToken,
  peerNamed,
  READY_MS,
  readyAs,
  statusOf,
  statusWhen,
  type Up,
  up,
} from '../phones/scene.js';
import { projectRoot, tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

const PORT = '60000';
const secret = 'the-secret-word-of-this-chat';
/** A TLS alert is a record of seven bytes; it says no more than that something was wrong. */
const ALERT_BYTES = 7;
/** What answers a greeting that was recorded, until it turns out that its sender does not know the key. */
const HANDSHAKE_BYTES = 2048;

const SAMPLES = 400;
const SAMPLE_BYTES = 64;

/** Pieces of the model's weights, evenly spread; its metadata are at the front. */
function weightSamples(): Buffer[] {
  const file = readFileSync(tinyModel);
  const start = Math.floor(file.length / 10);
  const step = Math.floor((file.length - start - SAMPLE_BYTES) / SAMPLES);
  const samples = Array.from({ length: SAMPLES }, (_, i) => file.subarray(start + i * step).subarray(0, SAMPLE_BYTES));
  // Ones and zeros are everywhere.
  return samples.filter((sample) => new Set(sample).size > SAMPLE_BYTES / 3);
}

function expectNoSecrets(capture: Capture): void {
  expect(capture.saw(Buffer.from(secret))).toBe(false);
  expect(weightSamples().filter((sample) => capture.saw(sample))).toEqual([]);
}

describe.skipIf(unavailable)('a stranger in the network of a cluster', () => {
  let phones: Phones;
  let a: Up;
  let b: Up;
  let recorded: Capture;
  const token = newToken();

  beforeAll(async () => {
    // E is the stranger.
    phones = await Phones.up({ phones: { A: {}, B: {}, D: {}, E: {} } });
    const capture = await phones.capture('B');
    [a, b] = await Promise.all([
      up(phones, 'A', '--token', token, '-m', tinyModel),
      up(phones, 'B', '--token', token, '--role', 'worker'),
    ]);
    await readyAs(a, 'master');
    await statusWhen(phones, 'A', 'B holds layers', (s) => (peerNamed(s, 'B')?.layers ?? 0) > 0, READY_MS);
    await chat(phones, 'A', `Say ${secret}.`);
    recorded = await capture.stop();
  }, READY_MS);
  afterAll(() => phones?.down());

  /** The cluster is as it was, and nobody else is in it. */
  async function expectUnharmed(): Promise<void> {
    try {
      const { content } = await chatWithWorkers(phones, 'A', ['B']);
      expect(content).toContain('4');
      const members = (await statusOf(phones, 'A')).peers.map(({ name }) => name);
      expect(members.filter((name) => name !== 'D').sort()).toEqual(['A', 'B']);
    } catch (error) {
      const said = [a, b].map(({ name, process }) => `${name}: ${process.alive ? 'runs' : 'ended'}\n${process.stderr}`);
      throw new Error(`the cluster was harmed\n${said.join('\n')}`, { cause: error });
    }
    expect(a.process.alive && b.process.alive).toBe(true);
    expect(a.process.all('lost').filter(({ peer }) => peer === b.id)).toEqual([]);
  }

  const say = async (bytes: Buffer, to = 'B', waitMs = 20_000) => {
    const child = phones.tool('E', 'say', phones.address(to), PORT, bytes.toString('base64'), `${waitMs}`);
    await phones.finished(child);
    const { received, closed } = child.last('said') as unknown as { received: string; closed: boolean };
    return { received: Buffer.from(received, 'base64'), closed };
  };

  it('sees neither weights nor chats', async () => {
    // The layers went over that link.
    const held = peerNamed(await statusOf(phones, 'A'), 'B')?.bytes ?? 0;
    expect(held).toBeGreaterThan(2 ** 20);
    expect(recorded.bytes).toBeGreaterThan(held);
    expectNoSecrets(recorded);
  });

  it('would see both if they were not encrypted', async () => {
    const capture = await phones.capture('D');
    const worker = phones.cli('D', ['worker', '--host', '0.0.0.0', '--port', '60001', '--insecure']);
    await worker.says(/endpoint : /);
    const endpoint = `${phones.address('D')}:60001`;
    const serve = phones.cli('E', [
      'serve',
      '-m',
      tinyModel,
      '--rpc',
      endpoint,
      '-ts',
      '0,1',
      '--insecure',
      '-c',
      '512',
    ]);
    await serve.says(/listening on/);
    await worker.kill();
    await serve.kill();
    const plain = await capture.stop();
    expect(weightSamples().filter((sample) => plain.saw(sample)).length).toBeGreaterThan(SAMPLES / 4);
  });

  it('gets nothing for random bytes, and no banner for silence', async () => {
    const silent = await say(Buffer.alloc(0), 'B', 1500);
    expect(silent.received.length).toBe(0);
    const pieces = [randomBytes(1), randomBytes(64), randomBytes(60_000), Buffer.from('GET / HTTP/1.1\r\n\r\n')];
    for (const bytes of pieces) {
      const { received, closed } = await say(bytes);
      expect(received.length).toBeLessThanOrEqual(ALERT_BYTES);
      expect(closed).toBe(true);
    }
    await expectUnharmed();
  });

  it('gets nothing for what a member said before', async () => {
    // The first part of every connection that was opened to B, handshake and all; what fits an argument.
    const greetings = recorded.streams
      .filter(({ opened, to, data }) => opened && to === `${phones.address('B')}:${PORT}` && data.length > 200)
      .map(({ data }) => data.subarray(0, 60_000));
    expect(greetings.length).toBeGreaterThan(0);
    const before = graphsOf(await statusOf(phones, 'A'), 'B');
    for (const greeting of greetings.slice(0, 4)) {
      const { received, closed } = await say(greeting);
      expect(closed).toBe(true);
      expect(received.length).toBeLessThan(HANDSHAKE_BYTES);
    }
    expect(graphsOf(await statusOf(phones, 'A'), 'B')).toBe(before);
    await expectUnharmed();
  });

  it('is not let in with another token', async () => {
    const peers = ['A', 'B'].flatMap((name) => ['--peer', `${phones.address(name)}:${PORT}`]);
    const stranger = await up(phones, 'E', '--token', newToken(), '-m', tinyModel, ...peers);
    const rejected = ({ event, message }: { event: string; message?: unknown }) =>
      event === 'warning' && /token/i.test(String(message));
    await stranger.process.waitFor('it is told that its token is another one', rejected);
    await expectUnharmed();
    expect((await statusOf(phones, 'E')).peers.map(({ name }) => name)).toEqual(['E']);
    expect(stranger.process.all('peer')).toEqual([]);
    await stranger.process.kill();
  });

  it('is not let in with another version, and both sides say why', async () => {
    // The same package, but for its version.
    const other = join(phones.phone('E').home, 'other');
    mkdirSync(other);
    cpSync(join(projectRoot, 'dist'), join(other, 'dist'), { recursive: true });
    for (const name of ['node_modules', 'build', 'vendor']) symlinkSync(join(projectRoot, name), join(other, name));
    const manifest = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8')) as object;
    writeFileSync(join(other, 'package.json'), JSON.stringify({ ...manifest, version: '99.0.0' }));
    const from = a.process.events.length;
    const args = ['up', '--json', '--name', 'E', '--token', token, '--peer', `${phones.address('A')}:${PORT}`];
    const program = phones.run('E', [process.execPath, join(other, 'dist/cli/main.js'), ...args]);
    const told = ({ event, message }: { event: string; message?: unknown }) =>
      event === 'warning' && String(message).includes('99.0.0');
    await program.waitFor('it is told', told);
    await a.process.waitFor('A says it', told, { from });
    expect(program.all('peer')).toEqual([]);
    await expectUnharmed();
    await program.kill();
  });

  it('does not keep others out by opening connections and saying nothing', async () => {
    const floods = ['A', 'B'].map((to) => phones.tool('E', 'flood', phones.address(to), PORT, '300'));
    await Promise.all(floods.map((flood) => flood.waitFor('it floods', ({ event }) => event === 'flooding')));
    await expectUnharmed();
    // One that has the token still gets in.
    const late = await up(phones, 'D', '--token', token, '--role', 'worker');
    await statusWhen(phones, 'A', 'D is in', (status) => peerNamed(status, 'D') !== undefined);
    for (const flood of floods) await flood.kill();
    await late.process.kill();
    await expectUnharmed();
  });
});
