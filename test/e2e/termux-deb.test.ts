/** The package for Termux: what is in it, and that dpkg and runit, at Termux's own paths, do with it what they should. */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { appendFile, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createToken } from '../../lib/transport/token.js';
import { packageVersion } from '../../lib/version.js';
import { TARGETS } from '../../scripts/prebuild-targets.mjs';
import { buildBionic, noAndroid } from '../support/android.js';
import { fetchNode, noArm64 } from '../support/arm64.js';
import { until } from '../support/contexts.js';
import { projectRoot } from '../support/paths.js';
import { HOME, type Phone, PREFIX, Termux } from '../support/termux-tree.js';

const MINUTE = 60_000;
const BUILD_BUDGET = 45 * MINUTE;
/** Some twenty times slower than elsewhere. */
const EMULATED = 3 * MINUTE;

const run = promisify(execFile);
const unavailable = process.env.CI ? undefined : (noArm64() ?? noAndroid() ?? Termux.unavailable());

const PACKAGE = `${PREFIX}/lib/node_modules/droid-llama`;
const SERVICE = `${PREFIX}/var/service/droid-llama`;
const CONFIGURATION = `${PREFIX}/etc/droid-llama.conf`;
const LOG = `${PREFIX}/var/log/sv/droid-llama/current`;
const TINY = `${PACKAGE}/models/droid-tiny.gguf`;
const version = packageVersion();
const addon = join(projectRoot, 'prebuilds', TARGETS['android-arm64']?.file ?? 'none');

let scratch: string;
let deb: string;
let phone: Phone;

function pack(out: string, env: NodeJS.ProcessEnv = {}) {
  // Whatever the umask, and however long ago the sources were written.
  const command = `umask ${env.UMASK ?? '022'}; exec "$0" scripts/termux-deb.mjs --out "$1"`;
  return run('sh', ['-c', command, process.execPath, out], {
    cwd: projectRoot,
    env: { ...process.env, ...env },
  });
}

/** A Termux with the package. */
async function installed(): Promise<Termux> {
  const termux = await Termux.open(phone);
  try {
    await cp(deb, termux.path(`${HOME}/package.deb`));
    expect(await termux.run('dpkg', '-i', 'package.deb')).toMatchObject({ status: 0 });
    return termux;
  } catch (error) {
    await termux[Symbol.asyncDispose]();
    throw error;
  }
}

/** One whose service knows a token and a model, and runs. */
async function running(token: string): Promise<Termux> {
  const termux = await installed();
  try {
    await remember(termux, token);
    await configure(termux, `OPTIONS="-m '${TINY}' -t 1\r\n -c 256 --name 'my phone'"\r`);
    await startServices(termux);
    // What sv-enable does.
    await rm(termux.path(`${SERVICE}/down`));
    expect(await termux.run('sv', 'up', 'droid-llama')).toMatchObject({ status: 0 });
    await logged(termux, /is up, on port/);
    return termux;
  } catch (error) {
    await termux[Symbol.asyncDispose]();
    throw error;
  }
}

async function remember(termux: Termux, token: string): Promise<void> {
  // Where `droid-llama up` does; with the end of line of an editor on Windows.
  const store = 'mkdir -p ~/.config/droid-llama && printf "%s\\r\\n" "$1" >~/.config/droid-llama/token';
  expect(await termux.run('sh', '-c', store, 'sh', token)).toMatchObject({ status: 0 });
}

const configure = (termux: Termux, line: string) => appendFile(termux.path(CONFIGURATION), `${line}\n`);

async function startServices(termux: Termux): Promise<void> {
  termux.startServices();
  await supervised(termux);
}

/** Until commands of sv reach the service's runsv. */
async function supervised(termux: Termux): Promise<void> {
  const end = Date.now() + MINUTE;
  while ((await termux.run('sv', 'status', 'droid-llama')).status !== 0) {
    if (Date.now() > end) throw new Error('waited in vain until runsv looks after the service');
  }
}

function log(termux: Termux): string {
  return existsSync(termux.path(LOG)) ? readFileSync(termux.path(LOG), 'utf8') : '';
}

async function logged(termux: Termux, pattern: RegExp): Promise<void> {
  await until(`the log says ${pattern}`, () => pattern.test(log(termux)), EMULATED);
}

/** What runsv(8) says the service does. */
function state(termux: Termux): string {
  return readFileSync(termux.path(`${SERVICE}/supervise/stat`), 'utf8').trim();
}

const stateIs = (termux: Termux, wanted: string) =>
  until(`the service is in the state "${wanted}"`, () => state(termux) === wanted, EMULATED);

