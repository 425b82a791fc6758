/** Compiling the addon: what is said when it cannot be, and how little is compiled again. */
import { execFileSync, spawn } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { projectRoot } from '../support/paths.js';

interface Finished {
  status: number | null;
  stdout: string;
  stderr: string;
}

const PKG_LINE = `pkg install ${process.release.lts ? 'nodejs-lts' : 'nodejs'} clang cmake ninja git`;

let scratch: string;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'droid-install-'));
});

afterAll(() => rm(scratch, { recursive: true, force: true }));

describe('missing tools', () => {
  let project: string;
  beforeAll(async () => {
    project = await makeProject('missing');
  });

  test.each([
    { gone: ['cmake'], name: 'cmake is missing', apt: 'apt-get install cmake' },
    {
      gone: ['g++', 'clang++'],
      name: 'a C++ compiler (g++ or clang++) is missing',
      apt: 'apt-get install g++',
    },
    { gone: ['git'], name: 'git is missing', apt: 'apt-get install git' },
    {
      gone: ['make', 'ninja'],
      name: 'make or ninja is missing',
      apt: 'apt-get install make',
    },
    {
      gone: ['cmake', 'g++', 'clang++', 'make', 'ninja', 'git'],
      name: 'cmake, a C++ compiler (g++ or clang++), make or ninja, git are missing',
      apt: 'apt-get install cmake g++ make git',
    },
  ])('$name', async ({ gone, name, apt }) => {
    const env = { PATH: await pathWithout(gone) };
    const debian = await node(project, 'scripts/install.mjs', env);
    expect(debian.stderr).toBe(
      `droid-llama: compiling, there is no prebuilt addon for ${process.platform}-${process.arch}\n` +
        `error: droid-llama has to be compiled here, but ${name}.\nInstall with:  ${apt}\n`,
    );
    expect(debian.status).toBe(1);
    const termux = await node(project, 'scripts/build.mjs', { ...env, PREFIX: '/data/data/com.termux/files/usr' });
    expect(termux.stderr).toBe(
      `error: droid-llama has to be compiled here, but ${name}.\nInstall with:  ${PKG_LINE}\n`,
    );
    expect(termux.status).toBe(1);
    expect(await readdir(project)).not.toContain('build');
  });
});

describe('a prebuilt addon that does not load', () => {
  let project: string;
  const addon = () => join(project, 'prebuilds', `${process.platform}-${process.arch}`, 'droid-llama.node');
  beforeAll(async () => {
    project = await makeProject('prebuilt');
    await mkdir(dirname(addon()), { recursive: true });
  });

  /** What the install says before it fails for want of a compiler. */
  async function reason(env: NodeJS.ProcessEnv = {}): Promise<string | undefined> {
    const { stderr, status } = await node(project, 'scripts/install.mjs', {
      PATH: await pathWithout(['cmake']),
      ...env,
    });
    expect(status).toBe(1);
    expect(stderr).toContain('cmake is missing');
    return stderr.split('\n')[0];
  }

  test('is named with what the loader says, and compiled instead', async () => {
    await writeFile(addon(), 'no library');
    expect(await reason()).toMatch(
      /^droid-llama: compiling, the prebuilt addon for \S+ does not load here: .*droid-llama\.node: \S.*$/,
    );
  });

  test.runIf(process.platform === 'linux')('that the processor cannot run ends a child, not the install', async () => {
    const source = join(project, 'illegal.c');
    await writeFile(source, '__attribute__((constructor)) static void die(void) { __builtin_trap(); }\n');
    execFileSync('cc', ['-shared', '-fPIC', '-o', addon(), source]);
    expect(await reason()).toContain('it has instructions that this processor does not know (SIGILL)');
  });

  test('in Termux ends with what to install there, and where there is a compiler, with an addon', async () => {
    await mkdir(join(project, `prebuilds/android-${process.arch}`), { recursive: true });
    await writeFile(join(project, `prebuilds/android-${process.arch}/droid-llama.node`), 'no library');
    const termux = {
      PREFIX: '/data/data/com.termux/files/usr',
      NODE_OPTIONS: `--require=${join(projectRoot, 'test/support/as-termux.cjs')}`,
    };
    const why = new RegExp(
      `^droid-llama: compiling, the prebuilt addon for android-${process.arch} does not load here: .*droid-llama\\.node: \\S.*\n`,
    );
    const bare = await node(project, 'scripts/install.mjs', { PATH: await pathWithout(['cmake', 'git']), ...termux });
    expect(bare.stderr).toMatch(why);
    expect(bare.stderr.replace(why, '')).toBe(
      `error: droid-llama has to be compiled here, but cmake, git are missing.\nInstall with:  ${PKG_LINE}\n`,
    );
    expect(bare.status).toBe(1);
    const built = await node(project, 'scripts/install.mjs', termux);
    expect(built.stderr).toMatch(why);
    expect(built.stderr).toContain('droid-llama: built build/Release/droid-llama.node\n');
    expect(built.status).toBe(0);
  });

  test('is not even tried when compiling was asked for', async () => {
    expect(await reason({ npm_config_build_from_source: 'true' })).toBe('droid-llama: compiling, as it was asked for');
  });
});

