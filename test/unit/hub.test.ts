/** Models of the hub: which files a name means, how they come here, and what is said when they do not. */
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { DownloadBar } from '../../lib/cli/hub-model.js';
import type { Output } from '../../lib/cli/terminal.js';
import { download } from '../../lib/hub/download.js';
import { listModels, type PullOptions, type PullProgress, pullModel } from '../../lib/hub/pull.js';
import { parseReference } from '../../lib/hub/reference.js';
import { chooseVariant, variantName, variantsOf } from '../../lib/hub/variants.js';
import { bytes, rejection, useHub } from '../support/hub.js';

const files = (...paths: string[]) => paths.map((path, i) => ({ path, size: 100 + i, sha256: null }));

describe('a reference', () => {
  it.each([
    ['Qwen/Qwen2.5-0.5B-Instruct-GGUF', { repo: 'Qwen/Qwen2.5-0.5B-Instruct-GGUF', variant: undefined }],
    ['a/b:Q4_K_M', { repo: 'a/b', variant: 'Q4_K_M' }],
    ['https://huggingface.co/a/b', { repo: 'a/b', variant: undefined }],
    ['hf://a/b:q8_0', { repo: 'a/b', variant: 'q8_0' }],
  ])('%s names a repository', (text, expected) => {
    expect(parseReference(text)).toEqual(expected);
  });

  it.each(['', 'a', 'a/b/c', '../b', 'a/..', 'a/b:', 'a/b:../c', 'a b/c', '/a/b', 'a/b\0', 'https://evil.example/a/b'])(
    '%j names none',
    (text) => {
      expect(() => parseReference(text)).toThrow(expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT' }));
    },
  );
});

describe('the variants of a repository', () => {
  it('are told apart by the quantization in the names of the files', () => {
    const found = variantsOf(
      files(
        'm-q4_k_m.gguf',
        'm-Q8_0.gguf',
        'm.BF16.gguf',
        'm-UD-IQ1_S.gguf',
        'plain.gguf',
        'mmproj-F16.gguf',
        'README.md',
      ),
    );
    expect(found.map(({ name }) => name).sort()).toEqual(['BF16', 'Q4_K_M', 'Q8_0', 'UD-IQ1_S', 'plain']);
  });

  it('have names that a reference can hold', () => {
    expect(variantName('a b (1).gguf')).toBe('a-b-1-');
    expect(variantName('sub/.gguf')).toBeUndefined();
    for (const path of ['a b.gguf', '@@.gguf', `${'x'.repeat(200)}.gguf`, `m-Q4${'_K'.repeat(100)}.gguf`]) {
      const variant = variantName(path) as string;
      expect(parseReference(`a/b:${variant}`)).toEqual({ repo: 'a/b', variant });
    }
  });

  it('are whole: a split model has all of its files, in order', () => {
    const found = variantsOf(
      files('Q8/m-Q8_0-00002-of-00002.gguf', 'Q8/m-Q8_0-00001-of-00002.gguf', 'm-Q2_K-00001-of-00003.gguf'),
    );
    expect(found).toHaveLength(1);
    expect(found[0]).toMatchObject({ name: 'Q8_0', bytes: 201 });
    expect(found[0]?.files.map(({ path }) => path)).toEqual([
      'Q8/m-Q8_0-00001-of-00002.gguf',
      'Q8/m-Q8_0-00002-of-00002.gguf',
    ]);
  });

  it('are chosen by name, else as llama.cpp does', () => {
    const found = variantsOf(files('m-Q2_K.gguf', 'm-Q4_K_M.gguf', 'm-Q8_0.gguf'));
    expect(chooseVariant(found, 'q8_0')?.name).toBe('Q8_0');
    expect(chooseVariant(found, undefined)?.name).toBe('Q4_K_M');
    expect(chooseVariant(found.slice(0, 1), undefined)?.name).toBe('Q2_K');
    expect(chooseVariant(found, 'Q5_0')).toBeUndefined();
    expect(chooseVariant([], undefined)).toBeUndefined();
  });
});

describe('pulling', () => {
  const rig = useHub();
  const data = bytes(40_000);

  it('puts the file in its place and says how far it is', async () => {
    const progress: PullProgress[] = [];
    const pulled = await rig.pull('owner/tiny-GGUF', { onProgress: (p) => progress.push(p) });
    expect(pulled).toEqual({
      reference: 'owner/tiny-GGUF:Q4_K_M',
      path: join(rig.directory, 'owner/tiny-GGUF/tiny-q4_k_m.gguf'),
      bytes: data.length,
    });
    expect((await readFile(pulled.path)).equals(data)).toBe(true);
    expect(progress.at(-1)).toEqual({ file: 'tiny-q4_k_m.gguf', bytes: data.length, total: data.length });
    expect(progress.map((p) => p.bytes)).toEqual(progress.map((p) => p.bytes).sort((a, b) => a - b));
    expect(await readdir(dirname(pulled.path))).toEqual(['tiny-q4_k_m.gguf']);
  });

  it('downloads nothing the second time, and needs no hub then', async () => {
    await rig.pull('owner/tiny-GGUF:Q8_0');
    rig.hub.requests.length = 0;
    await rig.pull('owner/tiny-GGUF:q8_0');
    expect(rig.hub.downloads).toEqual([]);
    await rig.hub.close();
    const warnings: string[] = [];
    const offline = await rig.pull('owner/tiny-GGUF:Q8_0', { onWarning: (text) => warnings.push(text) });
    expect((await stat(offline.path)).size).toBe(60_000);
    expect(warnings).toEqual([expect.stringMatching(/cannot be reached .*; using what was downloaded before$/)]);
    expect((await rejection(rig.pull('owner/tiny-GGUF:Q4_K_M'))).code).toBe('DROID_DOWNLOAD_FAILED');
  });

  it('goes on where a connection was cut', async () => {
    rig.hub.cuts.push(15_000, 5000);
    const warnings: string[] = [];
    const pulled = await rig.pull('owner/tiny-GGUF', { onWarning: (text) => warnings.push(text) });
    expect((await readFile(pulled.path)).equals(data)).toBe(true);
    expect(rig.hub.downloads.map(({ range }) => range)).toEqual([undefined, 'bytes=15000-39999', 'bytes=20000-39999']);
    expect(warnings).toHaveLength(2);
  });

  it('goes on where it was aborted, also in another process', async () => {
    const abort = new AbortController();
    rig.hub.beforePiece = (sent) => {
      if (sent >= 20_000) abort.abort(new Error('enough'));
      return new Promise((resolve) => setTimeout(resolve, 20));
    };
    expect((await rejection(rig.pull('owner/tiny-GGUF', { signal: abort.signal }))).message).toBe('enough');
    const part = join(rig.directory, 'owner/tiny-GGUF/tiny-q4_k_m.gguf.part');
    const there = (await stat(part)).size;
    expect(there).toBeGreaterThan(0);
    expect(await listModels({ directory: rig.directory })).toEqual([]);
    expect(await readdir(dirname(part))).toEqual(['tiny-q4_k_m.gguf.part']);
    rig.hub.requests.length = 0;
    rig.hub.beforePiece = () => {};
    const progress: number[] = [];
    const pulled = await rig.pull('owner/tiny-GGUF', { onProgress: (p) => progress.push(p.bytes) });
    expect(rig.hub.downloads.map(({ range }) => range)).toEqual([`bytes=${there}-39999`]);
    expect(progress[0]).toBe(there);
    expect((await readFile(pulled.path)).equals(data)).toBe(true);
  });

  it.each([0, 1000])('can be aborted between two files, with %i bytes of the second', async (there) => {
    const [first, second] = ['big-Q8_0-00001-of-00002.gguf', 'big-Q8_0-00002-of-00002.gguf'] as const;
    rig.hub.repos.set('owner/split', [
      { path: first, data: bytes(3000) },
      { path: second, data: bytes(2000, 5) },
    ]);
    const target = join(rig.directory, 'owner/split', second);
    await mkdir(dirname(target), { recursive: true });
    await writeFile(`${target}.part`, bytes(there, 5));
    const abort = new AbortController();
    const onProgress = (progress: PullProgress) => {
      if (progress.bytes === 3000) abort.abort(new Error('enough'));
    };
    expect((await rejection(rig.pull('owner/split', { signal: abort.signal, onProgress }))).message).toBe('enough');
    const access = { url: rig.hub.url, signal: abort.signal };
    const file = { path: second, size: 2000, sha256: null };
    const direct = download({ access, repo: 'owner/split', file, target, onProgress: () => {} });
    expect((await rejection(direct)).message).toBe('enough');
    // What is uncaught comes after the rejection.
    await new Promise((resolve) => setImmediate(resolve));
    expect((await readdir(dirname(target))).sort()).toEqual([first, `${second}.part`]);
  });

  it('keeps nothing whose hash is wrong', async () => {
    rig.hub.repos.set('owner/bad', [{ path: 'bad.gguf', data, sha256: 'a'.repeat(64) }]);
    const error = await rejection(rig.pull('owner/bad'));
    expect(error.code).toBe('DROID_DOWNLOAD_FAILED');
    expect(error.message).toContain(`the hub says ${'a'.repeat(64)}`);
    expect(await readdir(join(rig.directory, 'owner/bad'))).toEqual([]);
  });

  it('starts over when what is there cannot be the beginning', async () => {
    const part = join(rig.directory, 'owner/tiny-GGUF/tiny-q4_k_m.gguf.part');
    await mkdir(dirname(part), { recursive: true });
    await writeFile(part, Buffer.alloc(50_000));
    expect((await readFile((await rig.pull('owner/tiny-GGUF')).path)).equals(data)).toBe(true);
  });

  it('pulls all files of a split model, and loads it by the first', async () => {
    rig.hub.repos.set('owner/split', [
      { path: 'big-Q8_0-00001-of-00002.gguf', data: bytes(3000) },
      { path: 'big-Q8_0-00002-of-00002.gguf', data: bytes(2000, 5) },
    ]);
    const progress: number[] = [];
    const pulled = await rig.pull('owner/split', { onProgress: (p) => progress.push(p.bytes) });
    expect(pulled).toMatchObject({ bytes: 5000, reference: 'owner/split:Q8_0' });
    expect(pulled.path).toMatch(/-00001-of-00002\.gguf$/);
    expect(progress.at(-1)).toBe(5000);
    expect(await readdir(dirname(pulled.path))).toHaveLength(2);
  });

  it('shows its token to a gated repository, and says what is missing without one', async () => {
    rig.hub.gated.set('owner/tiny-GGUF', 'hf_secret');
    const error = await rejection(rig.pull('owner/tiny-GGUF'));
    expect(error).toMatchObject({
      code: 'DROID_MODEL_NOT_FOUND',
      message: expect.stringContaining('needs a token (HF_TOKEN)'),
    });
    await rig.pull('owner/tiny-GGUF', { hubToken: 'hf_secret' });
    expect(rig.hub.downloads.at(-1)?.authorization).toBe('Bearer hf_secret');
    const refused = await rejection(rig.pull('owner/tiny-GGUF:Q8_0', { hubToken: 'hf_other' }));
    expect(refused.message).toContain('the token does not open it');
    expect(refused.message).not.toContain('hf_other');
  });

  it('lists what there is instead of a name that is not there', async () => {
    expect((await rejection(rig.pull('owner/tiny-GGUF:Q9_X'))).message).toBe(
      'owner/tiny-GGUF has no Q9_X. It has Q4_K_M (40 kB), Q8_0 (60 kB).',
    );
    expect((await rejection(rig.pull('other/tiny-GGUF'))).message).toMatch(
      /does not exist.*There are: owner\/tiny-GGUF$/,
    );
    rig.hub.repos.set('owner/none', [{ path: 'README.md', data }]);
    expect((await rejection(rig.pull('owner/none'))).message).toContain('holds no GGUF model');
  });

  it('does not start what the disk has no room for', async () => {
    rig.hub.repos.set('owner/huge', [{ path: 'huge.gguf', data, size: 2 ** 52 }]);
    const error = await rejection(rig.pull('owner/huge'));
    expect(error).toMatchObject({
      code: 'DROID_DISK_FULL',
      message: expect.stringMatching(/needs 4503599\.6 GB more, and [\d.]+ [GM]B are free/),
    });
    expect(rig.hub.downloads).toEqual([]);
  });

  it('gives up when no byte comes over several tries, or a server cannot resume', async () => {
    const file = { path: 'tiny-q4_k_m.gguf', size: data.length, sha256: null };
    const options = {
      access: { url: rig.hub.url },
      repo: 'owner/tiny-GGUF',
      file,
      target: join(rig.directory, 'x.gguf'),
    };
    rig.hub.cuts.push(0, 0, 0, 0);
    const error = await rejection(download({ ...options, onProgress: () => {}, retryDelaysMs: [1, 1] }));
    expect(error.code).toBe('DROID_DOWNLOAD_FAILED');
    expect(rig.hub.downloads).toHaveLength(3);
    rig.hub.cuts.splice(0, 4, 1000);
    rig.hub.ignoresRanges = true;
    const stuck = await rejection(download({ ...options, onProgress: () => {}, retryDelaysMs: [1, 1] }));
    expect(stuck.message).toContain('cannot resume');
  });

  it('takes a connection that falls silent for a broken one', async () => {
    const file = { path: 'tiny-q4_k_m.gguf', size: data.length, sha256: null };
    const target = join(rig.directory, 'x.gguf');
    let silent = true;
    rig.hub.beforePiece = (sent) => (silent && sent >= 20_000 ? new Promise(() => {}) : undefined);
    const why: string[] = [];
    await download({
      access: { url: rig.hub.url },
      repo: 'owner/tiny-GGUF',
      file,
      target,
      onProgress: () => {},
      onRetry: (text) => {
        silent = false;
        why.push(text);
      },
      retryDelaysMs: [1],
      stallMs: 200,
    });
    expect(why).toEqual(['nothing came for 0.2 s']);
    expect((await readFile(target)).equals(data)).toBe(true);
  });

  it.each([
    [{ hubUrl: 'ftp://x' }, 'hubUrl'],
    [{ directory: '' }, 'directory'],
    [{ tokens: 'x' }, 'tokens'],
  ])('refuses %j', async (options, named) => {
    expect(await rejection(pullModel('a/b', options as PullOptions))).toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringContaining(named),
    });
  });
});

