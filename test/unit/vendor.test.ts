import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { projectRoot } from '../support/paths.js';

const run = promisify(execFile);

/** A tarball of the same make as node-llama-cpp's, with a llama.cpp of three files. */
interface Release {
  tarball: string;
  lock: Record<string, unknown>;
}

let scratch: string;
let good: Release;
/** A copy of vendor/ without the fetched sources; each test has its own. */
let vendor: string;

beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'droid-vendor-'));
  good = await makeRelease('good', { 'tools/server/server-context.h': '#pragma once\n', 'tests/test.cpp': 'no\n' });
});

afterAll(() => rm(scratch, { recursive: true, force: true }));

beforeEach(async () => {
  vendor = join(await mkdtemp(join(scratch, 'run-')), 'vendor');
  await mkdir(vendor);
  await cp(join(projectRoot, 'vendor/fetch.mjs'), join(vendor, 'fetch.mjs'));
  await writeLock(good.lock);
});

describe('vendor/fetch.mjs', () => {
  test('puts the files that the lock keeps in place, and nothing else', async () => {
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball }));
    expect(await filesIn(vendor)).toEqual([
      'fetch.mjs',
      'llama.cpp/.fetched.json',
      'llama.cpp/CMakeLists.txt',
      'llama.cpp/tools/server/server-context.h',
      'llama.lock.json',
    ]);
  });

  test('takes the tarball from the npm that runs the script', async () => {
    const npm = await fakeNpm(`fs.copyFileSync(${JSON.stringify(good.tarball)}, path.join(destination, 'x.tgz'))`);
    // As under `npm pack --dry-run`, which runs prepack: the npm below must not only pretend.
    await expectFetched(await fetchSources({ npm_execpath: npm, npm_config_dry_run: 'true' }));
    expect(JSON.parse(await readFile(join(scratch, 'npm-args.json'), 'utf8'))).toEqual([
      'pack',
      'node-llama-cpp@1.2.3',
      '--ignore-scripts',
      '--dry-run=false',
      '--pack-destination',
      expect.stringContaining(vendor),
    ]);
  });

  test("names the package and npm's own words when npm cannot fetch it", async () => {
    const npm = await fakeNpm("console.error('npm error code E404'); process.exit(1)");
    const { status, stderr } = await fetchSources({ npm_execpath: npm });
    expect(stderr).toContain('error: npm could not fetch node-llama-cpp@1.2.3: npm error code E404');
    expect(status).toBe(1);
    expect(await readdir(vendor)).toEqual(['fetch.mjs', 'llama.lock.json']);
  });

  test.each(['truncated', 'tampered'] as const)('refuses a %s tarball and leaves nothing behind', async (damage) => {
    const { status, stderr } = await fetchSources({ DROID_LLAMA_CPP_TARBALL: await damaged(damage) });
    expect(stderr).toContain('node-llama-cpp@1.2.3 does not have the pinned integrity and was refused');
    expect(stderr).toContain(`expected ${good.lock.integrity}`);
    expect(status).toBe(1);
    expect(await readdir(vendor)).toEqual(['fetch.mjs', 'llama.lock.json']);
  });

  test.each(['truncated', 'tampered'] as const)('keeps the tree it has when the new tarball is %s', async (damage) => {
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball }));
    const before = await snapshot(join(vendor, 'llama.cpp'));
    // Any change of the lock makes it fetch again.
    await writeLock({ ...good.lock, tag: 'v0.0.3' });
    const { status } = await fetchSources({ DROID_LLAMA_CPP_TARBALL: await damaged(damage) });
    expect(status).toBe(1);
    expect(await snapshot(join(vendor, 'llama.cpp'))).toEqual(before);
    expect(await readdir(vendor)).toEqual(['fetch.mjs', 'llama.cpp', 'llama.lock.json']);
  });

  test('works inside a git hook', async () => {
    const hook = { GIT_DIR: join(scratch, 'nothing'), GIT_WORK_TREE: scratch, GIT_INDEX_FILE: join(scratch, 'index') };
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball, ...hook }));
  });

  test('replaces the tree it has when the lock names another release', async () => {
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball }));
    const next = await makeRelease('next', { 'tools/server/server-context.h': '#pragma once // next\n' });
    await writeLock(next.lock);
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: next.tarball }));
    expect(await readFile(join(vendor, 'llama.cpp/tools/server/server-context.h'), 'utf8')).toContain('next');
  });

  test('refuses a bundle at another commit than the lock says', async () => {
    await writeLock({ ...good.lock, commit: '0123456789012345678901234567890123456789' });
    const { status, stderr } = await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball });
    expect(stderr).toContain(`is at ${good.lock.commit}, the lock says 0123456789012345678901234567890123456789`);
    expect(status).toBe(1);
    expect(await readdir(vendor)).toEqual(['fetch.mjs', 'llama.lock.json']);
  });

  test('says which variable is wrong when the tarball is not there', async () => {
    const { status, stderr } = await fetchSources({ DROID_LLAMA_CPP_TARBALL: join(scratch, 'none.tgz') });
    expect(stderr).toMatch(/^error: DROID_LLAMA_CPP_TARBALL is .*none\.tgz/);
    expect(status).toBe(1);
  });

  test('a second run touches nothing and needs no other program', async () => {
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball }));
    const before = await snapshot(vendor);
    // Neither npm, git nor tar can be found.
    const second = await fetchSources({ PATH: join(scratch, 'nothing') });
    expect(second).toEqual({ status: 0, stdout: '', stderr: '' });
    expect(await snapshot(vendor)).toEqual(before);
  });

  test('says so when git is missing', async () => {
    const bin = await mkdtemp(join(scratch, 'bin-'));
    await writeFile(join(bin, 'tar'), '#!/bin/sh\nexit 0\n');
    await chmod(join(bin, 'tar'), 0o755);
    const { status, stderr } = await fetchSources({ PATH: bin, DROID_LLAMA_CPP_TARBALL: good.tarball });
    expect(stderr).toContain('error: git is needed to unpack llama.cpp and was not found');
    expect(status).toBe(1);
  });

  test('clears away what an interrupted run left, but not what another run is at', async () => {
    await mkdir(join(vendor, '.fetch-old'));
    await mkdir(join(vendor, '.fetch-new'));
    const yesterday = new Date(Date.now() - 86_400_000);
    await utimes(join(vendor, '.fetch-old'), yesterday, yesterday);
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: good.tarball }));
    expect(await readdir(vendor)).toEqual(['.fetch-new', 'fetch.mjs', 'llama.cpp', 'llama.lock.json']);
  });

  test('uses the checkout in DROID_LLAMA_CPP_DIR and fetches nothing', async () => {
    const checkout = await mkdtemp(join(scratch, 'checkout-'));
    await mkdir(join(checkout, 'tools/server'), { recursive: true });
    await writeFile(join(checkout, 'tools/server/server-context.h'), '');
    const script = `import('${join(vendor, 'fetch.mjs')}').then((f) => f.ensureSources()).then(console.log)`;
    const env = { PATH: '', DROID_LLAMA_CPP_DIR: checkout };
    expect((await run(process.execPath, ['-e', script], { env })).stdout.trim()).toBe(checkout);
    expect(await readdir(vendor)).toEqual(['fetch.mjs', 'llama.lock.json']);
  });

  test('refuses a DROID_LLAMA_CPP_DIR that is no llama.cpp', async () => {
    const { status, stderr } = await fetchSources({ DROID_LLAMA_CPP_DIR: scratch });
    expect(stderr).toBe(`error: DROID_LLAMA_CPP_DIR is ${scratch}, but there is no llama.cpp checkout there.\n`);
    expect(status).toBe(1);
  });
});

