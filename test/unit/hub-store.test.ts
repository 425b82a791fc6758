/** Models of the hub on this device's disk: locked while they come, listed and removed. */
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, it } from 'vitest';
import { listModels, removeModel } from '../../lib/hub/pull.js';
import { bytes, rejection, useHub } from '../support/hub.js';

const rig = useHub();
const data = bytes(40_000);

it('lets one process at a time write a file', async () => {
  const target = join(rig.directory, 'owner/tiny-GGUF/tiny-q4_k_m.gguf');
  await mkdir(dirname(target), { recursive: true });
  await writeFile(`${target}.lock`, String(process.ppid));
  expect((await rejection(rig.pull('owner/tiny-GGUF'))).message).toContain(`Process ${process.ppid} is downloading`);
  expect((await rejection(rig.pull('owner/tiny-GGUF'))).message).toContain(`remove ${target}.lock`);
  await writeFile(`${target}.lock`, String(2 ** 30)); // of a process that is gone
  expect((await rig.pull('owner/tiny-GGUF')).path).toBe(target);
});

it('knows a process from another one that has its number now', async () => {
  const target = join(rig.directory, 'owner/tiny-GGUF/tiny-q4_k_m.gguf');
  let lock = '';
  rig.hub.beforePiece = async () => {
    lock ||= await readFile(`${target}.lock`, 'utf8');
  };
  await rig.pull('owner/tiny-GGUF');
  expect(lock).toMatch(new RegExp(`^${process.pid} \\d+$`));
  await rm(target);
  await writeFile(`${target}.lock`, lock);
  expect((await rejection(rig.pull('owner/tiny-GGUF'))).message).toContain(`Process ${process.pid} is downloading`);
  await writeFile(`${target}.lock`, `${lock}0`);
  expect((await rig.pull('owner/tiny-GGUF')).path).toBe(target);
});

it('says where models are kept when that place does not work', async () => {
  await writeFile(join(rig.directory, 'owner'), 'no directory');
  expect(await rejection(rig.pull('owner/tiny-GGUF'))).toMatchObject({
    code: 'DROID_DOWNLOAD_FAILED',
    message: expect.stringMatching(/^Models are kept in .*, which does not work: ENOTDIR/),
  });
});

it('lists and removes what was pulled', async () => {
  await rig.pull('owner/tiny-GGUF:Q4_K_M');
  await rig.pull('owner/tiny-GGUF:Q8_0');
  const models = await listModels({ directory: rig.directory });
  expect(models.map(({ reference, bytes: size }) => [reference, size])).toEqual([
    ['owner/tiny-GGUF:Q4_K_M', 40_000],
    ['owner/tiny-GGUF:Q8_0', 60_000],
  ]);
  expect(await removeModel('owner/tiny-GGUF:q8_0', { directory: rig.directory })).toBe(60_000);
  expect(await rejection(removeModel('owner/tiny-GGUF:Q8_0', { directory: rig.directory }))).toMatchObject({
    code: 'DROID_MODEL_NOT_FOUND',
    message: expect.stringContaining('there are owner/tiny-GGUF:Q4_K_M'),
  });
  expect(await removeModel('owner/tiny-GGUF', { directory: rig.directory })).toBe(40_000);
  expect(await readdir(rig.directory)).toEqual([]);
  expect(await listModels({ directory: join(rig.directory, 'never') })).toEqual([]);
});

it('removes what was broken off by its full name', async () => {
  await rig.pull('owner/tiny-GGUF:Q8_0');
  const beside = (name: string) => writeFile(join(rig.directory, 'owner/tiny-GGUF', name), 'part');
  await beside('tiny-q4_k_m.gguf.part');
  await beside('tiny-q4_k_m.gguf.lock');
  expect(await removeModel('owner/tiny-GGUF:Q4_K_M', { directory: rig.directory })).toBe(8);
  await beside('tiny-Q2_K-00001-of-00002.gguf');
  await beside('tiny-Q2_K-00002-of-00002.gguf.part');
  expect(await removeModel('owner/tiny-GGUF:Q2_K', { directory: rig.directory })).toBe(8);
  expect(await readdir(join(rig.directory, 'owner/tiny-GGUF'))).toEqual(['tiny-q8_0.gguf']);
});

it('lists only what the commands take', async () => {
  rig.hub.repos.set('owner/odd', [
    { path: 'a b.gguf', data },
    { path: '.gguf', data },
  ]);
  expect((await rig.pull('owner/odd:a-b')).path).toBe(join(rig.directory, 'owner/odd/a b.gguf'));
  await mkdir(join(rig.directory, 'owner/b c'));
  for (const path of ['x.gguf', 'owner/x.gguf', 'owner/b c/x.gguf', 'owner/odd/.gguf'])
    await writeFile(join(rig.directory, path), data);
  expect((await listModels({ directory: rig.directory })).map(({ reference }) => reference)).toEqual(['owner/odd:a-b']);
  expect(await removeModel('owner/odd:a-b', { directory: rig.directory })).toBe(40_000);
});
