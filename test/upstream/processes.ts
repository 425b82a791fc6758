/** Upstream's programs as child processes that are gone when the test ends. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { onTestFinished } from 'vitest';
import { tinyModel } from '../support/paths.js';
import { ensureUpstream } from './build.mjs';

const START_TIMEOUT_MS = 30_000;

/** Runs upstream's ggml-rpc-server; returns its endpoint. It dies after every context that was opened later. */
export async function startUpstreamWorker(): Promise<string> {
  const { rpcServer } = await ensureUpstream();
  const port = await freePort();
  await start(rpcServer, ['--host', '127.0.0.1', '--port', String(port), '--threads', '1'], () => accepts(port));
  return `127.0.0.1:${port}`;
}

/** Runs upstream's llama-server with the tiny model, set up as `openContext` sets up ours; returns its URL. */
export async function startUpstreamServer(...args: string[]): Promise<string> {
  const { llamaServer } = await ensureUpstream();
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const same = ['--model', tinyModel, '--ctx-size', '512', '--threads', '1', '--parallel', '1', '--metrics'];
  await start(llamaServer, [...same, '--host', '127.0.0.1', '--port', String(port), ...args], async () => {
    const health = await fetch(`${url}/health`).catch(() => undefined);
    return health?.status === 200;
  });
  return url;
}

/** Resolves once `ready` says so; if the program ends or takes too long, the error holds what it printed. */
async function start(program: string, args: string[], ready: () => Promise<boolean>): Promise<void> {
  // Only what the test says: llama-server reads LLAMA_ARG_* variables.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('LLAMA_')));
  const child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'close');
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);
  onTestFinished(async () => {
    process.off('exit', kill);
    kill();
    await ended;
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (data) => {
      output = (output + data).slice(-20_000);
    });
  }
  let failure: string | undefined;
  ended.then(
    ([code, signal]) => {
      failure = `ended with ${signal ?? code}`;
    },
    (error) => {
      failure = String(error);
    },
  );
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (!(await ready())) {
    if (Date.now() > deadline) failure ??= `was not ready within ${START_TIMEOUT_MS} ms`;
    if (failure) throw new Error(`${program} ${failure}:\n${output}`);
    await delay(10);
  }
}

/** Whether something listens on the port. */
async function accepts(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