function wakeLock(termux: Termux): string[] {
  const file = termux.path(`${HOME}/wake`);
  return existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : [];
}

const wakeLockIs = (termux: Termux, ...calls: string[]) =>
  until(`the wake lock had ${calls}`, () => wakeLock(termux).join() === calls.join());

/** Of everything that the service daemon has started, the command lines. */
async function commandLines(termux: Termux): Promise<string> {
  return (await termux.run('sh', '-c', 'cat /proc/[0-9]*/cmdline | tr "\\0" " "')).stdout;
}

/** Everything below Termux's prefix that is droid-llama's. */
async function leftovers(termux: Termux): Promise<string[]> {
  const { stdout } = await termux.run('find', PREFIX, '-path', '*droid-llama*', '-not', '-path', '*/lib/dpkg/*');
  return stdout.split('\n').filter(Boolean).sort();
}

describe.skipIf(unavailable)('the package for Termux', () => {
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), 'droid-deb-'));
    phone = { processor: 'cortex-a76', node: await fetchNode(), bionic: await buildBionic() };
    if (!existsSync(addon)) {
      await run('npm', ['run', 'prebuild', '--', 'android-arm64'], { cwd: projectRoot, timeout: BUILD_BUDGET });
    }
    const { stdout } = await pack(scratch);
    deb = join(scratch, `droid-llama_${version}_aarch64.deb`);
    expect(stdout).toMatch(/ files, [\d.]+ MiB\npacking\nbuilt .*_aarch64\.deb, [\d.]+ MiB\n/);
  }, BUILD_BUDGET);

  afterAll(() => rm(scratch, { recursive: true, force: true }));

  describe('is made', () => {
    it('with the same bytes by everyone', async () => {
      const again = join(scratch, 'again');
      await pack(again, { UMASK: '077', TZ: 'Asia/Tokyo', DPKG_DEB_THREADS_MAX: '2' });
      expect(await readdir(again)).toEqual([`droid-llama_${version}_aarch64.deb`]);
      const other = await readFile(join(again, `droid-llama_${version}_aarch64.deb`));
      expect(other.equals(await readFile(deb))).toBe(true);
    });

    it('of what runs, below the prefix, for root to own', async () => {
      const list = (await run('sh', ['-c', 'dpkg-deb --fsys-tarfile "$0" | tar -tv', deb], { maxBuffer: 1e7 })).stdout;
      const entries = list
        .trim()
        .split('\n')
        .map((line) => /^(\S+) (\S+) +\d+ \S+ \S+ \.\/(\S*)/.exec(line)?.slice(1) as [string, string, string]);
      const mode = new Map(entries.map(([mode, , path]) => [`/${path}`, mode]));
      expect(entries.filter(([, owner]) => owner !== 'root/root')).toEqual([]);
      const outside = entries.filter(([mode, , path]) => !mode.startsWith('d') && !`/${path}`.startsWith(`${PREFIX}/`));
      expect(outside).toEqual([]);
      expect(mode.get(`${PREFIX}/bin/droid-llama`)).toBe('-rwxr-xr-x');
      expect(mode.get(`${SERVICE}/run`)).toBe('-rwxr-xr-x');
      expect(mode.get(`${SERVICE}/finish`)).toBe('-rwxr-xr-x');
      expect(mode.get(`${SERVICE}/log/run`)).toBe('lrwxrwxrwx');
      // It may come to hold a token.
      expect(mode.get(CONFIGURATION)).toBe('-rw-------');
      const files = [...mode.keys()].filter((path) => path.startsWith(`${PACKAGE}/`));
      expect(files.filter((path) => path.endsWith('.node'))).toEqual([
        `${PACKAGE}/prebuilds/android-arm64/droid-llama.node`,
      ]);
      const needless =
        /\.(ts|map|cc|h)$|\/README|\/CHANGELOG|\/droid-llama\/(native|vendor|cmake|scripts|build)\/|cmake-js|node-addon-api/;
      expect(files.filter((path) => needless.test(path))).toEqual([]);
      expect(files).toContain(`${PACKAGE}/dist/THIRD-PARTY-LICENSES.txt`);
      expect(files.length).toBeLessThan(100);
      expect((await stat(deb)).size).toBeLessThan(16 * 2 ** 20);
    });

    it('for the Node that package.json asks for', async () => {
      const { stdout } = await run('dpkg-deb', ['-f', deb]);
      expect(stdout).toContain(`Package: droid-llama\nVersion: ${version}\nArchitecture: aarch64\n`);
      expect(stdout).toContain('Depends: nodejs (>= 20) | nodejs-lts (>= 20)\n');
      expect(Number(/^Installed-Size: (\d+)$/m.exec(stdout)?.[1])).toBeGreaterThan(10_000);
    });

    it('or it is said what is missing and which command brings it', async () => {
      const copy = join(scratch, 'copy');
      for (const name of ['android', 'packaging', 'scripts', 'package.json']) {
        await cp(join(projectRoot, name), join(copy, name), { recursive: true });
      }
      await symlink(join(projectRoot, 'node_modules'), join(copy, 'node_modules'));
      const attempt = (...args: string[]) => run(process.execPath, ['scripts/termux-deb.mjs', ...args], { cwd: copy });
      const missing = 'prebuilds/android-arm64/droid-llama.node is missing: npm run prebuild -- android-arm64\n';
      await expect(attempt()).rejects.toMatchObject({ code: 1, stderr: `error: ${missing}` });
      await expect(attempt('--addon', 'none')).rejects.toThrow(/none is missing: give another --addon/);
      await expect(attempt('--addon', addon)).rejects.toThrow('dist/ is missing: npm run prepare');
      await expect(attempt('--adon', addon)).rejects.toThrow("Unknown option '--adon'");
      await expect(pack(join(scratch, 'never'), { SOURCE_DATE_EPOCH: 'now' })).rejects.toThrow('seconds since 1970');
      expect((await attempt('--help')).stdout).toMatch(/--addon[\s\S]*--out[\s\S]*Examples:\n {2}\$ npm run prebuild/);
      await expect(
        run(process.execPath, ['scripts/termux-deb.mjs', '--addon', process.execPath], { cwd: projectRoot }),
      ).rejects.toThrow('is no addon for 64-bit Arm');
      expect(existsSync(join(copy, 'build'))).toBe(false);
    });
  });

  describe('installs', () => {
    it(
      'a command that runs, with nothing preloaded',
      async () => {
        await using termux = await installed();
        expect(await termux.run('dpkg', '-V', 'droid-llama')).toEqual({ status: 0, stdout: '', stderr: '' });
        expect(await termux.run('droid-llama', '--version')).toMatchObject({ status: 0, stdout: `${version}\n` });
        const demo = await termux.run('droid-llama', 'demo');
        expect(demo.stdout, demo.stderr).toMatch(/^2\+2 equals 4\.$/m);
        expect(await termux.run('droid-llama', 'bench', '--help')).toMatchObject({ status: 0 });
        // On this machine's own Node everything but the addon.
        const main = termux.path(`${PACKAGE}/dist/cli/main.js`);
        expect((await run(process.execPath, [main, 'up', '--help'])).stdout).toContain('--cluster-port');
      },
      EMULATED,
    );

    it('nothing beside what npm has installed', async () => {
      await using termux = await Termux.open(phone);
      await cp(deb, termux.path(`${HOME}/package.deb`));
      const npms = `${PACKAGE}/scripts/install.mjs`;
      await mkdir(dirname(termux.path(npms)), { recursive: true });
      await writeFile(termux.path(npms), '');
      const { status, stderr } = await termux.run('dpkg', '-i', 'package.deb');
      expect(status).toBe(1);
      expect(stderr).toContain('Remove that one first:  npm uninstall -g droid-llama');
      expect(await leftovers(termux)).toEqual([PACKAGE, dirname(npms), npms]);
    });
  });

  describe('brings a service', () => {
    it('that does not start by itself, and not without a token', async () => {
      await using termux = await Termux.open(phone);
      // As on a phone, where the service daemon is there before the package.
      termux.startServices();
      await cp(deb, termux.path(`${HOME}/package.deb`));
      expect(await termux.run('dpkg', '-i', 'package.deb')).toMatchObject({ status: 0 });
      await supervised(termux);
      expect(state(termux)).toBe('down');
      expect(await termux.run('sv', 'up', 'droid-llama')).toMatchObject({ status: 0 });
      await logged(termux, /no join token yet.*\n.*--token TOKEN\nnot started again before: {2}sv up droid-llama\n/);
      await stateIs(termux, 'down');
      expect(wakeLock(termux)).toEqual([]);
    });

    it(
      'that tries wrong options once',
      async () => {
        await using termux = await installed();
        await remember(termux, createToken());
        await configure(termux, "OPTIONS='--no-such-option'");
        await startServices(termux);
        expect(await termux.run('sv', 'up', 'droid-llama')).toMatchObject({ status: 0 });
        await logged(termux, /unexpected argument|unknown option|no-such-option/);
        await logged(termux, /not started again/);
        await stateIs(termux, 'down');
        await wakeLockIs(termux, 'lock', 'unlock');
        expect(log(termux).match(/not started again/g)).toHaveLength(1);
      },
      EMULATED,
    );

    it('that does not start with half of what its configuration says', async () => {
      await using termux = await installed();
      await remember(termux, createToken());
      await configure(termux, 'OPTIONS=-m /no/quotes.gguf');
      await startServices(termux);
      expect(await termux.run('sv', 'up', 'droid-llama')).toMatchObject({ status: 0 });
      await logged(termux, /not found\n.*droid-llama\.conf cannot be read.*\nnot started again/);
      await stateIs(termux, 'down');
      expect(wakeLock(termux)).toEqual([]);
    });

    it(
      'that answers, keeps the token to itself, and ends when it is told to',
      async () => {
        const token = createToken();
        await using termux = await running(token);
        await logged(termux, /listening on/);
        const script = `
          const messages = [{ role: 'user', content: 'What is 2+2?' }];
          const body = JSON.stringify({ messages, max_tokens: 16, temperature: 0 });
          const headers = { 'content-type': 'application/json' };
          const answer = await fetch('http://127.0.0.1:8080/v1/chat/completions', { method: 'POST', headers, body });
          console.log((await answer.json()).choices[0].message.content);`;
        const answer = await termux.run('node', '--input-type=module', '-e', script);
        expect(answer.stdout.trim(), answer.stderr).toBe('2+2 equals 4.');
        expect((await termux.run('droid-llama', 'status')).stdout).toContain('my phone is the master');

        const lines = await commandLines(termux);
        expect(lines).toContain(`dist/cli/main.js up -m ${TINY} -t 1 -c 256 --name my phone`);
        expect(lines).not.toContain(token);
        expect(log(termux)).not.toContain(token);
        await wakeLockIs(termux, 'lock');

        // Within sv's own seven seconds.
        const stop = await termux.run('sv', 'stop', 'droid-llama');
        expect(stop).toMatchObject({ status: 0, stdout: expect.stringMatching(/^ok: down/) });
        await wakeLockIs(termux, 'lock', 'unlock');
        expect(log(termux)).not.toContain('error');
      },
      EMULATED,
    );

    it(
      'that comes back when Android ends it, and keeps the phone awake meanwhile',
      async () => {
        await using termux = await running(createToken());
        expect(await termux.run('sv', 'kill', 'droid-llama')).toMatchObject({ status: 0 });
        await logged(termux, /is up, on port[\s\S]*is up, on port/);
        await wakeLockIs(termux, 'lock', 'lock');
        expect(state(termux)).toBe('run');
      },
      EMULATED,
    );

    it(
      'that an upgrade leaves enabled and starts anew, with the options it had',
      async () => {
        await using termux = await running(createToken());
        const tree = join(scratch, 'next');
        await run('dpkg-deb', ['-R', deb, tree]);
        const control = join(tree, 'DEBIAN/control');
        await writeFile(control, (await readFile(control, 'utf8')).replace(/^Version: .*/m, 'Version: 99.0.0'));
        await run('dpkg-deb', ['--root-owner-group', '-Znone', '-b', tree, termux.path(`${HOME}/next.deb`)]);
        const upgrade = await termux.run('dpkg', '-i', 'next.deb');
        expect(upgrade, upgrade.stderr).toMatchObject({ status: 0 });
        await logged(termux, /is up, on port[\s\S]*is up, on port/);
        expect(existsSync(termux.path(`${SERVICE}/down`))).toBe(false);
        expect(await readFile(termux.path(CONFIGURATION), 'utf8')).toContain(TINY);
        expect((await stat(termux.path(CONFIGURATION))).mode & 0o777).toBe(0o600);
      },
      EMULATED,
    );

    it('that comes back as one which nobody enabled when its directory was deleted', async () => {
      await using termux = await installed();
      await rm(termux.path(SERVICE), { recursive: true });
      const again = await termux.run('dpkg', '-i', 'package.deb');
      expect(again, again.stderr).toMatchObject({ status: 0 });
      expect(existsSync(termux.path(`${SERVICE}/down`))).toBe(true);
    });

    it(
      'that goes with the package, but for its options and its log',
      async () => {
        await using termux = await running(createToken());
        const removal = await termux.run('dpkg', '-r', 'droid-llama');
        expect(removal, removal.stderr).toMatchObject({ status: 0 });
        const log = dirname(LOG);
        expect((await leftovers(termux)).filter((path) => !path.startsWith(`${log}/`))).toEqual([CONFIGURATION, log]);
        expect(await commandLines(termux)).not.toContain('main.js');
        await wakeLockIs(termux, 'lock', 'unlock');

        expect(await termux.run('dpkg', '-P', 'droid-llama')).toMatchObject({ status: 0 });
        expect(await leftovers(termux)).toEqual([]);
      },
      EMULATED,
    );
  });
});
