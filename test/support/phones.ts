/**
 * Phones on one machine: network namespaces with a HOME each, joined by an emulated wireless network
 * (test/phones/linkemu.c) whose links have a delay, a rate and a loss, and drop connections as Android does.
 */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Capture } from '../phones/capture.js';
import { type Finished, PhoneProcess } from '../phones/phone-process.js';
import { cliMain } from './paths.js';

const run = promisify(execFile);
const SOURCE = fileURLToPath(new URL('../phones/linkemu.c', import.meta.url));
const NET_TOOL = fileURLToPath(new URL('../phones/net-tool.mjs', import.meta.url));
/** Of namespaces and temporary directories: the process that made them, and its how-manyth network. */
const OWN_NAME = /^dl(\d+)x\d+-/;

export interface PhoneOptions {
  /** What happens to connections that others open to it; `drop` is what Android does. Default `accept`. */
  incoming?: 'accept' | 'drop';
  /** What happens to connections that it opens. Default `accept`. */
  outgoing?: 'accept' | 'drop';
  /** Whether it hears multicast, as mDNS needs; Android without a multicast lock does not. Default true. */
  multicast?: boolean;
  /** Milliseconds from the phone to the access point, one way; default half of what the guide's link had, or all of it
   * for a client of a hotspot. */
  delayMs?: number;
  /** Megabits per second in each direction; default 50. */
  mbit?: number;
  lossPercent?: number;
  /** Processors its programs may use, as `taskset -c` takes them; default all. */
  cores?: string;
}

/** Of a link, as PhoneOptions has it. */
export interface LinkQuality {
  readonly delayMs: number;
  readonly mbit: number;
  readonly lossPercent?: number;
}

export interface PhonesOptions {
  /** The phone that is the access point of the others, `192.168.43.1`. Default: none, there is a router. */
  hotspot?: string;
  phones: Readonly<Record<string, PhoneOptions>>;
}

export interface Phone {
  readonly name: string;
  readonly namespace: string;
  /** IPv4. */
  readonly address: string;
  readonly home: string;
  readonly cores: string | undefined;
}

/** Of the guide's hotspot: 5 ms round trip and 50 Mbit/s. */
const GUIDE = { delayMs: 2.5, mbit: 50 } as const;
let networks = 0;

export class Phones implements AsyncDisposable {
  readonly #prefix: string;
  readonly #directory: string;
  readonly #phones = new Map<string, Phone>();
  readonly #processes = new Set<PhoneProcess>();
  readonly #options: PhonesOptions;
  #emulator: PhoneProcess | undefined;
  #commands: Promise<unknown> = Promise.resolve();
  #answers = 0;
  readonly #atExit = () => this.#downNow();

