/** The command line in processes of its own, which are gone when the test ends. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { onTestFinished } from 'vitest';
import { until } from './contexts.js';
import { cliMain } from './paths.js';

/** Nothing here takes longer, also on a busy machine; a hang names what it waited for. */
const PATIENCE_MS = 60_000;

export interface Finished {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A `droid-llama` that runs. */
export class Cli {
  readonly command: string;
  readonly #child;
  readonly #ended: Promise<Finished>;
  readonly #watchers = new Set<() => void>();
  #stdout = '';
  #stderr = '';
  #over = false;

  constructor(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
    this.command = `droid-llama ${args.join(' ')}`;
    // Only what the test says: these variables change what the commands print and do.
    const plain = Object.entries(process.env).filter(([name]) => !/^(LLAMA|GGML|DROID)_|^NO_COLOR$/.test(name));
    const child = spawn(process.execPath, [cliMain, ...args], {
      env: { ...Object.fromEntries(plain), ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.#child = child;
    // Whether it still reads its stdin is its own affair.
    child.stdin.on('error', () => {});
    child.stdout.on('data', (chunk) => this.#read(() => (this.#stdout += chunk)));
    child.stderr.on('data', (chunk) => this.#read(() => (this.#stderr += chunk)));
    this.#ended = new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (status) => {
        this.#read(() => (this.#over = true));
        resolve({ status, stdout: this.#stdout, stderr: this.#stderr });
      });
    });
    this.#ended.catch(() => {});
    onTestFinished(async () => {
      child.kill('SIGKILL');
      await this.#ended;
    });
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  type(line: string): void {
    this.#child.stdin.write(`${line}\n`);
  }

  closeStdin(): void {
    this.#child.stdin.end();
  }

  /** Resolves with the match once stdout or stderr holds it. */
  async says(pattern: RegExp): Promise<RegExpExecArray> {
    const find = () => pattern.exec(this.#stdout) ?? pattern.exec(this.#stderr);
    let look = () => {};
    try {
      await this.#within(`it says ${pattern}`, (resolve, reject) => {
        look = () => {
          if (find()) resolve();
          else if (this.#over) reject(this.#failure(`it ended before it said ${pattern}`));
        };
        this.#watchers.add(look);
        look();
      });
    } finally {
      this.#watchers.delete(look);
    }
    return find() as RegExpExecArray;
  }

  /** Resolves once the process is gone. */
  async ended(): Promise<Finished> {
    await this.#within('it ends', (resolve, reject) => {
      this.#ended.then(() => resolve(), reject);
    });
    return this.#ended;
  }

  #read(change: () => void): void {
    change();
    for (const look of this.#watchers) look();
  }

  async #within(what: string, start: (resolve: () => void, reject: (error: Error) => void) => void): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        timer = setTimeout(() => reject(this.#failure(`waited ${PATIENCE_MS} ms in vain until ${what}`)), PATIENCE_MS);
        start(resolve, reject);
      });
    } finally {
      clearTimeout(timer);
    }
  }

  #failure(what: string): Error {
    return new Error(`${this.command}: ${what}\nstdout:\n${this.#stdout}\nstderr:\n${this.#stderr.slice(-5000)}`);
  }
}

/** Runs a command to its end. */
export function runCli(...args: string[]): Promise<Finished> {
  return new Cli(args).ended();
}

/** A worker that listens on loopback, and its endpoint. */
export async function startWorkerCli(...args: string[]): Promise<{ worker: Cli; endpoint: string }> {
  const worker = new Cli(['worker', '--port', '0', '--threads', '1', ...args]);
  const [, endpoint = ''] = await worker.says(/endpoint : (\S+)\n/);
  return { worker, endpoint };
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Resolves once there is no process of that id. */
export async function expectGone(pid: number): Promise<void> {
  await until(`process ${pid} is gone`, () => {
    try {
      process.kill(pid, 0);
      // Ended, but its new parent, which may be any program in a container, has not looked yet.
      return process.platform === 'linux' && / Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
    } catch {
      return true;
    }
  });
}