describe('vendor/archive.mjs', () => {
  const archived = () => join(vendor, 'llama.cpp.json.br');
  let release: Release;
  beforeAll(async () => {
    release = await makeRelease('archived', {
      'tools/server/server-context.h': '#pragma once // ü\n',
      'tools/server/README.md': 'no\n',
      'tests/test.cpp': 'no\n',
      'vendor/LICENSE.md': 'yes\n',
    });
    release.lock.keep = ['CMakeLists.txt', 'tools', 'tests', 'vendor'];
  });

  async function makeArchive(): Promise<string> {
    await cp(join(projectRoot, 'vendor/archive.mjs'), join(vendor, 'archive.mjs'));
    await writeLock(release.lock);
    const env = { PATH: process.env.PATH, HOME: scratch, DROID_LLAMA_CPP_TARBALL: release.tarball };
    await run(process.execPath, [join(vendor, 'archive.mjs')], { env });
    return join(vendor, 'archive.mjs');
  }

  test('packs what is compiled, which needs no other program to be unpacked', async () => {
    // A package does not have the script.
    await rm(await makeArchive());
    const before = await readFile(join(vendor, 'llama.cpp/tools/server/server-context.h'), 'utf8');
    // As a package has it: a few licences where the tree will be.
    await rm(join(vendor, 'llama.cpp'), { recursive: true });
    await mkdir(join(vendor, 'llama.cpp'));
    await writeFile(join(vendor, 'llama.cpp/LICENSE'), '');
    await expectFetched(await fetchSources({ PATH: join(scratch, 'nothing') }));
    expect(await filesIn(join(vendor, 'llama.cpp'))).toEqual([
      '.fetched.json',
      'CMakeLists.txt',
      'tools/server/server-context.h',
      'vendor/LICENSE.md',
    ]);
    expect(await readFile(join(vendor, 'llama.cpp/tools/server/server-context.h'), 'utf8')).toBe(before);
    expect((await readdir(vendor)).filter((name) => name.startsWith('.fetch-'))).toEqual([]);
  });

  test('makes the same file of the same sources', async () => {
    await makeArchive();
    const first = await readFile(archived());
    await makeArchive();
    expect((await readFile(archived())).equals(first)).toBe(true);
  });

  test('is not taken for what another lock says', async () => {
    await rm(await makeArchive());
    await rm(join(vendor, 'llama.cpp'), { recursive: true });
    await writeLock({ ...release.lock, tag: 'v0.0.2' });
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: release.tarball }));
    expect(await filesIn(join(vendor, 'llama.cpp'))).toContain('tests/test.cpp');
  });

  test('packs nothing but what is pinned', async () => {
    const script = await makeArchive();
    const env = { ...process.env, DROID_LLAMA_CPP_DIR: join(vendor, 'llama.cpp') };
    await expect(run(process.execPath, [script], { env })).rejects.toThrow(/only what is pinned is packed/);
  });

  test('is passed over when it is damaged, and in a checkout', async () => {
    const script = await makeArchive();
    await rm(join(vendor, 'llama.cpp'), { recursive: true });
    await expectFetched(await fetchSources({ DROID_LLAMA_CPP_TARBALL: release.tarball }));
    expect(await filesIn(join(vendor, 'llama.cpp'))).toContain('tests/test.cpp');
    await rm(script);
    await rm(join(vendor, 'llama.cpp'), { recursive: true });
    await writeFile(archived(), (await readFile(archived())).subarray(0, 40));
    const again = await fetchSources({ DROID_LLAMA_CPP_TARBALL: release.tarball });
    await expectFetched(again);
    expect(again.stderr + again.stdout).toContain('is damaged');
  });
});

