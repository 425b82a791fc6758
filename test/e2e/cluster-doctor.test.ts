/** `droid-llama doctor` on phones, with nothing made up. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { CheckResult } from '../../lib/doctor/types.js';
import { Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

describe.skipIf(unavailable)('droid-llama doctor', () => {
  let phones: Phones;
  beforeAll(async () => {
    phones = await Phones.up({ hotspot: 'A', phones: { A: {}, B: {} } });
  });
  afterAll(() => phones?.down());

  async function doctor(env: NodeJS.ProcessEnv = {}, ...args: string[]) {
    const { status, stdout, stderr } = await phones.finished(phones.cli('B', ['doctor', '--json', ...args], env));
    expect(stderr).toBe('');
    const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: CheckResult[] };
    return { status, ok, check: (id: string) => checks.find((check) => check.id === id) };
  }

  it('finds a phone in order', async () => {
    const { status, ok, check } = await doctor();
    expect([status, ok]).toEqual([0, true]);
    expect(check('interfaces')).toMatchObject({ status: 'ok', found: '192.168.43.2' });
    expect(check('local-network')).toMatchObject({ status: 'ok', found: '192.168.43.2 may send to its neighbours' });
    expect(check('multicast')).toMatchObject({ status: 'ok' });
    expect(check('cluster-port')).toMatchObject({ status: 'ok', found: '60000 is free' });
    expect(check('storage')?.found).toContain(phones.phone('B').home);
    expect(check('termux')).toMatchObject({ status: 'skip' });
  });

  it('fails when another program has the port, and names both', async () => {
    const sink = phones.tool('B', 'sink', '60000');
    await sink.waitFor('it listens', ({ event }) => event === 'listening');
    const { status, ok, check } = await doctor();
    await sink.kill();
    expect([status, ok]).toEqual([1, false]);
    expect(check('cluster-port')).toMatchObject({ status: 'fail', found: '60000 is taken by another program' });
    expect((await doctor({}, '--cluster-port', '60001')).status).toBe(0);
  });

  it('gives the advice for Android in Termux, as text', async () => {
    const env = { TERMUX_VERSION: 'googleplay.2026.06.21' };
    const { status, stdout } = await phones.finished(phones.cli('B', ['doctor'], env));
    expect(status).toBe(0);
    expect(stdout).toMatch(/^warn {2}Termux build/m);
    expect(stdout).toMatch(/^ {8}termux-wake-lock$/m);
    expect(stdout).toMatch(/ 0 failed\n$/);
  });
});
