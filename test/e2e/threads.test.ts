/** More threads than cores: as slow as taking turns makes it, not by a time slice of the system at every barrier. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';
import { projectRoot, tinyModel } from '../support/paths.js';

const run = promisify(execFile);

/** Tokens/s of a short generation on one core. */
async function onOneCore(threads: number): Promise<number> {
  const [core = ''] = /^Cpus_allowed_list:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.slice(1) ?? [];
  const bench = [join(projectRoot, 'dist/cli/main.js'), 'bench', '-m', tinyModel, '-t', `${threads}`];
  const tests = ['-p', '0', '-n', '8', '-r', '1', '-o', 'json'];
  const { stdout } = await run('taskset', ['-c', core, process.execPath, ...bench, ...tests]);
  return JSON.parse(stdout).cases[0].generations[0].tokensPerSecond.median;
}

it.skipIf(process.platform !== 'linux')('two threads on one core let each other run', async () => {
  // Measured: a thirtieth; without making room a two-thousandth.
  expect(await onOneCore(2)).toBeGreaterThan((await onOneCore(1)) / 300);
});
