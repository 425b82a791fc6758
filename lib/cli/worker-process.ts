import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { DroidLlamaError, isErrorCode } from '../errors.js';
import type { RpcServerStats } from '../rpc-server.js';

const ENTRY = fileURLToPath(new URL('./main.js', import.meta.url));

/** A worker in a Node process of its own, driven over its `--json` lines. */
export class WorkerProcess {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;
  readonly #failed: Promise<never>;
  #endpoint = '';

  private constructor(child: ChildProcessByStdio<Writable, Readable, null>) {
    this.#child = child;
    this.#lines = createInterface({ input: child.stdout, terminal: false })[Symbol.asyncIterator]();
    this.#failed = once(child, 'error').then(([error]) => {
      throw error;
    });
    // Raced with each line that is read; between two reads no one looks at it.
    this.#failed.catch(() => {});
  }

  /** Starts a worker on a free loopback port; resolves once it accepts connections. */
  static async start(threads: number, signal: AbortSignal): Promise<WorkerProcess> {
    const args = ['worker', '--port', '0', '--threads', String(threads), '--json', '--exit-with-stdin'];
    const child = spawn(process.execPath, [ENTRY, ...args], {
      stdio: ['pipe', 'pipe', 'inherit'],
      // A process group of its own: Ctrl-C on the terminal must not take the worker from under a computing master.
      detached: true,
    });
    // A worker that is gone is noticed where its next line is read.
    child.stdin.on('error', () => {});
    const worker = new WorkerProcess(child);
    const onAbort = (): void => void child.kill();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      const ready = await worker.#read();
      if (typeof ready.endpoint !== 'string') throw new Error('the worker did not say its endpoint');
      worker.#endpoint = ready.endpoint;
      return worker;
    } catch (error) {
      await worker.stop();
      throw signal.aborted ? signal.reason : error;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  get endpoint(): string {
    return this.#endpoint;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The worker's own counters; one call at a time. */
  async stats(): Promise<RpcServerStats> {
    this.#child.stdin.write('stats\n');
    return (await this.#read()) as unknown as RpcServerStats;
  }

  async stop(): Promise<void> {
    const { exitCode, signalCode, pid } = this.#child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const gone = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await gone;
  }

  async #read(): Promise<Record<string, unknown>> {
    const { value, done } = await Promise.race([this.#lines.next(), this.#failed]);
    if (done) throw new Error('the worker process ended unexpectedly');
    const message: unknown = JSON.parse(value);
    if (typeof message !== 'object' || message === null) throw new Error(`the worker said ${value}`);
    if ('error' in message) throw workerError(message.error);
    return message as Record<string, unknown>;
  }
}

function workerError(error: unknown): Error {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  const text = `the worker process failed: ${String(message)}`;
  return isErrorCode(code) ? new DroidLlamaError(code, text) : new Error(text);
}