describe('a build', () => {
  let project: string;
  let first: Finished;
  beforeAll(async () => {
    project = await makeProject('build');
    first = await node(project, 'scripts/install.mjs');
  });

  test('shows its progress where there is no terminal', () => {
    expect(first.stderr).toContain('droid-llama: preparing llama.cpp with 1 patch\n');
    expect(first.stderr).toMatch(/droid-llama: compiling with \d+ jobs?/);
    expect(first.stderr).toMatch(/droid-llama: compiling \d+ %\n/);
    expect(first.stderr).toContain('droid-llama: compiling 100 %\n');
    expect(first.stderr).toContain('droid-llama: built build/Release/droid-llama.node\n');
    expect(first.stderr).not.toContain('\r');
    expect(first.status).toBe(0);
  });

  test('compiles a patched copy and leaves the sources alone', async () => {
    expect(await readFile(join(project, 'build/llama.cpp/src/answer.h'), 'utf8')).toBe('#define ANSWER 42\n');
    expect(await readFile(join(project, 'checkout/src/answer.h'), 'utf8')).toBe('#define ANSWER 41\n');
  });

  test('does nothing the second time', async () => {
    const objects = await objectTimes(project);
    expect(Object.keys(objects)).toHaveLength(2);
    expect((await node(project, 'scripts/build.mjs')).status).toBe(0);
    expect(await objectTimes(project)).toEqual(objects);
  });

  test('compiles nothing but the files that a changed patch touches', async () => {
    const before = await objectTimes(project);
    await writeFile(join(project, 'vendor/patches/0001-answer.patch'), patch(41, 43));
    expect((await node(project, 'scripts/build.mjs')).status).toBe(0);
    expect(changes(before, await objectTimes(project))).toEqual([expect.stringContaining('second.cc')]);
  });

  test('says which patch does not fit', async () => {
    await writeFile(join(project, 'vendor/patches/0002-late.patch'), patch(1, 2));
    const { status, stderr } = await node(project, 'scripts/build.mjs');
    await rm(join(project, 'vendor/patches/0002-late.patch'));
    expect(stderr).toContain(`error: vendor/patches/0002-late.patch does not apply to ${join(project, 'checkout')}`);
    expect(stderr).toContain('src/answer.h');
    expect(status).toBe(1);
  });

  test('that fails shows what the compiler said, and keeps the addon there is', async () => {
    const addon = await readFile(join(project, 'build/Release/droid-llama.node'));
    const source = join(project, 'native/first.cc');
    const text = await readFile(source, 'utf8');
    await writeFile(source, 'int broken() { return undeclared_name; }\n');
    const failed = await node(project, 'scripts/install.mjs');
    await writeFile(source, text);
    expect(failed.stderr).toContain('error: the build failed (exit code 1)');
    expect(failed.stderr).toMatch(/first\.cc:1:.*error:.*undeclared_name/);
    expect(failed.status).toBe(1);
    expect(await readFile(join(project, 'build/Release/droid-llama.node'))).toEqual(addon);
    expect((await node(project, 'scripts/build.mjs')).status).toBe(0);
  });

  test('goes on where the linker crashed, as that of Termux does now and then, and gives up when it goes on crashing', async () => {
    const bin = await pathWithout(['c++']);
    const linked = join(bin, 'linked');
    const compiler = execFileSync('sh', ['-c', 'command -v c++'], { encoding: 'utf8' }).trim();
    /** Crashes the first `times` it links the addon, as a compiler says that its linker did. */
    const crashing = (times: number) =>
      writeFile(
        join(bin, 'c++'),
        `#!/bin/sh
case "$*" in *"-o droid-llama.node"*)
  echo >> ${linked}
  if [ "$(wc -l < ${linked})" -le ${times} ]; then
    echo "Pointer tag for 0xe2a9a7d900000000 was truncated" >&2
    echo "c++: error: unable to execute command: Aborted" >&2
    echo "c++: error: linker command failed due to signal (use -v to see invocation)" >&2
    exit 1
  fi
esac
exec ${compiler} "$@"
`,
        { mode: 0o755 },
      );
    const again = async (times: number) => {
      await rm(linked, { force: true });
      await rm(join(project, 'build/cmake'), { recursive: true });
      await crashing(times);
      return node(project, 'scripts/build.mjs', { PATH: bin });
    };
    const once = await again(1);
    expect(once.stderr).toContain('droid-llama: the linker crashed; linking again\n');
    expect(once.stderr).toContain('droid-llama: built build/Release/droid-llama.node\n');
    expect(once.status).toBe(0);
    const always = await again(9);
    expect(always.stderr.match(/linking again/g)).toHaveLength(2);
    expect(always.stderr).toContain('error: linker command failed due to signal');
    expect(always.status).toBe(1);
    await rm(join(project, 'build/cmake'), { recursive: true });
    expect((await node(project, 'scripts/build.mjs')).status).toBe(0);
  });

  test('that CMake cannot configure shows what CMake said', async () => {
    const lists = join(project, 'CMakeLists.txt');
    const text = await readFile(lists, 'utf8');
    await writeFile(lists, `${text}message(FATAL_ERROR "no luck today")\n`);
    const { status, stderr } = await node(project, 'scripts/build.mjs');
    await writeFile(lists, text);
    expect(stderr).toContain('CMake Error');
    expect(stderr).toContain('no luck today');
    expect(status).toBe(1);
  });

  test('works after the checkout has moved', async () => {
    const moved = `${project}-moved`;
    await cp(project, moved, { recursive: true, verbatimSymlinks: true });
    const { status, stderr } = await node(moved, 'scripts/build.mjs');
    expect(stderr).toContain('droid-llama: built build/Release/droid-llama.node\n');
    expect(status).toBe(0);
  });

  test('works with make and without ccache, also in a tree that ninja made', async () => {
    const { status, stderr } = await node(project, 'scripts/build.mjs', {
      PATH: await pathWithout(['ninja', 'ccache']),
    });
    expect(await readdir(join(project, 'build/cmake'))).toContain('Makefile');
    expect(stderr).toContain('droid-llama: compiling 100 %\n');
    expect(stderr).toContain('droid-llama: built build/Release/droid-llama.node\n');
    expect(status).toBe(0);
  });
});

