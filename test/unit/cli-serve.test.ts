/** `serve` over a context that only plays one: what it is asked for, and what is said when a worker is lost. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { DistributedContextOptions } from '../../lib/context-options.js';
import { DroidLlamaError } from '../../lib/errors.js';
import { until } from '../support/contexts.js';

const lost = '{"error":{"code":503,"message":"worker a:1 is gone","type":"unavailable_error"}}';
const { asked } = vi.hoisted(() => ({ asked: [] as DistributedContextOptions[] }));
vi.mock('../../lib/addon.js', async (original) => ({
  ...(await original<typeof import('../../lib/addon.js')>()),
  engineRoutes: () => [{ method: 'GET', path: '/health' }],
}));
vi.mock('../../lib/context.js', () => ({
  createDistributedContext: async (options: DistributedContextOptions) => {
    asked.push(options);
    // While the model loads the command's own error tells it.
    options.onWorkerLost?.(new DroidLlamaError('DROID_WORKER_LOST', 'too early'), 'a:1');
    return {
      placement: [],
      request: async () => ({
        status: 503,
        headers: {},
        body: (async function* () {
          yield Buffer.from(lost);
        })(),
      }),
      close: async () => {},
    };
  },
}));

let stdout = '';
let stderr = '';
beforeEach(() => {
  stdout = stderr = '';
  asked.length = 0;
  vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => {
    stdout += String(chunk);
    return true;
  });
  vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => {
    stderr += String(chunk);
    return true;
  });
});
afterEach(() => {
  vi.restoreAllMocks();
});

it.each([[[]], [['--json']]])('tells the loss of a worker loudly, and serves on: %j', async (flags) => {
  // A shutdown is for good, so each run has modules of its own.
  vi.resetModules();
  const { createProgram, prepareArgs } = await import('../../lib/cli/program.js');
  const { requestShutdown } = await import('../../lib/cli/shutdown.js');
  const line = 'serve -m m.gguf --port 0 --rpc a:1 --connect-timeout 0.5 --answer-timeout 60 --activations f16';
  const program = createProgram();
  const running = program.parseAsync(prepareArgs(program, [...line.split(' '), ...flags]), { from: 'user' });
  await until('it listens', () => stdout.includes('http://'));
  expect(asked[0]).toMatchObject({ timeouts: { connectMs: 500, handshakeMs: 500, answerMs: 60_000 } });
  expect(asked[0]?.activations).toBe('f16');
  expect(stderr).not.toContain('too early');

  asked[0]?.onWorkerLost?.(new DroidLlamaError('DROID_WORKER_LOST', 'it fell silent'), 'a:1');
  expect(stderr).toMatch(/the worker a:1 is lost: it fell silent \(DROID_WORKER_LOST\)\n.*start this command again/);
  const lines = stdout.trim().split('\n');
  if (flags.length > 0) {
    expect(JSON.parse(lines[1] as string)).toEqual({
      workerLost: { endpoint: 'a:1', code: 'DROID_WORKER_LOST', message: 'it fell silent' },
    });
  } else {
    expect(stdout).not.toContain('lost');
  }
  const url = /http:[^\s"]+/.exec(stdout)?.[0];
  const health = await fetch(`${url}/health`);
  expect([health.status, await health.text()]).toEqual([503, lost]);

  requestShutdown('the test');
  await running;
});
