/** Runs what the README tells people to type: its program, and the two phones as two processes on loopback. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { createToken, ERROR_CODES } from '../../lib/index.js';
import { TypedDocument } from '../support/document.js';
import { cacheDir, cliMain, projectRoot, tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const noPhones = Phones.unavailable() !== undefined;
const hasCurl = spawnSync('curl', ['--version']).status === 0;
let readme: TypedDocument;
beforeAll(async () => {
  readme = await TypedDocument.read('README.md');
  await mkdir(cacheDir, { recursive: true });
});

const blocks = (language: string) => readme.code(language);
const commands = () => readme.commands('sh');

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

interface Running {
  child: ChildProcess;
  output(): string;
  ended: Promise<number | null>;
}

/** Runs a shell command line of the README as it stands there, but for addresses, ports and the model. */
function start(command: string): Running {
  const child = spawn('sh', ['-c', `exec ${command}`], { cwd: projectRoot });
  onTestFinished(() => {
    child.kill('SIGKILL');
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      output += chunk;
    });
  }
  return { child, output: () => output, ended: new Promise((resolve) => child.on('close', resolve)) };
}

async function says(running: Running, text: string): Promise<void> {
  await expect.poll(() => running.output(), { timeout: 60_000, message: `until it says ${text}` }).toContain(text);
}

describe('the README', () => {
  it('holds a member of a cluster that runs', async () => {
    const program = blocks('js').find((block) => block.includes('Cluster.join'));
    const path = join(cacheDir, 'readme-cluster.mjs');
    const onlyHere =
      "listen: { host: '127.0.0.1', port: 0 }, discovery: { mdns: false, scan: false, tailscale: false },";
    await writeFile(
      path,
      (program as string)
        .replace('process.env.DROID_LLAMA_TOKEN', JSON.stringify(createToken()))
        .replace(/'node_modules.*gguf'/, JSON.stringify(tinyModel))
        .replace('await Cluster.join({', `await Cluster.join({ ${onlyHere}`),
    );
    const run = start(`${process.execPath} ${path}`);
    expect(await run.ended, run.output()).toBe(0);
    expect(run.output()).toContain('2+2 equals 4.');
    expect(run.output()).toContain('master 1');
  });

  it.skipIf(noPhones && !process.env.CI)('gets two phones to work together with two commands', async () => {
    const phones = await Phones.up({ hotspot: 'A', phones: { A: { incoming: 'drop' }, B: {} } });
    onTestFinished(() => phones.down());
    const typed = (start: string, token = '') => {
      const found = commands().find((command) => command.startsWith(start)) ?? `the README has no ${start}`;
      return `exec ${found
        .replace(/^droid-llama/, `${process.execPath} ${cliMain}`)
        .replace('qwen2.5-0.5b-instruct-q4_k_m.gguf', tinyModel)
        .replace('TOKEN', token)}`;
    };
    const a = phones.run('A', ['sh', '-c', typed('droid-llama up -m')]);
    await expect.poll(() => a.stdout, { timeout: 30_000 }).toMatch(/up --token [\w-]{22,}/);
    const token = /up --token ([\w-]{22,})/.exec(a.stdout)?.[1];
    const b = phones.run('B', ['sh', '-c', typed('droid-llama up --token', token)]);
    await expect.poll(() => b.stderr, { timeout: 60_000 }).toContain('this device is a worker of');
    await expect.poll(() => a.stdout, { timeout: 60_000 }).toMatch(/worker +[1-9]/);
    expect(a.stderr).toContain('this device is the master');
    const chat = phones.run('A', ['sh', '-c', typed('curl http://127.0.0.1:8080/v1/chat/completions')]);
    await chat.ended();
    expect(chat.stdout).toContain('2+2 equals 4.');
  });

  it('holds a program that runs', async () => {
    const program = blocks('js').find((block) => block.includes('createDistributedContext({'));
    const path = join(cacheDir, 'readme.mjs'); // inside the package, so that it finds it by its name
    await writeFile(path, (program as string).replace(/'node_modules.*gguf'/, JSON.stringify(tinyModel)));
    const run = start(`${process.execPath} ${path}`);
    expect(await run.ended, run.output()).toBe(0);
    expect(run.output()).toContain('2+2 equals 4.');
    expect(run.output()).toMatch(/http:\/\/127\.0\.0\.1:\d+/);
  });

  // curl is what the README types, not what the package needs; CI installs it.
  it.skipIf(!hasCurl && !process.env.CI)('walks through two phones with commands that work', async () => {
    const [workerPort, httpPort] = [await freePort(), await freePort()];
    let token = '';
    const line = (start: string) => {
      const found = commands().find((command) => command.startsWith(start));
      if (!found) throw new Error(`the README has no command that starts with ${start}`);
      return found
        .replace(/^droid-llama/, `${process.execPath} ${cliMain}`)
        .replace(/--token \S+/, `--token ${token}`)
        .replace('192.168.43.2', '127.0.0.1')
        .replace('60000', String(workerPort))
        .replace('qwen2.5-0.5b-instruct-q4_k_m.gguf', tinyModel)
        .replace('127.0.0.1:8080', `127.0.0.1:${httpPort}`)
        .replace(/(serve .*)$/, `$1 --port ${httpPort}`);
    };
    const worker = start(line('droid-llama worker'));
    await says(worker, 'droid-llama serve -m model.gguf');
    // It is made anew; whatever else the README shows is what is typed.
    token = /--token ([\w-]{22,})/.exec(worker.output())?.[1] ?? '';
    const probe = start(line('droid-llama probe'));
    expect(await probe.ended, probe.output()).toBe(0);
    const serve = start(line('droid-llama serve'));
    await says(serve, `http://127.0.0.1:${httpPort}`);
    await expect.poll(() => health(httpPort), { timeout: 60_000 }).toEqual({ status: 'ok' });
    expect(serve.output()).toMatch(/master\s+0-2\s+yes/);

    const healthCommand = start(line('curl http://127.0.0.1:8080/health'));
    await healthCommand.ended;
    expect(healthCommand.output()).toContain('{"status":"ok"}');
    const chat = start(line('curl http://127.0.0.1:8080/v1/chat/completions'));
    await chat.ended;
    expect(chat.output()).toContain('2+2 equals 4.');

    serve.child.kill('SIGINT');
    expect(await serve.ended).toBe(0);
    worker.child.kill('SIGINT');
    expect(await worker.ended).toBe(0);
  });

  it('lists every error code and no other', () => {
    const listed = [...readme.text.matchAll(/^\| `(DROID_\w+)`/gm)].map((match) => match[1]);
    expect(listed.sort()).toEqual(Object.keys(ERROR_CODES).sort());
  });
});

async function health(port: number): Promise<unknown> {
  return fetch(`http://127.0.0.1:${port}/health`).then(
    (response) => response.json(),
    () => undefined,
  );
}
