/** The short run of the fuzz targets: the committed inputs, and a few seconds of new ones. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { projectRoot } from '../support/paths.js';

const NO_CLANG = 3;
const seconds = 15;

it.for(['session', 'connection'])(
  'finds nothing in the %s target',
  // The first build with sanitizers takes minutes.
  { timeout: 20 * 60_000 },
  async (target, { skip }) => {
    const script = join(projectRoot, 'test/fuzz/run.mjs');
    const child = spawn(process.execPath, [script, '--seconds', String(seconds), '--target', target]);
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (chunk) => {
        output += chunk;
      });
    }
    const code = await new Promise((resolve) => child.on('close', resolve));
    // A developer may be without clang; CI installs it.
    if (code === NO_CLANG && !process.env.CI) skip(output);
    expect(code, output).toBe(0);
    expect(output).toMatch(/and [1-9]\d* runs, [1-9]\d* edges covered, nothing found/);
  },
);
