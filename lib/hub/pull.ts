/** Getting a model from the Hugging Face hub onto this device. */
import { stat, statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { DroidLlamaError } from '../errors.js';
import { sizeText } from '../size-text.js';
import { invalid, knownKeys, optionalString, plainObject } from '../validate.js';
import { listStored, modelsDir, removeStored, repoDir, type StoredModel, storedVariants } from './model-store.js';
import { formatReference, type ModelReference, parseReference } from './reference.js';
import type { HubAccess } from './repository.js';
import { chooseVariant, type Variant, variantsOf } from './variants.js';

export interface PullOptions {
  /** An access token of the hub, for gated and private models. Default: the environment's HF_TOKEN. */
  hubToken?: string;
  /** Default: the environment's HF_ENDPOINT, or https://huggingface.co. */
  hubUrl?: string;
  /** Where models are kept. Default: `models` in this package's directory below the user's cache, as XDG names it. */
  directory?: string;
  onProgress?: (progress: PullProgress) => void;
  /** Told what does not end the download: a connection that broke, a hub that could not be asked. */
  onWarning?: (text: string) => void;
  /** Ends it; what was downloaded stays for the next time. */
  signal?: AbortSignal;
}

export interface PullProgress {
  /** That is being downloaded, as the repository names it. */
  readonly file: string;
  /** Of all files of the model, on the disk and in all. */
  readonly bytes: number;
  readonly total: number;
}

export interface PulledModel {
  /** With the quantization that was taken. */
  readonly reference: string;
  /** What a model is loaded by, absolute: the first file where there are several. */
  readonly path: string;
  readonly bytes: number;
}

const OPTION_NAMES = ['hubToken', 'hubUrl', 'directory', 'onProgress', 'onWarning', 'signal'] as const;
/** What stays free beside the model. */
const SPARE_BYTES = 64 * 2 ** 20;
/** More is a list, not a message. */
const MOST_NAMED = 40;

/**
 * Downloads a model, or finds it where it was downloaded before: `await pullModel('Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M')`.
 * Without a quantization it is Q4_K_M, else the first there is. A download that was broken off goes on where it ended. What
 * was downloaded is checked against the hub's SHA-256.
 *
 * Rejects with `DROID_INVALID_ARGUMENT`, `DROID_MODEL_NOT_FOUND` (its message lists what there is), `DROID_DISK_FULL` (before
 * anything is downloaded, where it is known), `DROID_DOWNLOAD_FAILED` or the signal's reason.
 */
export async function pullModel(reference: string, options: PullOptions = {}): Promise<PulledModel> {
  const models = checkOptions(options);
  const access = hubAccess(options);
  const wanted = parseReference(reference);
  access.signal?.throwIfAborted();
  return onDisk(models, access.signal, () => pull(wanted, options, access, models));
}

async function pull(
  wanted: ModelReference,
  options: PullOptions,
  access: HubAccess,
  models: string,
): Promise<PulledModel> {
  const variant = await findVariant(wanted, access, models, options.onWarning);
  const total = variant.bytes;
  const directory = repoDir(models, wanted.repo);
  const places = variant.files.map((file) => ({ file, target: join(directory, ...file.path.split('/')) }));
  const { download, partBytes } = await import('./download.js');
  await checkSpace(places, directory, partBytes);

  let before = 0;
  for (const { file, target } of places) {
    access.signal?.throwIfAborted();
    const onProgress = (bytes: number) => options.onProgress?.({ file: file.path, bytes: before + bytes, total });
    if (!(await isThere(target, file.size))) {
      const onRetry = (why: string) => options.onWarning?.(`the download broke off (${why}); going on`);
      await download({ access, repo: wanted.repo, file, target, onProgress, onRetry });
    }
    before += file.size;
    options.onProgress?.({ file: file.path, bytes: before, total });
  }
  return {
    reference: formatReference({ repo: wanted.repo, variant: variant.name }),
    path: places[0]?.target as string,
    bytes: total,
  };
}

/** The models that were pulled. */
export async function listModels(options: Pick<PullOptions, 'directory'> = {}): Promise<StoredModel[]> {
  const models = checkOptions(options);
  return onDisk(models, undefined, () => listStored(models));
}

/**
 * Removes a model that was pulled; without a quantization, all of its repository.
 * @returns the bytes that were freed. Rejects with `DROID_MODEL_NOT_FOUND`.
 */
export async function removeModel(reference: string, options: Pick<PullOptions, 'directory'> = {}): Promise<number> {
  const models = checkOptions(options);
  const wanted = parseReference(reference);
  const bytes = await onDisk(models, undefined, () => removeStored(models, wanted));
  if (bytes > 0) return bytes;
  const stored = (await listStored(models)).map((model) => model.reference);
  const there = stored.length > 0 ? `there are ${stored.join(', ')}` : 'there are no models';
  throw new DroidLlamaError('DROID_MODEL_NOT_FOUND', `${reference} is not on this device; ${there}.`);
}

/** Returns the directory of the models. */
function checkOptions(options: PullOptions): string {
  plainObject('options', options);
  knownKeys('options', options, OPTION_NAMES);
  return optionalString('directory', options.directory) ?? modelsDir();
}

function hubAccess({ hubUrl, hubToken, signal }: PullOptions): HubAccess {
  const text = optionalString('hubUrl', hubUrl) ?? (process.env.HF_ENDPOINT || 'https://huggingface.co');
  const token = optionalString('hubToken', hubToken) ?? (process.env.HF_TOKEN?.trim() || undefined);
  // Neither is shown: a token is secret, and an address may hold a password.
  if (!isHubUrl(text)) {
    invalid(
      `${hubUrl === undefined ? 'HF_ENDPOINT' : 'hubUrl'} is no address of a hub; it must begin with https:// and hold no password.`,
    );
  }
  if (token !== undefined && !/^hf_[!-~]+$/.test(token)) {
    invalid(`${hubToken === undefined ? 'HF_TOKEN' : 'hubToken'} is no token of the hub; those begin with hf_.`);
  }
  return { url: text.replace(/\/+$/, ''), token, signal };
}

/** fetch() refuses a user name in an address, and says it whole then. */
function isHubUrl(text: string): boolean {
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) return false;
  const { username, password } = new URL(text);
  return username === '' && password === '';
}