test('after touching one native file this project compiles that file alone, in seconds', async () => {
  // Whatever else may have changed is compiled first.
  expect((await node(projectRoot, 'scripts/build.mjs')).status).toBe(0);
  const before = await objectTimes(projectRoot);
  const source = join(projectRoot, 'native/channel.cc');
  const { atime, mtime } = await stat(source);
  const started = performance.now();
  try {
    await utimes(source, new Date(), new Date());
    expect((await node(projectRoot, 'scripts/build.mjs')).status).toBe(0);
  } finally {
    await utimes(source, atime, mtime);
  }
  const seconds = (performance.now() - started) / 1000;
  expect(changes(before, await objectTimes(projectRoot))).toEqual([expect.stringContaining('native/channel.cc')]);
  // One file of two hundred; most of it is linking.
  expect(seconds).toBeLessThan(60);
});

/** A project of two source files that is built by this project's scripts, from a llama.cpp of two files. */
async function makeProject(name: string): Promise<string> {
  const dir = join(scratch, name);
  const files: Record<string, string> = {
    'package.json': JSON.stringify({ name: 'droid-llama', type: 'module', binary: { napi_versions: [8] } }),
    'vendor/llama.lock.json': JSON.stringify({ tag: 'v0', commit: '0'.repeat(40), keep: ['src', 'tools'], drop: [] }),
    'vendor/patches/0001-answer.patch': patch(41, 42),
    'checkout/src/answer.h': '#define ANSWER 41\n',
    'checkout/tools/server/server-context.h': '',
    'CMakeLists.txt': `cmake_minimum_required(VERSION 3.18)
project(droid-llama LANGUAGES C CXX)
add_library(droid-llama MODULE native/first.cc native/second.cc)
target_include_directories(droid-llama PRIVATE \${DROID_LLAMA_CPP}/src)
set_target_properties(droid-llama PROPERTIES PREFIX "" SUFFIX ".node" LIBRARY_OUTPUT_DIRECTORY \${CMAKE_BINARY_DIR})
`,
    'native/first.cc': 'const char * first() { return __FILE__; }\n',
    'native/second.cc': '#include "answer.h"\nint second() { return ANSWER; }\n',
  };
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(dir, path)), { recursive: true });
    await writeFile(join(dir, path), text);
  }
  await cp(join(projectRoot, 'scripts'), join(dir, 'scripts'), { recursive: true });
  await cp(join(projectRoot, 'vendor/fetch.mjs'), join(dir, 'vendor/fetch.mjs'));
  await symlink(join(projectRoot, 'node_modules'), join(dir, 'node_modules'));
  return dir;
}

