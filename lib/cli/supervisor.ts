import { setTimeout as sleep } from 'node:timers/promises';
import { parseEndpoint } from '../endpoint.js';
import type { RpcServerStats } from '../rpc-server.js';
import type { Lender, WorkerReady } from './lender.js';
import { describeExit, type WorkerCommand, WorkerProcess } from './worker-process.js';

/** How long to wait before a worker that ended is started again: twice as long each time, up to a limit. */
export interface Backoff {
  readonly firstMs: number;
  readonly maxMs: number;
  /** A worker that ran this long was sound: the next wait is the first again. */
  readonly soundMs: number;
}

const BACKOFF: Backoff = { firstMs: 500, maxMs: 30_000, soundMs: 60_000 };

export interface SupervisorOptions {
  /** The command of a worker that listens on `port`. */
  readonly command: (port: number) => WorkerCommand;
  /** Port of the first start; 0 lets the system choose, and the others take the same. */
  readonly port: number;
  /** Told about each end and each restart. */
  readonly note: (line: string) => void;
  /** Ends the start and the supervision when aborted. */
  readonly signal: AbortSignal;
  readonly backoff?: Backoff;
}

/** With `restarts` the counters of the worker that runs now; without one, `childPid` is null and there are none. */
export type SupervisedStats = Partial<RpcServerStats> & { readonly restarts: number; readonly childPid: number | null };

/**
 * Keeps a worker running in a process of its own, because an assertion inside ggml ends the process it happens in.
 * Only the first start may fail; after that the worker is started again for as long as it takes.
 */
export class Supervisor implements Lender {
  readonly ready: WorkerReady;
  readonly #options: SupervisorOptions;
  readonly #ending = new AbortController();
  readonly #watching: Promise<void>;
  /** Undefined while the next one is waited for. */
  #worker: WorkerProcess | undefined;
  #restarts = 0;

  private constructor(worker: WorkerProcess, options: SupervisorOptions) {
    this.#options = options;
    this.#worker = worker;
    const { signal } = options;
    if (signal.aborted) this.#ending.abort();
    else signal.addEventListener('abort', () => this.#ending.abort(), { once: true });
    this.ready = { ...worker.ready, pid: process.pid, childPid: worker.pid ?? null };
    this.#watching = this.#watch(worker);
  }

  /** Resolves once the worker accepts connections. Rejects with its error if the first start fails. */
  static async start(options: SupervisorOptions): Promise<Supervisor> {
    return new Supervisor(await WorkerProcess.start(options.command(options.port), options.signal), options);
  }

  async stats(): Promise<SupervisedStats> {
    const worker = this.#worker;
    try {
      if (worker) return { ...(await worker.stats()), restarts: this.#restarts, childPid: worker.pid ?? null };
    } catch {
      // It ended before it could answer.
    }
    return { restarts: this.#restarts, childPid: null };
  }

  /** Ends the worker, at once if it does not end by itself. Idempotent. */
  async close(): Promise<void> {
    this.#ending.abort();
    await this.#worker?.stop();
    await this.#watching;
  }

  async #watch(first: WorkerProcess): Promise<void> {
    const { firstMs, maxMs, soundMs } = this.#options.backoff ?? BACKOFF;
    const { signal } = this.#ending;
    let worker = first;
    let waitMs = firstMs;
    for (;;) {
      const started = performance.now();
      const status = await worker.exited;
      this.#worker = undefined;
      if (signal.aborted) return;
      if (performance.now() - started >= soundMs) waitMs = firstMs;
      let what = `the worker process ${worker.pid} ended ${describeExit(status)}`;
      for (let next: WorkerProcess | undefined; !next; ) {
        this.#options.note(`${what}; starting it again in ${waitMs / 1000} s`);
        try {
          await sleep(waitMs, undefined, { signal });
          waitMs = Math.min(2 * waitMs, maxMs);
          next = await WorkerProcess.start(this.#options.command(this.#port), signal);
          worker = next;
        } catch (error) {
          if (signal.aborted) return;
          what = `starting the worker again failed: ${(error as Error).message}`;
        }
      }
      this.#worker = worker;
      this.#restarts++;
      this.#options.note(`the worker is back on ${worker.ready.endpoint} as process ${worker.pid}`);
      // close() may have come while it started, and then found nothing to stop.
      if (signal.aborted) await worker.stop();
    }
  }

  get #port(): number {
    return parseEndpoint(this.ready.endpoint).port;
  }
}
