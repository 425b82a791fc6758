import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { DroidLlamaError, isErrorCode } from '../errors.js';
import { packageFile } from '../package-file.js';
import type { RpcServerStats } from '../rpc-server.js';
import type { WorkerReady } from './lender.js';
import { environmentWith } from './token.js';

/** A worker has nothing to lose: what computes longer than this is not waited for. */
const PATIENCE_MS = 3000;

/** A program that behaves as `droid-llama worker --child` does. */
export interface WorkerCommand {
  readonly file: string;
  readonly args: readonly string[];
  /** Default: that of this process. */
  readonly env?: NodeJS.ProcessEnv;
}

export interface ExitStatus {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/**
 * The command that runs a worker in a process of its own; `flags` are those of `droid-llama worker`. The token goes by
 * the environment, which other users of the device cannot read.
 */
export function workerCommand(flags: readonly string[], token: string | undefined): WorkerCommand {
  const args = [packageFile('dist/cli/main.js'), 'worker', '--child', ...flags];
  return { file: process.execPath, args, env: environmentWith(token) };
}

/**
 * A worker in a process of its own. The two talk over the child's standard streams, in lines:
 *
 *   child → parent   one JSON object when it is ready ({@link WorkerReady}), or `{"error":{"code","message"}}` if it
 *                    cannot start; then one JSON object for each `stats`
 *   parent → child   `stats`; closing the stream ends the child, so it also ends when the parent is killed
 *
 * Its stderr is the parent's.
 */
export class WorkerProcess {
  /** How it ended, however it ended. */
  readonly exited: Promise<ExitStatus>;
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;
  readonly #failed: Promise<never>;
  #ready: WorkerReady | undefined;

  private constructor(child: ChildProcessByStdio<Writable, Readable, null>) {
    this.#child = child;
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => resolve({ code, signal }));
    });
    // A process that could not be made never exits, nor do its streams end.
    this.#failed = once(child, 'error').then(([error]) => {
      throw error;
    });
    // Raced with each line that is read; between two reads no one looks at it.
    this.#failed.catch(() => {});
    this.#lines = createInterface({ input: child.stdout, terminal: false })[Symbol.asyncIterator]();
    // A child that is gone is noticed where its next line is read, also when it cannot be sent a signal any more.
    child.on('error', () => {});
    child.stdin.on('error', () => {});
  }

  /**
   * Resolves once the worker accepts connections.
   * @throws what the child reported, as the error it was there; the signal's reason
   */
  static async start({ file, args, env }: WorkerCommand, signal: AbortSignal): Promise<WorkerProcess> {
    signal.throwIfAborted();
    const child = spawn(file, args, {
      env,
      stdio: ['pipe', 'pipe', 'inherit'],
      // A session of its own: Ctrl-C on the terminal must not take the worker from under a computing master, nor the
      // decision when to end it from the parent.
      detached: true,
    });
    const worker = new WorkerProcess(child);
    const onAbort = (): void => void child.kill('SIGKILL');
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      worker.#ready = (await worker.#read()) as unknown as WorkerReady;
      if (typeof worker.#ready.endpoint !== 'string') throw new Error('the worker process did not say its endpoint');
      return worker;
    } catch (error) {
      await worker.stop();
      throw signal.aborted ? signal.reason : error;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** What it said when it began to listen. */
  get ready(): WorkerReady {
    return this.#ready as WorkerReady;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The worker's own counters. */
  async stats(): Promise<RpcServerStats> {
    this.#child.stdin.write('stats\n');
    return (await this.#read()) as unknown as RpcServerStats;
  }

  /** Ends it and waits until it is gone, killing it if that takes long. Idempotent. */
  async stop(): Promise<void> {
    if (this.#child.pid === undefined) return;
    this.#child.stdin.end();
    const impatience = setTimeout(() => this.#child.kill('SIGKILL'), PATIENCE_MS);
    await this.exited;
    clearTimeout(impatience);
  }

  async #read(): Promise<Record<string, unknown>> {
    const { value, done } = await Promise.race([this.#lines.next(), this.#failed]);
    if (done) throw new Error(`the worker process ended ${describeExit(await this.exited)}`);
    const message: unknown = JSON.parse(value);
    if (typeof message !== 'object' || message === null) throw new Error(`the worker process said ${value}`);
    if ('error' in message) throw errorOf(message.error);
    return message as Record<string, unknown>;
  }
}

export function describeExit({ code, signal }: ExitStatus): string {
  return signal === null ? `with status ${code}` : `by ${signal}`;
}

/** The error as it was thrown in the child. */
function errorOf(error: unknown): Error {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  return isErrorCode(code) ? new DroidLlamaError(code, String(message)) : new Error(String(message));
}
