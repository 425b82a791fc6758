/** The short form of the benchmark against upstream's programs: it fills every row, and no token costs more traffic. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { CONTENDERS } from '../bench/versus-upstream/contenders.js';
import { type BenchLink, contendersOn, LINKS } from '../bench/versus-upstream/links.js';
import type { LinkSummary, Summary } from '../bench/versus-upstream/summary.js';
import { SPLITS } from '../bench/versus-upstream/targets.js';
import { grownTraffic } from '../bench/versus-upstream/traffic.js';
import { projectRoot } from '../support/paths.js';
import { namespaces, Phones } from '../support/phones.js';
import { ensureUpstream } from '../upstream/build.mjs';

const unavailable = Phones.unavailable();
// In CI a missing tool is a failure, not a reason to look away.
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

const NAMES = ['loopback', 'hotspot'] as const;
const BENCH = ['--import', './test/support/typescript.mjs', 'test/bench/versus-upstream.ts'];

/** Of every benchmark that was started. */
const pids: (number | undefined)[] = [];

async function bench(...args: string[]): Promise<string> {
  const options = { cwd: projectRoot, timeout: 580_000, maxBuffer: 64 * 1024 * 1024 };
  const running = promisify(execFile)(process.execPath, [...BENCH, ...args], options);
  pids.push(running.child.pid);
  return (await running).stdout;
}

describe.skipIf(unavailable)('the benchmark against upstream', () => {
  const runs = new Map<string, Summary>();
  const linkOf = (name: string) => runs.get(name)?.links[0] as LinkSummary;

  // The first build of llama-server takes minutes.
  beforeAll(() => ensureUpstream().then(() => {}), 30 * 60_000);
  // Both at once: no time is held against anybody here.
  beforeAll(async () => {
    const run = async (link: string) => {
      runs.set(link, JSON.parse(await bench('--tiny', '--rounds', '1', '--links', link, '--json')));
    };
    await Promise.all(NAMES.map(run));
  }, 600_000);

  it.each(NAMES)('fills every row on %s', (name) => {
    expect(runs.get(name)?.failures).toEqual([]);
    expect(runs.get(name)?.missing).toEqual([]);
    const link = LINKS.find((each) => each.name === name) as BenchLink;
    expect(linkOf(name).rows.map(({ contender }) => contender.id)).toEqual(
      contendersOn(link, CONTENDERS).map(({ id }) => id),
    );
    for (const { plain, encrypted, target } of runs.get(name)?.targets ?? []) {
      expect(plain?.ratio, target.quantity).toBeGreaterThan(0);
      if (target.of === undefined) expect(encrypted?.ratio, target.quantity).toBeGreaterThan(0);
    }
  });

  it('measured on the link that it names', () => {
    expect(linkOf('loopback').measured?.roundTripMs.median).toBeLessThan(5);
    expect(linkOf('hotspot').measured?.roundTripMs.median).toBeGreaterThan(5);
    expect(linkOf('hotspot').measured?.upBytesPerSecond.median).toBeLessThan(50e6 / 8);
    // Nothing generates faster than its round trips let it, and one phone alone has none.
    const generation = (id: string) =>
      linkOf('hotspot').rows.find(({ contender }) => contender.id === id)?.quantities.generation?.median ?? 0;
    for (const id of ['upstream-guide', 'upstream-tuned', SPLITS.plain, SPLITS.encrypted]) {
      expect(generation(id), id).toBeGreaterThan(1);
      expect(generation(id), id).toBeLessThan(200);
    }
    expect(generation('droid-alone')).toBeGreaterThan(generation(SPLITS.plain));
  });

  it('sends no more messages and bytes for a token than is committed', () => {
    const counted = Object.fromEntries(
      NAMES.flatMap((name) => {
        const traffic = linkOf(name).rows.find(({ contender }) => contender.id === SPLITS.plain)?.traffic;
        return traffic ? [[name, traffic] as const] : [];
      }),
    );
    expect(grownTraffic(counted), 'npm run bench:versus-upstream -- --update-traffic takes over new numbers').toEqual(
      [],
    );
    for (const name of NAMES) {
      // It really was counted: a graph and its result.
      expect(counted[name]?.messagesSent).toBeGreaterThanOrEqual(1);
      expect(counted[name]?.messagesReceived).toBeGreaterThanOrEqual(1);
      expect(counted[name]?.bytesSent).toBeGreaterThan(100);
    }
  });

  it('leaves no phones behind', () => {
    expect(pids).toHaveLength(NAMES.length);
    expect(namespaces().filter((name) => pids.some((pid) => name.startsWith(`dl${pid}x`)))).toEqual([]);
  });

  it('says which links and contenders there are', async () => {
    await expect(bench('--links', 'carrier-pigeon')).rejects.toThrow('hotspot, loopback, lan, poor');
    await expect(bench('--only', 'nobody')).rejects.toThrow('droid-split');
  });
});
