/** Models of the hub on the command line, from a hub of the test's own. */
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Cli } from '../support/cli.js';
import { FakeHub } from '../support/hub.js';
import { tinyModel } from '../support/paths.js';

const NAME = 'droid/tiny-GGUF';
let hub: FakeHub;
let cache: string;

beforeEach(async () => {
  hub = await FakeHub.start();
  hub.repos.set(NAME, [{ path: 'tiny-q4_k_m.gguf', data: await readFile(tinyModel) }]);
  cache = await mkdtemp(join(tmpdir(), 'droid-pull-'));
});
afterEach(async () => {
  await hub.close();
  await rm(cache, { recursive: true, force: true });
});

const start = (...args: string[]) => new Cli(args, { HF_ENDPOINT: hub.url, HF_TOKEN: '', XDG_CACHE_HOME: cache });
const run = (...args: string[]) => start(...args).ended();
const stored = () => join(cache, 'droid-llama/models', NAME, 'tiny-q4_k_m.gguf');

it('pull, models and models rm', async () => {
  const pulled = await run('pull', NAME);
  expect(pulled).toMatchObject({ status: 0, stdout: `${stored()}\n` });
  expect(pulled.stderr).toMatch(/^downloading: 10% of \d+ MB\n/);
  expect((await readFile(stored())).equals(await readFile(tinyModel))).toBe(true);

  const again = await run('pull', `${NAME}:q4_k_m`, '--json');
  expect(JSON.parse(again.stdout)).toEqual({
    reference: `${NAME}:Q4_K_M`,
    path: stored(),
    bytes: (await stat(tinyModel)).size,
  });
  expect(again.stderr).toBe('');
  expect(hub.downloads).toHaveLength(1);

  expect((await run('models')).stdout).toContain(`${NAME}:Q4_K_M`);
  expect(JSON.parse((await run('models', '--json')).stdout)).toMatchObject({ models: [{ path: stored() }] });
  expect(await run('models', 'rm', NAME)).toMatchObject({ status: 0, stderr: expect.stringContaining('free again') });
  expect(await run('models')).toMatchObject({
    status: 0,
    stdout: '',
    stderr: expect.stringContaining('there are none'),
  });
  expect((await run('models', 'rm', NAME)).status).toBe(1);
});

it('a wrong name lists what there is', async () => {
  const { status, stderr } = await run('pull', `${NAME}:Q8_0`);
  expect([status, stderr]).toEqual([1, expect.stringContaining(`${NAME} has no Q8_0. It has Q4_K_M`)]);
  const json = await run('pull', 'droid/tiny', '--json');
  expect(JSON.parse(json.stdout).error).toMatchObject({
    code: 'DROID_MODEL_NOT_FOUND',
    message: expect.stringContaining(`There are: ${NAME}`),
  });
  expect((await run('pull', '../evil')).status).toBe(2);
  expect((await run('serve', '-m', tinyModel, '-hf', NAME)).stderr).toContain('-m and -hf are both given');
});

it('Ctrl-C ends a download, and the next one goes on with it', async () => {
  let sent = 0;
  hub.beforePiece = (at) => {
    sent = at;
    return at > 0 ? new Promise((resolve) => setTimeout(resolve, 300)) : undefined;
  };
  const pulling = start('pull', NAME);
  await pulling.says(/downloading: \d+%/);
  pulling.signal('SIGINT');
  expect(await pulling.ended()).toMatchObject({ status: 130, stdout: '' });
  expect(await readdir(join(cache, 'droid-llama/models', NAME))).toEqual(['tiny-q4_k_m.gguf.part']);
  expect(sent).toBeGreaterThan(0);
  hub.beforePiece = () => {};
  hub.requests.length = 0;
  expect((await run('pull', NAME)).status).toBe(0);
  expect(hub.downloads[0]?.range).toMatch(/^bytes=[1-9]/);
});

it('serve and bench take what -hf names', async () => {
  hub.cuts.push(100_000);
  const serving = start('serve', '-hf', NAME, '--port', '0', '-c', '256', '-t', '1', '--json');
  const [line] = await serving.says(/\{"url".*\}/);
  const response = await fetch(`${JSON.parse(line).url}/v1/chat/completions`, {
    method: 'POST',
    body: JSON.stringify({ messages: [{ role: 'user', content: 'What is 2+2?' }], temperature: 0, max_tokens: 16 }),
  });
  expect(await response.json()).toMatchObject({ choices: [{ message: { content: '2+2 equals 4.' } }] });
  serving.signal('SIGTERM');
  expect((await serving.ended()).stderr).toContain('the download broke off');

  const bench = await run('bench', '-hf', NAME, '-p', '8', '-n', '4', '-r', '1', '-t', '1', '-o', 'json');
  expect(bench.status).toBe(0);
  expect(JSON.parse(bench.stdout).model).toBe('droid-tiny');
});

it('up takes what -hf names', async () => {
  const up = start(
    'up',
    '-hf',
    NAME,
    '--port',
    '0',
    '--cluster-port',
    '0',
    '--no-mdns',
    '--no-scan',
    '--no-tailscale',
    '--json',
  );
  await up.says(/"event":"ready"/);
  up.signal('SIGTERM');
  expect((await up.ended()).status).toBe(0);
  expect((await stat(stored())).size).toBe((await stat(tinyModel)).size);
});
