/** Our ends of the RPC protocol against upstream's, in the short form of test/bench/rpc.mjs. */
import { beforeAll, expect, it } from 'vitest';
import { bestSpeed, countTraffic, measureRounds, PAIRS, ratios } from '../bench/rpc-measure.mjs';
import { separateCores } from '../bench/rpc-programs.mjs';
import { tinyModel } from '../support/paths.js';
import { ensureUpstream } from '../upstream/build.mjs';

const model = { path: tinyModel, layers: 6 };
const [ours, , oursForUpstream, upstream] = PAIRS as [Pair, Pair, Pair, Pair];
type Pair = (typeof PAIRS)[number];

// The first build of llama-server takes minutes.
beforeAll(async () => {
  await ensureUpstream();
  separateCores();
}, 30 * 60_000);

it('sends fewer messages and fewer bytes for a token than llama-server does', async () => {
  const theirs = await countTraffic(model, upstream);
  // It really was counted: a graph, its inputs and the read of its result.
  expect(theirs.messagesSent).toBeGreaterThan(3);
  expect(theirs.messagesReceived).toBeGreaterThanOrEqual(1);
  for (const worker of ['ours', 'upstream'] as const) {
    const mine = await countTraffic(model, { master: 'ours', worker });
    expect(mine.messagesSent, worker).toBeGreaterThanOrEqual(2);
    expect(mine.messagesSent, worker).toBeLessThanOrEqual(theirs.messagesSent);
    expect(mine.messagesReceived, worker).toBeLessThanOrEqual(theirs.messagesReceived);
    expect(mine.bytesSent, worker).toBeLessThanOrEqual(theirs.bytesSent);
    // Our workers tell how long they computed, in eight bytes.
    expect(mine.bytesReceived, worker).toBeLessThanOrEqual(theirs.bytesReceived + (worker === 'ours' ? 8 : 0));
    if (worker === 'upstream') continue;
    expect(mine.messagesSent + mine.messagesReceived).toBeLessThan(theirs.messagesSent + theirs.messagesReceived);
    expect(mine.bytesSent + mine.bytesReceived).toBeLessThan(theirs.bytesSent + theirs.bytesReceived);
  }
});

it('is not slower than upstream’s ends, as far as a busy machine can tell', async () => {
  // A load of the tiny model takes llama-server 30 or 45 ms, as its start happens to fall. Of draws from what was measured
  // between equals, one in ten falls below 0.8 by the median of three, and two in ten thousand by the best of sixteen.
  const samples = await measureRounds(model, 16);
  const speedOf = (pair: Pair) => bestSpeed(samples.get(pair) ?? []);
  for (const pair of [ours, oursForUpstream]) {
    const { load, prompt, generation } = ratios(speedOf(pair), speedOf(upstream));
    const what = JSON.stringify({ pair, load, prompt, generation });
    expect(load, what).toBeGreaterThanOrEqual(0.8);
    expect(prompt, what).toBeGreaterThanOrEqual(0.8);
    expect(generation, what).toBeGreaterThanOrEqual(0.8);
  }
});
