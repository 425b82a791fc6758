/** A report as a benchmark gives it, with numbers that are easy to find again. */
import type { BenchCase, BenchReport, Spread } from '../../lib/bench/index.js';

export const spreadOf = (median: number, by = 1): Spread => ({
  median,
  min: median - by,
  max: median + by,
  samples: [median, median - by, median + by],
});

export const worker = '10.0.0.2:50052';

export const aloneCase: BenchCase = {
  name: 'one device',
  tensorSplit: null,
  masterShare: 1,
  ubatchSize: null,
  threads: 4,
  placement: [{ device: 'master', layers: [0, 1], head: true, bytes: 4 * 2 ** 20 }],
  loads: [{ kind: 'cold', seconds: 0.5, weightsSent: 0, weightsReused: 0 }],
  prompts: [{ tokens: 512, tokensPerSecond: spreadOf(120), predicted: 130 }],
  generations: [
    {
      tokens: 128,
      tokensPerSecond: spreadOf(40),
      predicted: 41,
      floor: null,
      breakdown: { totalMs: 25, masterMs: 25, workers: [] },
    },
  ],
  streams: [],
  workers: [],
};

export const splitCase: BenchCase = {
  name: '[0.5, 0.5]',
  tensorSplit: [0.5, 0.5],
  masterShare: 0.5,
  ubatchSize: null,
  threads: 4,
  placement: [
    { device: 'master', layers: [0], head: true, bytes: 3 * 2 ** 20 },
    { device: worker, layers: [1], head: false, bytes: 2 ** 20 },
  ],
  loads: [
    { kind: 'cold', seconds: 20, weightsSent: 2 ** 20, weightsReused: 0 },
    { kind: 'warm', seconds: 1.25, weightsSent: 0, weightsReused: 2 ** 20 },
  ],
  prompts: [{ tokens: 512, tokensPerSecond: spreadOf(150, 5), predicted: 160 }],
  generations: [
    {
      tokens: 128,
      tokensPerSecond: spreadOf(25, 2),
      predicted: 28,
      floor: { tokensPerSecond: 1000 / 32, computeMs: 25, roundTripMs: 5, transferMs: 2, share: 0.8 },
      breakdown: {
        totalMs: 40,
        masterMs: 15,
        workers: [{ endpoint: worker, waitMs: 25, computeMs: 15, networkMs: 10 }],
      },
    },
  ],
  streams: [
    {
      streams: 4,
      tokensPerSecond: spreadOf(33),
      perStream: spreadOf(8.25),
      firstTokenMs: { p50: 200, p95: 333 },
      tokenMs: { p50: 111, p95: 155 },
    },
  ],
  workers: [
    {
      endpoint: worker,
      bytesSentPerToken: 7927,
      bytesReceivedPerToken: 3600,
      messagesSentPerToken: 3,
      messagesReceivedPerToken: 1,
      roundTripsPerToken: 1,
      computeMsPerToken: 15,
      networkMsPerToken: 10,
      memoryBytes: 2 * 2 ** 20,
    },
  ],
};

export function benchReport(more: Partial<BenchReport> = {}): BenchReport {
  return {
    droidLlama: '0.1.0',
    node: 'v20.0.0',
    date: '2026-01-02T03:04:05.000Z',
    machine: { processor: 'Cortex-X4', cores: 8, memory: 12 * 2 ** 30, platform: 'android', arch: 'arm64' },
    model: 'guide',
    repetitions: 3,
    links: [{ endpoint: worker, roundTripMs: 5, upBytesPerSecond: 6.25e6, downBytesPerSecond: 5e6 }],
    cases: [aloneCase, splitCase],
    notes: ['Something was assumed.'],
    error: null,
    ...more,
  };
}
