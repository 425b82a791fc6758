/** The supervisor over a program that only plays the worker. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { type Backoff, Supervisor } from '../../lib/cli/supervisor.js';
import { WorkerProcess } from '../../lib/cli/worker-process.js';
import { expectGone } from '../support/cli.js';
import { until } from '../support/contexts.js';
import { projectRoot } from '../support/paths.js';

const fakeWorker = join(projectRoot, 'test/support/fake-worker.mjs');

async function scene(...behaviours: string[]) {
  const dir = await mkdtemp(join(tmpdir(), 'droid-supervisor-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  const counter = join(dir, 'starts');
  const notes: string[] = [];
  const abort = new AbortController();
  const command = (port: number) => ({
    file: process.execPath,
    args: [fakeWorker, counter, String(port), ...behaviours],
  });
  return {
    notes,
    abort,
    command,
    /** Process and port of each start. */
    starts: async () =>
      (await readFile(counter, 'utf8'))
        .trim()
        .split('\n')
        .map((line) => line.split(' ').map(Number) as [pid: number, port: number]),
    async supervise({ port = 0, ...backoff }: Partial<Backoff> & { port?: number } = {}): Promise<Supervisor> {
      const supervisor = await Supervisor.start({
        command,
        port,
        note: (line) => notes.push(line),
        signal: abort.signal,
        backoff: { firstMs: 1, maxMs: 4, soundMs: 60_000, ...backoff },
      });
      onTestFinished(() => supervisor.close());
      return supervisor;
    },
  };
}

const kill = (supervisor: Supervisor, pid: unknown, signal: NodeJS.Signals = 'SIGKILL') => {
  expect(supervisor.ready.pid).toBe(process.pid);
  process.kill(pid as number, signal);
};

const backAgain = (notes: readonly string[], times: number) =>
  until(`it is back for the ${times}. time`, () => notes.filter((line) => line.includes('is back')).length === times);

