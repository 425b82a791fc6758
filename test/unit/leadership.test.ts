/** What a master decides when devices come, go and fail; over an engine that only plays one. */
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { Leadership, type Situation } from '../../lib/cluster/master/leadership.js';
import type { Link, Peer, Roles } from '../../lib/cluster/types.js';
import { DroidLlamaError } from '../../lib/errors.js';
import { FakeLoads, layerBytes } from '../support/fake-engine.js';
import { peerOf } from '../support/peers.js';
import { tinyShape } from '../support/plan-models.js';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'Date', 'performance'] });
});
afterEach(() => vi.useRealTimers());

const shape = { ...tinyShape, layerBytes, activeBytesPerLayer: layerBytes };
const summary = { name: 'tiny', bytes: 100, layers: layerBytes.length };
const compute = { threads: 1, weightBytesPerSecond: 5e9, flopsPerSecond: 50e9 };

const master = peerOf('A', { id: 'A', compute, model: summary });
// Pinned, since a model of a hundred bytes is helped by nobody.
const worker = (id: string, change: Partial<Peer> = {}): Peer => peerOf(id, { id, compute, pin: 'worker', ...change });

function situation(workers: readonly Peer[], leader: Peer = master): Situation {
  const link = (from: string, to: string): Link => ({
    ...{ from, to, dial: 'open', endpoint: '10.0.0.1:1', roundTripMs: 1, bytesPerSecond: 1e8 },
  });
  const roles: Roles = {
    master: leader.id,
    workers: workers.map(({ id }) => ({ id, via: 'direct' })),
    leftOut: [],
    reasons: [],
  };
  const links = workers.flatMap(({ id }) => [link(leader.id, id), link(id, leader.id)]);
  return { peers: [leader, ...workers], links, roles };
}

function lead() {
  const loads = new FakeLoads();
  const leadership = new Leadership({
    self: 'A',
    epoch: 7,
    model: { path: 'm.gguf', shape, summary },
    objective: 'share',
    contextSize: undefined,
    batchSize: undefined,
    ubatchSize: undefined,
    parallel: undefined,
    runtime: { openRpc: async () => 99, loadContext: loads.load, layerBytes: async () => layerBytes },
  });
  const lost: string[] = [];
  leadership.on('lost', (error, peer) => lost.push(`${peer} ${error.code}`));
  onTestFinished(() => leadership.close());
  return { leadership, loads, lost };
}

/** Lets everything happen that needs no more than `ms`. */
const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

async function loaded(workers: readonly Peer[]) {
  const led = lead();
  led.leadership.update(situation(workers));
  await pass(10);
  led.loads.last.finish();
  await pass(10);
  expect(led.leadership.lead().state).toBe('ready');
  return led;
}

/** A request that runs until the engine's `finish()`; resolves to what settles when it has ended. */
async function openStream({ leadership }: ReturnType<typeof lead>): Promise<{ ended: Promise<void> }> {
  const { body } = await leadership.runtime.request('GET', '/stream');
  const ended = (async () => {
    for await (const _ of body);
  })();
  await pass(10);
  return { ended };
}

const endpoints = (led: ReturnType<typeof lead>) => led.loads.last.workers.map(({ endpoint }) => endpoint);

