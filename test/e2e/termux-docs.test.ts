/** Runs what docs/termux.md tells people to type on phones A and B, word for word, in its order. */
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { Finished, PhoneProcess } from '../phones/phone-process.js';
import { chatWithWorkers, peerNamed, phonesUp, readyAs, statusWhen, up } from '../phones/scene.js';
import { commandLines, TypedDocument } from '../support/document.js';
import { cliMain, tinyModel } from '../support/paths.js';
import { Phones } from '../support/phones.js';

const unavailable = Phones.unavailable();
if (unavailable && process.env.CI) it('has phones here', () => expect(unavailable).toBeUndefined());

const HUB = fileURLToPath(new URL('../phones/hub-process.ts', import.meta.url));
const TYPESCRIPT = fileURLToPath(new URL('../support/typescript.mjs', import.meta.url));
const REPOSITORY = 'Qwen/Qwen2.5-0.5B-Instruct-GGUF';
/** The address that the document shows for B. */
const B = '192.168.43.2';

interface Command {
  /** The phones it is typed on. */
  readonly phones: readonly string[];
  readonly text: string;
}

let document: TypedDocument;
beforeAll(async () => {
  document = await TypedDocument.read('docs/termux.md');
});

/** Commands that are run here, and those of a phone alone. */
function commands(): { run: Command[]; phone: string[] } {
  const typed = document.blocks.flatMap(({ info, text }) =>
    commandLines(text).map((line) => ({ phones: info.split(' ').slice(1), text: line })),
  );
  const only = (command: Command) => command.phones[0] === 'phone';
  return { run: typed.filter((command) => !only(command)), phone: typed.filter(only).map(({ text }) => text) };
}

