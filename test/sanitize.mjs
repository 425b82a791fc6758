// Builds the C++ cores' tests with sanitizers and runs every one of them.
//
//   node test/sanitize.mjs                      address,undefined and then thread
//   node test/sanitize.mjs thread [address …]   these; names joined by a comma go into one build
//
// Exit code 3: the compiler has no such sanitizer.
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { buildCores } from './cores/build.mjs';

const wanted = process.argv.slice(2);
const sanitizers = wanted.length > 0 ? wanted : ['address,undefined', 'thread'];

/** What the sanitizers' runtimes are told. Sizes that no machine has must fail as they do without a sanitizer. */
const env = {
  ...process.env,
  ASAN_OPTIONS: 'allocator_may_return_null=1:detect_stack_use_after_return=1',
  UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
  TSAN_OPTIONS: 'allocator_may_return_null=1',
};

/** Whether a program can be compiled and linked with it. */
function available(sanitizer) {
  const dir = mkdtempSync(join(tmpdir(), 'droid-llama-sanitize-'));
  try {
    const source = join(dir, 'empty.cc');
    writeFileSync(source, 'int main() {}\n');
    const compiler = process.env.CXX || 'c++';
    const args = [`-fsanitize=${sanitizer}`, source, '-o', join(dir, 'empty')];
    return spawnSync(compiler, args, { stdio: 'ignore' }).status === 0;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

function execute(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    child.stderr.on('data', (chunk) => (output += chunk));
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ ok: code === 0, how: signal ?? `exit code ${code}`, output }));
  });
}

async function run(program) {
  const result = await execute(program, []);
  // Older ThreadSanitizers find no place for their shadow where the kernel scatters mappings widely.
  if (result.ok || !result.output.includes('unexpected memory mapping')) return result;
  return execute('setarch', ['-R', program]);
}

let failed = 0;
let passed = 0;
for (const sanitizer of sanitizers) {
  if (!available(sanitizer)) {
    console.error(`the compiler has no -fsanitize=${sanitizer}`);
    process.exit(3);
  }
  const programs = await buildCores({ sanitize: sanitizer });
  for (const program of programs) {
    const { ok, how, output } = await run(program);
    // Those against upstream's server need DROID_RPC_SERVER, and say so.
    const skipped = output.match(/^skipped:/gm)?.length ?? 0;
    const count = (output.match(/^ok /gm)?.length ?? 0) - skipped;
    const passes = `${count} ok${skipped > 0 ? `, ${skipped} skipped` : ''}`;
    console.log(`${sanitizer} ${basename(program)}: ${ok ? passes : `failed, ${how}`}`);
    passed += count;
    if (ok) continue;
    failed++;
    console.log(output.slice(-20_000));
  }
}
console.log(`${passed} tests passed, ${failed} programs failed`);
process.exitCode = failed === 0 ? 0 : 1;
