// Makes the addons that the package carries, in prebuilds/.
//
//   node scripts/prebuild.mjs                  of every machine in prebuild-targets.mjs
//   node scripts/prebuild.mjs linux-arm64 …    of these
//   node scripts/prebuild.mjs --check          makes nothing: says what is missing or would not load, for publishing
//
// Each has the CPU backend at every level of native/cpu/levels.cmake, and passes the gate of elf.mjs.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { compile } from './cmake.mjs';
import { checkElf, outlineAtomics } from './elf.mjs';
import { TARGETS } from './prebuild-targets.mjs';
import { answers } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** @param {string} name of a target */
async function prebuild(name) {
  const target = TARGETS[name];
  if (!answers(target.compiler.command)) {
    throw new Error(`${name} needs ${target.compiler.command}. Install with:  apt-get install ${target.compiler.apt}`);
  }
  const flags = { DROID_PREBUILT: 'ON', CMAKE_BUILD_TYPE: 'Release' };
  for (const [flag, value] of Object.entries(target.flags)) {
    flags[flag] = flag === 'CMAKE_TOOLCHAIN_FILE' ? join(root, value) : value;
  }
  await compile(`prebuild-${name}`, flags, async (addon, note) => {
    const helpers = outlineAtomics(addon);
    if (helpers.length > 0) throw new Error(`${name} holds outline atomics: ${helpers.join(', ')}`);
    const file = join(root, 'prebuilds', target.file);
    await mkdir(dirname(file), { recursive: true });
    // Rename, not overwrite: a process that has the old one mapped must keep its pages.
    await copyFile(addon, `${file}.new`);
    execFileSync(target.strip, ['--strip-all', `${file}.new`]);
    try {
      refuse(name, `${file}.new`);
    } catch (error) {
      await rm(`${file}.new`);
      throw error;
    }
    await rename(`${file}.new`, file);
    note(`built prebuilds/${target.file}, ${await sizes(file)}`);
  });
}

/** Throws what is wrong with an addon. @param {string} name of its target @param {string} file */
function refuse(name, file) {
  const wrong = checkElf(file, TARGETS[name].elf, [root]);
  if (wrong.length > 0) throw new Error(`${file} would not do for ${name}:\n  ${wrong.join('\n  ')}`);
}

async function sizes(file) {
  const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
  return `${mib((await stat(file)).size)} MiB, ${mib(gzipSync(readFileSync(file)).length)} MiB packed`;
}

/** Whether each target is there and passes the gate. */
async function check() {
  for (const [name, { file }] of Object.entries(TARGETS)) {
    const path = join(root, 'prebuilds', file);
    if (!existsSync(path)) {
      throw new Error(
        `prebuilds/${file} is missing, and without it ${name} would compile for minutes: npm run prebuild`,
      );
    }
    refuse(name, path);
    console.log(`prebuilds/${file}: ${await sizes(path)}`);
  }
}

async function main() {
  const { values, positionals } = parseArgs({ options: { check: { type: 'boolean' } }, allowPositionals: true });
  const unknown = positionals.find((name) => !(name in TARGETS));
  if (unknown) throw new Error(`there is no target ${unknown}; there are ${Object.keys(TARGETS).join(', ')}`);
  if (values.check) return check();
  for (const name of positionals.length > 0 ? positionals : Object.keys(TARGETS)) await prebuild(name);
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
