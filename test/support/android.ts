/** Running an addon for Android in a Node for Linux on arm64, over a library that gives it bionic's names. */
import { execFile, spawnSync } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type ApiSymbol, readApi, versionScript } from '../../android/api.mjs';
import { onArm64 } from './arm64.js';
import { cacheDir, projectRoot } from './paths.js';

const run = promisify(execFile);
const source = join(projectRoot, 'test/android/bionic-on-glibc.c');
const directory = join(cacheDir, 'bionic-on-glibc');
/** The first has all of the code; the others hand on to it. */
const LIBRARIES = ['libc.so', 'libm.so', 'libdl.so'];

/** Why nothing can be built for Android here, or undefined. */
export function noAndroid(): string | undefined {
  const missing = ['clang++-19', 'ld.lld-19', 'llvm-objcopy-19'].filter(
    (command) => spawnSync(command, ['--version']).error !== undefined,
  );
  return missing.length > 0 ? `${missing.join(' and ')} not found` : undefined;
}

/** Compiles libc.so, libm.so and libdl.so with the names of bionic's; returns their directory. */
export async function buildBionic(): Promise<string> {
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { recursive: true });
  const code = await readFile(source, 'utf8');
  const defined = new Set(
    [...code.matchAll(/^BIONIC\([^,]*, (\w+)|^DATA .* __asm__\("(\w+)"\)/gm)].map(([, name, data]) => name ?? data),
  );
  const api = readApi();
  for (const soname of LIBRARIES) {
    const symbols = api.filter((symbol) => symbol.soname === soname && (!symbol.data || defined.has(symbol.name)));
    const assembly = join(directory, `${soname}.S`);
    const script = join(directory, `${soname}.map`);
    await writeFile(assembly, trampolines(symbols.filter(({ name }) => !defined.has(name))));
    await writeFile(script, `${versionScript(symbols)}HANDED_ON { global: bionic_lookup; };\n`);
    const rest = soname === 'libc.so' ? [source] : [join(directory, 'libc.so')];
    await run('aarch64-linux-gnu-gcc', [
      ...['-shared', '-fPIC', '-O2', '-fvisibility=hidden', '-Wall', '-Wno-builtin-declaration-mismatch'],
      ...[`-Wl,-soname,${soname}`, `-Wl,--version-script,${script}`, '-Wl,-z,now'],
      ...['-o', join(directory, soname), assembly, ...rest],
    ]);
  }
  return directory;
}

/** A function of each name that jumps to glibc's, which is looked up when it is called for the first time. */
function trampolines(symbols: readonly ApiSymbol[]): string {
  const text = symbols.map(({ name }, i) => [
    '.text',
    `.globl ${name}`,
    `.type ${name}, %function`,
    `${name}:`,
    `  adrp x16, target_${i}`,
    `  ldr x16, [x16, :lo12:target_${i}]`,
    '  br x16',
    '.data',
    '.balign 8',
    `target_${i}: .xword lookup_${i}`,
    '.text',
    `lookup_${i}:`,
    `  adrp x16, name_${i}`,
    `  add x16, x16, :lo12:name_${i}`,
    `  adrp x17, target_${i}`,
    `  add x17, x17, :lo12:target_${i}`,
    '  b lookup',
    '.section .rodata',
    `name_${i}: .asciz "${name}"`,
  ]);
  return `${text.flat().join('\n')}\n${LOOKUP}`;
}

/** x16: the name, x17: where the address goes; all that a call may pass in registers is kept. */
const LOOKUP = `
.text
lookup:
  stp x29, x30, [sp, #-224]!
  mov x29, sp
  stp x0, x1, [sp, #16]
  stp x2, x3, [sp, #32]
  stp x4, x5, [sp, #48]
  stp x6, x7, [sp, #64]
  stp x8, x17, [sp, #80]
  stp q0, q1, [sp, #96]
  stp q2, q3, [sp, #128]
  stp q4, q5, [sp, #160]
  stp q6, q7, [sp, #192]
  mov x0, x16
  bl bionic_lookup
  mov x16, x0
  ldp x8, x17, [sp, #80]
  str x16, [x17]
  ldp q6, q7, [sp, #192]
  ldp q4, q5, [sp, #160]
  ldp q2, q3, [sp, #128]
  ldp q0, q1, [sp, #96]
  ldp x6, x7, [sp, #64]
  ldp x4, x5, [sp, #48]
  ldp x2, x3, [sp, #32]
  ldp x0, x1, [sp, #16]
  ldp x29, x30, [sp], #224
  br x16
`;

/** The command line of a Node for Linux on arm64 that loads addons for Android. */
export function onAndroid(processor: Parameters<typeof onArm64>[0], bionic: string, ...command: string[]) {
  const [program, ...args] = onArm64(processor, ...command);
  return [program, '-E', `LD_LIBRARY_PATH=${bionic}`, ...args] as [string, ...string[]];
}
