/** What a repository of the hub holds, asked of the hub. Nothing that it answers is trusted. */
import { HubApiError, listFiles, listModels } from '@huggingface/hub';
import { errorParts } from '../connect-errors.js';
import { DroidLlamaError } from '../errors.js';
import { fetchPages } from './fetch.js';
import { formatReference, type ModelReference } from './reference.js';
import type { ModelFile } from './variants.js';

export interface HubAccess {
  /** Of the hub, without a slash at the end. */
  readonly url: string;
  /** A user's access token, for gated and private repositories. */
  readonly token?: string;
  readonly signal?: AbortSignal;
}

const SIMILAR = 5;
const MOST_FILES = 10_000;
const PATH = /^(?!\/)(?!.*(?:^|\/)\.{1,2}(?:\/|$))[\w.+ ()@=,/-]{1,512}$/;

/** The GGUF files of a repository. Rejects with `DROID_MODEL_NOT_FOUND`, `DROID_DOWNLOAD_FAILED` or the signal's reason. */
export async function listModelFiles(reference: ModelReference, access: HubAccess): Promise<ModelFile[]> {
  const files: ModelFile[] = [];
  let seen = 0;
  try {
    const options = { repo: reference.repo, recursive: true, hubUrl: access.url, accessToken: access.token };
    for await (const { type, path, size, lfs } of listFiles({ ...options, fetch: fetchPages(access) })) {
      if (++seen > MOST_FILES) break;
      if (type !== 'file' || typeof path !== 'string' || !/\.gguf$/i.test(path) || !PATH.test(path)) continue;
      const bytes = lfs?.size ?? size;
      if (!Number.isSafeInteger(bytes) || bytes < 1) continue;
      const oid = String(lfs?.oid);
      files.push({ path, size: bytes, sha256: /^[0-9a-f]{64}$/.test(oid) ? oid : null });
    }
  } catch (error) {
    access.signal?.throwIfAborted();
    throw await explain(error, reference, access);
  }
  return files;
}

/** Gives an error of asking the hub its code, and says what to do. */
export async function explain(error: unknown, reference: ModelReference, access: HubAccess): Promise<DroidLlamaError> {
  if (error instanceof DroidLlamaError) return error;
  const what = formatReference(reference);
  if (error instanceof HubApiError) {
    // The hub does not tell strangers whether a repository is private or not there.
    if (error.statusCode === 401 || error.statusCode === 403) {
      const similar = await similarRepos(reference, access);
      const hint = access.token
        ? 'the token does not open it; a gated model has to be asked for on its page first'
        : 'it does not exist, or it is gated or private and needs a token (HF_TOKEN)';
      return new DroidLlamaError('DROID_MODEL_NOT_FOUND', `${what}: ${hint}${similar}`, { cause: error });
    }
    if (error.statusCode === 404) {
      const similar = await similarRepos(reference, access);
      return new DroidLlamaError('DROID_MODEL_NOT_FOUND', `${what} is not on ${access.url}${similar}`, {
        cause: error,
      });
    }
    const text = `${access.url} answered ${error.statusCode}: ${printable(error.message)}`;
    return new DroidLlamaError('DROID_DOWNLOAD_FAILED', `${what}: ${text}`, { cause: error });
  }
  // What fetch() throws has the system's error below it.
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  if (!(cause instanceof Error))
    return new DroidLlamaError('DROID_DOWNLOAD_FAILED', `${what}: ${printable(String(cause))}`);
  const codes = systemCodes(cause);
  const why =
    codes.length > 0
      ? `${access.url} cannot be reached (${codes.join(', ')}). Is this device online?`
      : `the download ended: ${printable(cause.message)}`;
  return new DroidLlamaError('DROID_DOWNLOAD_FAILED', `${what}: ${why}`, { cause: error });
}

/** Empty where it was not the system or the network that failed. */
export function systemCodes(error: Error): string[] {
  return errorParts(error).flatMap(({ code }) => code ?? []);
}

/** Names that look like the one that is not there, as the end of a message. */
async function similarRepos({ repo }: ModelReference, access: HubAccess): Promise<string> {
  const query = (repo.split('/')[1] ?? repo).replace(/-GGUF$/i, '');
  const names: string[] = [];
  try {
    const found = listModels({
      search: { query, tags: ['gguf'] },
      limit: SIMILAR,
      hubUrl: access.url,
      fetch: fetchPages(access),
    });
    for await (const { name } of found) if (/^[\w.-]+\/[\w.-]+$/.test(name)) names.push(name);
  } catch {
    // The first error says more.
  }
  return names.length > 0 ? `. There are: ${names.slice(0, SIMILAR).join(', ')}` : '';
}

/** Text from the network, short and fit for a terminal. */
function printable(text: string): string {
  const flat = text.replace(/\p{Cc}+/gu, ' ');
  return flat.length > 300 ? `${flat.slice(0, 300)}…` : flat;
}
