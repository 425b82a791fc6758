/** The models on this device's disk, as they were pulled: <cache>/models/<owner>/<name>/<path of the file>. */
import { readdir, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, relative, sep } from 'node:path';
import { cacheDir } from '../user-dirs.js';
import { formatReference, isRepo, type ModelReference } from './reference.js';
import { type ModelFile, type Variant, variantName, variantsOf } from './variants.js';

export interface StoredModel {
  /** As {@link pullModel} takes it. */
  readonly reference: string;
  /** What a model is loaded by, absolute. */
  readonly path: string;
  readonly bytes: number;
  /** Of the latest of its files, in milliseconds since 1970. */
  readonly pulledAt: number;
}

export function modelsDir(): string {
  return join(cacheDir(), 'models');
}

export function repoDir(models: string, repo: string): string {
  return join(models, ...repo.split('/'));
}

/** What is there of a repository, whole files only. */
export async function storedVariants(models: string, repo: string): Promise<Variant[]> {
  const directory = repoDir(models, repo);
  const files: ModelFile[] = [];
  for (const path of await filesBelow(directory)) {
    const { size } = await stat(join(directory, path));
    files.push({ path: path.split(sep).join('/'), size, sha256: null });
  }
  return variantsOf(files);
}

/** By reference. Empty where nothing was ever pulled. */
export async function listStored(models: string): Promise<StoredModel[]> {
  // What somebody laid elsewhere below is of no repository.
  const below = (await filesBelow(models)).map((path) => path.split(sep)).filter(({ length }) => length > 2);
  const repos = new Set(below.map((path) => path.slice(0, 2).join('/')));
  const found: StoredModel[] = [];
  for (const repo of [...repos].filter(isRepo).sort()) {
    for (const { name, files, bytes } of await storedVariants(models, repo)) {
      const paths = files.map(({ path }) => join(repoDir(models, repo), path));
      const times = await Promise.all(paths.map(async (path) => (await stat(path)).mtimeMs));
      const reference = formatReference({ repo, variant: name });
      found.push({ reference, path: paths[0] as string, bytes, pulledAt: Math.max(...times) });
    }
  }
  return found;
}

/** Removes all that a reference names, what is not whole included; returns the bytes that were freed. */
export async function removeStored(models: string, { repo, variant }: ModelReference): Promise<number> {
  const directory = repoDir(models, repo);
  const isNamed = (path: string) => {
    const model = basename(path).replace(/\.(part|lock)$/, '');
    return variant === undefined || variantName(model)?.toUpperCase() === variant.toUpperCase();
  };
  const paths = (await allBelow(directory)).filter(isNamed);
  let bytes = 0;
  for (const path of paths) {
    bytes += (await stat(path)).size;
    await rm(path);
  }
  await removeEmpty(directory, models);
  return bytes;
}

async function filesBelow(directory: string): Promise<string[]> {
  const all = await allBelow(directory);
  return all.map((path) => relative(directory, path)).filter((path) => /\.gguf$/i.test(path));
}

async function allBelow(directory: string): Promise<string[]> {
  try {
    const entries = await readdir(directory, { recursive: true, withFileTypes: true });
    return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

/** Directories without files, from the deepest up, as far as `top`. */
async function removeEmpty(directory: string, top: string): Promise<void> {
  const below = await readdir(directory, { recursive: true, withFileTypes: true }).catch(() => []);
  const inside = below.filter((entry) => entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name));
  const upward = [directory, dirname(directory)].filter((path) => path !== top && path.startsWith(top));
  for (const path of [...inside.sort((a, b) => b.length - a.length), ...upward]) await rmdir(path).catch(() => {});
}
