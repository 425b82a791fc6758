// @ts-check
// Starts a master on a phone and says how long its model took: from the start of its process until /health answers 200.
//
//   start-master.mjs URL TIMEOUT_MS COMMAND...   {event: ready, seconds}, or {event: failed, message}; then waits for its end
import { spawn } from 'node:child_process';
import { get } from 'node:http';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';

/** How often to look; what it adds to a load is the same for every program. */
const POLL_MS = 20;

const [url = '', timeoutMs = '', program = '', ...args] = process.argv.slice(2);
const tell = (/** @type {object} */ event) => process.stdout.write(`${JSON.stringify(event)}\n`);

/** @returns {Promise<number | undefined>} the status, undefined while nothing listens */
function health() {
  return new Promise((resolve) => {
    const request = get(`${url}/health`, { agent: false, timeout: 5000 }, (response) => {
      response.resume().on('close', () => resolve(response.statusCode));
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => resolve(undefined));
  });
}

const start = performance.now();
const child = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'] });
let over = '';
child.on('error', (error) => {
  over = error.message;
});
child.on('exit', (status, signal) => {
  over = `ended with ${signal ?? status}`;
});
while (!over) {
  const status = await health();
  const seconds = (performance.now() - start) / 1000;
  if (status === 200) {
    tell({ event: 'ready', seconds });
    break;
  }
  if (seconds * 1000 > Number(timeoutMs)) {
    over = `was not ready within ${timeoutMs} ms`;
    child.kill('SIGKILL');
  } else await delay(POLL_MS);
}
if (over) tell({ event: 'failed', message: over });