async function makeRelease(name: string, files: Record<string, string>): Promise<Release> {
  const dir = join(scratch, name);
  const repo = join(dir, 'repo');
  for (const [path, text] of Object.entries({ 'CMakeLists.txt': 'project(llama)\n', ...files })) {
    await mkdir(dirname(join(repo, path)), { recursive: true });
    await writeFile(join(repo, path), text);
  }
  const git = (...args: string[]) =>
    execFileSync('git', ['-C', repo, '-c', 'user.name=t', '-c', 'user.email=t@t', ...args], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      env: { PATH: process.env.PATH, HOME: scratch },
    });
  git('init', '--quiet');
  git('add', '.');
  git('commit', '--quiet', '--no-gpg-sign', '-m', name);
  await mkdir(join(dir, 'package/llama'), { recursive: true });
  git('bundle', 'create', join(dir, 'package/llama/gitRelease.bundle'), 'HEAD');
  const tarball = join(dir, 'release.tgz');
  execFileSync('tar', ['-czf', tarball, '-C', dir, 'package']);
  const digest = createHash('sha512')
    .update(await readFile(tarball))
    .digest('base64');
  const lock = {
    package: 'node-llama-cpp',
    version: '1.2.3',
    integrity: `sha512-${digest}`,
    bundle: 'package/llama/gitRelease.bundle',
    tag: 'v0.0.1',
    commit: git('rev-parse', 'HEAD').trim(),
    keep: ['CMakeLists.txt', 'tools/server/*.*'],
    drop: [],
  };
  return { tarball, lock };
}

async function damaged(how: 'truncated' | 'tampered'): Promise<string> {
  const file = join(dirname(vendor), `${how}.tgz`);
  await cp(good.tarball, file);
  const { size } = await stat(file);
  if (how === 'truncated') {
    await truncate(file, size - 1);
  } else {
    const bytes = await readFile(file);
    // The last byte but four: gzip itself would not notice before its checksum.
    bytes[size - 9] = (bytes[size - 9] ?? 0) ^ 1;
    await writeFile(file, bytes);
  }
  return file;
}

/** An npm whose `pack` runs `body`; what it was called with ends up in npm-args.json. */
async function fakeNpm(body: string): Promise<string> {
  const file = join(await mkdtemp(join(scratch, 'npm-')), 'npm-cli.js');
  await writeFile(
    file,
    `const fs = require('node:fs'), path = require('node:path');
    fs.writeFileSync(${JSON.stringify(join(scratch, 'npm-args.json'))}, JSON.stringify(process.argv.slice(2)));
    const destination = process.argv[process.argv.indexOf('--pack-destination') + 1];
    ${body}`,
  );
  return file;
}

async function writeLock(lock: Record<string, unknown>): Promise<void> {
  await writeFile(join(vendor, 'llama.lock.json'), JSON.stringify(lock));
}

function fetchSources(env: Record<string, string>): Promise<{ status: number; stdout: string; stderr: string }> {
  // Nothing of the environment the tests run in: neither npm's variables nor a DROID_LLAMA_CPP_*.
  const options = { env: { PATH: process.env.PATH, HOME: scratch, ...env } };
  return run(process.execPath, [join(vendor, 'fetch.mjs')], options).then(
    ({ stdout, stderr }) => ({ status: 0, stdout, stderr }),
    ({ code, stdout, stderr }) => ({ status: code, stdout, stderr }),
  );
}

async function expectFetched({ status, stderr }: { status: number; stderr: string }): Promise<void> {
  expect(stderr).toContain('is in place');
  expect(status).toBe(0);
}

async function filesIn(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(dir.length + 1))
    .sort();
}

/** Time stamp and content of every file: what a run that does nothing must not change. */
async function snapshot(dir: string): Promise<Record<string, string>> {
  const result: Record<string, string> = {};
  for (const file of await filesIn(dir)) {
    result[file] = `${(await stat(join(dir, file))).mtimeMs} ${await readFile(join(dir, file), 'utf8')}`;
  }
  return result;
}
