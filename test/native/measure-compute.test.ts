import { readdirSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { addon } from '../../lib/addon.js';
import { projectRoot } from '../support/paths.js';

const processThreads = () => readdirSync('/proc/self/task').length;

describe('measureCompute', () => {
  it('tells how fast this machine is, in about the time it is given', async () => {
    const start = performance.now();
    const { weightBytesPerSecond, flopsPerSecond } = await addon().measureCompute(1, 400);
    const took = performance.now() - start;
    expect(took).toBeGreaterThanOrEqual(400);
    expect(took).toBeLessThan(2000);
    // From a phone's slowest core to a server's fastest.
    expect(weightBytesPerSecond).toBeGreaterThan(1e8);
    expect(weightBytesPerSecond).toBeLessThan(1e12);
    expect(flopsPerSecond).toBeGreaterThan(1e8);
    expect(flopsPerSecond).toBeLessThan(1e13);
    // A token takes 2 FLOP for each weight of 4.5 bits; a batch makes better use of a weight that was read.
    expect(flopsPerSecond).toBeGreaterThan(weightBytesPerSecond * (2 / 0.5625));
  });

  it('gives much the same again', async () => {
    const first = await addon().measureCompute(1, 300);
    const second = await addon().measureCompute(1, 300);
    for (const key of ['weightBytesPerSecond', 'flopsPerSecond'] as const) {
      expect(second[key] / first[key]).toBeGreaterThan(0.4);
      expect(second[key] / first[key]).toBeLessThan(2.5);
    }
  });

  it('leaves the event loop free, and neither threads nor much memory behind', async () => {
    await addon().measureCompute(2, 20);
    const threads = processThreads();
    const before = process.memoryUsage.rss();
    let peak = 0;
    let ticks = 0;
    const timer = setInterval(() => {
      ticks++;
      peak = Math.max(peak, process.memoryUsage.rss());
    }, 5);
    await addon().measureCompute(2, 300);
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(10);
    expect(peak - before).toBeLessThan(64 * 1048576);
    const deadline = Date.now() + 2000;
    while (processThreads() > threads && Date.now() < deadline) await new Promise(setImmediate);
    expect(processThreads()).toBeLessThanOrEqual(threads);
  });

  it('takes what it needs at least when it is given no time', async () => {
    const { weightBytesPerSecond, flopsPerSecond } = await addon().measureCompute(1, 0);
    expect(weightBytesPerSecond).toBeGreaterThan(0);
    expect(flopsPerSecond).toBeGreaterThan(0);
  });

  it('ends early with the environment that asked for it', async () => {
    const worker = new Worker(
      `const addon = require(${JSON.stringify(`${projectRoot}/build/Release/droid-llama.node`)});
       addon.measureCompute(1, 60_000).catch(() => {});
       setTimeout(() => require('node:worker_threads').parentPort.postMessage('begun'), 200);`,
      { eval: true },
    );
    await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    const start = performance.now();
    await worker.terminate();
    expect(performance.now() - start).toBeLessThan(5000);
  });
});
