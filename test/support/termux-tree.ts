/** Termux's tree at its real paths, with Debian's shell, dpkg and runit in it and the rights of an app's user. */
import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { onAndroid } from './android.js';
import type { PROCESSORS } from './arm64.js';
import type { Finished } from './cli.js';

/** Where Termux is on every phone. */
export const APP = '/data/data/com.termux';
export const PREFIX = `${APP}/files/usr`;
export const HOME = `${APP}/files/home`;

/** Android gives each app a user of its own, from 10000 on. */
const USER = '10123';
/** An emulated Node starts in seconds, some twenty times slower than elsewhere. */
const PATIENCE_MS = 180_000;

const PROGRAMS = ['sh', 'sv', 'runsv', 'runsvdir', 'svlogd'];

/** A root directory of links and mounts in which only /data differs, for as long as stdin is open. */
const ENTER = `
set -e
root=$1 tree=$2 node=$3 bionic=$4
mount -t tmpfs -o mode=755 termux "$root"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$root/"
  elif [ "$entry" = /proc ]; then mkdir "$root/proc" && mount -t proc proc "$root/proc"
  elif [ -d "$entry" ] && [ "$entry" != /data ]; then mkdir "$root$entry" && mount --rbind "$entry" "$root$entry"
  fi
done
mkdir -p "$root${APP}"
mount --bind "$tree" "$root${APP}"
mount --bind "$node" "$root${PREFIX}/libexec/node"
mount --bind "$bionic" "$root${PREFIX}/libexec/bionic"
ip link set lo up
echo entered
read -r _
`;

/** What dpkg knows of a phone. */
const INSTALLED = `Package: nodejs
Status: install ok installed
Version: 24.1.0
Architecture: aarch64
Maintainer: @termux
Description: JavaScript runtime

`;

const run = promisify(execFile);

/** What stands for a phone: its processor, a Node for Linux on arm64, and bionic's libraries over glibc. */
export interface Phone {
  readonly processor: keyof typeof PROCESSORS;
  readonly node: string;
  readonly bionic: string;
}

export class Termux {
  readonly #directory: string;
  readonly #holder;
  readonly #closed: Promise<unknown>;

  private constructor(directory: string, { node, bionic }: Phone) {
    this.#directory = directory;
    const flags = ['--mount', '--net', '--pid', '--fork', '--kill-child'];
    const script = ['sh', '-c', ENTER, 'sh', join(directory, 'root'), join(directory, 'tree'), node, bionic];
    this.#holder = spawn('unshare', [...flags, ...script], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#closed = once(this.#holder, 'close');
  }

  /** Why there can be none here; undefined when there can. */
  static unavailable(): string | undefined {
    if (process.platform !== 'linux') return 'mount namespaces are Linux only';
    if (process.getuid?.() !== 0) return 'mount namespaces need root';
    try {
      execFileSync('unshare', ['--mount', '--net', '--pid', '--fork', 'true'], { stdio: 'pipe' });
      for (const program of ['dpkg', ...PROGRAMS]) execFileSync('which', [program], { stdio: 'pipe' });
      return undefined;
    } catch (error) {
      return `unshare, dpkg and runit are needed: ${(error as Error).message.trim()}`;
    }
  }

