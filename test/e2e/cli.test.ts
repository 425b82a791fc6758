/** The commands as they are typed, in processes of their own. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import packageJson from '../../package.json' with { type: 'json' };
import { Cli, freePort, runCli, startWorkerCli } from '../support/cli.js';
import { until } from '../support/contexts.js';
import { projectRoot, tinyModel } from '../support/paths.js';

describe('droid-llama', () => {
  it.each(['--help', 'worker --help', 'serve --help', 'probe --help', 'demo --help', 'pull --help', 'models --help'])(
    '%s shows examples',
    async (line) => {
      const { status, stdout, stderr } = await runCli(...line.split(' '));
      expect(stdout).toMatch(new RegExp(`^Usage: droid-llama ${line.replace('--help', '')}`));
      expect(stdout).toMatch(/^Examples:\n(?: {2}# .*\n)* {2}\$ .*droid-llama /m);
      // Text is broken where a terminal of 80 columns would; only what is to be copied is longer.
      expect(stdout.split('\n').filter((text) => /^\S.{80}/.test(text))).toEqual([]);
      expect([status, stderr]).toEqual([0, '']);
    },
  );

  it('up names the flag for a port that is taken', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    onTestFinished(() => void server.close());
    await once(server, 'listening');
    const port = (server.address() as { port: number }).port;
    const where = ['--cluster-host', '127.0.0.1', '--cluster-port', String(port)];
    const { status, stderr } = await runCli('up', ...where, '--no-mdns', '--no-scan', '--no-tailscale');
    expect(stderr).toContain(`Port ${port} of 127.0.0.1, for other devices, is taken`);
    expect(stderr).toContain(`--cluster-port ${port + 1}`);
    expect(status).not.toBe(0);
  });

  it('up says that one runs already', async () => {
    const home = await mkdtemp(join(tmpdir(), 'droid-cli-'));
    onTestFinished(() => rm(home, { recursive: true }));
    const env = { HOME: home, XDG_STATE_HOME: join(home, 'state'), XDG_CONFIG_HOME: join(home, 'config') };
    const port = await freePort();
    const where = ['--cluster-host', '127.0.0.1', '--cluster-port', String(port)];
    const args = ['up', ...where, '--no-mdns', '--no-scan', '--no-tailscale', '--no-cache', '--json'];
    await new Cli(args, env).says(/"event":"started"/);
    await until('it answers `status`', () => existsSync(join(home, `state/droid-llama/up-${port}.sock`)));
    const { status, stdout } = await new Cli(args, env).ended();
    expect(JSON.parse(stdout).error).toEqual({
      code: 'DROID_PORT_IN_USE',
      message: expect.stringMatching(/^droid-llama up runs already on this device: `droid-llama status` shows it\./),
    });
    expect(status).toBe(1);
  });

  it('says its version', async () => {
    expect(await runCli('--version')).toEqual({ status: 0, stdout: `${packageJson.version}\n`, stderr: '' });
  });

  it.each([
    [['frobnicate'], "unknown command 'frobnicate'", 'droid-llama --help'],
    [['worker', '--frobnicate'], "unknown option '--frobnicate'", 'droid-llama worker --help'],
    [['worker', '--port', '70000'], 'It must be an integer from 0 to 65535', 'droid-llama worker --help'],
    [['probe', '127.0.0.1'], 'the port is missing', 'droid-llama probe --help'],
    [['serve'], 'Say which model: -m model.gguf, or -hf', 'droid-llama serve --help'],
    [['serve', 'model.gguf'], 'the model goes after -m', 'droid-llama serve --help'],
    [
      ['serve', '-m', tinyModel, '--port', '0', '--frobnicate'],
      'llama-server has no flag "--frobnicate"',
      'droid-llama serve --help',
    ],
    [['serve', '-m', tinyModel, '--port', '0', '-ngl', '9'], 'flag -ngl cannot be used', 'droid-llama serve --help'],
    [['serve', '-m', tinyModel, '--port', '0', '-ts', '1,1'], '2 shares for 1 device;', 'droid-llama serve --help'],
    [['worker', '--token', 'a-typing-error'], 'The token has 14 characters', 'droid-llama worker --help'],
    [
      ['probe', '--token', 'x'.repeat(22), '--insecure', '127.0.0.1:1'],
      "unknown option '--insecure'",
      'droid-llama probe --help',
    ],
    [
      ['serve', '-m', tinyModel, '--port', '0', '--rpc', '198.51.100.1:1'],
      '198.51.100.1 is not loopback',
      'droid-llama serve --help',
    ],
    [['demo', 'now'], 'too many arguments', 'droid-llama demo --help'],
  ])('%j is a usage error', async (args, message, help) => {
    const { status, stdout, stderr } = await runCli(...args);
    expect(stderr).toContain('error: ');
    expect(stderr).toContain(message);
    expect(stderr).toContain(`see ${help}\n`);
    expect([status, stdout]).toEqual([2, '']);
  });
});

it("runs the guide's two commands", async () => {
  // Step 3 and step 5 of the guide, but for the addresses, the ports and the model.
  const env = { GGML_RPC_DEBUG: '1', LLAMA_LOG_VERBOSITY: '0' };
  const workerPort = String(await freePort());
  const worker = new Cli(['worker', '--host', '127.0.0.1', '--port', workerPort], env);
  await worker.says(
    new RegExp(
      'endpoint : 127\\.0\\.0\\.1:\\d+\n {2}security : not encrypted\n {2}memory {3}: \\d+ MiB for up to 8 masters\n {2}cache {4}: off\n' +
        ` {2}process {2}: \\d+, restarted by ${worker.pid}\nDevices:\n {2}CPU: .+ \\(\\d+ MiB, \\d+ MiB free\\)\n`,
    ),
  );
  const port = String(await freePort());
  const line =
    `serve -m ${tinyModel} --port ${port} --host 127.0.0.1 --rpc 127.0.0.1:${workerPort} --tensor-split 0.5,0.5 ` +
    '--no-mmap -c 1024 --batch-size 128 --verbose';
  const serve = new Cli(line.split(' '), env);
  await serve.says(new RegExp(`listening on http://127\\.0\\.0\\.1:${port}\n`));
  expect(serve.stdout.split('\n').slice(0, 3)).toEqual([
    expect.stringMatching(/^device +layers +head +MiB +share$/),
    expect.stringMatching(/^master +0-2 +yes +3\.89 +53\.4%$/),
    expect.stringMatching(new RegExp(`^127\\.0\\.0\\.1:${workerPort} +3-5 +no +3\\.39 +46\\.6%$`)),
  ]);
  // The flags got to llama.cpp, and --verbose brings its log.
  expect(serve.stderr).toMatch(/n_ctx += 1024\n/);
  expect(serve.stderr).toMatch(/n_batch += 128\n/);

  const url = `http://127.0.0.1:${port}`;
  expect(await (await fetch(`${url}/health`)).json()).toEqual({ status: 'ok' });
  const answer = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: '{"model": "qwen", "messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 50}',
  });
  expect(await answer.json()).toMatchObject({
    choices: [{ finish_reason: 'stop', index: 0, message: { role: 'assistant', content: '2+2 equals 4.' } }],
  });
  await worker.says(/\[put_weight\] [\s\S]*\[update\] [\s\S]*\[graph_recompute\] device: 0\n[\s\S]*\[read\] /);

  serve.signal('SIGINT');
  expect((await serve.ended()).status).toBe(0);
  await worker.says(/client 127\.0\.0\.1:\d+ disconnected/);
  worker.signal('SIGINT');
  expect((await worker.ended()).status).toBe(0);
});

describe('worker', () => {
  it('warns about an open port when it is asked for one', async () => {
    const worker = new Cli(['worker', '--host', '0.0.0.0', '--port', '0', '--insecure'], {
      DROID_LLAMA_TOKEN: 't'.repeat(22),
    });
    const [, port] = await worker.says(/endpoint : 0\.0\.0\.0:(\d+)\n {2}security : not encrypted\n/);
    await worker.says(/warning: listening on 0\.0\.0\.0: RPC is neither encrypted nor authenticated/);
    await worker.says(
      new RegExp(`On the master.*\n.* probe \\S+:${port}\n.* serve -m .* --rpc \\S+:${port} --insecure\n`),
    );
    expect((await runCli('probe', `127.0.0.1:${port}`)).status).toBe(0);
    worker.signal('SIGTERM');
    expect((await worker.ended()).status).toBe(0);
  });

  it('speaks JSON to scripts', async () => {
    const worker = new Cli(['worker', '--port', '0', '--json']);
    const [ready] = await worker.says(/^.*\n/);
    expect(JSON.parse(ready)).toEqual({
      endpoint: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
      token: null,
      devices: [expect.objectContaining({ name: 'CPU', memoryFree: expect.any(Number) })],
      maxClients: 8,
      memoryLimit: expect.any(Number),
      clientMemoryLimit: null,
      cache: null,
      cacheLimit: null,
      pid: worker.pid,
      childPid: expect.any(Number),
    });
    worker.type('stats');
    const [, stats = ''] = await worker.says(/^.*\n(.*)\n/);
    expect(JSON.parse(stats)).toMatchObject({
      clients: 0,
      graphsComputed: 0,
      bytesAllocated: 0,
      restarts: 0,
      childPid: JSON.parse(ready).childPid,
    });
    // Only the demo's workers end with their stdin: `worker --json </dev/null &` must run on.
    worker.closeStdin();
    worker.signal('SIGINT');
    expect(await worker.ended()).toMatchObject({ status: 0, stderr: '' });
  });

  it.each([[], ['--no-supervisor']])('says that a port is taken', async (...flags) => {
    const taken = await listen();
    const { status, stdout, stderr } = await runCli('worker', '--port', String(taken), ...flags);
    expect(stderr).toMatch(new RegExp(`^error: .*${taken}.* \\(DROID_PORT_IN_USE\\)\n$`));
    expect([status, stdout]).toEqual([1, '']);
  });

  it('shows what it lends', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'droid-cli-'));
    onTestFinished(() => rm(dir, { recursive: true }));
    const line = `worker --port 0 --memory 1G --client-memory 512M --max-clients 2 --cache ${dir} --cache-limit 100`;
    const text = new Cli(line.split(' '));
    await text.says(/memory {3}: 1024 MiB for up to 2 masters, 512 MiB for each\n/);
    await text.says(new RegExp(`cache {4}: ${dir}, at most 100 MiB\n`));
    const json = new Cli([...line.split(' '), '--json']);
    const [ready] = await json.says(/^.*\n/);
    expect(JSON.parse(ready)).toMatchObject({
      maxClients: 2,
      memoryLimit: 2 ** 30,
      clientMemoryLimit: 2 ** 29,
      cache: dir,
      cacheLimit: 100 * 2 ** 20,
    });
  });
});

describe('probe', () => {
  it('shows a worker, as text and as JSON', async () => {
    const { endpoint } = await startWorkerCli();
    const text = await runCli('probe', endpoint);
    expect(text).toMatchObject({ status: 0, stderr: '' });
    expect(text.stdout).toMatch(
      new RegExp(
        `^${endpoint} is open\n {2}protocol {3}: 7\\.0\\.0\n {2}server {5}: .*droid-llama.*\n {2}round trip : [\\d.]+ ms .*\n {2}connecting : [\\d.]+ ms\n` +
          'Devices:\n {2}RPC0: .* \\(\\d+ MiB, \\d+ MiB free\\)\n$',
      ),
    );
    const json = await runCli('probe', '--json', endpoint);
    expect(json).toMatchObject({ status: 0, stderr: '' });
    expect(JSON.parse(json.stdout)).toMatchObject({ endpoint, protocol: '7.0.0', devices: [{ name: 'RPC0' }] });
  });

  it('tells a closed port', async () => {
    const endpoint = `127.0.0.1:${await freePort()}`;
    const { status, stderr } = await runCli('probe', endpoint);
    expect(stderr).toMatch(/^error: .*nothing listens on that port: start `droid-llama worker` there.*_REFUSED\)\n$/);
    expect(status).toBe(1);
    const json = await runCli('probe', '--json', endpoint);
    expect(JSON.parse(json.stdout)).toEqual({
      error: { code: 'DROID_ENDPOINT_REFUSED', message: expect.stringContaining(endpoint) },
    });
    expect([json.status, json.stderr]).toEqual([1, '']);
  });

  it.runIf(process.platform === 'linux')('advises to swap the roles where connections are dropped', async () => {
    const { status, stderr } = await runCli('probe', '--timeout', '300', `127.0.0.1:${await deafPort()}`);
    expect(stderr).toMatch(/^error: .*did not answer within 300 ms.*Android drops incoming.*swap the roles/);
    expect(stderr).toContain('(DROID_ENDPOINT_TIMEOUT)');
    expect(status).toBe(1);
  });

  it('tells a port whose owner says nothing', async () => {
    const { status, stderr } = await runCli('probe', '--timeout', '300', `127.0.0.1:${await listen()}`);
    expect(stderr).toMatch(/accepted the connection but did not greet within 300 ms.*\(DROID_ENDPOINT_TIMEOUT\)/);
    expect(status).toBe(1);
  });

  it("tells the guide's own rpc-server, which is too old", async () => {
    const greeting = Buffer.alloc(8 + 28);
    greeting.writeBigUInt64LE(28n);
    greeting.set([3, 6, 0], 8);
    const port = await listen((socket) => socket.once('data', () => socket.write(greeting)));
    const { status, stderr } = await runCli('probe', `127.0.0.1:${port}`);
    expect(stderr).toMatch(/speaks version 3\.6\.0 of the RPC protocol.* 7\.0.*\(DROID_VERSION_MISMATCH\)/);
    expect(status).toBe(1);
  });
});

describe('serve', () => {
  it('prints one line of JSON for scripts', async () => {
    const { endpoint } = await startWorkerCli();
    const serve = new Cli(`serve -m ${tinyModel} --port 0 --rpc ${endpoint} -ts 0,1 -c 512 --json`.split(' '));
    const [line] = await serve.says(/^\{.*\n/);
    const { url, placement } = JSON.parse(line) as { url: string; placement: object[] };
    expect(placement).toMatchObject([
      { device: 'master', layers: [], head: true },
      { device: endpoint, layers: [0, 1, 2, 3, 4, 5], head: false },
    ]);
    expect((await fetch(`${url}/health`)).status).toBe(200);
    serve.signal('SIGTERM');
    expect(await serve.ended()).toMatchObject({ status: 0, stdout: line });
  });

  it('finds a taken port before it loads anything', async () => {
    const taken = await listen();
    const { status, stdout, stderr } = await runCli('serve', '-m', tinyModel, '--port', String(taken));
    expect(stderr).toMatch(new RegExp(`^error: .*${taken}.* \\(DROID_PORT_IN_USE\\)\n$`));
    expect([status, stdout]).toEqual([1, '']);
  });

  it.each([
    ['is not there', 'none.gguf', 'DROID_MODEL_NOT_FOUND'],
    ['is not a model', 'package.json', 'DROID_MODEL_INVALID'],
  ])('says that a model %s', async (_, file, code) => {
    const model = join(projectRoot, file);
    const text = await runCli('serve', '-m', model, '--port', '0');
    expect(text.stderr).toMatch(new RegExp(`^error: .*${file}.* \\(${code}\\)\n$`, 'm'));
    expect([text.status, text.stdout]).toEqual([1, '']);
    const json = await runCli('serve', '-m', model, '--port', '0', '--json');
    expect(JSON.parse(json.stdout)).toEqual({ error: { code, message: expect.stringContaining(file) } });
    expect(json.status).toBe(1);
  });

  it('names a worker that is not there', async () => {
    const endpoint = `127.0.0.1:${await freePort()}`;
    const { status, stdout, stderr } = await runCli('serve', '-m', tinyModel, '--port', '0', '--rpc', endpoint);
    expect(stderr).toMatch(new RegExp(`^error: ${endpoint}: .*nothing listens.* \\(DROID_ENDPOINT_REFUSED\\)\n$`, 'm'));
    expect([status, stdout]).toEqual([1, '']);
  });
});

/** Something on a port of loopback that is no worker. */
async function listen(onConnection: (socket: Socket) => void = () => {}): Promise<number> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    onConnection(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as { port: number }).port;
}

/** A port whose queue is full, so that the kernel drops what else comes: to a caller it looks like Android. */
async function deafPort(): Promise<number> {
  const program = `require('net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, function () {
    require('fs').writeSync(1, String(this.address().port));
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  })`;
  const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  const sockets: Socket[] = [];
  onTestFinished(() => {
    child.kill('SIGKILL');
    for (const socket of sockets) socket.destroy();
  });
  const port = Number(String((await once(child.stdout, 'data'))[0]));
  // No one accepts them; more than the queue is long.
  for (let i = 0; i < 8; i++) sockets.push(connect({ port, host: '127.0.0.1' }).on('error', () => {}));
  await once(sockets[0] as Socket, 'connect');
  return port;
}