  private constructor(prefix: string, directory: string, options: PhonesOptions) {
    this.#prefix = prefix;
    this.#directory = directory;
    this.#options = options;
    // A test that is ended in the middle leaves nothing either.
    process.once('exit', this.#atExit);
  }

  /** Why there can be none here; undefined when there can. */
  static unavailable(): string | undefined {
    if (process.platform !== 'linux') return 'network namespaces are Linux only';
    if (process.getuid?.() !== 0) return 'network namespaces need root';
    if (!existsSync('/dev/net/tun')) return 'there is no /dev/net/tun';
    const name = `dl${process.pid}x${networks}-try`;
    try {
      execFileSync('cc', ['--version'], { stdio: 'pipe' });
      execFileSync('ip', ['netns', 'add', name], { stdio: 'pipe' });
      execFileSync('ip', ['netns', 'del', name], { stdio: 'pipe' });
      return undefined;
    } catch (error) {
      return `network namespaces or the C compiler do not work here: ${(error as Error).message.trim()}`;
    }
  }

  /** Makes the phones and joins them; what runs of tests that died left behind is removed first. */
  static async up(options: PhonesOptions): Promise<Phones> {
    removeLeftovers();
    const prefix = `dl${process.pid}x${++networks}-`;
    const phones = new Phones(prefix, await mkdtemp(join(tmpdir(), prefix)), options);
    try {
      await phones.#start();
    } catch (error) {
      await phones.down();
      throw error;
    }
    return phones;
  }

  phone(name: string): Phone {
    const phone = this.#phones.get(name);
    if (!phone) throw new Error(`there is no phone ${name}`);
    return phone;
  }

  address(name: string): string {
    return this.phone(name).address;
  }

  /** Starts a program on a phone; it is killed with everything it started when the phones go down, if not before. */
  run(name: string, command: readonly string[], { env = {} }: { env?: NodeJS.ProcessEnv } = {}): PhoneProcess {
    const { namespace, home, cores } = this.phone(name);
    const pinned = cores === undefined ? [] : ['taskset', '-c', cores];
    const child = new PhoneProcess(
      `${name}: ${command.join(' ')}`,
      ['ip', 'netns', 'exec', namespace, ...pinned, ...command],
      { ...plainEnvironment(), HOME: home, ...env },
    );
    this.#processes.add(child);
    return child;
  }

  /** `droid-llama` with these arguments. */
  cli(name: string, args: readonly string[], env?: NodeJS.ProcessEnv): PhoneProcess {
    return this.run(name, [process.execPath, cliMain, ...args], { env });
  }

  /** A verb of test/phones/net-tool.mjs. */
  tool(name: string, ...args: readonly string[]): PhoneProcess {
    return this.run(name, [process.execPath, NET_TOOL, ...args]);
  }

  /** Runs a program to its end. */
  async finished(child: PhoneProcess, timeoutMs?: number): Promise<Finished> {
    try {
      return await child.ended(timeoutMs);
    } finally {
      await child.kill();
      this.#processes.delete(child);
    }
  }

  /** From here on every packet to and from the phone is dropped; nobody is told, nothing is closed. */
  async cut(name: string): Promise<void> {
    await this.#command('cut', name);
  }

  async restore(name: string): Promise<void> {
    await this.#command('restore', name);
  }

  /** Gives a phone's link another delay, rate and loss; connections stay. */
  async relink(name: string, { delayMs, mbit, lossPercent = 0 }: LinkQuality): Promise<void> {
    await this.#command('link', name, `${delayMs}`, `${mbit}`, `${lossPercent}`);
  }

  /** Begins to record the packets of a phone's link, until it is stopped. */
  async capture(name: string): Promise<{ stop(): Promise<Capture> }> {
    const file = join(this.#directory, `${name}-${this.#answers}.pcap`);
    await this.#command('capture', name, file);
    return {
      stop: async () => {
        await this.#command('release', name);
        return new Capture(file);
      },
    };
  }

  /** Ends every program and removes the phones with their homes. Idempotent; works after a failure. */
  async down(): Promise<void> {
    process.removeListener('exit', this.#atExit);
    await Promise.all([...this.#processes].map((child) => child.kill()));
    await this.#emulator?.kill();
    this.#downNow();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
  }

  async #start(): Promise<void> {
    const emulator = join(this.#directory, 'linkemu');
    await run('cc', ['-O2', '-o', emulator, SOURCE]);
    const names = Object.keys(this.#options.phones);
    const host = this.#options.hotspot;
    if (host !== undefined && !names.includes(host)) throw new Error(`there is no phone ${host} to host the hotspot`);
    // The host is the access point itself, so nothing lies between.
    const order = host === undefined ? names : [host, ...names.filter((name) => name !== host)];
    for (const [i, name] of order.entries()) {
      const home = join(this.#directory, name);
      mkdirSync(home);
      const address = host === undefined ? `192.168.178.${20 + i}` : `192.168.43.${1 + i}`;
      const namespace = this.#prefix + name;
      this.#phones.set(name, { name, namespace, address, home, cores: this.#options.phones[name]?.cores });
      await run('ip', ['netns', 'add', namespace]);
    }
    const links = order.map((name) => this.#link(name, name === host));
    const child = new PhoneProcess('linkemu', [emulator, ...links], process.env);
    this.#emulator = child;
    await child.says(/^up\n/);
    for (const phone of this.#phones.values()) await configure(phone, host !== undefined);
  }

  #link(name: string, isHost: boolean): string {
    const { namespace, address } = this.phone(name);
    const options = this.#options.phones[name] ?? {};
    const hops = this.#options.hotspot === undefined ? 2 : 1;
    const { delayMs = isHost ? 0 : GUIDE.delayMs / hops, mbit = isHost ? 1e6 : GUIDE.mbit, lossPercent = 0 } = options;
    const flags = [
      options.incoming === 'drop' ? 'i' : '',
      options.outgoing === 'drop' ? 'o' : '',
      options.multicast === false ? 'm' : '',
    ].join('');
    return [namespace, 'wlan0', address, delayMs, mbit, lossPercent, flags || '-'].join(',');
  }

  /** One after the other: an answer does not say what it answers. */
  #command(verb: string, name: string, ...more: readonly string[]): Promise<void> {
    const number = [...this.#phones.keys()].indexOf(this.phone(name).name);
    const done = this.#commands.then(async () => {
      const emulator = this.#emulator as PhoneProcess;
      emulator.write(`${[verb, number, ...more].join(' ')}\n`);
      this.#answers++;
      const [text] = await emulator.says(new RegExp(`^up\\n(?:.*\\n){${this.#answers}}`));
      const answer = text.trimEnd().split('\n').at(-1);
      if (answer !== 'ok') throw new Error(`linkemu: ${verb} ${name}: ${answer}`);
    });
    this.#commands = done.catch(() => {});
    return done;
  }

  #downNow(): void {
    for (const child of this.#processes) child.signal('SIGKILL');
    this.#processes.clear();
    this.#emulator?.signal('SIGKILL');
    for (const { namespace } of this.#phones.values()) removeNamespace(namespace);
    this.#phones.clear();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Its address, and the rest of the world behind the access point. */
async function configure({ namespace, address }: Phone, hotspot: boolean): Promise<void> {
  const ip = (...args: string[]) => run('ip', ['-n', namespace, ...args]);
  await ip('link', 'set', 'lo', 'up');
  await ip('addr', 'add', `${address}/24`, 'brd', '+', 'dev', 'wlan0');
  await ip('link', 'set', 'wlan0', 'up', 'mtu', '1500');
  const gateway = hotspot ? '192.168.43.1' : '192.168.178.1';
  await ip('route', 'add', 'default', ...(gateway === address ? [] : ['via', gateway]), 'dev', 'wlan0');
}

/** Only what the test says: these variables change what the commands do. */
function plainEnvironment(): NodeJS.ProcessEnv {
  const plain = Object.entries(process.env).filter(([name]) => !/^(LLAMA|GGML|DROID|XDG)_|^NO_COLOR$/.test(name));
  return Object.fromEntries(plain);
}

/** What a test that was killed could not remove. */
function removeLeftovers(): void {
  const left = (name: string): boolean => {
    const pid = Number(OWN_NAME.exec(name)?.[1] ?? process.pid);
    return pid !== process.pid && !existsSync(`/proc/${pid}`);
  };
  for (const name of namespaces().filter(left)) removeNamespace(name);
  for (const name of readdirSync(tmpdir()).filter(left)) rmSync(join(tmpdir(), name), { recursive: true, force: true });
}

/** The network namespaces there are. */
export function namespaces(): string[] {
  return existsSync('/var/run/netns') ? readdirSync('/var/run/netns') : [];
}

/** With every program in it, which would keep it alive without a name. */
function removeNamespace(name: string): void {
  try {
    const pids = execFileSync('ip', ['netns', 'pids', name], { encoding: 'utf8' });
    for (const pid of pids.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL');
  } catch {
    // Not there, or nothing runs in it any more.
  }
  try {
    execFileSync('ip', ['netns', 'del', name], { stdio: 'pipe' });
  } catch {
    // Not there.
  }
}
