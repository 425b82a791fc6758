/** Cluster.join() in one process, over loopback and the real transport. */
import { EventEmitter, getEventListeners } from 'node:events';
import { copyFile, mkdtemp, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Cluster } from '../../lib/cluster/cluster.js';
import type { ClusterOptions } from '../../lib/cluster/options.js';
import { createToken } from '../../lib/transport/token.js';
import { tinyModel } from '../support/paths.js';

const discovery = { mdns: false, scan: false, tailscale: false } as const;

async function member(options: Omit<ClusterOptions, 'listen' | 'discovery'>): Promise<Cluster> {
  const cluster = await Cluster.join({ ...options, threads: 1, discovery, listen: { host: '127.0.0.1', port: 0 } });
  onTestFinished(() => cluster.leave());
  return cluster;
}

async function textOf(cluster: Cluster): Promise<string> {
  let text = '';
  const messages = [{ role: 'user', content: 'What is 2+2?' }];
  for await (const chunk of cluster.chat({ messages, max_tokens: 20, temperature: 0 })) {
    text += chunk.choices[0]?.delta.content ?? '';
  }
  return text;
}

describe('members in one process', () => {
  it('meet a named peer at once, share the model, and both answer', async () => {
    const token = createToken();
    const master = await member({ token, name: 'a', model: tinyModel });
    const started = performance.now();
    const worker = await member({ token, name: 'b', role: 'worker', peers: [`127.0.0.1:${master.port}`] });
    await EventEmitter.once(worker, 'peer');
    // It is offered again every five seconds; the first offer is the one that counts.
    expect(performance.now() - started).toBeLessThan(4000);
    await expect.poll(() => worker.role, { timeout: 30_000 }).toBe('worker');
    await expect.poll(() => master.plan?.parts.length, { timeout: 30_000 }).toBe(2);
    await Promise.all([master.ready(), worker.ready()]);
    expect(await textOf(master)).toContain('4');
    expect(await textOf(worker)).toContain('4');
    expect(master.status().self.role).toBe('master');
    const gone = EventEmitter.once(master, 'peer');
    await worker.leave();
    expect((await gone)[1]).toBe('lost');
    expect(await textOf(master)).toContain('4');
  });

  it('let another one lead when the model of the first is damaged', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'droid-cluster-'));
    onTestFinished(() => rm(directory, { recursive: true }));
    const damaged = join(directory, 'damaged.gguf');
    await copyFile(tinyModel, damaged);
    await truncate(damaged, 4_000_000);
    const token = createToken();
    const first = await member({ token, name: 'a', model: damaged });
    const failed = await new Promise<Error>((resolve) => first.once('error', resolve));
    expect(failed).toMatchObject({ code: expect.stringMatching(/^DROID_(MODEL|LOAD)/) });
    await expect(first.ready()).rejects.toBe(failed);
    const second = await member({
      token,
      name: 'b',
      model: tinyModel,
      memoryLimit: 512 * 1024 * 1024,
      peers: [`127.0.0.1:${first.port}`],
    });
    await second.ready();
    expect(second.role).toBe('master');
    // Also from the one whose own model is of no use.
    await expect.poll(() => first.status().state).toBe('ready');
    await first.ready();
    expect(await textOf(first)).toContain('4');
  });

  it('forget the signal they were given, and the process lives through all of it', async () => {
    const controller = new AbortController();
    const token = createToken();
    for (let i = 0; i < 3; i++) {
      const cluster = await member({ token, signal: controller.signal });
      await cluster.leave();
    }
    expect(getEventListeners(controller.signal, 'abort')).toEqual([]);
    const last = await member({ token, signal: controller.signal });
    controller.abort(new Error('enough'));
    await last.leave();
    await expect(last.request('GET', '/health')).rejects.toMatchObject({ code: 'DROID_CLOSED' });
  });
});
