/** What the benchmark against upstream makes of its measurements. */
import { expect, it } from 'vitest';
import { CONTENDERS } from '../bench/versus-upstream/contenders.js';
import { floorOf } from '../bench/versus-upstream/floor.js';
import { type BenchLink, contendersOn, LINKS } from '../bench/versus-upstream/links.js';
import { type Measurement, Measurements } from '../bench/versus-upstream/measurements.js';
import { report } from '../bench/versus-upstream/report.js';
import { ratioOf, spreadOf } from '../bench/versus-upstream/statistics.js';
import { summarize } from '../bench/versus-upstream/summary.js';
import { compare, outcomes, TARGETS } from '../bench/versus-upstream/targets.js';
import { grownTraffic } from '../bench/versus-upstream/traffic.js';
import { bestUbatch } from '../bench/versus-upstream/ubatch.js';

const WIDTH = 896;

function recorded(...records: Measurement[]): Measurements {
  const measurements = new Measurements();
  for (const record of records) measurements.add(record);
  return measurements;
}

function speed(contender: string, round: number, generatedPerSecond: number, promptPerSecond = 100): Measurement {
  const drafts = { drafted: null, accepted: null };
  const of = { link: 'hotspot', contender, round, ubatch: 64, generatedTokens: 64 };
  return { kind: 'speed', ...of, promptPerSecond, generatedPerSecond, ...drafts };
}

const about: Measurement = {
  kind: 'about',
  date: '2030-01-02T00:00:00.000Z',
  command: 'the command',
  machine: 'a machine',
  versions: 'versions',
  model: 'model.gguf',
  layers: 24,
  width: WIDTH,
  links: ['hotspot'],
  contenders: CONTENDERS.map(({ id }) => id),
  rounds: 3,
  promptTokens: 512,
  generatedTokens: 64,
  conditions: ['a condition'],
  commands: { 'upstream-guide': { master: 'llama-server', worker: 'ggml-rpc-server' } },
};

const link = (round: number): Measurement => ({
  kind: 'link',
  link: 'hotspot',
  round,
  roundTripMs: 5,
  shortestMs: 5,
  upBytesPerSecond: 6e6,
  downBytesPerSecond: 6e6,
  loadAverage: 1.5,
});

it('compares medians, and values of the same round', () => {
  const at = (...values: number[]) => values.map((value, i) => ({ round: i + 1, value }));
  expect(ratioOf(at(10, 30, 20), at(10, 10, 40))).toEqual({
    ratio: 2,
    perRound: { median: 1, min: 0.5, max: 3, count: 3 },
  });
  expect(ratioOf(at(10), [{ round: 2, value: 5 }])).toEqual({ ratio: 2, perRound: null });
  expect(ratioOf([], at(1))).toBeNull();
  expect(spreadOf([4, 1, 3, 2])).toEqual({ median: 2.5, min: 1, max: 4, count: 4 });
});

it('takes less time of a load for better', () => {
  const load = (contender: string, seconds: number): Measurement => {
    return { kind: 'load', link: 'hotspot', contender, round: 1, load: 'warm', seconds };
  };
  const measurements = recorded(load('droid-split', 2), load('upstream-tuned', 22));
  expect(compare(measurements, 'hotspot', 'warm load', 'droid-split', 'upstream-tuned')?.ratio).toBe(11);
});

it('knows the floor of the guide’s two phones', () => {
  // 25 ms to compute, 5 ms on the way, 7,680 bytes up and 3,584 down at 6 MB/s.
  const floor = floorOf({
    generatedPerSecond: 40,
    roundTripMs: 5,
    upBytesPerSecond: 6e6,
    downBytesPerSecond: 6e6,
    width: WIDTH,
  });
  expect(floor.computeMs).toBe(25);
  expect(floor.transferMs).toBeCloseTo((7680 + 3584) / 6000, 9);
  expect(floor.tokensPerSecond).toBeCloseTo(1000 / (30 + 11264 / 6000), 9);
});

