/** Two phones with a link between them, and the programs of one contender at a time. */
import { readFileSync } from 'node:fs';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { PhoneEvent, PhoneProcess } from '../../phones/phone-process.js';
import { Phones } from '../../support/phones.js';
import {
  type Contender,
  type Launch,
  MASTER_PORT,
  masterCommand,
  type Programs,
  WORKER_PORT,
  workerCommand,
} from './contenders.js';
import { type BenchLink, FAST } from './links.js';

export const MASTER_URL = `http://127.0.0.1:${MASTER_PORT}`;
/** The largest load over the poorest link takes minutes. */
const LOAD_TIMEOUT_MS = 15 * 60_000;
const WORKER_TIMEOUT_MS = 60_000;

type Device = 'master' | 'worker';

/** A program of phone/. */
const phoneProgram = (name: string) => fileURLToPath(new URL(`phone/${name}.mjs`, import.meta.url));

/** Two processors that this process may use, the second of them the worker's; the same twice where there is only one. */
export function twoCores(): [master: string, worker: string] {
  const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  const cores = list.split(',').flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => `${first + i}`);
  });
  const [master = '0', worker = master] = cores;
  return [master, worker];
}

export class Rig implements AsyncDisposable {
  readonly #phones: Phones;
  readonly #link: BenchLink;
  readonly #programs: Programs;
  readonly #token: string;
  readonly #cores: readonly [master: string, worker: string];

  private constructor(phones: Phones, link: BenchLink, programs: Programs, token: string) {
    this.#phones = phones;
    this.#link = link;
    this.#programs = programs;
    this.#token = token;
    this.#cores = twoCores();
  }

  /** @param token what encrypted contenders speak with */
  static async up(link: BenchLink, programs: Programs, token: string): Promise<Rig> {
    const { quality } = link;
    const phones = await Phones.up(
      quality ? { hotspot: 'a', phones: { a: { incoming: 'drop' }, b: quality } } : { phones: { a: {} } },
    );
    return new Rig(phones, link, programs, token);
  }

  /** Where the worker's phone is, seen from the master's. */
  get workerHost(): string {
    return this.#link.quality ? this.#phones.address('b') : '127.0.0.1';
  }

  get endpoint(): string {
    return `${this.workerHost}:${WORKER_PORT}`;
  }

  async down(): Promise<void> {
    await this.#phones.down();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
  }

  /** From here on the link is as fast as the machine. */
  async hurry(): Promise<void> {
    if (this.#link.quality) await this.#phones.relink('b', FAST);
  }

  /** From here on the link is what it is said to be. */
  async slowDown(): Promise<void> {
    if (this.#link.quality) await this.#phones.relink('b', this.#link.quality);
  }

  /** Forgets what the contender's programs keep on disk. */
  async forget(contender: Contender): Promise<void> {
    for (const device of ['master', 'worker'] as const) {
      await rm(this.#home(contender, device), { recursive: true, force: true });
    }
  }

  /** Resolves when it listens. */
  async startWorker(contender: Contender): Promise<PhoneProcess> {
    const host = this.#link.quality ? '0.0.0.0' : '127.0.0.1';
    const command = workerCommand(contender, this.#programs, host);
    const worker = this.#run('worker', command, await this.#environment(contender, 'worker'));
    const deadline = Date.now() + WORKER_TIMEOUT_MS;
    // Not by connecting: upstream's takes one master at a time.
    while (!(await this.#listens(WORKER_PORT))) {
      if (!worker.alive || Date.now() > deadline) {
        await worker.kill();
        throw new Error(`${worker.command} does not listen:\n${worker.stdout}\n${worker.stderr}`);
      }
      await delay(20);
    }
    return worker;
  }

  /** Resolves when it answers requests, with the seconds from its start until then. */
  async startMaster(contender: Contender, launch: Launch): Promise<{ master: PhoneProcess; seconds: number }> {
    const command = masterCommand(contender, this.#programs, launch);
    const starter = [process.execPath, phoneProgram('start-master'), MASTER_URL, String(LOAD_TIMEOUT_MS), ...command];
    const master = this.#run('master', starter, await this.#environment(contender, 'master'));
    try {
      const said = await master.waitFor(
        'the model is loaded',
        ({ event }) => event === 'ready' || event === 'failed',
        // Its own patience ends first.
        { timeoutMs: LOAD_TIMEOUT_MS + 10_000 },
      );
      if (said.event === 'ready') return { master, seconds: said.seconds as number };
      throw new Error(`${master.command} ${said.message}:\n${master.stderr.slice(-4000)}`);
    } catch (error) {
      await master.kill();
      throw error;
    }
  }

  /** Runs a program on the master's phone and core to its end, and resolves with what it printed. */
  async onMaster(command: readonly string[], timeoutMs: number, env: NodeJS.ProcessEnv = {}): Promise<string> {
    const child = this.#run('master', command, env);
    const { status, stdout, stderr } = await this.#phones.finished(child, timeoutMs);
    if (status !== 0) throw new Error(`${child.command} ended with ${status}:\n${stderr.slice(-4000)}`);
    return stdout;
  }

  /** The last event of a program of phone/ on the master's phone. */
  async ask(name: string, args: readonly string[], timeoutMs: number, env?: NodeJS.ProcessEnv): Promise<object> {
    const said = await this.onMaster([process.execPath, phoneProgram(name), ...args], timeoutMs, env);
    return JSON.parse(said.trim().split('\n').at(-1) ?? '');
  }

  /** Starts a program of phone/ that stays, and resolves with it and its first event. */
  async serve(
    device: Device,
    name: string,
    args: readonly string[],
  ): Promise<{ child: PhoneProcess; first: PhoneEvent }> {
    const child = this.#run(device, [process.execPath, phoneProgram(name), ...args]);
    try {
      return { child, first: await child.waitFor('it says something', () => true) };
    } catch (error) {
      await child.kill();
      throw error;
    }
  }

  /** A home of its own, and the token where the contender has one. */
  async #environment(contender: Contender, device: Device): Promise<NodeJS.ProcessEnv> {
    const home = this.#home(contender, device);
    await mkdir(home, { recursive: true });
    return { HOME: home, ...(contender.encrypted ? { DROID_LLAMA_TOKEN: this.#token } : {}) };
  }

  /** One for all contenders of a program: they have the same weights. */
  #home({ program }: Contender, device: Device): string {
    return join(this.#phones.phone(this.#phoneOf(device)).home, device, program);
  }

  #phoneOf(device: Device): string {
    return device === 'worker' && this.#link.quality ? 'b' : 'a';
  }

  #run(device: Device, command: readonly string[], env: NodeJS.ProcessEnv = {}): PhoneProcess {
    const core = this.#cores[device === 'master' ? 0 : 1];
    return this.#phones.run(this.#phoneOf(device), ['taskset', '-c', core, ...command], { env });
  }

  async #listens(port: number): Promise<boolean> {
    const reader = this.#phones.run(this.#phoneOf('worker'), ['cat', '/proc/net/tcp', '/proc/net/tcp6']);
    const { stdout } = await this.#phones.finished(reader);
    const hex = port.toString(16).toUpperCase().padStart(4, '0');
    // Local address, remote address, and the state of one who listens.
    return new RegExp(`:${hex} [0-9A-F]+:0000 0A`).test(stdout);
  }
}