  /** One in which nothing is installed but a Node for arm64, on an emulated processor. */
  static async open(phone: Phone): Promise<Termux> {
    const directory = await mkdtemp(join(tmpdir(), 'droid-termux-tree-'));
    let termux: Termux | undefined;
    try {
      await furnish(directory, phone);
      termux = new Termux(directory, phone);
      const closed = termux.#closed.then(() => Promise.reject(new Error('the namespaces could not be made')));
      await Promise.race([once(termux.#holder.stdout, 'data'), closed]);
      return termux;
    } catch (error) {
      await termux?.[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** Where this machine has a file of the tree. */
  path(file: string): string {
    return join(this.#directory, 'tree', file.slice(APP.length));
  }

  /** Runs a command as the app's user, with the environment of a login, to its end. */
  async run(...command: string[]): Promise<Finished> {
    return this.runWith({}, ...command);
  }

  async runWith(env: Readonly<Record<string, string>>, ...command: string[]): Promise<Finished> {
    const [program, ...args] = this.#enter(env, command);
    const done = await run(program, args, { timeout: PATIENCE_MS, killSignal: 'SIGKILL' }).catch(
      (error: { code?: unknown; stdout: string; stderr: string }) => error,
    );
    const status = 'code' in done ? (typeof done.code === 'number' ? done.code : null) : 0;
    return { status, stdout: done.stdout, stderr: done.stderr };
  }

  /** As termux-services does for the first shell. Ends with the tree. */
  startServices(): void {
    const [program, ...args] = this.#enter({}, ['runsvdir', `${PREFIX}/var/service`]);
    spawn(program, args, { stdio: 'ignore' });
  }

  #enter(env: Readonly<Record<string, string>>, command: readonly string[]): [string, ...string[]] {
    const of = `/proc/${this.#holder.pid}/ns`;
    const login = {
      PREFIX,
      HOME,
      TMPDIR: `${PREFIX}/tmp`,
      SVDIR: `${PREFIX}/var/service`,
      LOGDIR: `${PREFIX}/var/log`,
      PATH: `${PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
      LANG: 'en_US.UTF-8',
      ...env,
    };
    const variables = Object.entries(login).map(([name, value]) => `${name}=${value}`);
    return [
      'nsenter',
      ...[`--mount=${of}/mnt`, `--net=${of}/net`, `--pid=${of}/pid_for_children`],
      ...['chroot', `--userspec=${USER}:${USER}`, `--groups=${USER}`, join(this.#directory, 'root')],
      ...['env', '-i', '--chdir', HOME, ...variables],
      ...['sh', '-c', 'umask 077; exec "$@"', 'sh', ...command],
    ];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // The first process of a namespace takes all others with it.
    this.#holder.stdin.end();
    await this.#closed;
    await rm(this.#directory, { recursive: true, force: true });
  }
}

async function furnish(directory: string, { processor }: Phone): Promise<void> {
  const tree = join(directory, 'tree');
  const usr = join(tree, 'files/usr');
  const admin = join(usr, 'var/lib/dpkg');
  const script = (name: string, text: string) => writeFile(join(usr, name), text, { mode: 0o755 });

  await mkdir(join(directory, 'root'));
  for (const path of ['files/home', 'files/usr/tmp', 'files/usr/etc'])
    await mkdir(join(tree, path), { recursive: true });
  for (const path of ['bin', 'libexec', 'share/termux-services', 'var/service', 'var/log']) {
    await mkdir(join(usr, path), { recursive: true });
  }
  for (const path of ['info', 'updates']) await mkdir(join(admin, path), { recursive: true });
  await writeFile(join(admin, 'status'), INSTALLED);
  await writeFile(join(admin, 'info/nodejs:aarch64.list'), '');
  // Beside the architecture of Debian's dpkg.
  await writeFile(join(admin, 'arch'), 'amd64\naarch64\n');

  for (const name of PROGRAMS) {
    const found = execFileSync('which', [name], { encoding: 'utf8' }).trim();
    await symlink(found, join(usr, 'bin', name));
  }
  const dpkg = execFileSync('which', ['dpkg'], { encoding: 'utf8' }).trim();
  await script(
    'bin/dpkg',
    `#!/bin/sh
exec ${dpkg} --admindir=${PREFIX}/var/lib/dpkg --log=${PREFIX}/var/log/dpkg.log --force-not-root "$@"
`,
  );
  await writeFile(join(usr, 'libexec/node'), '');
  await mkdir(join(usr, 'libexec/bionic'));
  // Termux's Node says that it is on Android. What it starts is emulated as well.
  const command = onAndroid(processor, `${PREFIX}/libexec/bionic`, `${PREFIX}/libexec/node`).join(' ');
  const preload = `data:text/javascript,process.execPath='${PREFIX}/bin/node'`;
  await script('bin/node', `#!/bin/sh\nnpm_config_platform=android exec ${command} --import "${preload}" "$@"\n`);
  await script(
    'share/termux-services/svlogger',
    `#!${PREFIX}/bin/sh
service=$(basename "$(dirname "$PWD")")
mkdir -p "$LOGDIR/sv/$service"
exec svlogd "$LOGDIR/sv/$service"
`,
  );
  for (const what of ['lock', 'unlock']) {
    await script(`bin/termux-wake-${what}`, `#!${PREFIX}/bin/sh\necho ${what} >>"$HOME/wake"\n`);
  }
  await run('chown', ['-R', `${USER}:${USER}`, tree]);
  // mkdtemp's is for its owner alone.
  await chmod(directory, 0o711);
}