describe('the bar of a download', () => {
  const MB = 1_000_000;
  /** What is written for these bytes, a second apart each. */
  function draw(stream: Partial<Output>, ...bytes: number[]): string {
    const written: string[] = [];
    let now = 0;
    const bar = new DownloadBar({ write: (text: string) => written.push(text) > 0, ...stream } as Output, () => now);
    for (const done of bytes) {
      bar.update({ file: 'm.gguf', bytes: done, total: 500 * MB });
      now += 1000;
    }
    bar.clear();
    return written.join('');
  }

  it('says how much is there, how fast it comes and how long it takes', () => {
    const lines = draw({ isTTY: true, columns: 80 }, 0, 10 * MB, 20 * MB).split('\r\x1b[2K');
    expect(lines).toEqual([
      '',
      '[--------------------] 0% 0 kB of 500 MB',
      '[--------------------] 2% 10 MB of 500 MB, 10 MB/s, 0:49 left',
      '[#-------------------] 4% 20 MB of 500 MB, 10 MB/s, 0:48 left',
      '',
    ]);
  });

  it('fits a phone, and says when nothing comes', () => {
    const lines = draw({ isTTY: true, columns: 30 }, 0, 10 * MB, ...Array(8).fill(20 * MB)).split('\r\x1b[2K');
    expect(lines.filter((line) => line.length > 29)).toEqual([]);
    expect(draw({ isTTY: true, columns: 80 }, 0, ...Array(8).fill(20 * MB))).toContain('20 MB of 500 MB, waiting');
  });

  it('is lines where there is no terminal, and nothing when all is there', () => {
    expect(draw({}, 0, 40 * MB, 60 * MB, 200 * MB)).toBe('downloading: 10% of 500 MB\ndownloading: 40% of 500 MB\n');
    expect(draw({}, 500 * MB)).toBe('');
  });
});
