/** Workers in processes of their own, to be killed and frozen. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { RpcServerOptions, RpcServerStats } from '../../lib/rpc-server.js';

const script = fileURLToPath(new URL('./worker-process.mjs', import.meta.url));

export interface WorkerProcessOptions extends RpcServerOptions {
  /** Starts it in this network namespace. */
  namespace?: string;
}

export class WorkerProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #gone: Promise<unknown[]>;
  endpoint = '';
  port = 0;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#gone = once(child, 'exit');
  }

  /** A process of the built package that listens, by default on a free port of loopback with one thread. */
  static async start({ namespace, ...options }: WorkerProcessOptions = {}): Promise<WorkerProcess> {
    const node = [process.execPath, script, JSON.stringify({ threads: 1, ...options })];
    const [program = '', ...args] = namespace ? ['ip', 'netns', 'exec', namespace, ...node] : node;
    const worker = new WorkerProcess(spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] }));
    Object.assign(worker, await worker.#message());
    return worker;
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** The kernel's letter for what the process does: R and S while it lives, T when it is stopped. */
  get state(): string {
    const stat = readFileSync(`/proc/${this.pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3);
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  async stats(): Promise<RpcServerStats> {
    const answer = this.#message();
    this.#child.send('stats');
    return (await answer) as RpcServerStats;
  }

  /** kill -9; resolves once the process is gone. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#gone;
  }

  freeze(): void {
    this.#child.kill('SIGSTOP');
  }

  thaw(): void {
    this.#child.kill('SIGCONT');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.alive) await this.kill();
  }

  async #message(): Promise<object> {
    const [message] = await Promise.race([once(this.#child, 'message'), this.#gone]);
    if (!this.alive) throw new Error(`the worker process ended (${this.#child.exitCode ?? this.#child.signalCode})`);
    return message as object;
  }
}
