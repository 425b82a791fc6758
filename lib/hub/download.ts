/** One file of the hub, downloaded into its place: resumed after a break, checked, and never there in part. */
import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { downloadFile, HubApiError } from '@huggingface/hub';
import { DroidLlamaError } from '../errors.js';
import { linkSignals } from '../link-signals.js';
import { fetchWith } from './fetch.js';
import { lock } from './lock.js';
import { explain, type HubAccess, systemCodes } from './repository.js';
import type { ModelFile } from './variants.js';

export interface DownloadOptions {
  readonly access: HubAccess;
  readonly repo: string;
  readonly file: ModelFile;
  /** Where it goes; what is not whole yet is beside it, with `.part` after its name. */
  readonly target: string;
  /** Gets the bytes that are on the disk now. */
  readonly onProgress: (bytes: number) => void;
  /** Told when a connection breaks and is tried again. */
  readonly onRetry?: (why: string) => void;
  /** Milliseconds before each further try; there are no more tries than these without a byte in between. */
  readonly retryDelaysMs?: readonly number[];
  /** Milliseconds without a byte after which a connection counts as broken. */
  readonly stallMs?: number;
}

const STALL_MS = 30_000;
/** At once, of what is there already. */
const HASHED_BYTES = 2 ** 20;
const RETRY_DELAYS_MS = [500, 1000, 2000, 4000, 8000, 15_000];

/** Bytes of a download that was broken off. */
export async function partBytes(target: string): Promise<number> {
  return (await stat(partOf(target)).catch(() => undefined))?.size ?? 0;
}

/** Rejects with `DROID_DOWNLOAD_FAILED`, `DROID_DISK_FULL`, `DROID_MODEL_NOT_FOUND` or the signal's reason. */
export async function download(options: DownloadOptions): Promise<void> {
  const { target, file, access, repo } = options;
  const { signal } = access;
  await mkdir(dirname(target), { recursive: true });
  const unlock = await lock(target);
  try {
    const hash = createHash('sha256');
    const handle = await open(partOf(target), 'a+');
    try {
      let done = await hashPart(handle, file, hash, signal);
      options.onProgress(done);
      const delays = options.retryDelaysMs ?? RETRY_DELAYS_MS;
      for (let failures = 0; done < file.size; ) {
        const before = done;
        try {
          for await (const chunk of bytesFrom(options, done)) {
            if (done + chunk.length > file.size) throw new Error('it sends more than the file has');
            await write(handle, chunk);
            hash.update(chunk);
            done += chunk.length;
            options.onProgress(done);
          }
          if (done < file.size) throw new Error('the connection ended early');
        } catch (error) {
          signal?.throwIfAborted();
          failures = done > before ? 0 : failures;
          const delay = delays[failures++];
          if (delay === undefined || isFinal(error)) throw await explain(error, { repo }, access);
          options.onRetry?.(error instanceof Error ? error.message : String(error));
          await sleep(delay, undefined, { signal }).catch(() => signal?.throwIfAborted());
        }
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    const found = hash.digest('hex');
    if (file.sha256 !== null && found !== file.sha256) {
      await rm(partOf(target), { force: true });
      throw new DroidLlamaError(
        'DROID_DOWNLOAD_FAILED',
        `${file.path} is damaged: its SHA-256 is ${found}, and the hub says ${file.sha256}. What was downloaded is removed; try again.`,
      );
    }
    await rename(partOf(target), target);
  } finally {
    await unlock();
  }
}

function partOf(target: string): string {
  return `${target}.part`;
}

/** What is there of the file already; starts over when that is more than there can be. */
async function hashPart(handle: FileHandle, file: ModelFile, hash: Hash, signal?: AbortSignal): Promise<number> {
  const { size } = await handle.stat();
  if (size > file.size) {
    await handle.truncate(0);
    return 0;
  }
  const buffer = Buffer.allocUnsafe(HASHED_BYTES);
  for (let at = 0; ; ) {
    signal?.throwIfAborted();
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, at);
    if (bytesRead === 0) return at;
    hash.update(buffer.subarray(0, bytesRead));
    at += bytesRead;
  }
}

async function* bytesFrom(options: DownloadOptions, offset: number): AsyncGenerator<Uint8Array> {
  const { access, repo, file, stallMs = STALL_MS } = options;
  const silence = new AbortController();
  const stalled = () => silence.abort(new Error(`nothing came for ${stallMs / 1000} s`));
  const timer = setTimeout(stalled, stallMs);
  const all = linkSignals(access.signal, silence.signal);
  const plain = fetchWith(access, all.signal);
  let failure: unknown;
  const checked: typeof fetch = async (input, init) => {
    try {
      const response = await plain(input, init);
      const ranged = new Headers(init?.headers).has('range');
      if (ranged && response.ok && response.status !== 206) throw new Error('the server cannot resume a download');
      return response;
    } catch (error) {
      failure = error; // the library hands on no more than its text
      throw error;
    }
  };
  try {
    const blob = await downloadFile({
      repo,
      path: file.path,
      // The other way to large files is a protocol of its own, in which nothing can be resumed.
      xet: false,
      hubUrl: access.url,
      accessToken: access.token,
      fetch: checked,
    });
    if (!blob) throw new DroidLlamaError('DROID_MODEL_NOT_FOUND', `${file.path} is not in ${repo} any more.`);
    if (blob.size !== file.size) {
      throw new DroidLlamaError('DROID_DOWNLOAD_FAILED', `${file.path} changed on the hub meanwhile; try again.`);
    }
    for await (const chunk of blob.slice(offset).stream() as unknown as AsyncIterable<Uint8Array>) {
      timer.refresh();
      yield chunk;
    }
  } catch (error) {
    access.signal?.throwIfAborted();
    silence.signal.throwIfAborted();
    throw failure ?? error;
  } finally {
    clearTimeout(timer);
    all.unlink();
  }
}

async function write(handle: FileHandle, chunk: Uint8Array): Promise<void> {
  try {
    for (let written = 0; written < chunk.length; ) {
      written += (await handle.write(chunk, written, chunk.length - written)).bytesWritten;
    }
  } catch (cause) {
    const full = ['ENOSPC', 'EDQUOT'].includes((cause as NodeJS.ErrnoException).code ?? '');
    throw new DroidLlamaError(
      full ? 'DROID_DISK_FULL' : 'DROID_DOWNLOAD_FAILED',
      full
        ? 'The disk is full; what was downloaded stays, and the same command goes on with it.'
        : `Cannot write: ${(cause as Error).message}`,
      { cause },
    );
  }
}

/** What another try would not change. */
function isFinal(error: unknown): boolean {
  if (error instanceof DroidLlamaError) return true;
  // What fetch() itself refuses, a redirect without an end or to a file, has no system's error below it.
  if (error instanceof TypeError && error.cause instanceof Error) return systemCodes(error.cause).length === 0;
  return error instanceof HubApiError && error.statusCode >= 400 && error.statusCode < 500 && error.statusCode !== 429;
}