async function findVariant(
  wanted: ModelReference,
  access: HubAccess,
  models: string,
  onWarning: PullOptions['onWarning'],
): Promise<Variant> {
  // Here, not above: who imports this package and pulls nothing need not wait for the hub's library.
  const { listModelFiles } = await import('./repository.js');
  let variants: Variant[];
  try {
    variants = variantsOf(await listModelFiles(wanted, access));
  } catch (error) {
    // Without a network what is there does.
    const stored = chooseVariant(await storedVariants(models, wanted.repo), wanted.variant);
    if (!stored || !(error instanceof DroidLlamaError) || error.code !== 'DROID_DOWNLOAD_FAILED') throw error;
    onWarning?.(`${error.message}; using what was downloaded before`);
    return stored;
  }
  const variant = chooseVariant(variants, wanted.variant);
  if (variant) return variant;
  throw new DroidLlamaError(
    'DROID_MODEL_NOT_FOUND',
    variants.length === 0
      ? `${wanted.repo} holds no GGUF model. Repositories that do mostly have GGUF in their names.`
      : `${wanted.repo} has no ${wanted.variant}. It has ${variants
          .slice(0, MOST_NAMED)
          .map(({ name, bytes }) => `${name} (${sizeText(bytes)})`)
          .join(', ')}.`,
  );
}

async function checkSpace(
  places: readonly { file: { size: number }; target: string }[],
  directory: string,
  partBytes: (target: string) => Promise<number>,
): Promise<void> {
  let missing = 0;
  for (const { file, target } of places) {
    if (!(await isThere(target, file.size))) missing += Math.max(0, file.size - (await partBytes(target)));
  }
  const free = await freeBytes(directory);
  if (missing === 0 || free === undefined || missing + SPARE_BYTES <= free) return;
  throw new DroidLlamaError(
    'DROID_DISK_FULL',
    `The model needs ${sizeText(missing)} more, and ${sizeText(free)} are free in ${directory}. Remove models with ` +
      '`droid-llama models rm`, take a smaller quantization, or set XDG_CACHE_HOME to a larger disk.',
  );
}

/** Of the nearest directory that exists; undefined where the system does not tell. */
async function freeBytes(directory: string): Promise<number | undefined> {
  for (let path = directory; ; path = dirname(path)) {
    try {
      const { bavail, bsize } = await statfs(path);
      return bavail * bsize;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || path === dirname(path)) return undefined;
    }
  }
}

/** Gives what the file system refuses a code. */
async function onDisk<T>(models: string, signal: AbortSignal | undefined, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    signal?.throwIfAborted();
    const { code, message } = error as NodeJS.ErrnoException;
    if (error instanceof DroidLlamaError || !(error instanceof Error) || !code) throw error;
    throw new DroidLlamaError(
      code === 'ENOSPC' || code === 'EDQUOT' ? 'DROID_DISK_FULL' : 'DROID_DOWNLOAD_FAILED',
      `Models are kept in ${models}, which does not work: ${message}. XDG_CACHE_HOME names another place.`,
      { cause: error },
    );
  }
}

async function isThere(path: string, size: number): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.size === size;
}