it('says which targets are reached, by the best of those it is compared with', () => {
  const measurements = recorded(
    about,
    link(1),
    speed('upstream-guide', 1, 6, 80),
    speed('upstream-tuned', 1, 24, 150),
    speed('upstream-alone', 1, 38, 110),
    speed('droid-alone', 1, 40, 120),
    speed('droid-split', 1, 27, 170),
  );
  const all = outcomes(measurements, ['hotspot'], WIDTH);
  expect(all).toHaveLength(TARGETS.filter((target) => target.link === 'hotspot').length);
  const of = (quantity: string, against: string) =>
    all.find(({ target }) => target.quantity === quantity && [target.against].flat().includes(against));
  expect(of('generation', 'upstream-guide')?.plain).toMatchObject({ ratio: 4.5, reached: true });
  expect(of('generation', 'upstream-tuned')?.plain).toMatchObject({ ratio: 1.125, reached: false });
  expect(of('generation', 'floor')?.plain?.ratio).toBeCloseTo(27 / (1000 / (30 + 11264 / 6000)), 9);
  expect(of('prompt', 'upstream-alone')).toMatchObject({ other: 'droid-alone', plain: { reached: false } });
  // Nobody measured it encrypted, and nobody measured loads.
  expect(of('prompt', 'upstream-alone')?.encrypted).toBeNull();
  expect(of('warm load', 'upstream-tuned')?.plain).toBeNull();
});

it('takes the ubatch with the quickest prompt, from another link where one phone uses none', () => {
  const swept = (link: string, ubatch: number, promptPerSecond: number): Measurement => {
    return { kind: 'ubatch', link, contender: 'upstream-tuned', ubatch, promptPerSecond };
  };
  const measurements = recorded(swept('lan', 64, 150), swept('lan', 512, 100), swept('poor', 512, 90));
  expect(bestUbatch(measurements, 'lan', 'upstream-tuned')).toBe(64);
  expect(bestUbatch(measurements, 'poor', 'upstream-tuned')).toBe(512);
  expect(bestUbatch(measurements, 'hotspot', 'upstream-tuned')).toBe(64);
  expect(bestUbatch(measurements, 'hotspot', 'droid-split')).toBeUndefined();
});

it('has a row for every contender, and names what was not measured', () => {
  const failure = { what: 'speed', message: 'it ended' };
  const measurements = recorded(about, link(1), link(2), link(3), speed('upstream-guide', 1, 6), {
    kind: 'failure',
    link: 'hotspot',
    contender: 'droid-split',
    ...failure,
  });
  const summary = summarize(measurements);
  const text = report(summary);
  const hotspot = LINKS.find(({ name }) => name === 'hotspot') as BenchLink;
  for (const { title } of contendersOn(hotspot, CONTENDERS)) expect(text).toContain(`| ${title} |`);
  expect(text).toContain('not measured');
  expect(text).not.toMatch(/NaN|undefined|null/);
  expect(summary.missing).toContain('hotspot: upstream-guide: cold load');
  expect(summary.missing).toContain('hotspot: droid-split: generation');
  expect(summary.missing).not.toContain('hotspot: upstream-guide: generation');
  expect(text).toContain('- hotspot: droid-split: speed: it ended');
});

it('notices what has grown, and what was not counted', () => {
  const limit = { messagesSent: 3, messagesReceived: 1, bytesSent: 100, bytesReceived: 50 };
  expect(grownTraffic({ lan: { ...limit, bytesSent: 90 } }, { lan: limit })).toEqual([]);
  expect(grownTraffic({ lan: { ...limit, bytesSent: 101 } }, { lan: limit })).toEqual([
    'lan: bytesSent 101 a token, at most 100',
  ]);
  expect(grownTraffic({}, { lan: limit })).toEqual(['lan: nothing was counted']);
});
