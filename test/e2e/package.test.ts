/** What a user gets from the registry: a tarball with a prebuilt addon, or one that compiles. */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, relative, sep } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TARGETS } from '../../scripts/prebuild-targets.mjs';
import { projectRoot } from '../support/paths.js';

const MINUTE = 60_000;
/** A build without a warm compiler cache, on two cores that may be busy. */
const BUILD_BUDGET = 25 * MINUTE;

const run = promisify(execFile);
const target = `${process.platform}-${process.arch}`;
const prebuilt = `prebuilds/${TARGETS[target]?.file}`;

let scratch: string;
let copy: string;
let tarball: string;
let files: readonly string[];

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'droid-package-'));
});

afterAll(() => rm(scratch, { recursive: true, force: true }));

describe.skipIf(!(target in TARGETS) && !process.env.CI)('the package', () => {
  beforeAll(async () => {
    copy = await copyProject();
    await run(process.execPath, ['scripts/prebuild.mjs', target], { cwd: copy, timeout: BUILD_BUDGET });
    await npm(copy, 'pack', '--pack-destination', scratch);
    tarball = join(scratch, (await readdir(scratch)).find((name) => name.endsWith('.tgz')) ?? 'none');
    files = execFileSync('tar', ['-tzf', tarball], { encoding: 'utf8' })
      .trim()
      .split('\n')
      .map((path) => path.replace(/^package\//, ''));
  }, BUILD_BUDGET);

  describe('prebuilt addon', () => {
    test('exports what Node looks for, needs no libraries of this machine and holds no paths of it', async () => {
      await expectPlainAddon(join(copy, prebuilt), copy);
    });

    test('is made for any CPU, in a tree of its own', async () => {
      expect(await readFile(join(copy, `build/prebuild-${target}/CMakeCache.txt`), 'utf8')).toMatch(
        /^GGML_NATIVE:.*=OFF$/m,
      );
    });
  });

  test('the addon that is compiled here is as plain, and made for this CPU', async () => {
    await expectPlainAddon(join(projectRoot, 'build/Release/droid-llama.node'), projectRoot);
    expect(await readFile(join(projectRoot, 'build/cmake/CMakeCache.txt'), 'utf8')).toMatch(/^GGML_NATIVE:.*=ON$/m);
  });

  describe('tarball', () => {
    test('holds the library, the prebuilt addon, the model and the texts', () => {
      expect(files).toEqual(
        expect.arrayContaining([
          'package.json',
          'README.md',
          'LICENSE',
          'CHANGELOG.md',
          'dist/index.js',
          'dist/index.d.ts',
          'dist/cli/main.js',
          'models/droid-tiny.gguf',
          prebuilt,
        ]),
      );
    });

    test('holds every file that compiling the addon needs', async () => {
      const needed = ['CMakeLists.txt'];
      for (const dir of ['cmake', 'native', 'scripts', 'vendor']) needed.push(...(await filesBelow(dir)));
      const without =
        /^vendor\/llama\.cpp\/(models|tests)\/|^scripts\/(clang-format|termux-deb|runtime-dependencies)\.mjs$|^vendor\/\.fetch-/;
      expect(needed.filter((file) => !without.test(file) && !files.includes(file))).toEqual([]);
      expect(files).toContain('vendor/llama.cpp/tools/server/server-context.h');
    });

    test('holds nothing else', async () => {
      const expected =
        /^(dist|cmake|native|scripts|vendor|prebuilds)\/|^models\/(droid-tiny\.gguf|README\.md)$|^(package\.json|README\.md|LICENSE|CHANGELOG\.md|CMakeLists\.txt)$/;
      expect(files.filter((file) => !expected.test(file))).toEqual([]);
      expect(files.filter((file) => /\.gguf$/.test(file))).toEqual(['models/droid-tiny.gguf']);
      expect((await stat(tarball)).size).toBeLessThan(20 * 2 ** 20);
    });
  });

  test(
    'installs without compiling, runs the demo and can be imported',
    async () => {
      const app = await install(tarball);
      expect(existsSync(join(app, 'node_modules/droid-llama/build'))).toBe(false);
      await expectWorks(app);
    },
    5 * MINUTE,
  );

  test(
    'compiles when it holds no prebuilt addon',
    async () => {
      await mkdir(join(scratch, 'bare'));
      execFileSync('tar', ['-xzf', tarball, '-C', join(scratch, 'bare')]);
      await rm(join(scratch, 'bare/package/prebuilds'), { recursive: true });
      const bare = join(scratch, 'bare.tgz');
      execFileSync('tar', ['-czf', bare, '-C', join(scratch, 'bare'), 'package']);

      const app = await install(bare);
      const built = join(app, 'node_modules/droid-llama/build');
      await expectPlainAddon(join(built, 'Release/droid-llama.node'), app);
      // The objects would fill a phone.
      expect(await readdir(built)).toEqual(['Release']);
      await expectWorks(app);
    },
    BUILD_BUDGET,
  );
});

/** The project as a checkout has it, with the installed dependencies and the fetched sources. */
async function copyProject(): Promise<string> {
  const dir = join(scratch, 'project');
  const without = ['.git', 'node_modules', 'build', 'dist', 'prebuilds', 'test'];
  await cp(projectRoot, dir, {
    recursive: true,
    filter: (path) => {
      const top = relative(projectRoot, path).split(sep)[0] ?? '';
      return !without.includes(top) && !path.endsWith('.tgz');
    },
  });
  await symlink(join(projectRoot, 'node_modules'), join(dir, 'node_modules'));
  return dir;
}

async function install(file: string): Promise<string> {
  const app = await mkdtemp(join(scratch, 'app-'));
  await writeFile(join(app, 'package.json'), JSON.stringify({ name: 'app', version: '1.0.0', private: true }));
  await npm(app, 'install', '--prefer-offline', file);
  return app;
}

async function expectWorks(app: string): Promise<void> {
  const { stdout } = await npx(app, 'droid-llama', 'demo');
  expect(stdout).toMatch(/^2\+2 equals 4\.$/m);
  await writeFile(
    join(app, 'app.mjs'),
    `import { createDistributedContext, startRpcServer } from 'droid-llama';
    const worker = await startRpcServer();
    console.log(worker.devices.length, typeof createDistributedContext);
    await worker.close();`,
  );
  expect((await run(process.execPath, ['app.mjs'], { cwd: app })).stdout).toBe('1 function\n');
}

async function expectPlainAddon(file: string, madeIn: string): Promise<void> {
  expect((await readFile(file)).includes(madeIn)).toBe(false);
  if (process.platform !== 'linux') return;
  const dynamic = execFileSync('readelf', ['-dW', file], { encoding: 'utf8' });
  const needed = [...dynamic.matchAll(/\(NEEDED\).*\[(.*?)\]/g)].map((match) => match[1]);
  expect(needed.filter((name) => !/^(libstdc\+\+|libm|libgcc_s|libc|ld-linux.*)\.so\.\d+$/.test(name ?? ''))).toEqual(
    [],
  );
  expect(dynamic).not.toMatch(/RPATH|RUNPATH/);
  const symbols = execFileSync('nm', ['-D', '--defined-only', file], { encoding: 'utf8' });
  const names = symbols
    .trim()
    .split('\n')
    .map((line) => line.split(' ').at(-1));
  expect(names.sort()).toEqual(['napi_register_module_v1', 'node_api_module_get_api_version_v1']);
}

function npm(cwd: string, ...args: string[]) {
  return run('npm', args, { cwd, ...npmOptions() });
}

function npx(cwd: string, ...args: string[]) {
  return run('npx', ['--no', '--', ...args], { cwd, ...npmOptions() });
}

function npmOptions() {
  return { env: plainEnvironment(), maxBuffer: 2 ** 26, timeout: BUILD_BUDGET };
}

/** As typed in a shell: an npm that runs the tests tells its children about this project. */
function plainEnvironment(): NodeJS.ProcessEnv {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)));
  const prefix = dirname(dirname(process.execPath));
  // node-gyp downloads headers that no Node-API addon needs, unless Node brought its own.
  return existsSync(join(prefix, 'include/node/node_api.h')) ? { ...env, npm_config_nodedir: prefix } : env;
}

async function filesBelow(dir: string): Promise<string[]> {
  const entries = await readdir(join(projectRoot, dir), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(projectRoot, join(entry.parentPath, entry.name)));
}
