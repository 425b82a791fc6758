// The fault loops in full length: each fault strikes again and again, in one process for each file.
//
//   node test/faults/run.mjs                          50 times each
//   node test/faults/run.mjs --iterations 200 --only 'between graph and read'
//
// Wants the addon and dist built (node scripts/build.mjs && npm run prepare). Prints what memory did in each loop.
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const { values } = parseArgs({
  options: { iterations: { type: 'string', default: '50' }, only: { type: 'string' } },
});
const iterations = Number(values.iterations);
if (!Number.isInteger(iterations) || iterations < 1) throw new Error(`--iterations ${values.iterations} is no count`);

const args = ['run', '--project', 'faults', '--reporter=verbose'];
if (values.only) args.push('--testNamePattern', values.only);
const { status } = spawnSync(join(root, 'node_modules/.bin/vitest'), args, {
  cwd: root,
  stdio: 'inherit',
  env: { ...process.env, DROID_FAULT_ITERATIONS: String(iterations), DROID_FAULT_USAGE: '1' },
});
process.exitCode = status ?? 1;
