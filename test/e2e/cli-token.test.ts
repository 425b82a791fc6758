/** The encrypted commands as they are typed and pasted, in processes of their own. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Cli, expectGone, runCli } from '../support/cli.js';
import { until } from '../support/contexts.js';
import { tinyModel } from '../support/paths.js';

const token = 'AbCdEfGhIjKlMnOpQrSt-_';

/** A command as a user pastes it, but for the model and for what it adds to it. */
function paste(line: string, ...more: string[]): Cli {
  const words = line.trim().replace('model.gguf', tinyModel).split(' ');
  expect(words.shift()).toBe('droid-llama');
  return new Cli([...words, ...more]);
}

async function ask(url: string): Promise<unknown> {
  const body = { messages: [{ role: 'user', content: 'What is 2+2?' }], max_tokens: 50, temperature: 0 };
  const answer = await fetch(`${url}/v1/chat/completions`, { method: 'POST', body: JSON.stringify(body) });
  return ((await answer.json()) as { choices: [{ message: { content: string } }] }).choices[0].message.content;
}

/** What other users of the device can read about a process. */
const argv = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ');

describe('worker --host 0.0.0.0', () => {
  it('makes a token, and shows commands that work when they are pasted', async () => {
    const worker = new Cli(['worker', '--host', '0.0.0.0', '--port', '0', '--threads', '1']);
    const [, port = ''] = await worker.says(/endpoint : 0\.0\.0\.0:(\d+)\n {2}security : encrypted/);
    const [, made = ''] = await worker.says(/--rpc \S+ --token ([\w-]{22,})\n/);
    expect(worker.stderr).not.toContain('warning');
    // A machine without a network has no address of its own to show.
    const shown = worker.stdout.split('\n').filter((line) => line.startsWith('  droid-llama '));
    const [probeLine = '', serveLine = ''] = shown.map((line) => line.replace('ADDRESS', '127.0.0.1'));

    const probe = await paste(probeLine).ended();
    expect(probe).toMatchObject({ status: 0, stderr: '' });
    expect(probe.stdout).toMatch(new RegExp(`^\\S+:${port} is open, encrypted\n`));

    const serve = paste(serveLine, '--port', '0', '--tensor-split', '0.5,0.5', '-c', '512');
    const [, url = ''] = await serve.says(/listening on (\S+)\n/);
    expect(serve.stdout).toMatch(new RegExp(`\n\\S+:${port} +3-5 +no`));
    expect(await ask(url)).toBe('2+2 equals 4.');
    expect(serve.stderr).not.toContain('warning');
    serve.signal('SIGINT');
    expect((await serve.ended()).status).toBe(0);

    const plain = await runCli('probe', `127.0.0.1:${port}`);
    expect(plain.status).toBe(1);
    expect(plain.stderr).toMatch(/token.*`--token`.*\(DROID_VERSION_MISMATCH\)/);
    const wrong = await runCli('probe', `127.0.0.1:${port}`, '--token', token);
    expect(wrong.status).toBe(1);
    expect(wrong.stderr).toMatch(/another join token.*\(DROID_TOKEN_REJECTED\)/);
    expect(wrong.stderr).not.toContain(token);
    expect(worker.stderr).not.toContain(made);

    // Another worker has another one.
    const other = new Cli(['worker', '--host', '0.0.0.0', '--port', '0', '--json']);
    const [line] = await other.says(/^.*\n/);
    const ready = JSON.parse(line) as { token: string };
    expect(ready.token).toMatch(/^[\w-]{22,}$/);
    expect(ready.token).not.toBe(made);
  });
});

