/** What a user gets from the registry: one tarball with prebuilt addons, and the sources for where none of them fits. */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, relative, sep } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TARGETS } from '../../scripts/prebuild-targets.mjs';
import { buildBionic, noAndroid } from '../support/android.js';
import { makeEmulatedNode, noArm64 } from '../support/arm64.js';
import { projectRoot } from '../support/paths.js';

const MINUTE = 60_000;
const MIB = 2 ** 20;
/** A build without a warm compiler cache, on two cores that may be busy. */
const BUILD_BUDGET = 25 * MINUTE;
/** Several times what taking a prebuilt addon needs here, a tenth of what compiling does; emulated, all is slower. */
const INSTALL_BUDGET = MINUTE;

const run = promisify(execFile);
const native = `${process.platform}-${process.arch}`;
const prebuilt = (target: string) => `prebuilds/${TARGETS[target]?.file}`;

/** A machine that the tarball is installed on. */
interface Platform {
  readonly target: string;
  /** Makes the `node` of that machine, in a directory of its own. */
  readonly node: (directory: string) => Promise<string>;
  /** Why it cannot run here. */
  readonly unavailable?: string | undefined;
}

const PLATFORMS: readonly Platform[] = [
  { target: native, node: async () => process.execPath },
  { target: 'linux-arm64', node: (directory) => makeEmulatedNode(directory, 'cortex-a76'), unavailable: noArm64() },
  {
    target: 'android-arm64',
    node: async (directory) => {
      const variables = { npm_config_platform: 'android', LD_LIBRARY_PATH: await buildBionic() };
      return makeEmulatedNode(directory, 'cortex-a76', variables);
    },
    unavailable: noArm64() ?? noAndroid(),
  },
];
const runnable = PLATFORMS.filter(
  ({ target, unavailable }, i) =>
    target in TARGETS &&
    (!unavailable || process.env.CI) &&
    PLATFORMS.findIndex((platform) => platform.target === target) === i,
);

/** The most that things may weigh, in MiB: a little more than they do, so that growth is noticed (docs/prebuilds.md). */
const LIMITS = {
  /** Each addon. */
  addonPacked: 7,
  addon: 17,
  /** All that is not an addon: the model of the demo, the library, the sources. */
  restPacked: 11,
  rest: 15,
  files: 350,
};

/** What comes along in node_modules, so that an install asks the registry for nothing else. */
const BUNDLED = ['node-addon-api', 'node-api-headers', 'node-gyp-build'];

let scratch: string;
let copy: string;
let tarball: string;
let files: readonly string[];
/** Where it has been installed, by target. */
const apps = new Map<string, string>();

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'droid-package-'));
});

afterAll(() => rm(scratch, { recursive: true, force: true }));

