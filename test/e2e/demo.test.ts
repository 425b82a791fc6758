/** `droid-llama demo`, the first thing a user runs. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Cli, expectGone, runCli } from '../support/cli.js';
import { projectRoot } from '../support/paths.js';

/** With a module of test/support that is loaded first, in the worker's process, too. */
const preloading = (name: string) => ({ NODE_OPTIONS: `--require=${join(projectRoot, 'test/support', name)}` });

describe('demo', () => {
  it('answers from two processes and proves it', async () => {
    const { status, stdout, stderr } = await runCli('demo');
    const lines = stdout.split('\n');
    expect(lines).toEqual([
      '2+2 equals 4.',
      '',
      expect.stringMatching(/^device +layers +head +MiB +share$/),
      expect.stringMatching(/^master +0-2 +yes +3\.89 +53\.4%$/),
      expect.stringMatching(/^127\.0\.0\.1:\d+ +3-5 +no +3\.39 +46\.6%$/),
      '',
      expect.stringMatching(/^8 tokens at [\d.]+ tokens\/s$/),
      expect.stringMatching(/^the worker \(process \d+\) counted \d+ graphs, the master is process \d+$/),
      '',
    ]);
    const [workerPid, graphs, masterPid] = (lines[7]?.match(/\d+/g) ?? []).map(Number);
    expect(workerPid).not.toBe(masterPid);
    expect(graphs).toBeGreaterThanOrEqual(8);
    expect(stderr).toContain('> What is 2+2?\n');
    expect(status).toBe(0);
    await expectGone(workerPid as number);
  });

  it('says the same in JSON', async () => {
    const demo = new Cli(['demo', '--json']);
    const { status, stdout } = await demo.ended();
    const result = JSON.parse(stdout);
    expect(result).toMatchObject({
      question: 'What is 2+2?',
      answer: '2+2 equals 4.',
      placement: [
        { device: 'master', layers: [0, 1, 2], head: true },
        { device: result.worker.endpoint, layers: [3, 4, 5], head: false },
      ],
      tokensGenerated: 8,
      tokensPerSecond: expect.any(Number),
    });
    expect(result.worker.graphsComputed).toBeGreaterThanOrEqual(result.tokensGenerated);
    expect(result.worker.pid).not.toBe(demo.pid);
    expect(status).toBe(0);
  });

  it('fails when the answer is not what the model says', async () => {
    const { status, stdout, stderr } = await new Cli(['demo'], preloading('asks-otherwise.cjs')).ended();
    expect(stdout).toMatch(/^3\+3 equals 6\.\n/);
    expect(stderr).toMatch(
      /error: the answer is "3\+3 equals 6\." where this model says "2\+2 equals 4\.", so the native addon computes wrongly .*reinstall.*--build-from-source.*\(DROID_REQUEST_FAILED\)\n$/,
    );
    expect(status).toBe(1);
  });

  it('does not mind a preloaded module that prints', async () => {
    const { status, stdout, stderr } = await new Cli(['demo'], preloading('prints.cjs')).ended();
    expect(stdout).toContain('says hello 2+2 equals 4.\n');
    expect(stderr).not.toContain('rror');
    expect(status).toBe(0);
  });

  describe.runIf(process.platform === 'linux')('leaves no worker behind', () => {
    it.each([
      ['starts a worker', /starting a worker/],
      ['loads', /loading model: /],
      ['answers', /> What is/],
    ])('when Ctrl-C comes while it %s', async (_, sign) => {
      const demo = new Cli(['demo']);
      const worker = await workerOf(demo);
      await demo.says(sign);
      demo.signal('SIGINT');
      const { status, stderr } = await demo.ended();
      // 0 where the answer was quicker than the key.
      expect([130, 0]).toContain(status);
      expect(stderr).not.toContain('error');
      await expectGone(worker);
    });

    it('when it is killed', async () => {
      const demo = new Cli(['demo']);
      const worker = await workerOf(demo);
      await demo.says(/loading model: /);
      demo.signal('SIGKILL');
      await expectGone(worker);
    });
  });
});

async function workerOf(demo: Cli): Promise<number> {
  await demo.says(/starting a worker/);
  const children = `/proc/${demo.pid}/task/${demo.pid}/children`;
  let pid = 0;
  for (const end = Date.now() + 20_000; pid === 0 && Date.now() < end; ) {
    pid = Number((await readFile(children, 'utf8')).trim());
  }
  expect(pid).toBeGreaterThan(0);
  return pid;
}