describe('a token in the environment', () => {
  const env = { DROID_LLAMA_TOKEN: token };

  it('is the one of every command, and in no list of processes', async () => {
    const worker = new Cli(['worker', '--port', '0', '--threads', '1', '--json'], env);
    const [line] = await worker.says(/^.*\n/);
    const ready = JSON.parse(line) as { endpoint: string; token: string; childPid: number };
    expect(ready.token).toBe(token);
    const probe = await new Cli(['probe', '--json', ready.endpoint], env).ended();
    expect(JSON.parse(probe.stdout)).toMatchObject({ endpoint: ready.endpoint, extended: true });
    const serve = new Cli(
      `serve -m ${tinyModel} --port 0 --rpc ${ready.endpoint} -ts 1,1 -c 512 --json`.split(' '),
      env,
    );
    const [served] = await serve.says(/^\{.*\n/);
    expect(JSON.parse(served)).toMatchObject({ placement: [{}, { device: ready.endpoint, layers: [3, 4, 5] }] });
    if (process.platform === 'linux') {
      for (const pid of [worker.pid, ready.childPid, serve.pid]) expect(argv(pid)).not.toContain(token);
    }
    for (const cli of [serve, worker]) {
      cli.signal('SIGTERM');
      expect((await cli.ended()).status).toBe(0);
    }
  });

  it('goes by the environment to the server also when it was typed', async () => {
    const worker = new Cli(['worker', '--port', '0', '--json', '--token', token]);
    const [line] = await worker.says(/^.*\n/);
    const ready = JSON.parse(line) as { token: string; childPid: number };
    expect(ready.token).toBe(token);
    if (process.platform === 'linux') expect(argv(ready.childPid)).not.toContain(token);
  });

  it('does not reach the demo, whose worker is on loopback', async () => {
    const demo = await new Cli(['demo', '--json'], env).ended();
    expect(JSON.parse(demo.stdout)).toMatchObject({ answer: '2+2 equals 4.' });
    expect(demo.status).toBe(0);
  });
});

it('a worker that is started again keeps its port and its token', async () => {
  const cli = new Cli(['worker', '--host', '0.0.0.0', '--port', '0', '--threads', '1', '--json']);
  const [line] = await cli.says(/^.*\n/);
  const ready = JSON.parse(line) as { endpoint: string; token: string; childPid: number };
  const endpoint = ready.endpoint.replace('0.0.0.0', '127.0.0.1');
  expect((await runCli('probe', endpoint, '--token', ready.token)).status).toBe(0);
  process.kill(ready.childPid, 'SIGKILL');
  const back = () => /is back on (\S+) as process (\d+)\n/.exec(cli.stderr);
  await until('it is back', () => back() !== null);
  expect(back()?.[1]).toBe(ready.endpoint);
  expect((await runCli('probe', endpoint, '--token', ready.token)).status).toBe(0);
  cli.signal('SIGTERM');
  expect((await cli.ended()).status).toBe(0);
  await expectGone(Number(back()?.[2]));
});

it('serve says that it is not encrypted, and loses an encrypted worker as any other', async () => {
  const worker = new Cli(['worker', '--port', '0', '--threads', '1', '--no-supervisor', '--json', '--token', token]);
  const [line] = await worker.says(/^.*\n/);
  const { endpoint } = JSON.parse(line) as { endpoint: string };
  const serve = new Cli(
    `serve -m ${tinyModel} --port 0 --rpc ${endpoint} --token ${token} -ts 1,1 -c 512 --json`.split(' '),
  );
  const [served] = await serve.says(/^\{.*\n/);
  const { url } = JSON.parse(served) as { url: string };
  const killedAt = performance.now();
  worker.signal('SIGKILL');
  const [, lost = ''] = await serve.says(/^\{"url".*\n(\{"workerLost".*\n)/);
  expect(performance.now() - killedAt).toBeLessThan(2000);
  expect(JSON.parse(lost)).toMatchObject({ workerLost: { endpoint, code: 'DROID_WORKER_LOST' } });
  expect((await fetch(`${url}/health`)).status).toBe(503);

  const insecure = new Cli(
    `serve -m ${tinyModel} --port 0 --rpc 198.51.100.1:1 --insecure --connect-timeout 0.1`.split(' '),
  );
  await insecure.says(/warning: RPC with 198\.51\.100\.1:1 is neither encrypted nor authenticated/);
});
