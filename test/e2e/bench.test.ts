/** `droid-llama bench` as it is typed, and what docs/bench.md shows. */
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { BenchReport } from '../../lib/bench/index.js';
import { createToken } from '../../lib/index.js';
import { Cli, freePort, runCli, startWorkerCli } from '../support/cli.js';
import { cacheDir, projectRoot, tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const quick = ['-p', '32', '-n', '16', '-r', '2', '-t', '1'];
const noPhones = Phones.unavailable();

async function scratch(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'droid-bench-'));
  onTestFinished(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

const reportOf = (stdout: string): BenchReport => {
  expect(stdout.trimEnd().split('\n')).toHaveLength(1);
  return JSON.parse(stdout);
};

describe('droid-llama bench', () => {
  it('shows examples', async () => {
    const { status, stdout } = await runCli('bench', '--help');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^Examples:\n {2}\$ droid-llama bench -m model\.gguf$/m);
    expect(stdout.split('\n').filter((text) => /^\S.{80}/.test(text))).toEqual([]);
  });

  it('measures one device and prints a table, with what it does on stderr', async () => {
    const { status, stdout, stderr } = await runCli('bench', '-m', tinyModel, ...quick, '--streams', '2');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^one device +pp32 +\d[\d.]* +\(/m);
    expect(stdout).toMatch(/^one device +tg16 +\d[\d.]* +\(/m);
    expect(stdout).toMatch(/^one device +2 +\d/m);
    expect(stderr).toBe('1 of 1: one device\n');
  });

  it('measures a split over an encrypted worker, and draws it', async () => {
    const token = createToken();
    const { endpoint } = await startWorkerCli('--token', token);
    const plot = join(await scratch(), 'a.svg');
    const split = ['--rpc', endpoint, '--token', token, '-ts', '0.5,0.5'];
    const { status, stdout } = await runCli('bench', '-m', tinyModel, ...quick, ...split, '-o', 'json', '--plot', plot);
    expect(status).toBe(0);
    const report = reportOf(stdout);
    expect(report.cases.map(({ name }) => name)).toEqual(['one device', '[0.5, 0.5]']);
    expect(report.cases[1]?.workers).toMatchObject([
      { endpoint, messagesSentPerToken: 3, messagesReceivedPerToken: 1 },
    ]);
    expect(report.links).toMatchObject([{ endpoint }]);
    expect(await readFile(plot, 'utf8')).toContain('</svg>');
  });

  it('measures a server', async () => {
    const port = await freePort();
    const serve = ['serve', '-m', tinyModel, '--port', `${port}`, '-c', '1024', '-np', '2', '-t', '1'];
    await new Cli(serve).says(/listening on/);
    const url = `http://127.0.0.1:${port}`;
    const measured = await runCli(
      'bench',
      '--url',
      url,
      '-p',
      '32',
      '-n',
      '0',
      '-r',
      '1',
      '--streams',
      '2',
      '-o',
      'json',
    );
    expect(measured.status).toBe(0);
    const report = reportOf(measured.stdout);
    expect(report.cases).toMatchObject([
      { name: url, prompts: [{ tokens: 32 }], generations: [], streams: [{ streams: 2 }] },
    ]);
    const csv = await runCli('bench', '--url', url, '-p', '0', '-n', '8', '-r', '1', '-o', 'csv');
    expect(csv.stdout).toMatch(
      new RegExp(`^\\d{4}-[^,]+Z,[^,]+gguf,${url},,,,tg8,tokens/s,[\\d.]+,[\\d.]+,[\\d.]+,,$`, 'm'),
    );
  });

  it('measures the cluster that this device leads', async () => {
    const home = await scratch();
    const env = { HOME: home, XDG_STATE_HOME: join(home, 'state'), XDG_CONFIG_HOME: join(home, 'config') };
    const none = await new Cli(['bench', '--cluster'], env).ended();
    expect([none.status, none.stderr]).toEqual([1, expect.stringContaining('DROID_CLOSED')]);
    const alone = ['--cluster-host', '127.0.0.1', '--no-mdns', '--no-scan', '--no-tailscale', '--json'];
    const ports = ['--port', '0', '--cluster-port', `${await freePort()}`];
    const up = new Cli(['up', '-m', tinyModel, '-c', '1024', ...alone, ...ports], env);
    await up.says(/"event":"ready"/);
    const { status, stdout, stderr } = await new Cli(
      ['bench', '--cluster', '-p', '32', '-n', '8', '-o', 'json'],
      env,
    ).ended();
    expect(stderr).toMatch(/^waiting for (http:\/\/127\.0\.0\.1:\d+) to answer\n1 of 1: \1\n$/);
    expect(status).toBe(0);
    const [entry] = reportOf(stdout).cases;
    expect(entry?.placement).toMatchObject([{ device: 'master', layers: { length: 6 } }]);
    expect(entry?.prompts[0]?.predicted).toBeGreaterThan(0);
    expect(entry?.generations[0]?.predicted).toBeGreaterThan(0);
  });

  it.each([
    [[], 'Say what to measure'],
    [['-m', 'x.gguf', '--url', 'http://x'], '-m and --url are both given'],
    [['--url', 'http://x', '--plot', 'a.svg'], '--plot draws splits that are loaded here'],
    [['--url', 'http://x', '-ts', '1,1'], '--tensor-split says how a model is loaded'],
    [['--cluster', '-t', '2'], '--threads says how a model is loaded'],
    [['--url', 'http://x', '--no-single'], '--no-single says how a model is loaded'],
    [['--url', 'http://x', '--cluster-port', '1'], '--cluster-port'],
    [['-m', tinyModel, '--api-key', 'x'], '--api-key is of a server'],
    [['-m', tinyModel, '--sweep'], '--sweep is about workers'],
    [['-m', tinyModel, '--rpc', '127.0.0.1:1', '--sweep', '-ts', '1,1'], 'both given'],
    [['-m', tinyModel, '-p', '0', '-n', '0'], 'nothing to measure'],
    [['-m', tinyModel, '-p', '12x'], 'It must be an integer'],
    [['-m', tinyModel, '-n', '1'], 'at least 2 tokens'],
    [['-m', tinyModel, '-c', '256'], 'the tests need'],
    [['-m', tinyModel, '--plot', '/no/such/directory/a.svg'], '--plot /no/such/directory/a.svg'],
    [['-m', tinyModel, '--', '-ngl', '9'], 'flag -ngl cannot be used'],
    [['-m', tinyModel, 'extra'], "unexpected argument 'extra'"],
    [['--url', 'localhost:8080'], 'it must be the address of a llama-server'],
  ])('%j is a usage error, as text and as JSON', async (args, message) => {
    const text = await runCli('bench', ...args);
    expect(text).toMatchObject({ status: 2, stdout: '' });
    expect(text.stderr).toContain(message);
    const json = await runCli('bench', '-o', 'json', ...args);
    expect(json.status).toBe(2);
    expect(JSON.parse(json.stdout).error).toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  it('prints what it has when a worker is lost, and then why it ended', async () => {
    const run = async (...output: string[]) => {
      // Without a supervisor of its own it stays lost.
      const { worker, endpoint } = await startWorkerCli('--no-supervisor');
      const bench = new Cli([
        'bench',
        '-m',
        tinyModel,
        ...quick,
        '-n',
        '400',
        '-r',
        '20',
        '--rpc',
        endpoint,
        '-ts',
        '0,1',
        ...output,
      ]);
      await bench.says(/2 of 2: \[0, 1\]/);
      worker.signal('SIGKILL');
      return bench.ended();
    };
    const text = await run('--loads', '1');
    expect(text.status).toBe(1);
    expect(text.stdout).toMatch(/^one device +tg400/m);
    // What it was asked at that moment decides the code; test/native/bench.test.ts chooses the moment.
    expect(text.stderr).toMatch(/error: .*\(DROID_\w+\)/);
    const json = await run('-o', 'json');
    expect(json.status).toBe(1);
    const report = reportOf(json.stdout);
    expect(report.cases).toHaveLength(1);
    expect(report.error?.code).toMatch(/^DROID_\w+$/);
    expect(json.stderr).toContain(report.error?.code);
  });

  it('ends with status 130 at Ctrl-C, with what was finished', async () => {
    const { endpoint } = await startWorkerCli();
    const bench = new Cli([
      'bench',
      '-m',
      tinyModel,
      ...quick,
      '--rpc',
      endpoint,
      '--sweep',
      '2',
      '-r',
      '20',
      '-n',
      '400',
    ]);
    await bench.says(/2 of 3/);
    bench.signal('SIGINT');
    const { status, stdout, stderr } = await bench.ended();
    expect(status).toBe(130);
    expect(stdout).toMatch(/^one device +tg400/m);
    expect(stderr).not.toContain('error');
  });

  it.skipIf(noPhones !== undefined && !process.env.CI)('measures a link as it is', async () => {
    const phones = await Phones.up({ hotspot: 'A', phones: { A: { incoming: 'drop' }, B: { delayMs: 5, mbit: 20 } } });
    onTestFinished(() => phones.down());
    const token = createToken();
    const worker = phones.cli('B', [
      'worker',
      '--host',
      '0.0.0.0',
      '--port',
      '60000',
      '--token',
      token,
      '--threads',
      '1',
    ]);
    await worker.says(/endpoint :/);
    const rpc = ['--rpc', `${phones.address('B')}:60000`, '--token', token, '-ts', '0.5,0.5'];
    const args = ['bench', '-m', tinyModel, ...quick, '-n', '32', ...rpc, '--loads', '1', '-o', 'json'];
    const { status, stdout } = await phones.finished(phones.cli('A', args), 120_000);
    expect(status).toBe(0);
    const report = reportOf(stdout);
    const [link] = report.links;
    expect(link?.roundTripMs).toBeGreaterThan(9.5);
    expect(link?.roundTripMs).toBeLessThan(16);
    for (const rate of [link?.upBytesPerSecond, link?.downBytesPerSecond]) {
      // 20 Mbit/s less the headers of TCP, IP and TLS.
      expect(rate).toBeGreaterThan(1.9e6);
      expect(rate).toBeLessThan(2.6e6);
    }
    const [generation] = report.cases[1]?.generations ?? [];
    expect(generation?.floor?.share).toBeGreaterThan(0.5);
    expect(generation?.floor?.share).toBeLessThan(1.1);
    const network = generation?.breakdown?.workers[0]?.networkMs ?? 0;
    expect(network).toBeGreaterThan(9.5);
    expect(network).toBeLessThan(generation?.breakdown?.totalMs ?? 0);
  });
});

describe('docs/bench.md', () => {
  const blocks = async (language: string) => {
    const text = await readFile(join(projectRoot, 'docs/bench.md'), 'utf8');
    return [...text.matchAll(new RegExp(`^\`\`\`${language}\n([\\s\\S]*?)^\`\`\``, 'gm'))].map(
      (match) => match[1] ?? '',
    );
  };

  it('has a program that runs', async () => {
    await mkdir(cacheDir, { recursive: true });
    // Inside the package, so that it finds it by its name.
    const path = join(cacheDir, 'bench-docs.mjs');
    const [program = ''] = await blocks('js');
    await writeFile(path, program.replace(/'node_modules.*gguf'/, JSON.stringify(tinyModel)));
    const { status, stdout, stderr } = spawnSync(process.execPath, [path], { encoding: 'utf8', timeout: 120_000 });
    expect(stderr).toBe('');
    expect(status).toBe(0);
    expect(stdout).toMatch(/^one device \d[\d.]+ undefined\n\[0\.5, 0\.5\] \d[\d.]+ 3\n\d+\n$/);
  });

  it('has commands that work', async () => {
    const token = createToken();
    const { endpoint } = await startWorkerCli('--token', token);
    const directory = await scratch();
    const port = await freePort();
    const serve = ['serve', '-m', tinyModel, '--port', `${port}`, '-c', '4096', '-np', '4', '-t', '1'];
    await new Cli(serve).says(/listening on/);
    const [text = ''] = await blocks('sh');
    const commands = text
      .trim()
      .split('\n')
      .filter((command) => !command.includes('--cluster'));
    expect(commands.length).toBeGreaterThan(4);
    for (const command of commands) {
      const args = command
        .replace('model.gguf', tinyModel)
        .replace('192.168.43.2:60000', endpoint)
        .replace('TOKEN', token)
        .replace('sweep.svg', join(directory, 'sweep.svg'))
        .replace('127.0.0.1:8080', `127.0.0.1:${port}`)
        .split(' ')
        .slice(1);
      const { status, stdout, stderr } = await runCli(...args, '-r', '1', ...(args.includes('-m') ? ['-t', '1'] : []));
      expect([status, stderr.includes('error')], `${command}\n${stderr}`).toEqual([0, false]);
      expect(stdout).toContain(args.includes('json') ? '"prompts":[{"tokens":512' : 'pp512');
    }
    expect(await readFile(join(directory, 'sweep.svg'), 'utf8')).toContain('layers on the master');
  });
});
