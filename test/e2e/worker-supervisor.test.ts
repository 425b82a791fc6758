/** `droid-llama worker` runs the server in a second process and starts it again when that ends. */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import { probeEndpoint } from '../../lib/index.js';
import { Cli, expectGone, runCli } from '../support/cli.js';
import { until } from '../support/contexts.js';

interface Running {
  cli: Cli;
  endpoint: string;
  child: number;
}

async function startJson(...flags: string[]): Promise<Running> {
  const cli = new Cli(['worker', '--port', '0', '--threads', '1', '--json', ...flags]);
  const [line] = await cli.says(/^.*\n/);
  const { endpoint, childPid, pid } = JSON.parse(line) as { endpoint: string; childPid: number; pid: number };
  expect(pid).toBe(cli.pid);
  return { cli, endpoint, child: childPid };
}

/** The answer to `stats`, the n-th line of stdout. */
async function stats(cli: Cli): Promise<Record<string, unknown>> {
  const lines = cli.stdout.split('\n').length;
  cli.type('stats');
  await until('it answers', () => cli.stdout.split('\n').length > lines);
  return JSON.parse(cli.stdout.split('\n').at(-2) as string);
}

describe('a worker that is killed', () => {
  it('is back on the same port, and its counters go on', async () => {
    const { cli, endpoint, child } = await startJson();
    await probeEndpoint(endpoint);
    expect(await stats(cli)).toMatchObject({ clientsTotal: 1, restarts: 0, childPid: child });
    let last = child;
    for (const [restarts, signal] of (['SIGKILL', 'SIGABRT', 'SIGTERM'] as const).entries()) {
      process.kill(last, signal);
      const how = signal === 'SIGTERM' ? 'with status 0' : `by ${signal}`;
      const wait = 0.5 * 2 ** restarts;
      await cli.says(new RegExp(`the worker process ${last} ended ${how}; starting it again in ${wait} s\n`));
      await expectGone(last);
      expect(await stats(cli)).toEqual({ restarts, childPid: null });
      const after = cli.stderr.length;
      const back = () => /is back on (\S+) as process (\d+)\n/.exec(cli.stderr.slice(after));
      await until('it is back', () => back() !== null);
      expect(back()?.[1]).toBe(endpoint);
      last = Number(back()?.[2]);
      expect((await probeEndpoint(endpoint)).devices).toHaveLength(1);
      expect(await stats(cli)).toMatchObject({ clientsTotal: 1, restarts: restarts + 1, childPid: last });
    }
    // The line that says it is ready was for the first one alone.
    expect(cli.stdout.match(/"endpoint"/g)).toHaveLength(1);
    cli.signal('SIGTERM');
    expect((await cli.ended()).status).toBe(0);
    await expectGone(last);
  });

  it('is started again until its port is free', async () => {
    const { cli, endpoint, child } = await startJson();
    process.kill(child, 'SIGKILL');
    await cli.says(/starting it again in 0\.5 s\n/);
    const thief = createServer((socket) => socket.destroy());
    onTestFinished(() => {
      thief.close();
    });
    thief.listen(Number(endpoint.split(':')[1]), '127.0.0.1');
    await once(thief, 'listening');
    await cli.says(/starting the worker again failed: .*; starting it again in 1 s\n/);
    thief.close();
    await cli.says(/the worker is back on /);
    expect((await probeEndpoint(endpoint)).devices).toHaveLength(1);
  });

  it('does not show its banner again', async () => {
    const cli = new Cli(['worker', '--port', '0', '--threads', '1']);
    const [, child] = await cli.says(/process {2}: (\d+), restarted by \d+\n/);
    process.kill(Number(child), 'SIGKILL');
    await cli.says(/the worker is back on /);
    expect(cli.stdout.match(/endpoint :/g)).toHaveLength(1);
  });
});

describe('the end', () => {
  it.each(['SIGINT', 'SIGTERM'] as const)('%s ends both, quickly', async (signal) => {
    const { cli, child } = await startJson();
    const start = performance.now();
    cli.signal(signal);
    expect(await cli.ended()).toMatchObject({ status: 0, stderr: '' });
    await expectGone(child);
    expect(performance.now() - start).toBeLessThan(3000);
  });

  it('comes for a frozen worker too', async () => {
    const { cli, child } = await startJson();
    process.kill(child, 'SIGSTOP');
    cli.signal('SIGINT');
    expect((await cli.ended()).status).toBe(0);
    await expectGone(child);
  });

  it('comes while the worker waits to be started again', async () => {
    const { cli, child } = await startJson();
    process.kill(child, 'SIGKILL');
    await cli.says(/starting it again in 0\.5 s\n/);
    cli.signal('SIGTERM');
    expect((await cli.ended()).status).toBe(0);
    expect(cli.stderr).not.toContain('is back');
  });

  it('takes the worker along when the supervisor is killed', async () => {
    const { cli, child } = await startJson();
    cli.signal('SIGKILL');
    await expectGone(child);
  });

  it.runIf(process.platform === 'linux')('is not decided by a Ctrl-C that reaches the worker as well', async () => {
    const { cli, child } = await startJson();
    const group = (pid: number) => readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/.*\) /s, '').split(' ')[2];
    expect(Number(group(child))).toBe(child);
    expect(group(cli.pid)).not.toBe(group(child));
  });
});

it.each([
  ['the port is in use', [], 'DROID_PORT_IN_USE', 1],
  ['the cache cannot be', ['--cache', '/dev/null'], 'DROID_INVALID_ARGUMENT', 2],
])('a start that fails because %s is not tried again', async (_, flags, code, status) => {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    server.close();
  });
  const port = String((server.address() as { port: number }).port);
  const text = await runCli('worker', '--port', port, ...flags);
  expect(text.stderr.match(/error: /g)).toHaveLength(1);
  expect(text.stderr).toContain(`(${code})`);
  expect(text.stderr).not.toContain('again');
  expect([text.status, text.stdout]).toEqual([status, '']);
  const json = await runCli('worker', '--json', '--port', port, ...flags);
  expect(JSON.parse(json.stdout)).toEqual({ error: { code, message: expect.any(String) } });
  expect([json.status, json.stderr]).toEqual([status, '']);
});

it('--no-supervisor runs the server in the one process', async () => {
  const { cli, child } = await startJson('--no-supervisor');
  expect(child).toBeNull();
  expect(await stats(cli)).not.toHaveProperty('restarts');
  if (process.platform === 'linux') {
    expect(readFileSync(`/proc/${cli.pid}/task/${cli.pid}/children`, 'utf8')).toBe('');
  }
  cli.signal('SIGTERM');
  expect(await cli.ended()).toMatchObject({ status: 0, stderr: '' });
});
