/**
 * A file system like that of Termux, as far as a Debian can be: its programs are found in `$PREFIX/bin` alone, everything
 * that may be written lies below `/data/data/com.termux/files`, there is no `/tmp`, and the compiler is clang. Node takes
 * itself for that of Android (as-termux.cjs), and so does CMake. It exists for the processes that run in it only.
 */
import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { projectRoot } from './paths.js';

const FILES = '/data/data/com.termux/files';
export const PREFIX = `${FILES}/usr`;
export const HOME = `${FILES}/home`;
/** What Termux has of these by itself or by `pkg install clang cmake ninja git`. */
const PROGRAMS =
  'clang clang++ cmake ninja git ld ar ranlib nm sh env uname cat ls mkdir rm cp mv sed tar gzip grep'.split(' ');
const ENVIRONMENT = {
  HOME,
  PREFIX,
  TMPDIR: `${PREFIX}/tmp`,
  PATH: `${PREFIX}/bin`,
  LANG: 'C.UTF-8',
  TERMUX_VERSION: '0.118.3',
  TERMUX_APP__APK_RELEASE: 'F_DROID',
  NODE_OPTIONS: `--require=${PREFIX}/tmp/as-termux.cjs`,
  CMAKE_TOOLCHAIN_FILE: `${PREFIX}/tmp/host.cmake`,
  CCACHE_DIR: '/ccache',
};
/** Of what a program prints. */
const OUTPUT_LIMIT = 2 ** 24;

export interface Ran {
  readonly status: number | null;
  /** Both streams, as they came. */
  readonly output: string;
}

export class Termux {
  readonly #directory = mkdtempSync(join(tmpdir(), 'droid-termux-'));

  /** Why there can be none here; undefined when there can. */
  static unavailable(): string | undefined {
    if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'mounting needs Linux and root';
    const missing = PROGRAMS.filter((name) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0);
    if (missing.length > 0) return `${missing.join(', ')} not found`;
    const tried = spawnSync('unshare', ['--mount', 'true'], { encoding: 'utf8' });
    return tried.status === 0 ? undefined : `no mount namespaces: ${tried.stderr ?? tried.error?.message}`;
  }

  constructor() {
    const root = join(this.#directory, 'root');
    const at = (path: string) => join(root, path);
    for (const dir of ['debian', 'usr/bin', 'bin', 'etc', 'proc', 'dev', 'sys', 'ccache', HOME]) {
      mkdirSync(at(dir), { recursive: true });
    }
    for (const dir of ['bin', 'tmp', 'lib/node_modules/npm', 'lib/node_modules/droid-llama']) {
      mkdirSync(at(join(PREFIX, dir)), { recursive: true });
    }
    // Libraries and headers where Debian's programs look for them; /usr/bin and /bin are what termux-exec makes of them.
    for (const dir of ['lib', 'lib64', 'include', 'share']) symlinkSync(`/debian/${dir}`, at(`usr/${dir}`));
    symlinkSync('usr/lib', at('lib'));
    symlinkSync('usr/lib64', at('lib64'));
    symlinkSync('/debian/bin/env', at('usr/bin/env'));
    symlinkSync('/debian/bin/sh', at('bin/sh'));
    const bin = at(`${PREFIX}/bin`);
    for (const name of [...PROGRAMS, ...(hasCcache() ? ['ccache'] : [])]) {
      symlinkSync(`/debian/bin/${name}`, join(bin, name));
    }
    symlinkSync('clang', join(bin, 'cc'));
    symlinkSync('clang++', join(bin, 'c++'));
    symlinkSync('../lib/node_modules/npm/bin/npm-cli.js', join(bin, 'npm'));
    writeFileSync(join(bin, 'node'), '');
    writeFileSync(at(`${PREFIX}/tmp/as-termux.cjs`), '');
    // What a CMake knows that was compiled for Android.
    writeFileSync(at(`${PREFIX}/tmp/host.cmake`), 'set(CMAKE_HOST_SYSTEM_NAME Android)\n');
  }

  /** Where a path of this file system is, for the test. */
  path(inside: string): string {
    return join(this.#directory, 'root', inside);
  }

  /**
   * Runs a command line there, in the home directory, as its shell does.
   * @param binds directories of this machine that it finds at those places, read-only
   */
  run(command: string, binds: Readonly<Record<string, string>> = {}, timeoutMs = 60_000): Promise<Ran> {
    const root = join(this.#directory, 'root');
    const cache = process.env.CCACHE_DIR ?? join(homedir(), '.cache/ccache');
    mkdirSync(cache, { recursive: true });
    const readOnly = {
      '/debian': '/usr',
      '/etc': '/etc',
      [`${PREFIX}/bin/node`]: process.execPath,
      [`${PREFIX}/lib/node_modules/npm`]: npmDirectory(),
      [`${PREFIX}/tmp/as-termux.cjs`]: join(projectRoot, 'test/support/as-termux.cjs'),
      ...binds,
    };
    const there = (path: string) => quote(join(root, path));
    const environment = Object.entries(ENVIRONMENT).map(([name, value]) => quote(`${name}=${value}`));
    const script = [
      'set -e',
      // Mounts of their own, of which one can be made read-only.
      `mount --bind ${quote(root)} ${quote(root)}`,
      `mount --bind ${there(FILES)} ${there(FILES)}`,
      `mount --bind ${quote(cache)} ${there('ccache')}`,
      `mount -t proc proc ${there('proc')}`,
      ...['dev', 'sys'].map((dir) => `mount --rbind /${dir} ${there(dir)}`),
      ...Object.entries(readOnly).map(([to, from]) => `mount --bind -o ro ${quote(from)} ${there(to)}`),
      `mount -o remount,bind,ro ${quote(root)}`,
      `exec chroot ${quote(root)} /debian/bin/env -i -C ${HOME} ${environment.join(' ')} sh -c ${quote(command)} 2>&1`,
    ].join('\n');
    // A process namespace too: when its first process ends, nothing of it is left.
    const args = ['--mount', '--pid', '--fork', '--kill-child', '--propagation', 'private', 'sh', '-c', script];
    const options = { timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: OUTPUT_LIMIT } as const;
    return new Promise((resolve) => {
      execFile('unshare', args, options, (error, stdout, stderr) => {
        const status = typeof error?.code === 'number' ? error.code : null;
        resolve({ status: error ? status : 0, output: stdout + stderr });
      });
    });
  }

  remove(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

function hasCcache(): boolean {
  return spawnSync('ccache', ['--version']).status === 0;
}

/** Of the npm on the PATH, which is a link to its npm-cli.js. */
function npmDirectory(): string {
  const found = execFileSync('sh', ['-c', 'command -v npm'], { encoding: 'utf8' }).trim();
  const cli = realpathSync(found);
  if (basename(cli) !== 'npm-cli.js') throw new Error(`${found} is no link to npm-cli.js`);
  return dirname(dirname(cli));
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
