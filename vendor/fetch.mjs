// Fetches the pinned llama.cpp sources into vendor/llama.cpp.
//
//   node vendor/fetch.mjs            fetch, or do nothing when the pinned sources are already there
//
// The npm package named in llama.lock.json carries llama.cpp as a git bundle; the tarball is checked against the
// lock's integrity and the checked-out commit against its commit before a single file is put in place.
//   DROID_LLAMA_CPP_DIR       use this llama.cpp checkout instead; nothing is fetched
//   DROID_LLAMA_CPP_TARBALL   take the npm tarball from this file instead of the registry (still checked)
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { brotliDecompress } from 'node:zlib';

const run = promisify(execFile);
const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, 'llama.cpp');
/** What a package has in place of the tree: `{ path: text }` as JSON, compressed; archive.mjs makes it. */
export const ARCHIVE = join(here, 'llama.cpp.json.br');
/** Lies in the tree and says what it is. */
const STAMP = '.fetched.json';
const WORK_PREFIX = '.fetch-';
const HOUR = 3_600_000;

export async function readLock() {
  return JSON.parse(await readFile(join(here, 'llama.lock.json'), 'utf8'));
}

/** What identifies a fetched tree: any change of the lock makes the next run fetch again. */
function fingerprint(lock) {
  return createHash('sha256').update(JSON.stringify(lock)).digest('hex');
}

/**
 * The directory that holds the llama.cpp sources to build, fetching them first when needed.
 * @param {{ log?: (line: string) => void }} [options]
 * @returns {Promise<string>} absolute path
 */
export async function ensureSources({ log = () => {} } = {}) {
  const local = process.env.DROID_LLAMA_CPP_DIR;
  if (local) {
    const dir = resolve(local);
    await stat(join(dir, 'tools/server/server-context.h')).catch(() => {
      throw new Error(`DROID_LLAMA_CPP_DIR is ${dir}, but there is no llama.cpp checkout there.`);
    });
    return dir;
  }
  const lock = await readLock();
  const want = fingerprint(lock);
  const have = await readFile(join(target, STAMP), 'utf8').then(JSON.parse, () => undefined);
  if (have?.fingerprint === want) return target;

  await removeLeftovers();
  const work = await mkdtemp(join(here, WORK_PREFIX));
  try {
    const tree = join(work, 'tree');
    if (!(await unpackArchive(tree, want, log))) await fetchTree(tree, lock, want, work, log);
    await rm(target, { recursive: true, force: true });
    await rename(tree, target);
    log(`llama.cpp ${lock.tag} is in place`);
    return target;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** False where there is no archive of what the lock says, and in a checkout, which needs more than an archive has. */
async function unpackArchive(tree, want, log) {
  const packed = existsSync(join(here, 'archive.mjs')) ? undefined : await readFile(ARCHIVE).catch(() => undefined);
  if (!packed) return false;
  let files;
  try {
    files = JSON.parse((await promisify(brotliDecompress)(packed)).toString());
    if (JSON.parse(files[STAMP]).fingerprint !== want) return false;
  } catch (error) {
    log(`${ARCHIVE} is damaged (${error.message})`);
    return false;
  }
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(tree, path)), { recursive: true });
    await writeFile(join(tree, path), text);
  }
  return true;
}

async function fetchTree(tree, lock, want, work, log) {
  const local = localTarball();
  if (!local) log(`fetching llama.cpp ${lock.tag} (${lock.package}@${lock.version}, 36 MB) from the npm registry`);
  const tarball = await fetchPackage(lock, work, local);
  log(`unpacking llama.cpp ${lock.tag}`);
  await run('tar', ['-xzf', resolve(tarball), '-C', work, lock.bundle]);
  const clone = join(work, 'clone');
  await git(['clone', '--quiet', '--no-tags', join(work, lock.bundle), clone]);
  const { stdout } = await git(['-C', clone, 'rev-parse', 'HEAD']);
  if (stdout.trim() !== lock.commit) {
    throw new Error(
      `The bundle in ${lock.package}@${lock.version} is at ${stdout.trim()}, the lock says ${lock.commit}.`,
    );
  }
  await keep(clone, tree, lock);
  await writeFile(
    join(tree, STAMP),
    `${JSON.stringify({ tag: lock.tag, commit: lock.commit, fingerprint: want }, null, 2)}\n`,
  );
}

