/** The arithmetic of a benchmark: medians, percentiles, counts for a token, the floor, predictions, splits of a sweep. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { floorOf, tokenBytes } from '../../lib/bench/floor.js';
import { nextBytes, rateOf } from '../../lib/bench/link.js';
import { predictor } from '../../lib/bench/predict.js';
import { percentiles, spread } from '../../lib/bench/spread.js';
import { summarizeStreams } from '../../lib/bench/streams.js';
import { sweepSplits } from '../../lib/bench/sweep.js';
import { breakdownOf, type Counts, difference, perToken, workerResult } from '../../lib/bench/traffic.js';
import { splitLayers } from '../../lib/placement.js';
import { median, percentile } from '../../lib/statistics.js';
import type { WorkerTraffic } from '../../lib/types.js';
import { guideShape } from '../support/plan-models.js';

describe('statistics', () => {
  it('take the middle, or what lies between the two in the middle', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
    expect(median([])).toBe(0);
  });

  it('take what so many percent do not exceed', () => {
    const values = Array.from({ length: 101 }, (_, i) => 100 - i);
    expect(percentiles(values)).toEqual({ p50: 50, p95: 95 });
    expect(percentile([10, 20], 95)).toBeCloseTo(19.5);
    expect(percentile(values, 0)).toBe(0);
    expect(percentile(values, 100)).toBe(100);
  });

  it('keep the samples in the order they were measured', () => {
    expect(spread([5, 1, 3])).toEqual({ median: 3, min: 1, max: 5, samples: [5, 1, 3] });
  });
});

describe('several streams', () => {
  const stream = (sent: number, ...times: [at: number, tokens: number][]) => ({
    sent,
    arrivals: times.map(([at, tokens]) => ({ at, tokens })),
  });

  it('count each one from its first token, and all from the earliest', () => {
    const result = summarizeStreams([
      [stream(0, [100, 1], [200, 2], [300, 3]), stream(0, [150, 1], [250, 2], [500, 3])],
    ]);
    // Two tokens each after the first, in the 400 ms from the first one's first token.
    expect(result.tokensPerSecond.samples).toEqual([10]);
    expect(result.perStream.samples).toEqual([10, 2000 / 350]);
    expect(result.firstTokenMs.p50).toBe(125);
    expect(result.tokenMs).toEqual({ p50: 100, p95: 100 + 0.85 * 150 });
    expect(result.streams).toBe(2);
  });

  it('share the time of tokens that arrived together', () => {
    const { tokenMs, perStream } = summarizeStreams([[stream(0, [10, 1], [40, 4])]]);
    expect(tokenMs).toEqual({ p50: 10, p95: 10 });
    expect(perStream.median).toBeCloseTo(100);
  });
});

describe('counts of one token', () => {
  const traffic = (base: number): WorkerTraffic => ({
    endpoint: 'w',
    graphs: 0,
    messagesSent: 3 * base,
    messagesReceived: base,
    bytesSent: 100 * base,
    bytesReceived: 10 * base,
    writes: base,
    waits: base,
    waitMs: 4 * base,
    computeMs: 3 * base,
    weightsSent: 0,
    weightsReused: 0,
  });
  const none = {
    messagesSent: 0,
    messagesReceived: 0,
    bytesSent: 0,
    bytesReceived: 0,
    waits: 0,
    waitMs: 0,
    computeMs: 0,
  };

  it('are what a longer generation counts more than a short one', () => {
    const short = { tokens: 2, workers: difference([traffic(7)], [traffic(0)]) };
    const long = { tokens: 12, workers: difference([traffic(117)], [traffic(100)]) };
    expect(perToken(long, short)).toEqual([
      { messagesSent: 3, messagesReceived: 1, bytesSent: 100, bytesReceived: 10, waits: 1, waitMs: 4, computeMs: 3 },
    ]);
  });

  it('make the time of a token', () => {
    const token: Counts = { ...none, waitMs: 25, computeMs: 15 };
    const other: Counts = { ...none, waitMs: 5, computeMs: 0 };
    expect(
      breakdownOf(40, [
        { endpoint: 'a', extended: true, token },
        { endpoint: 'b', extended: false, token: other },
      ]),
    ).toEqual({
      totalMs: 40,
      masterMs: 10,
      workers: [
        { endpoint: 'a', waitMs: 25, computeMs: 15, networkMs: 10 },
        { endpoint: 'b', waitMs: 5, computeMs: null, networkMs: null },
      ],
    });
  });

  it('never take less than no time', () => {
    const token: Counts = { ...none, waitMs: 10, computeMs: 12 };
    expect(workerResult({ endpoint: 'a', extended: true, memoryBytes: null, token })).toMatchObject({
      computeMsPerToken: 12,
      networkMsPerToken: 0,
    });
    expect(breakdownOf(8, [{ endpoint: 'a', extended: true, token }]).masterMs).toBe(0);
  });
});

describe('the floor', () => {
  const link = { endpoint: 'w', roundTripMs: 5.8, upBytesPerSecond: 6.25e6, downBytesPerSecond: 6.25e6 };

  it('sends two hidden states and the mask up, and one hidden state down', () => {
    expect(tokenBytes(896, 65)).toEqual({ up: 2 * 4 * 896 + 2 * 256, down: 4 * 896 });
    expect(tokenBytes(896, 257).up).toBe(2 * 4 * 896 + 2 * 512);
  });

  it('is computing, round trips and bytes by bandwidth', () => {
    // On the guide's hotspot, with 27 ms for a token on one phone.
    const bytes = tokenBytes(896, 65);
    const floor = floorOf({ computeMs: 27, bytes, links: [link], measured: 24 });
    expect(floor?.transferMs).toBeCloseTo(((7680 + 3584) / 6.25e6) * 1000, 6);
    expect(floor?.tokensPerSecond).toBeCloseTo(1000 / (27 + 5.8 + 1.80224), 6);
    expect(floor?.share).toBeCloseTo(24 / (1000 / 34.60224), 6);
    const two = floorOf({ computeMs: 27, bytes, links: [link, link], measured: 24 });
    expect(two?.roundTripMs).toBeCloseTo(11.6);
    expect(two?.transferMs).toBeCloseTo(2 * 1.80224);
  });

  it('is not known without the bandwidth', () => {
    const unknown = { ...link, downBytesPerSecond: null };
    expect(floorOf({ computeMs: 27, bytes: tokenBytes(896, 1), links: [unknown], measured: 24 })).toBeNull();
  });
});

describe('the measurement of a link', () => {
  it('does not count the round trip, and never divides by nothing', () => {
    expect(rateOf(1_000_000, 505, 5)).toBe(2_000_000);
    expect(rateOf(1000, 1, 5)).toBe(10_000_000);
  });

  it('grows until a transfer takes long enough, within bounds', () => {
    expect(nextBytes(65536, 70, 2 ** 25)).toBe(8 * 65536);
    expect(nextBytes(65536, 350, 2 ** 25)).toBe(2 * 65536);
    expect(nextBytes(65536, 0.001, 4 * 65536)).toBe(4 * 65536);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 512 }), fc.double({ min: 0, max: 399, noNaN: true }), (units, took) => {
        const bytes = units * 65536;
        const next = nextBytes(bytes, took, 2 ** 25);
        expect(next === 2 ** 25 || (next > bytes && next <= 8 * bytes)).toBe(true);
      }),
    );
  });
});

describe('a prediction', () => {
  const compute = { threads: 1, weightBytesPerSecond: 20e9, flopsPerSecond: 100e9 };
  const link = { endpoint: 'w', roundTripMs: 5, upBytesPerSecond: 5e6, downBytesPerSecond: 5e6 };
  const input = { model: guideShape, compute, ubatchSize: 64 };
  const half = predictor({ ...input, layers: [12, 12], links: [link] });
  const alone = predictor({ ...input, layers: [24], links: [] });

  it('has the link in a token, and the overlap in a prompt', () => {
    const extra = 1 / (half.generation(128) as number) - 1 / (alone.generation(128) as number);
    expect(extra).toBeGreaterThan(0.005);
    expect(extra).toBeLessThan(0.01);
    expect(half.prompt(512)).toBeGreaterThan(1.2 * (alone.prompt(512) as number));
  });

  it('does not depend on workers that hold nothing', () => {
    const far = { ...link, endpoint: 'v', roundTripMs: null };
    const with3 = predictor({ ...input, layers: [12, 0, 12], links: [far, link] });
    expect(with3.generation(128)).toBe(half.generation(128));
    expect(predictor({ ...input, layers: [12, 12, 0], links: [far, link] }).generation(128)).toBeNull();
  });
});

describe('the splits of a sweep', () => {
  it('go from everything on the master to nothing', () => {
    const layers = Array.from({ length: 24 }, () => 10);
    expect(sweepSplits(layers, 1, 4)).toEqual([
      [1, 0],
      [0.75, 0.25],
      [0.5, 0.5],
      [0.25, 0.75],
      [0, 1],
    ]);
    expect(sweepSplits(layers, 2, 2)).toEqual([
      [1, 0, 0],
      [0.5, 0.25, 0.25],
      [0, 0.5, 0.5],
    ]);
    expect(sweepSplits([1, 1], 1, 9)).toEqual([
      [1, 0],
      [0.5, 0.5],
      [0, 1],
    ]);
  });

  it('come out as whole layers, shared equally by the workers', () => {
    const model = fc.array(fc.integer({ min: 1000, max: 2000 }), { minLength: 8, maxLength: 80 });
    fc.assert(
      fc.property(
        model,
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 8 }),
        (layerBytes, workers, steps) => {
          for (const [i, split] of sweepSplits(layerBytes, workers, steps).entries()) {
            const counts = splitLayers(layerBytes, split);
            const rest = counts.slice(1);
            expect(counts.reduce((a, b) => a + b)).toBe(layerBytes.length);
            if (layerBytes.length >= 8 * steps) expect(counts[0]).toBe(Math.round(layerBytes.length * (1 - i / steps)));
            expect(Math.max(...rest) - Math.min(...rest)).toBeLessThanOrEqual(1);
          }
        },
      ),
    );
  });
});
