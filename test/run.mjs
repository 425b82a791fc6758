// `npm test`: lint, formats, types, the build, then every vitest project. Ends with a line `N passed, N failed`.
//
//   npm test                    everything
//   npm test -- unit native     only these vitest projects, and no lint
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const projects = process.argv.slice(2);
const counts = { passed: 0, failed: 0, skipped: 0 };

function run(command, args) {
  return spawnSync(command, args, { cwd: root, stdio: 'inherit' }).status ?? 1;
}

function step(name, command, args) {
  console.log(`\n== ${name}`);
  const status = run(command, args);
  if (status === 0) counts.passed++;
  else if (status === 3 && !process.env.CI) {
    // A tool that only developers need; in CI its absence is a failure.
    console.log(`skipped: ${name}`);
    counts.skipped++;
  } else {
    counts.failed++;
    console.log(`failed: ${name}`);
  }
  return status === 0;
}

const bin = (name) => join(root, 'node_modules/.bin', name);
if (projects.length === 0) {
  step('lint and format, TypeScript', bin('biome'), ['check', '--error-on-warnings']);
  step('format, C++', process.execPath, ['scripts/clang-format.mjs', '--check']);
  step('types', bin('tsc'), ['--noEmit']);
}
// What is tested is what the sources say, also after an edit: both are quick when nothing changed.
const built =
  step('addon', process.execPath, ['scripts/build.mjs']) && step('dist', process.execPath, ['scripts/bundle.mjs']);
if (built) {
  const report = join(root, 'build/test/report.json');
  mkdirSync(dirname(report), { recursive: true });
  rmSync(report, { force: true });
  const selected = projects.flatMap((name) => ['--project', name]);
  console.log('\n== vitest');
  const status = run(bin('vitest'), [
    'run',
    ...selected,
    '--reporter=default',
    '--reporter=json',
    `--outputFile=${report}`,
  ]);
  try {
    const result = JSON.parse(readFileSync(report, 'utf8'));
    counts.passed += result.numPassedTests;
    counts.failed += result.numFailedTests;
    counts.skipped += result.numPendingTests;
    // A file that does not even load fails no test of its own; neither does an error between tests.
    if (status !== 0 && result.numFailedTests === 0) counts.failed++;
  } catch {
    counts.failed++;
  }
}
const skipped = counts.skipped ? `, ${counts.skipped} skipped` : '';
console.log(`\n${counts.passed} passed, ${counts.failed} failed${skipped}`);
process.exitCode = counts.failed === 0 ? 0 : 1;