describe('Supervisor', () => {
  it('says what the worker said, and answers for it', async () => {
    const { supervise, starts } = await scene('run');
    const supervisor = await supervise();
    const [[pid] = []] = await starts();
    expect(supervisor.ready).toEqual({ endpoint: '127.0.0.1:4242', pid: process.pid, childPid: pid });
    expect(await Promise.all([supervisor.stats(), supervisor.stats()])).toEqual(
      Array(2).fill({ graphsComputed: 0, restarts: 0, childPid: pid }),
    );
    await supervisor.close();
    await expectGone(pid as number);
    await supervisor.close();
  });

  it('skips lines that are not the worker’s', async () => {
    const { supervise, starts } = await scene('chatty');
    const supervisor = await supervise();
    const childPid = (await starts())[0]?.[0];
    expect(supervisor.ready).toMatchObject({ endpoint: '127.0.0.1:4242', childPid });
    for (let i = 0; i < 2; i++) expect(await supervisor.stats()).toEqual({ graphsComputed: 0, restarts: 0, childPid });
  });

  it('starts a worker again that is killed, on the port it had', async () => {
    const { supervise, starts, notes } = await scene('run');
    const supervisor = await supervise();
    for (let i = 1; i <= 3; i++) {
      kill(supervisor, (await supervisor.stats()).childPid);
      await backAgain(notes, i);
      expect(await supervisor.stats()).toEqual({ graphsComputed: i, restarts: i, childPid: (await starts())[i]?.[0] });
    }
    expect((await starts()).map(([, port]) => port)).toEqual([0, 4242, 4242, 4242]);
    expect(notes[0]).toMatch(/^the worker process \d+ ended by SIGKILL; starting it again in 0\.001 s$/);
    expect(notes[1]).toMatch(/^the worker is back on 127\.0\.0\.1:4242 as process \d+$/);
  });

  it('answers also when the worker ends over the question', async () => {
    const { supervise, notes } = await scene('crash', 'run');
    const supervisor = await supervise();
    expect(await supervisor.stats()).toEqual({ restarts: 0, childPid: null });
    await backAgain(notes, 1);
    expect(notes[0]).toContain('ended by SIGABRT');
    expect(await supervisor.stats()).toMatchObject({ graphsComputed: 1, restarts: 1 });
  });

  it('waits longer each time, and never gives up', async () => {
    const { supervise, notes } = await scene('crash', 'exit:3', 'error:DROID_PORT_IN_USE', 'exit:0', 'exit:1', 'run');
    const supervisor = await supervise();
    await supervisor.stats();
    await backAgain(notes, 1);
    expect(notes.map((line) => line.replace(/process \d+/, 'process'))).toEqual([
      'the worker process ended by SIGABRT; starting it again in 0.001 s',
      'starting the worker again failed: the worker process ended with status 3; starting it again in 0.002 s',
      'starting the worker again failed: it says DROID_PORT_IN_USE; starting it again in 0.004 s',
      'starting the worker again failed: the worker process ended with status 0; starting it again in 0.004 s',
      'starting the worker again failed: the worker process ended with status 1; starting it again in 0.004 s',
      'the worker is back on 127.0.0.1:4242 as process',
    ]);
    expect((await supervisor.stats()).restarts).toBe(1);
  });

  it.each([
    [0, ['0.001', '0.001', '0.001']],
    [60_000, ['0.001', '0.002', '0.004']],
  ])('forgets earlier ends after %i ms of health', async (soundMs, expected) => {
    const { supervise, notes } = await scene('run');
    const supervisor = await supervise({ soundMs });
    for (let i = 1; i <= expected.length; i++) {
      kill(supervisor, (await supervisor.stats()).childPid);
      await backAgain(notes, i);
    }
    expect(notes.flatMap((line) => /again in (\S+) s/.exec(line)?.[1] ?? [])).toEqual(expected);
  });

  it.each([
    ['error:DROID_PORT_IN_USE', { code: 'DROID_PORT_IN_USE', message: 'it says DROID_PORT_IN_USE' }],
    ['error:nonsense', { message: 'it says nonsense' }],
    ['exit:3', { message: 'the worker process ended with status 3' }],
    ['prattle', { message: 'the worker process printed 10000 lines but did not say its endpoint' }],
  ])('does not try again when the first start fails: %s', async (behaviour, error) => {
    const { supervise, starts, notes } = await scene(behaviour, 'run');
    await expect(supervise({ port: 7 })).rejects.toMatchObject(error);
    expect(await starts()).toEqual([[expect.any(Number), 7]]);
    expect(notes).toEqual([]);
  });

  it('tells a program that cannot be run', async () => {
    const { abort } = await scene();
    const command = () => ({ file: '/no/such/program', args: [] });
    await expect(Supervisor.start({ command, port: 0, note: () => {}, signal: abort.signal })).rejects.toThrow(
      'ENOENT',
    );
  });

  it('closes while it waits to start the worker again', async () => {
    const { supervise, starts, notes } = await scene('run');
    const supervisor = await supervise({ firstMs: 600_000 });
    kill(supervisor, (await supervisor.stats()).childPid);
    await until('it waits', () => notes.length === 1);
    expect(await supervisor.stats()).toEqual({ restarts: 0, childPid: null });
    await supervisor.close();
    expect((await starts()).length).toBe(1);
  });

  it('closes, or is aborted, while the worker starts', async () => {
    for (const way of ['close', 'abort']) {
      const { supervise, starts, abort } = await scene('run', 'hang');
      const supervisor = await supervise();
      kill(supervisor, (await supervisor.stats()).childPid);
      let second: number | undefined;
      while (second === undefined) second = (await starts())[1]?.[0];
      if (way === 'abort') abort.abort(new Error('enough'));
      await supervisor.close();
      await expectGone(second);
    }
  });

  it('kills a worker that does not end by itself', async () => {
    const { supervise, starts } = await scene('deaf');
    const supervisor = await supervise();
    await supervisor.close();
    await expectGone((await starts())[0]?.[0] as number);
  });

  it('kills a first start that is aborted', async () => {
    const { supervise, starts, abort } = await scene('hang');
    const starting = supervise();
    starting.catch(() => {});
    let pid: number | undefined;
    while (pid === undefined) pid = (await starts().catch(() => []))[0]?.[0];
    abort.abort(new Error('enough'));
    await expect(starting).rejects.toThrow('enough');
    await expectGone(pid);
    await expect(supervise()).rejects.toThrow('enough');
    expect((await starts()).length).toBe(1);
  });
});

it('WorkerProcess tells how it ended', async () => {
  const { command, abort } = await scene('run');
  const worker = await WorkerProcess.start(command(0), abort.signal);
  process.kill(worker.pid as number, 'SIGTERM');
  expect(await worker.exited).toEqual({ code: null, signal: 'SIGTERM' });
  await expect(worker.stats()).rejects.toThrow('the worker process ended by SIGTERM');
  await worker.stop();
});
