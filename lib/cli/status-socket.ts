/** How `droid-llama status` asks the `up` that runs on the same device: a unix socket in the user's own directory. */
import { chmodSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { DroidLlamaError } from '../errors.js';
import { stateDir } from '../user-dirs.js';

/** A status is some kilobytes for each device. */
const MAX_STATUS_BYTES = 16 * 1024 * 1024;
const TIMEOUT_MS = 5_000;
const SILENT = 'ETIMEDOUT';

function socketPath(clusterPort: number): string {
  return join(stateDir(), `up-${clusterPort}.sock`);
}

/** Answers each connection with one line of JSON, and hangs up. */
export async function serveStatus(clusterPort: number, status: () => object): Promise<Server> {
  const path = socketPath(clusterPort);
  mkdirSync(stateDir(), { recursive: true, mode: 0o700 });
  // The port is ours by now, so what lies there belongs to a process that is gone.
  rmSync(path, { force: true });
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.setTimeout(TIMEOUT_MS, () => socket.destroy());
    socket.end(`${JSON.stringify(status())}\n`);
  });
  server.on('error', () => {});
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, resolve);
  });
  chmodSync(path, 0o600);
  server.unref();
  return server;
}

/**
 * Asks a running `up`.
 * @param clusterPort which one, where several run; undefined for the only one
 */
export async function askStatus(clusterPort: number | undefined): Promise<unknown> {
  const paths = clusterPort === undefined ? runningSockets() : [socketPath(clusterPort)];
  const answers: unknown[] = [];
  let last: unknown;
  let silent = false;
  for (const path of paths) {
    try {
      answers.push(JSON.parse(await read(path)));
    } catch (error) {
      last = error;
      silent ||= (error as NodeJS.ErrnoException).code === SILENT;
    }
  }
  if (answers.length > 1) {
    throw new DroidLlamaError(
      'DROID_INVALID_ARGUMENT',
      `${answers.length} clusters run on this device; say which one with --cluster-port.`,
    );
  }
  if (answers.length === 0 && silent) {
    throw new DroidLlamaError(
      'DROID_CLOSED',
      'droid-llama up runs on this device but does not answer: it hangs, or is stopped.',
    );
  }
  if (answers.length === 0) {
    throw new DroidLlamaError(
      'DROID_CLOSED',
      'No `droid-llama up` runs on this device (for this user): start one, then ask again.',
      { cause: last },
    );
  }
  return answers[0];
}

function runningSockets(): string[] {
  try {
    return readdirSync(stateDir())
      .filter((name) => /^up-\d+\.sock$/.test(name))
      .map((name) => join(stateDir(), name));
  } catch {
    return [];
  }
}

function read(path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    let text = '';
    socket.setEncoding('utf8');
    socket.setTimeout(TIMEOUT_MS, () =>
      socket.destroy(Object.assign(new Error('it did not answer'), { code: SILENT })),
    );
    socket.on('data', (chunk: string) => {
      text += chunk;
      if (text.length > MAX_STATUS_BYTES) socket.destroy(new Error('its answer has no end'));
    });
    socket.on('error', reject);
    socket.on('close', () => resolve(text));
  });
}
