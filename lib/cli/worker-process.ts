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

/** Lines of others that are skipped for one of the worker's: a preloaded module may print, too, but not for ever. */
const MAX_STRAY_LINES = 10_000;

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
 *                    cannot start; then one JSON object for each `stats`. Other lines, as a module prints them that
 *                    NODE_OPTIONS loads, are skipped
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
      worker.#ready = await worker.#read<WorkerReady>('endpoint', 'string');
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
    return this.#read<RpcServerStats>('graphsComputed', 'number');
  }

  /** Ends it and waits until it is gone, killing it if that takes long. Idempotent. */
  async stop(): Promise<void> {
    if (this.#child.pid === undefined) return;
    this.#child.stdin.end();
    const impatience = setTimeout(() => this.#child.kill('SIGKILL'), PATIENCE_MS);
    await this.exited;
    clearTimeout(impatience);
  }

  /** The next message that has the field. Throws what the child reports instead. */
  async #read<Message>(field: keyof Message & string, type: 'string' | 'number'): Promise<Message> {
    for (let lines = 0; lines < MAX_STRAY_LINES; lines++) {
      const { value, done } = await Promise.race([this.#lines.next(), this.#failed]);
      if (done) throw new Error(`the worker process ended ${describeExit(await this.exited)}`);
      const message = parseObject(value);
      if (typeof message?.[field] === type) return message as Message;
      const error = reportedError(message?.error);
      if (error) throw error;
    }
    throw new Error(`the worker process printed ${MAX_STRAY_LINES} lines but did not say its ${field}`);
  }
}

/** The object that a line ends with: what was printed before it may have ended without a line break. */
function parseObject(line: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(/\{.*$/.exec(line)?.[0] ?? '');
  } catch {
    return undefined;
  }
}

export function describeExit({ code, signal }: ExitStatus): string {
  return signal === null ? `with status ${code}` : `by ${signal}`;
}

/** The error as it was thrown in the child; undefined for what is none. */
function reportedError(error: unknown): Error | undefined {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  if (typeof message !== 'string') return undefined;
  return isErrorCode(code) ? new DroidLlamaError(code, message) : new Error(message);
}