describe('docs/termux.md', () => {
  it('says of each command where it is typed, and names those that were not run', () => {
    for (const { info } of document.blocks) expect(['sh A', 'sh B', 'sh A B', 'sh phone']).toContain(info);
    const [, listed = ''] = /^Not run, because .*?: ([^.]*)\.$/ms.exec(document.text) ?? [];
    const names = [...listed.matchAll(/`([^`]+)`/g)].map(([, name = '']) => name);
    const { phone } = commands();
    expect(phone.filter((command) => !names.some((name) => command.startsWith(name)))).toEqual([]);
    expect(names.filter((name) => !phone.some((command) => command.startsWith(name)))).toEqual([]);
  });

  it.skipIf(unavailable)('has commands that make two phones work together', { timeout: 600_000 }, async () => {
    const phones = await phonesUp({ hotspot: 'A', phones: { A: { incoming: 'drop' }, B: {} } });
    expect(phones.address('B')).toBe(B);
    const walk = await Walk.begin(phones);
    for (const { phones: names, text } of commands().run) {
      for (const name of names) await walk.type(name, text);
    }
    walk.expectAllTyped();
  });

  // What tailscaled does without a network interface: what comes in for its address it hands to 127.0.0.1 of its phone.
  it.skipIf(unavailable).each(['A', 'B'])(
    'is right about a phone that can be dialled at an address it does not have, and dials nobody; the model is on %s',
    async (owner) => {
      const phones = await phonesUp({
        phones: { A: {}, B: { incoming: 'drop', outgoing: 'drop' }, tailscaled: {} },
      });
      const handover = join(phones.phone('B').home, 'tailscaled.sock');
      for (const [name, from, to] of [
        ['B', handover, '60000'],
        ['tailscaled', '60000', handover],
      ] as const) {
        await phones.tool(name, 'pass', from, to).waitFor('it listens', ({ event }) => event === 'listening');
      }
      const model = (name: string) => (name === owner ? ['-m', tinyModel] : []);
      const search = ['--no-scan', '--no-mdns', '--no-tailscale'];
      const b = await up(phones, 'B', ...search, ...model('B'));
      const peer = ['--token', b.token, '--peer', phones.address('tailscaled')];
      const a = await up(phones, 'A', ...search, ...peer, ...model('A'));
      const [master, worker] = owner === 'A' ? [a, b] : [b, a];
      await Promise.all([readyAs(master, 'master'), readyAs(worker, 'worker')]);
      const holdsLayers = await statusWhen(
        phones,
        owner,
        `${worker.name} holds layers`,
        (status) => (peerNamed(status, worker.name)?.layers ?? 0) > 0,
      );
      expect(holdsLayers.self.role).toBe('master');
      expect((await chatWithWorkers(phones, owner, [worker.name])).content).toContain('4');
    },
  );
});

/** Somebody with two phones who follows the document. */
class Walk {
  readonly #phones: Phones;
  readonly #env: NodeJS.ProcessEnv;
  /** What runs in the first session of each phone. */
  readonly #first = new Map<string, PhoneProcess>();
  readonly #typed = new Set<string>();
  #token = '';
  #startA = '';

  private constructor(phones: Phones, env: NodeJS.ProcessEnv) {
    this.#phones = phones;
    this.#env = env;
  }

  static async begin(phones: Phones): Promise<Walk> {
    const bin = await mkdtemp(join(tmpdir(), 'droid-walk-'));
    onTestFinished(() => rm(bin, { recursive: true, force: true }));
    await writeFile(join(bin, 'droid-llama'), `#!/bin/sh\nexec ${process.execPath} ${cliMain} "$@"\n`);
    await chmod(join(bin, 'droid-llama'), 0o755);
    const hub = phones.run('A', [
      process.execPath,
      '--import',
      TYPESCRIPT,
      HUB,
      REPOSITORY,
      'qwen2.5-0.5b-instruct-q4_k_m.gguf',
      tinyModel,
    ]);
    const { url } = await hub.waitFor('the hub is there', ({ event }) => event === 'hub');
    return new Walk(phones, { PATH: `${bin}:${process.env.PATH}`, HF_ENDPOINT: String(url), HF_TOKEN: '' });
  }

  /** Types a command on a phone and does what a reader does next. */
  async type(name: string, text: string): Promise<void> {
    const step = this.#steps.find(([start]) => (typeof start === 'string' ? text.startsWith(start) : start.test(text)));
    if (!step) throw new Error(`nothing is expected of: ${text}`);
    this.#typed.add(String(step[0]));
    await step[1](name, text.replace('TOKEN', this.#token));
  }

  expectAllTyped(): void {
    expect(this.#steps.map(([start]) => String(start)).filter((start) => !this.#typed.has(start))).toEqual([]);
  }

  readonly #steps: readonly (readonly [string | RegExp, (name: string, text: string) => Promise<void>])[] = [
    ['droid-llama demo', (name, text) => this.#prints(name, text, /^2\+2 equals 4\.$/m)],
    ['droid-llama doctor', (name, text) => this.#prints(name, text, / 0 failed\n$/)],
    [
      'droid-llama pull',
      (name, text) => this.#prints(name, text, /^\/.*\/A\/\.cache\/droid-llama\/models\/Qwen\/.*\.gguf$/m),
    ],
    ['droid-llama up -hf', (name, text) => this.#startMaster(name, text)],
    [
      'droid-llama up --token',
      async (name, text) => {
        await this.#start(name, text);
        await this.#togetherAgain();
      },
    ],
    ['droid-llama status', (name, text) => this.#prints(name, text, /master[\s\S]*worker/)],
    [/^curl \S+\/v1\/chat/, (name, text) => this.#prints(name, text, /2\+2 equals 4\./)],
    ['curl http://127.0.0.1:8080/health', (name, text) => this.#untilPrints(name, text, /^\{"status":"ok"\}$/)],
    ['droid-llama bench --cluster', (name, text) => this.#prints(name, text, /pp64[\s\S]*tg32/)],
    [
      /^droid-llama up$/,
      async (name, text) => {
        await this.#stop('A', 'B');
        await this.#startMaster('A', this.#startA);
        await this.#start(name, text);
        await this.#togetherAgain();
        await this.#stop('A', 'B');
      },
    ],
    [
      'droid-llama worker',
      async (name, text) => {
        const worker = await this.#start(name, text);
        this.#token = (await worker.says(/--token ([\w-]{22,})/))[1] ?? '';
        expect(worker.stdout + worker.stderr).toContain(`${B}:60000`);
      },
    ],
    ['droid-llama probe', (name, text) => this.#prints(name, text, /is open, encrypted/)],
    [
      'droid-llama serve',
      async (name, text) => {
        const serve = await this.#start(name, text);
        await serve.says(/http:\/\/127\.0\.0\.1:8080/);
      },
    ],
    [
      'droid-llama bench -hf',
      async (name, text) => {
        await this.#stop('A');
        await this.#prints(name, text, /one device[\s\S]*\[0\.5, 0\.5\]/);
        await this.#stop('B');
      },
    ],
    ['df -h ~', (name, text) => this.#prints(name, text, /\d+%/)],
    ['uname -m', (name, text) => this.#prints(name, text, /^\w+\n$/)],
    ['droid-llama models rm', (name, text) => this.#prints(name, text, /free again/)],
    ['droid-llama models', (name, text) => this.#prints(name, text, new RegExp(`^${REPOSITORY}:Q4_K_M`, 'm'))],
  ];

  async #startMaster(name: string, text: string): Promise<void> {
    this.#startA = text;
    const master = await this.#start(name, text);
    this.#token = (await master.says(/up --token ([\w-]{22,})/))[1] ?? '';
  }

  /** B has layers, as both tell in their first sessions. */
  async #togetherAgain(): Promise<void> {
    await this.#first.get('B')?.says(/this device is a worker of/);
    await this.#first.get('A')?.says(/worker +[1-9]/, 120_000);
  }

  #run(name: string, text: string): PhoneProcess {
    return this.#phones.run(name, ['sh', '-c', `exec ${text}`], { env: this.#env });
  }

  /** In the first session, where it stays until Ctrl-C. */
  async #start(name: string, text: string): Promise<PhoneProcess> {
    const running = this.#run(name, text);
    this.#first.set(name, running);
    return running;
  }

  /** Ctrl-C. */
  async #stop(...names: readonly string[]): Promise<void> {
    for (const name of names) this.#first.get(name)?.signal('SIGINT');
    for (const name of names) {
      const { status, stdout, stderr } = (await this.#first.get(name)?.ended()) ?? {
        status: -1,
        stdout: '',
        stderr: '',
      };
      expect(status, `${name} after Ctrl-C\n${stdout}${stderr}`).toBe(0);
      this.#first.delete(name);
    }
  }

  /** In a second session, to its end. */
  #finished(name: string, text: string): Promise<Finished> {
    return this.#phones.finished(this.#run(name, text), 180_000);
  }

  async #prints(name: string, text: string, pattern: RegExp): Promise<void> {
    const { status, stdout, stderr } = await this.#finished(name, text);
    expect([status, `${stdout}${stderr}`], `${name}: ${text}\n${stderr}`).toEqual([0, expect.stringMatching(pattern)]);
  }

  async #untilPrints(name: string, text: string, pattern: RegExp): Promise<void> {
    await expect
      .poll(async () => (await this.#finished(name, text)).stdout.trim(), { timeout: 60_000, message: text })
      .toMatch(pattern);
  }
}
