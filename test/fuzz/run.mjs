// Fuzzes what comes from the network: the server's messages (session) and the client's answers (connection).
//
//   node test/fuzz/run.mjs [--seconds 30] [--target session|connection]
//   node test/fuzz/run.mjs --record    also starts from conversations recorded anew
//   node test/fuzz/run.mjs --merge     replaces corpus/ by a small set of inputs that reaches most of what was reached
//
// Runs each target on the inputs in corpus/ and then on what libFuzzer makes of them, for that many seconds. New inputs
// collect in build/fuzz/corpus, those that fail in build/fuzz/findings: exit code 1. Exit code 3: there is no clang.
import { spawn, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { buildWithCores } from '../cores/build.mjs';
import { root } from '../support/cmake.mjs';

const here = dirname(fileURLToPath(import.meta.url));

const out = join(root, 'build', 'fuzz');
const TARGETS = ['session', 'connection'];

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '30' },
    target: { type: 'string' },
    record: { type: 'boolean', default: false },
    merge: { type: 'boolean', default: false },
  },
});
if (!/^\d+$/.test(values.seconds)) fail(`--seconds is ${values.seconds}; give a number`);
if (values.target && !TARGETS.includes(values.target))
  fail(`--target is ${values.target}; give ${TARGETS.join(' or ')}`);

// In memory where that is to be had: the session target makes and removes files thousands of times. What a target that
// fails leaves there goes as well.
const shm = '/dev/shm';
const temporary = mkdtempSync(join(existsSync(shm) ? shm : tmpdir(), 'droid-llama-fuzz-'));
process.on('exit', () => rmSync(temporary, { recursive: true, force: true }));
const env = {
  ...process.env,
  TMPDIR: temporary,
  // Sizes that no machine has must fail as they do without a sanitizer.
  ASAN_OPTIONS: 'allocator_may_return_null=1',
  UBSAN_OPTIONS: 'print_stacktrace=1',
};

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(2);
}

/** Whether clang is there, and the libFuzzer that Debian packs apart from it. */
function hasFuzzer() {
  const source = join(temporary, 'empty.cc');
  writeFileSync(source, 'extern "C" int LLVMFuzzerTestOneInput(const char *, unsigned long) { return 0; }\n');
  const args = ['-fsanitize=fuzzer,address,undefined', source, '-o', join(temporary, 'empty')];
  return spawnSync('clang++', args, { stdio: 'ignore' }).status === 0;
}

function execute(program, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    const read = (chunk) => {
      output = (output + chunk).slice(-200_000);
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ ok: code === 0, how: signal ?? `exit code ${code}`, output }));
  });
}

function directory(...names) {
  const path = join(...names);
  mkdirSync(path, { recursive: true });
  return path;
}

function report(name, { how, output }) {
  const [, input] = /Test unit written to (\S+)/.exec(output) ?? [];
  const begin = output.search(/^==\d+==|runtime error:|^SUMMARY|^INFO: .*(?:hot|crash)/m);
  console.log(output.slice(Math.max(0, begin - 2000)).slice(0, 20_000));
  console.log(`${name}: failed (${how})${input ? `, with the input ${relative(root, input)}` : ''}`);
  process.exitCode = 1;
}

async function fuzz(target) {
  const program = join(out, `fuzz_${target}`);
  const committed = directory(here, 'corpus', target);
  const found = directory(out, 'corpus', target);
  const prefix = `-artifact_prefix=${directory(out, 'findings')}/${target}-`;
  const common = [prefix, '-rss_limit_mb=2048', '-timeout=10', '-max_len=65536'];

  const known = await execute(program, [...common, '-runs=0', committed]);
  if (!known.ok) return report(`${target}, corpus`, known);
  const inputs = readdirSync(committed).length;
  const seconds = `-max_total_time=${values.seconds}`;
  const result = await execute(program, [...common, seconds, '-print_final_stats=1', found, committed]);
  if (!result.ok) return report(target, result);
  const [, runs = '0'] = /stat::number_of_executed_units: (\d+)/.exec(result.output) ?? [];
  const [, coverage = '0'] = [...result.output.matchAll(/ cov: (\d+)/g)].at(-1) ?? [];
  console.log(`${target}: ${inputs} inputs of the corpus and ${runs} runs, ${coverage} edges covered, nothing found`);
  if (values.merge) await merge(target, program, committed, found);
}

/** What is committed of a target's inputs, at most: those with a name and the smallest that reach something else. */
const LIMITS = { session: { files: 160, bytes: 400_000 }, connection: { files: 60, bytes: 40_000 } };

async function merge(target, program, committed, found) {
  const merged = join(out, 'merged', target);
  rmSync(merged, { recursive: true, force: true });
  directory(merged);
  // It goes from small inputs to large ones.
  const result = await execute(program, ['-merge=1', '-use_counters=0', '-timeout=10', merged, committed, found]);
  if (!result.ok) return report(`${target}, merge`, result);
  // Conversations that were recorded, and inputs that once failed.
  const named = readdirSync(committed).filter((name) =>
    /^(op-|extended$|plain$|level1$|shared$|restarted$|upstream-cache$|regression-)/.test(name),
  );
  for (const name of readdirSync(committed)) if (!named.includes(name)) rmSync(join(committed, name));
  let left = LIMITS[target].bytes;
  for (const name of named) left -= statSync(join(committed, name)).size;
  const sizes = readdirSync(merged).map((name) => ({ name, size: statSync(join(merged, name)).size }));
  for (const { name, size } of sizes.sort((a, b) => a.size - b.size).slice(0, LIMITS[target].files - named.length)) {
    left -= size;
    if (left < 0) break;
    copyFileSync(join(merged, name), join(committed, name));
  }
  console.log(`${target}: the corpus now has ${readdirSync(committed).length} inputs`);
}

if (!hasFuzzer()) {
  console.error(
    'clang with libFuzzer is not here; try: apt-get install clang libclang-rt-dev llvm (Debian), or your system’s clang and compiler-rt',
  );
  process.exit(3);
}
await buildWithCores({
  source: here,
  out,
  label: 'test/fuzz',
  defines: { CMAKE_C_COMPILER: 'clang', CMAKE_CXX_COMPILER: 'clang++' },
});
if (values.record) {
  const recorded = await execute(join(out, 'seeds'), [directory(out, 'corpus')]);
  if (!recorded.ok) report('seeds', recorded);
}
for (const target of values.target ? [values.target] : TARGETS) await fuzz(target);