function patch(from: number, to: number): string {
  return `--- a/src/answer.h\n+++ b/src/answer.h\n@@ -1 +1 @@\n-#define ANSWER ${from}\n+#define ANSWER ${to}\n`;
}

/** Everything on the PATH but the commands named. */
async function pathWithout(commands: readonly string[]): Promise<string> {
  const bin = await mkdtemp(join(scratch, 'bin-'));
  for (const dir of (process.env.PATH ?? '').split(delimiter)) {
    for (const name of await readdir(dir).catch(() => [])) {
      if (!commands.includes(name)) await symlink(join(dir, name), join(bin, name)).catch(() => {});
    }
  }
  return bin;
}

/** Runs a script of a project without a terminal, not even the one the tests may run in. */
function node(project: string, script: string, env: NodeJS.ProcessEnv = {}): Promise<Finished> {
  const { CI: _, PREFIX: __, ...inherited } = process.env;
  const local = project === projectRoot ? {} : { DROID_LLAMA_CPP_DIR: join(project, 'checkout') };
  const child = spawn(process.execPath, [join(project, script)], {
    cwd: project,
    env: { ...inherited, npm_lifecycle_event: 'install', ...local, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  const finished: Finished = { status: null, stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => {
    finished.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    finished.stderr += chunk;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => resolve({ ...finished, status }));
  });
}

/** When each object file of a project was made. */
async function objectTimes(project: string): Promise<Record<string, number>> {
  const out = join(project, 'build/cmake');
  const times: Record<string, number> = {};
  for (const file of await readdir(out, { recursive: true })) {
    if (file.endsWith('.o')) times[file] = (await stat(join(out, file))).mtimeMs;
  }
  return times;
}

function changes(before: Record<string, number>, after: Record<string, number>): string[] {
  return Object.keys(after).filter((file) => after[file] !== before[file]);
}
