/** A build from source in Termux, as far as that can be had on Linux. */
import { execFileSync } from 'node:child_process';
import { chmod, cp, mkdir, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { availableParallelism, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { CheckResult } from '../../lib/doctor/types.js';
import { projectRoot } from '../support/paths.js';
import { HOME, PREFIX, type Ran, Termux } from '../support/termux.js';

const unavailable = Termux.unavailable();
if (unavailable && process.env.CI) it('has a Termux here', () => expect(unavailable).toBeUndefined());

/** clang with an empty compiler cache, on two cores that may be busy; with a full one it takes seconds. */
const BUILD_BUDGET = 25 * 60_000;
const PACKAGE = `${PREFIX}/lib/node_modules/droid-llama`;
const DEPENDENCIES = { [`${PACKAGE}/node_modules`]: join(projectRoot, 'node_modules') };

describe.skipIf(unavailable)('in Termux', () => {
  let termux: Termux;
  let installed: Ran;
  const run = (command: string) => termux.run(command, DEPENDENCIES);

  beforeAll(async () => {
    termux = new Termux();
    const directory = termux.path(PACKAGE);
    const { files } = JSON.parse(await readFile(join(projectRoot, 'package.json'), 'utf8')) as { files: string[] };
    const shipped = ['package.json', ...files.filter((file) => !/[*!]|^prebuilds$|^vendor/.test(file)), 'vendor'];
    for (const file of shipped) await cp(join(projectRoot, file), join(directory, file), { recursive: true });
    await mkdir(join(directory, 'node_modules'));
    // As npm leaves it for `npm install -g`.
    await symlink('../lib/node_modules/droid-llama/dist/cli/main.js', termux.path(`${PREFIX}/bin/droid-llama`));
    await chmod(join(directory, 'dist/cli/main.js'), 0o755);
    // The step of `npm install -g` that runs the package's scripts; the packages it depends on are there already.
    const rebuild = 'npm rebuild --global --offline --foreground-scripts droid-llama';
    installed = await termux.run(rebuild, DEPENDENCIES, BUILD_BUDGET);
  }, BUILD_BUDGET);
  afterAll(() => termux?.remove());

  it('is a place like it', async () => {
    const facts = `node -p '[process.platform, os.cpus().length, os.tmpdir(), os.homedir(), process.execPath].join()'`;
    expect((await run(facts)).output).toBe(`android,0,${PREFIX}/tmp,${HOME},${PREFIX}/bin/node\n`);
    expect(
      (await run('mkdir /x; mkdir /usr/x; mkdir /tmp/x')).output.match(/Read-only file system|No such file/g),
    ).toHaveLength(3);
    expect(await readdir(termux.path('/usr/bin'))).toEqual(['env']);
    for (const name of ['gcc', 'g++', 'make']) expect((await run(`command -v ${name}`)).status).not.toBe(0);
    expect((await run('c++ --version')).output).toContain('clang version');
  });

  it('npm compiles the package', async () => {
    const jobs = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 30)));
    expect(installed.output).toContain(
      `droid-llama: compiling, there is no prebuilt addon for android-${process.arch}\n`,
    );
    expect(installed.output).toContain(`droid-llama: compiling with ${jobs} ${jobs > 1 ? 'jobs' : 'job'}`);
    expect(installed.output).toContain('droid-llama: built build/Release/droid-llama.node\n');
    expect(installed.status).toBe(0);
    // Nothing but the addon is left, and nothing beside the package.
    expect(await readdir(termux.path(`${PACKAGE}/build`))).toEqual(['Release']);
    expect(await readdir(termux.path(`${PREFIX}/tmp`))).toEqual(['as-termux.cjs', 'host.cmake']);
    expect((await readdir(termux.path(HOME))).filter((name) => !['.npm', '.cache'].includes(name))).toEqual([]);
  });

  it('with clang, for Android, and for this processor', async () => {
    const build = `node ${PACKAGE}/scripts/build.mjs`;
    // The objects are in the compiler cache; what CMake found out is left this time.
    expect(await termux.run(build, DEPENDENCIES, BUILD_BUDGET)).toMatchObject({ status: 0 });
    const cache = await readFile(termux.path(`${PACKAGE}/build/cmake/CMakeCache.txt`), 'utf8');
    expect(cache).toMatch(new RegExp(`^CMAKE_CXX_COMPILER:.*=${PREFIX}/bin/c\\+\\+$`, 'm'));
    expect(cache).toMatch(/^GGML_NATIVE:.*=ON$/m);
    expect(cache).not.toMatch(/ANDROID_NDK|ANDROID_STANDALONE_TOOLCHAIN/);
    const found = await readdir(termux.path(`${PACKAGE}/build/cmake/CMakeFiles`), { recursive: true });
    const system = found.find((file) => file.endsWith('/CMakeSystem.cmake')) ?? 'none';
    expect(await readFile(termux.path(`${PACKAGE}/build/cmake/CMakeFiles/${system}`), 'utf8')).toContain(
      'set(CMAKE_SYSTEM_NAME "Android")',
    );
    const addon = termux.path(`${PACKAGE}/build/Release/droid-llama.node`);
    expect(execFileSync('readelf', ['-p', '.comment', addon], { encoding: 'utf8' })).toContain('clang version');
  });

  it('the addon answers, and everything finds its place', async () => {
    expect(await run('droid-llama demo')).toMatchObject({
      status: 0,
      output: expect.stringContaining('equals 4.'),
    });
    const { status, output } = await run('droid-llama doctor --json');
    const { checks } = JSON.parse(output) as { checks: CheckResult[] };
    const check = (id: string) => checks.find((candidate) => candidate.id === id);
    expect(status, output).toBe(0);
    expect(check('addon')?.status).toBe('ok');
    expect(check('termux')).toMatchObject({ status: 'ok', found: '0.118.3 from F-Droid' });
    expect(check('storage')?.found).toContain(HOME);
    expect(check('phantom-processes')?.status).toBe('warn');
  });

  it('an addon that does not load says what to type', async () => {
    await rm(termux.path(`${PACKAGE}/build`), { recursive: true });
    const { status, output } = await run('droid-llama demo');
    expect(output).toContain(`Compile it with:  node ${PACKAGE}/scripts/build.mjs\n`);
    expect(output).toContain('pkg install nodejs-lts clang cmake ninja git\n');
    expect(status).toBe(1);
    await rm(termux.path(`${PREFIX}/bin/ninja`));
    const { output: missing } = await run(`node ${dirname(PACKAGE)}/droid-llama/scripts/build.mjs`);
    expect(missing).toMatch(
      /make or ninja is missing\.\nInstall with: {2}pkg install nodejs(-lts)? clang cmake ninja git/,
    );
  });
});
