// @ts-check
// Masters and workers to compare: each is started, asked the same way, and stopped.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ensureUpstream } from '../upstream/build.mjs';

/** @import { ChildProcess } from 'node:child_process' */
/** @import { BenchModel, Master, Worker } from './rpc-measure.d.mts' */

const START_TIMEOUT_MS = 120_000;
/** How often to look whether something is ready that says nothing when it is. */
const POLL_MS = 5;
const workerScript = fileURLToPath(new URL('../support/worker-process.mjs', import.meta.url));

/** Tokens of context, for every master. */
export const CONTEXT_SIZE = 1024;
/** The head on the master, as we place it; llama-server classes the tied embedding as the head, too. */
const HEAD_ON_MASTER = '^(output|output_norm|token_embd)\\.weight$=CPU';

/** llama-server with the last `layers` layers on the worker and everything else like ours. @param {BenchModel} model @param {string} endpoint */
export function upstreamMasterArgs({ path, layers }, endpoint) {
  const placement = ['--rpc', endpoint, '-ngl', String(layers / 2 + 1), '-ot', HEAD_ON_MASTER, '--fit', 'off'];
  const rest = ['-c', String(CONTEXT_SIZE), '-t', '1', '-np', '1', '--cache-ram', '0', '--host', '127.0.0.1'];
  return ['-m', path, ...placement, ...rest];
}

/** What is put before the command of a worker. @type {string[]} */
let workerPrefix = [];

/**
 * Gives masters one core and workers another. Left to the scheduler, the two share a core in some runs and not in
 * others, which changes the speed of a small model by half.
 *
 * @returns {boolean} false where that cannot be done
 */
export function separateCores() {
  try {
    const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '';
    const cores = list.split(',').flatMap((range) => {
      const [first = 0, last = first] = range.split('-').map(Number);
      return Array.from({ length: last - first + 1 }, (_, i) => first + i);
    });
    if (cores.length < 2) return false;
    // All threads of this process; what it starts from here on inherits it.
    execFileSync('taskset', ['-a', '-c', '-p', String(cores[0]), String(process.pid)], { stdio: 'pipe' });
    workerPrefix = ['taskset', '-c', String(cores[1])];
    return true;
  } catch {
    return false;
  }
}

/** @param {{ token?: string }} [options] @returns {Promise<Worker>} */
export async function startOurWorker(options = {}) {
  const command = [...workerPrefix, process.execPath, workerScript, JSON.stringify({ threads: 1, ...options })];
  const child = spawn(command[0] ?? '', command.slice(1), { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  const stop = stopping(child);
  const [{ port }] = await Promise.race([once(child, 'message'), ended(child, 'our worker')]);
  return { port, stop };
}

/** @returns {Promise<Worker>} */
export async function startUpstreamWorker() {
  const { rpcServer } = await ensureUpstream();
  const port = await freePort();
  const command = [...workerPrefix, rpcServer, '-H', '127.0.0.1', '-p', String(port), '-t', '1'];
  const { stop } = await startProgram(command, () => accepts(port));
  return { port, stop };
}

/**
 * @param {BenchModel} model
 * @param {number} port of the worker
 * @param {{ token?: string }} [options]
 * @returns {Promise<Master>}
 */
export async function startOurMaster(model, port, options = {}) {
  const { createDistributedContext } = await import('../../dist/index.js');
  const start = performance.now();
  const ctx = await createDistributedContext({
    model: model.path,
    rpc: [`127.0.0.1:${port}`],
    tensorSplit: [0.5, 0.5],
    threads: 1,
    contextSize: CONTEXT_SIZE,
    ...options,
  });
  const loadSeconds = (performance.now() - start) / 1000;
  return {
    loadSeconds,
    stop: () => ctx.close(),
    async complete(body) {
      const response = await ctx.request('POST', '/completion', body);
      let text = '';
      for await (const chunk of response.body) text += Buffer.from(chunk).toString();
      return answer(response.status, text);
    },
  };
}

/**
 * @param {BenchModel} model
 * @param {number} port of the worker
 * @returns {Promise<Master>}
 */
export async function startUpstreamMaster(model, port) {
  const { llamaServer } = await ensureUpstream();
  const url = `http://127.0.0.1:${await freePort()}`;
  const args = [...upstreamMasterArgs(model, `127.0.0.1:${port}`), '--port', new URL(url).port];
  const start = performance.now();
  // The last line of its start. Asking /health until then takes the core from a load of a few tens of milliseconds.
  const { stop } = await startProgram([llamaServer, ...args], (output) => output.includes(`listening on ${url}`));
  const loadSeconds = (performance.now() - start) / 1000;
  return {
    loadSeconds,
    stop,
    async complete(body) {
      const response = await fetch(`${url}/completion`, { method: 'POST', body: JSON.stringify(body) });
      return answer(response.status, await response.text());
    },
  };
}

/** @param {number} status @param {string} text */
function answer(status, text) {
  if (status !== 200) throw new Error(`the completion failed with ${status}: ${text.slice(0, 500)}`);
  return JSON.parse(text);
}

/** @param {string[]} command @param {(output: string) => boolean | Promise<boolean>} ready */
async function startProgram(command, ready) {
  // llama-server reads LLAMA_ARG_* variables.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(LLAMA|GGML)_/.test(name)));
  const child = spawn(command[0] ?? '', command.slice(1), { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const stop = stopping(child);
  let output = '';
  let heard = () => {};
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      output = (output + chunk).slice(-20_000);
      heard();
    });
  }
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (!(await ready(output))) {
    const over = child.exitCode !== null || child.signalCode !== null;
    if (over || Date.now() > deadline) {
      await stop();
      throw new Error(`${command.join(' ')} ${over ? 'ended' : 'was not ready in time'}:\n${output}`);
    }
    await Promise.race([delay(POLL_MS), new Promise((resolve) => (heard = () => resolve(undefined)))]);
  }
  return { stop };
}

/** @param {ChildProcess} child @param {string} name @returns {Promise<never>} */
async function ended(child, name) {
  await once(child, 'exit');
  throw new Error(`${name} ended`);
}

/** @param {ChildProcess} child */
function stopping(child) {
  const gone = once(child, 'close');
  gone.catch(() => {});
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);
  return async () => {
    process.off('exit', kill);
    kill();
    await gone;
  };
}

/** @param {number} port */
async function accepts(port) {
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

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  server.close();
  await once(server, 'close');
  return port;
}
