/** The phones that other tests run on: that their links are what they are said to be, and that nothing of them stays. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { namespaces, Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
// In CI a missing tool is a failure, not a reason to look away.
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

const PORT = '60000';

describe.skipIf(unavailable)('a hotspot whose host takes no connections', () => {
  let phones: Phones;
  beforeAll(async () => {
    phones = await Phones.up({
      hotspot: 'A',
      phones: {
        A: { incoming: 'drop' },
        B: {},
        C: { incoming: 'drop', outgoing: 'drop' },
        D: { mbit: 10, delayMs: 10 },
      },
    });
    for (const name of ['A', 'B', 'C', 'D']) await listening(phones, name);
  });
  afterAll(() => phones?.down());

  const dial = async (from: string, to: string, timeoutMs = 700) => {
    const child = phones.tool(from, 'dial', phones.address(to), PORT, `${timeoutMs}`);
    await phones.finished(child);
    return child.events[0]?.event;
  };

  it('drops what comes in where it should, and only there', async () => {
    expect(phones.address('A')).toBe('192.168.43.1');
    expect(phones.address('B')).toBe('192.168.43.2');
    expect(await dial('A', 'B')).toBe('open');
    expect(await dial('B', 'A')).toBe('timeout');
    expect(await dial('A', 'A')).toBe('open');
    // Clients reach each other through the host.
    expect(await dial('B', 'D')).toBe('open');
    expect(await dial('D', 'B')).toBe('open');
    expect(await dial('A', 'C')).toBe('timeout');
    expect(await dial('C', 'B')).toBe('timeout');
    expect(await dial('C', 'C')).toBe('open');
    await using other = await Phones.up({ phones: { A: {} } });
    const refused = other.tool('A', 'dial', other.address('A'), PORT, '700');
    await other.finished(refused);
    expect(refused.events[0]?.event).toBe('refused');
  });

  it('has the delay and the rate of each link', async () => {
    const echo = async (from: string, to: string): Promise<number> => {
      const child = phones.tool(from, 'echo', phones.address(to), PORT, '20');
      await phones.finished(child);
      return child.events[0]?.ms as number;
    };
    // Above the sum of the delays by what this machine adds; the shortest of twenty, so that it is little.
    for (const [from, to, least] of [
      ['A', 'B', 5],
      ['A', 'D', 20],
      ['B', 'D', 25],
    ] as const) {
      const ms = await echo(from, to);
      expect(ms).toBeGreaterThan(least);
      expect(ms).toBeLessThan(least + 8);
    }
    const mbits = async (from: string, to: string, megabytes: number): Promise<number> => {
      const child = phones.tool(from, 'send', phones.address(to), PORT, `${megabytes * 1e6}`);
      await phones.finished(child);
      return (megabytes * 8) / (child.events[0]?.seconds as number);
    };
    const fast = await mbits('A', 'B', 6);
    expect(fast).toBeGreaterThan(30);
    expect(fast).toBeLessThan(52);
    const slow = await mbits('A', 'D', 1);
    expect(slow).toBeGreaterThan(5);
    expect(slow).toBeLessThan(11);
  });

  it('gives a link another delay, and the old one back', async () => {
    const echo = async (): Promise<number> => {
      const child = phones.tool('A', 'echo', phones.address('B'), PORT, '10');
      await phones.finished(child);
      return child.events[0]?.ms as number;
    };
    await phones.relink('B', { delayMs: 15, mbit: 50 });
    expect(await echo()).toBeGreaterThan(30);
    await phones.relink('B', { delayMs: 2.5, mbit: 50 });
    expect(await echo()).toBeLessThan(13);
    await expect(phones.relink('B', { delayMs: 1, mbit: 0 })).rejects.toThrow('a link needs');
  });

  it('cuts a link in silence, and restores it with what was on it', async () => {
    await phones.cut('B');
    expect(await dial('A', 'B')).toBe('timeout');
    expect(await dial('B', 'D')).toBe('timeout');
    expect(await dial('A', 'D')).toBe('open');
    // TCP sends it again until it arrives.
    const child = phones.tool('A', 'echo', phones.address('B'), PORT, '5');
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(child.events).toEqual([]);
    await phones.restore('B');
    await child.waitFor('the echo', ({ event }) => event === 'echo');
    expect(await dial('A', 'B')).toBe('open');
  });

  it('records what passes, and what did not pass is not there', async () => {
    const capture = await phones.capture('B');
    const marker = Buffer.from('a marker that nobody else sends, longer than a few bytes');
    const say = (to: string, text: Buffer) =>
      phones.finished(phones.tool('A', 'say', phones.address(to), PORT, text.toString('base64'), '200'));
    await say('B', marker);
    await say('B', Buffer.concat([Buffer.alloc(5000, 'x'), Buffer.from('far in')]));
    const elsewhere = Buffer.from('said to somebody else');
    await say('D', elsewhere);
    const recorded = await capture.stop();
    const after = Buffer.from('said when nobody listened');
    await say('B', after);
    expect(recorded.saw(marker)).toBe(true);
    expect(recorded.saw(Buffer.from('far in'))).toBe(true);
    expect(recorded.saw(elsewhere)).toBe(false);
    expect(recorded.saw(after)).toBe(false);
    // Without the last packets of connections that began before.
    const [first, back] = recorded.streams.filter(({ data }) => data.length > 0);
    expect(first).toMatchObject({ opened: true, to: `192.168.43.2:${PORT}`, data: marker });
    // Short enough to be answered with itself.
    expect(back).toMatchObject({ opened: false, from: `192.168.43.2:${PORT}`, data: marker });
    // Larger than a packet: put together of several.
    expect(
      recorded.streams
        .find(({ data }) => data.length === 5006)
        ?.data.subarray(5000)
        .toString(),
    ).toBe('far in');
  });

  it('gives each phone a home of its own and a plain environment', async () => {
    const script =
      'console.log(JSON.stringify([process.env.HOME, process.env.DROID_LLAMA_TOKEN ?? null, process.env.X]))';
    process.env.DROID_LLAMA_TOKEN = 'of the test itself';
    const child = phones.run('B', [process.execPath, '-e', script], { env: { X: 'given' } });
    delete process.env.DROID_LLAMA_TOKEN;
    const { stdout } = await phones.finished(child);
    expect(JSON.parse(stdout)).toEqual([phones.phone('B').home, null, 'given']);
    expect(phones.phone('A').home).not.toBe(phones.phone('B').home);
  });
});

describe.skipIf(unavailable)('when the phones go down', () => {
  const mine = () => namespaces().filter((name) => name.startsWith(`dl${process.pid}x`));

  it('removes programs, what they started, namespaces and homes', async () => {
    const phones = await Phones.up({ phones: { A: {}, B: {} } });
    const { home } = phones.phone('A');
    expect(mine()).toHaveLength(2);
    // A grandchild that nobody waits for.
    const child = phones.run('A', ['sh', '-c', 'sleep 1000 & echo $!; wait']);
    const [, pid = ''] = await child.says(/^(\d+)\n/);
    await phones.down();
    await phones.down();
    expect(mine()).toEqual([]);
    expect(existsSync(home)).toBe(false);
    expect(alive(pid)).toBe(false);
  });

  it('removes what a test that was killed left behind', async () => {
    // Its process is gone: the largest id there is, and one more.
    const gone = 'dl4194305x1-A';
    execFileSync('ip', ['netns', 'add', gone]);
    const phones = await Phones.up({ phones: { A: {} } });
    expect(namespaces()).not.toContain(gone);
    await phones.down();
  });

  it('leaves nothing of phones that could not be made', async () => {
    await expect(Phones.up({ hotspot: 'B', phones: { A: {} } })).rejects.toThrow('no phone B');
    expect(mine()).toEqual([]);
  });
});

async function listening(phones: Phones, name: string): Promise<void> {
  await phones.tool(name, 'sink', PORT).waitFor('it listens', ({ event }) => event === 'listening');
}

function alive(pid: string): boolean {
  return (
    existsSync(`/proc/${pid}`) && !execFileSync('cat', [`/proc/${pid}/stat`], { encoding: 'utf8' }).includes(') Z ')
  );
}