/** Ctrl-C ends a run before its `finally`; what is an hour old belongs to no run any more. */
async function removeLeftovers() {
  for (const name of await readdir(here)) {
    if (!name.startsWith(WORK_PREFIX)) continue;
    const { mtimeMs } = await stat(join(here, name));
    if (Date.now() - mtimeMs > HOUR) await rm(join(here, name), { recursive: true, force: true });
  }
}

function localTarball() {
  const file = process.env.DROID_LLAMA_CPP_TARBALL;
  if (file && !existsSync(file)) throw new Error(`DROID_LLAMA_CPP_TARBALL is ${file}, but there is no such file.`);
  return file || undefined;
}

/**
 * Fetches a package of the npm registry and checks it.
 * @param {{ package: string, version: string, integrity: string }} pin
 * @param {string} directory where its tarball goes
 * @param {string} [local] a tarball to take in its place, which is checked as well
 * @returns {Promise<string>} the path of the tarball
 */
export async function fetchPackage(pin, directory, local) {
  const tarball = local ?? (await download(pin, directory));
  await verify(tarball, pin);
  return tarball;
}

async function download(pin, work) {
  // npm sets npm_execpath for its scripts; it is the npm that is running, which may not be the one on the PATH.
  // Yarn and pnpm set it too, and cannot pack a package of the registry.
  const running = process.env.npm_execpath ?? '';
  const npm = basename(running) === 'npm-cli.js' ? [process.execPath, running] : ['npm'];
  const args = [
    ...npm.slice(1),
    'pack',
    `${pin.package}@${pin.version}`,
    // And a foreign cwd: npm pack must not run this project's own prepack.
    '--ignore-scripts',
    // `npm publish --dry-run` hands its flag down through the environment.
    '--dry-run=false',
    '--pack-destination',
    work,
  ];
  try {
    await run(npm[0], args, { cwd: work, maxBuffer: 1 << 24 });
  } catch (error) {
    throw new Error(`npm could not fetch ${pin.package}@${pin.version}: ${error.stderr || error.message}`);
  }
  const file = (await readdir(work)).find((name) => name.endsWith('.tgz'));
  if (!file) throw new Error(`npm pack of ${pin.package}@${pin.version} left no tarball`);
  return join(work, file);
}

async function verify(tarball, pin) {
  const [algorithm, expected] = pin.integrity.split(/-(.*)/s);
  const hash = createHash(algorithm);
  for await (const chunk of createReadStream(tarball)) hash.update(chunk);
  const actual = hash.digest('base64');
  if (actual !== expected) {
    throw new Error(
      `${pin.package}@${pin.version} does not have the pinned integrity and was refused.\n` +
        `  expected ${pin.integrity}\n  got      ${algorithm}-${actual}\n` +
        'The download is damaged or was tampered with; try again, and report it if it stays so.',
    );
  }
}

/** Git sees neither the user's configuration nor the repository a hook runs in, so that neither changes the outcome. */
export async function git(args, options = {}) {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('GIT_'));
  const isolation = { GIT_CONFIG_GLOBAL: '/dev/null', GIT_CONFIG_SYSTEM: '/dev/null' };
  const env = { ...Object.fromEntries(inherited), ...isolation, ...options.env };
  try {
    return await run('git', args, { maxBuffer: 1 << 24, ...options, env });
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
    throw new Error('git is needed to unpack llama.cpp and was not found; install it.', { cause: error });
  }
}

async function keep(from, to, lock) {
  const wanted = (path) =>
    lock.keep.some((pattern) => path === pattern || path.startsWith(`${pattern}/`) || globs(path, pattern)) &&
    !lock.drop.includes(path);
  const { stdout } = await git(['-C', from, 'ls-files', '-z']);
  for (const path of stdout.split('\0').filter(Boolean).filter(wanted)) {
    await mkdir(dirname(join(to, path)), { recursive: true });
    await cp(join(from, path), join(to, path), { preserveTimestamps: true });
  }
}

/** `dir/*.*` matches the files of one folder. */
function globs(path, pattern) {
  if (!pattern.endsWith('/*.*')) return false;
  const dir = pattern.slice(0, -4);
  return path.startsWith(`${dir}/`) && /^[^/]+\.[^/]+$/.test(path.slice(dir.length + 1));
}

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  ensureSources({ log: (line) => console.error(line) }).catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