describe('a master', () => {
  it('loads the plan it makes, and says so', async () => {
    const led = lead();
    led.leadership.update(situation([worker('B')]));
    await pass(10);
    expect(led.leadership.lead()).toMatchObject({ epoch: 7, state: 'loading' });
    expect(endpoints(led)).toEqual(['B']);
    led.loads.last.finish();
    await pass(10);
    expect(led.leadership.lead()).toMatchObject({ state: 'ready', progress: 1, reason: null });
    const layers = led.leadership.lead().plan?.parts.map((part) => [part.id, part.layers]);
    expect(layers).toHaveLength(2);
  });

  it('takes a device in that comes later, once no request runs', async () => {
    const led = await loaded([]);
    const stream = await openStream(led);
    led.leadership.update(situation([worker('B')]));
    await pass(1000);
    expect(led.loads.all).toHaveLength(1);
    // Others must not take the plan to come for what is loaded.
    expect(led.leadership.lead()).toMatchObject({ state: 'ready', plan: { parts: [{ id: 'A' }] } });
    expect(led.leadership.lead().plan?.parts).toHaveLength(1);
    led.loads.all[0]?.context.finish();
    await stream.ended;
    await pass(10);
    expect(led.loads.all).toHaveLength(2);
    expect(endpoints(led)).toEqual(['B']);
  });

  it('stays with what it has when the device is gone before its turn came', async () => {
    const led = await loaded([]);
    const stream = await openStream(led);
    led.leadership.update(situation([worker('B')]));
    await pass(1000);
    led.leadership.update(situation([]));
    led.loads.all[0]?.context.finish();
    await stream.ended;
    await pass(10_000);
    expect(led.loads.all).toHaveLength(1);
    expect(led.leadership.lead()).toMatchObject({ state: 'ready', plan: { parts: [{ id: 'A' }] } });
  });

  it('goes on alone when a worker fails, and tries it again after a while that grows', async () => {
    const led = await loaded([worker('B')]);
    const now = situation([worker('B')]);
    let loads = 1;
    for (const pause of [3_000, 6_000, 12_000]) {
      led.loads.last.loseWorker(0);
      await pass(100);
      expect(led.loads.all).toHaveLength(++loads);
      expect(endpoints(led)).toEqual([]);
      led.loads.last.finish();
      await pass(pause - 1000);
      led.leadership.update(now);
      expect(led.loads.all).toHaveLength(loads);
      await pass(1500);
      expect(led.loads.all).toHaveLength(++loads);
      expect(endpoints(led)).toEqual(['B']);
      led.loads.last.finish();
      await pass(10);
    }
    expect(led.lost).toEqual(Array(3).fill('B DROID_WORKER_LOST'));
  });

  it('plans at once without a worker that has left', async () => {
    const led = await loaded([worker('B'), worker('C')]);
    expect(endpoints(led)).toHaveLength(2);
    led.leadership.update(situation([worker('C')]));
    await pass(10);
    expect(endpoints(led)).toEqual(['C']);
  });

  it('waits when the model does not fit who is left, and says how much is missing', async () => {
    const led = lead();
    const small = { ...master, memory: 1000 };
    led.leadership.update(situation([], small));
    await pass(10);
    expect(led.loads.all).toHaveLength(0);
    const { state, reason, plan } = led.leadership.lead();
    expect(state).toBe('waiting');
    expect(reason).toMatch(/MiB/);
    expect(plan?.missingBytes).toBeGreaterThan(0);
    led.leadership.update(situation([], master));
    await pass(10);
    expect(led.loads.all).toHaveLength(1);
  });

  it('tries again, after a pause, when a device has less memory than it said', async () => {
    const led = lead();
    led.leadership.update(situation([worker('B')]));
    await pass(10);
    led.loads.last.fail(new DroidLlamaError('DROID_OUT_OF_MEMORY', 'The master has 5 MiB free.'));
    await pass(10);
    expect(led.leadership.lead().state).toBe('failed');
    const loads = led.loads.all.length;
    led.leadership.update(situation([worker('B')]));
    await pass(1000);
    expect(led.loads.all).toHaveLength(loads);
    await pass(2500);
    expect(led.loads.all).toHaveLength(loads + 1);
  });

  it('tells that it waits once, however often it looks', async () => {
    const led = lead();
    const told = vi.fn();
    led.leadership.on('lead', told);
    const small = { ...master, memory: 1000 };
    for (let i = 0; i < 20; i++) {
      led.leadership.update(situation([], small));
      await pass(50);
    }
    expect(told.mock.calls.length).toBeLessThan(3);
  });

  it('tries a failed load again also when a worker came back from its pause meanwhile', async () => {
    const led = await loaded([worker('B')]);
    led.loads.last.loseWorker(0);
    await pass(1000);
    led.loads.last.fail(new DroidLlamaError('DROID_OUT_OF_MEMORY', 'The master has 5 MiB free.'));
    await pass(10);
    expect(led.leadership.lead().state).toBe('failed');
    const loads = led.loads.all.length;
    // The worker's pause ends before that of the failed load does.
    await pass(10_000);
    expect(led.loads.all.length).toBeGreaterThan(loads);
  });

  it('does not try a model again that cannot be loaded', async () => {
    const led = lead();
    led.leadership.update(situation([]));
    await pass(10);
    led.loads.last.fail(new DroidLlamaError('DROID_MODEL_INVALID', 'The file is damaged.'));
    await pass(100_000);
    led.leadership.update(situation([worker('B')]));
    await pass(100_000);
    expect(led.loads.all).toHaveLength(1);
    expect(led.leadership.lead()).toMatchObject({ state: 'failed', reason: expect.stringContaining('damaged') });
  });
});