describe.skipIf(!(native in TARGETS) && !process.env.CI)('the package', () => {
  beforeAll(async () => {
    copy = await copyProject();
    await run(process.execPath, ['scripts/prebuild.mjs', native], { cwd: copy, timeout: BUILD_BUDGET });
    for (const { target } of runnable.filter((platform) => platform.target !== native)) {
      const env = { ...process.env, ANDROID_NDK_HOME: '' };
      await run(process.execPath, ['scripts/prebuild.mjs', target], { cwd: projectRoot, env, timeout: BUILD_BUDGET });
      await cp(join(projectRoot, prebuilt(target)), join(copy, prebuilt(target)));
    }
    // As an interrupted prebuild would leave it.
    await writeFile(join(copy, `${prebuilt(native)}.new`), '');
    await npm(copy, 'pack', '--pack-destination', scratch);
    tarball = join(scratch, (await readdir(scratch)).find((name) => name.endsWith('.tgz')) ?? 'none');
    files = execFileSync('tar', ['-tzf', tarball], { encoding: 'utf8' })
      .trim()
      .split('\n')
      .map((path) => path.replace(/^package\//, ''));
  }, 2 * BUILD_BUDGET);

  describe('prebuilt addon', () => {
    test('exports what Node looks for, needs no libraries of this machine and holds no paths of it', async () => {
      await expectPlainAddon(join(copy, prebuilt(native)), copy);
    });

    test('is made for any CPU, in a tree of its own', async () => {
      expect(await readFile(join(copy, `build/prebuild-${native}/CMakeCache.txt`), 'utf8')).toMatch(
        /^GGML_NATIVE:.*=OFF$/m,
      );
    });
  });

  test('the addon that is compiled here is as plain, and made for this CPU', async () => {
    await expectPlainAddon(join(projectRoot, 'build/Release/droid-llama.node'), projectRoot);
    expect(await readFile(join(projectRoot, 'build/cmake/CMakeCache.txt'), 'utf8')).toMatch(/^GGML_NATIVE:.*=ON$/m);
  });

  describe('tarball', () => {
    test('holds the library, the prebuilt addons, the model and the texts', () => {
      expect(files).toEqual(
        expect.arrayContaining([
          'package.json',
          'README.md',
          'LICENSE',
          'CHANGELOG.md',
          'docs/termux.md',
          'dist/index.js',
          'dist/index.d.ts',
          'dist/bench/index.js',
          'dist/bench/index.d.ts',
          'dist/cli/main.js',
          'dist/transport/tls-thread.js',
          'dist/THIRD-PARTY-LICENSES.txt',
          'models/droid-tiny.gguf',
          ...runnable.map(({ target }) => prebuilt(target)),
          ...BUNDLED.flatMap((name) => [`node_modules/${name}/package.json`]),
        ]),
      );
    });

    test('holds every file that compiling the addon needs', async () => {
      const needed = ['CMakeLists.txt', 'vendor/fetch.mjs', 'vendor/llama.lock.json', 'vendor/llama.cpp.json.br'];
      for (const dir of ['native', 'vendor/patches']) needed.push(...(await filesBelow(dir)));
      needed.push(...importedBy('scripts/install.mjs'));
      expect(needed).toContain('scripts/cmake.mjs');
      expect(needed.filter((file) => !files.includes(file))).toEqual([]);
    });

    test('has the licences of what the addons are made of where they can be read', async () => {
      const below = await filesBelow('vendor/llama.cpp');
      const licenses = below.filter((file) => /\/licenses\/|LICENSE[^/]*$/.test(file));
      expect(licenses.length).toBeGreaterThan(4);
      expect(files).toEqual(expect.arrayContaining(licenses));
      // The sources themselves are in one file.
      expect(files.filter((file) => file.startsWith('vendor/llama.cpp/'))).toHaveLength(licenses.length);
    });

    test('holds nothing else', async () => {
      const expected = [
        /^(dist|native|scripts|vendor)\//,
        /^prebuilds\/[\w-]+\/[\w.-]+\.node$/,
        /^docs\/(bench\/)?[\w-]+\.md$/,
        new RegExp(`^node_modules/(${BUNDLED.join('|')})/`),
        /^models\/(droid-tiny\.gguf|README\.md)$/,
        /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|CMakeLists\.txt)$/,
      ];
      expect(files.filter((file) => !expected.some((pattern) => pattern.test(file)))).toEqual([]);
      expect(files.filter((file) => /\.gguf$/.test(file))).toEqual(['models/droid-tiny.gguf']);
      // Sources of what is in the bundle, or maps of it, would be twice the library.
      expect(files.filter((file) => /^dist\/.*\.(map|(?<!\.d\.)ts)$/.test(file))).toEqual([]);
      expect(files.filter((file) => /^dist\/.*\.c?js$/.test(file)).length).toBeLessThan(70);
    });

    test('weighs no more than it did', async () => {
      const addons = files.filter((file) => file.endsWith('.node')).length;
      const size = (await stat(tarball)).size / MIB;
      console.log(`the tarball with ${addons} addons: ${size.toFixed(1)} MiB`);
      expect(size).toBeLessThan(LIMITS.restPacked + addons * LIMITS.addonPacked);
    });
  });

  describe.each(runnable)('on $target', ({ target, node: makeNode }) => {
    let app: string;
    let node: string;
    let installed: string;
    const packageFile = (path: string) => join(app, 'node_modules/droid-llama', path);

    beforeAll(async () => {
      node = await makeNode(join(scratch, `node-${target}`));
    }, 5 * MINUTE);

    test(
      'installs from the tarball alone, and compiles nothing',
      async () => {
        app = await makeApp();
        apps.set(target, app);
        const begin = performance.now();
        // An emulated machine gets the files from this one's npm, and then runs what its own npm would.
        const scripts = target === native ? '--foreground-scripts' : '--ignore-scripts';
        const { stdout, stderr } = await npm(app, 'install', ...offline(), scripts, tarball);
        expect(stdout).toContain('added 1 package');
        installed = stdout + stderr;
        if (target !== native) {
          const script = await run(node, ['scripts/install.mjs'], { cwd: packageFile('.'), env: plainEnvironment() });
          installed += script.stdout + script.stderr;
        }
        expect(performance.now() - begin).toBeLessThan(INSTALL_BUDGET);
        expect(installed).not.toContain('compiling');
        expect(existsSync(packageFile('build'))).toBe(false);
      },
      5 * MINUTE,
    );

    test('takes no more room than it did', async () => {
      const entries = await readdir(join(app, 'node_modules'), { recursive: true, withFileTypes: true });
      const found = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
      const sizes = await Promise.all(found.map(async (file) => (await stat(file)).size));
      const addons = found.filter((file) => file.endsWith('.node')).length;
      const size = sizes.reduce((sum, bytes) => sum + bytes, 0) / MIB;
      console.log(`${target}: ${found.length} files, ${size.toFixed(1)} MiB`);
      expect(found.length).toBeLessThan(LIMITS.files);
      expect(size).toBeLessThan(LIMITS.rest + addons * LIMITS.addon);
      expect(await readdir(join(app, 'node_modules'))).toEqual(
        expect.not.arrayContaining(['fastify', 'zod', 'cmake-js']),
      );
    });

    test('runs the demo and can be imported', () => expectWorks(app, node), 5 * MINUTE);
  });

  test('needs nothing that is not there, whichever part of it is loaded', async () => {
    const directory = join(apps.get(native) ?? '', 'node_modules/droid-llama/dist/chunks');
    const chunks = (await readdir(directory)).map((name) => join(directory, name));
    const script = `for (const file of ${JSON.stringify(chunks)}) await import(file);`;
    await run(process.execPath, ['--input-type=module', '-e', script], { cwd: scratch });
  });

  test(
    'has types that need no others than those of Node',
    async () => {
      const app = apps.get(native) ?? '';
      await writeFile(
        join(app, 'app.ts'),
        `import { Cluster, createDistributedContext, type HttpServer, type RpcServer, startRpcServer } from 'droid-llama';
        import { bench, parseClusterStatus } from 'droid-llama/bench';
        export const worker: Promise<RpcServer> = startRpcServer();
        export const role: string = parseClusterStatus({}).self.role;
        export const all = [Cluster, createDistributedContext, bench];
        export async function listen(cluster: Cluster): Promise<HttpServer> { return cluster.listen(); }
        // @ts-expect-error It is not any.
        export const wrong: number = role;`,
      );
      const types = join(projectRoot, 'node_modules/@types');
      const options = ['--strict', '--noEmit', '--module', 'nodenext', '--target', 'es2022', '--lib', 'es2023,esnext'];
      const tsc = join(projectRoot, 'node_modules/typescript/bin/tsc');
      await run(process.execPath, [tsc, ...options, '--typeRoots', types, '--types', 'node', 'app.ts'], { cwd: app });
    },
    2 * MINUTE,
  );

  test('names each package that is in the bundle, with its licence', async () => {
    const text = await readFile(join(copy, 'dist/THIRD-PARTY-LICENSES.txt'), 'utf8');
    for (const name of ['fastify', 'zod', 'commander', '@huggingface/hub', 'dns-packet', 'uqr', 'cmake-js', 'yargs']) {
      const { version } = JSON.parse(await readFile(join(projectRoot, `node_modules/${name}/package.json`), 'utf8'));
      expect(text).toContain(`\n${name} ${version} (`);
    }
    expect(text.match(/^.+ \d+\.\d+\.\d+ \(.*\)\n\n\S/gm)?.length).toBeGreaterThan(60);
  });

  test(
    'compiles when it holds no prebuilt addon',
    async () => {
      await mkdir(join(scratch, 'bare'));
      execFileSync('tar', ['-xzf', tarball, '-C', join(scratch, 'bare')]);
      await rm(join(scratch, 'bare/package/prebuilds'), { recursive: true });
      const bare = join(scratch, 'bare.tgz');
      execFileSync('tar', ['-czf', bare, '-C', join(scratch, 'bare'), 'package']);

      const app = await makeApp();
      await npm(app, 'install', ...offline(), bare);
      const built = join(app, 'node_modules/droid-llama/build');
      await expectPlainAddon(join(built, 'Release/droid-llama.node'), app);
      // The objects would fill a phone.
      expect(await readdir(built)).toEqual(['Release']);
      await expectWorks(app, process.execPath);
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
  await mkdir(join(dir, 'node_modules'));
  for (const name of await readdir(join(projectRoot, 'node_modules'))) {
    const [from, to] = [join(projectRoot, 'node_modules', name), join(dir, 'node_modules', name)];
    // npm packs no links.
    await (BUNDLED.includes(name) ? cp(from, to, { recursive: true }) : symlink(from, to));
  }
  return dir;
}

async function makeApp(): Promise<string> {
  const app = await mkdtemp(join(scratch, 'app-'));
  await writeFile(join(app, 'package.json'), JSON.stringify({ name: 'app', version: '1.0.0', private: true }));
  return app;
}

/** Of an npm that knows no registry and has never seen a package. */
function offline(): string[] {
  return ['--offline', '--cache', join(scratch, 'npm-cache'), '--no-audit', '--no-fund'];
}

async function expectWorks(app: string, node: string): Promise<void> {
  const options = { cwd: app, env: plainEnvironment(), timeout: 5 * MINUTE };
  const main = join(app, 'node_modules/droid-llama/dist/cli/main.js');
  const { stdout } =
    node === process.execPath ? await npx(app, 'droid-llama', 'demo') : await run(node, [main, 'demo'], options);
  expect(stdout).toMatch(/^2\+2 equals 4\.$/m);
  await writeFile(
    join(app, 'app.mjs'),
    `import { createDistributedContext, startRpcServer } from 'droid-llama';
    const worker = await startRpcServer();
    console.log(worker.devices.length, typeof createDistributedContext);
    await worker.close();`,
  );
  expect((await run(node, ['app.mjs'], options)).stdout).toBe('1 function\n');
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

/** A module of the project and all of the project's that it leads to. */
function importedBy(file: string, seen = new Set<string>()): Set<string> {
  if (seen.has(file)) return seen;
  seen.add(file);
  const code = readFileSync(join(projectRoot, file), 'utf8');
  for (const [, path = ''] of code.matchAll(/(?:from|import\() ?'(\.[^']+)'/g))
    importedBy(join(dirname(file), path), seen);
  return seen;
}

async function filesBelow(dir: string): Promise<string[]> {
  const entries = await readdir(join(projectRoot, dir), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(projectRoot, join(entry.parentPath, entry.name)));
}
