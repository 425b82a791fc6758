// The patched copy of llama.cpp that is compiled. The sources in vendor/llama.cpp (or DROID_LLAMA_CPP_DIR) are never
// edited; vendor/patches/*.patch are applied to build/llama.cpp, and only files whose content changed are replaced
// there, so that an unchanged file keeps its time stamp and is not compiled again.
import { createHash } from 'node:crypto';
import { cp, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ensureSources, git, readLock } from '../vendor/fetch.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const STAMP = '.patched';

/**
 * @param {{ log?: (line: string) => void }} [options]
 * @returns {Promise<string>} the directory to compile, absolute
 */
export async function preparePatchedSources({ log = () => {} } = {}) {
  const source = await ensureSources({ log });
  const target = join(root, 'build', 'llama.cpp');
  const patchDir = join(root, 'vendor', 'patches');
  const patches = (await readdir(patchDir)).filter((name) => name.endsWith('.patch')).sort();

  const hash = createHash('sha256').update(source);
  for (const patch of patches) hash.update(await readFile(join(patchDir, patch)));
  const files = await listFiles(source, (await readLock()).keep);
  for (const file of files) {
    const { size, mtimeMs } = await stat(join(source, file));
    hash.update(`${file}\0${size}\0${mtimeMs}\0`);
  }
  const want = hash.digest('hex');
  const have = await readFile(join(target, STAMP), 'utf8').catch(() => '');
  if (have === want) return target;

  log(`preparing llama.cpp with ${patches.length} ${patches.length === 1 ? 'patch' : 'patches'}`);
  const fresh = `${target}.new`;
  await rm(fresh, { recursive: true, force: true });
  for (const file of files) {
    await mkdir(dirname(join(fresh, file)), { recursive: true });
    await cp(join(source, file), join(fresh, file));
  }
  // Inside a repository git apply skips files it thinks belong to the repository; the ceiling hides ours from it.
  const env = { GIT_CEILING_DIRECTORIES: dirname(fresh) };
  for (const patch of patches) {
    try {
      await git(['apply', '--whitespace=nowarn', join(patchDir, patch)], { cwd: fresh, env });
    } catch (error) {
      throw new Error(`vendor/patches/${patch} does not apply to ${source}: ${error.stderr || error.message}`);
    }
  }
  await replaceChanged(fresh, target);
  await rm(fresh, { recursive: true, force: true });
  await writeFile(join(target, STAMP), want);
  return target;
}

/** Files below `dir` that the lock keeps; a local checkout may hold much more. */
async function listFiles(dir, keep) {
  const found = [];
  for (const pattern of keep) {
    const flat = pattern.endsWith('/*.*');
    const path = flat ? pattern.slice(0, -4) : pattern;
    const info = await stat(join(dir, path)).catch(() => undefined);
    if (!info) continue;
    if (info.isFile()) found.push(path);
    else await walk(dir, path, !flat, found);
  }
  return found.sort();
}

async function walk(dir, path, deep, found) {
  for (const entry of await readdir(join(dir, path), { withFileTypes: true })) {
    const child = `${path}/${entry.name}`;
    if (entry.isFile()) found.push(child);
    else if (deep && entry.isDirectory()) await walk(dir, child, deep, found);
  }
}

async function replaceChanged(from, to) {
  const wanted = [];
  await walk(from, '.', true, wanted);
  for (const file of wanted) {
    const [a, b] = await Promise.all([readFile(join(from, file)), readFile(join(to, file)).catch(() => undefined)]);
    if (b && a.equals(b)) continue;
    await mkdir(dirname(join(to, file)), { recursive: true });
    await rename(join(from, file), join(to, file));
  }
  const keep = new Set(wanted);
  const present = [];
  await walk(to, '.', true, present);
  for (const file of present) if (!keep.has(file)) await rm(join(to, file));
}
