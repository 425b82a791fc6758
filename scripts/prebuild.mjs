// Makes the addons that the package carries, in prebuilds/.
//
//   node scripts/prebuild.mjs                  of every machine in prebuild-targets.mjs that can be made here
//   node scripts/prebuild.mjs linux-arm64 …    of these
//   node scripts/prebuild.mjs --check          makes nothing: says what is missing or would not load, for publishing
//
// Each has the CPU backend at every level of native/cpu/levels.cmake, and passes the gate of elf.mjs or macho.mjs.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { prepareSysroot } from '../android/sysroot.mjs';
import { compile } from './cmake.mjs';
import { checkElf, madeWithNdk, outlineAtomics } from './elf.mjs';
import { checkMacho } from './macho.mjs';
import { TARGETS, WITHOUT_NDK } from './prebuild-targets.mjs';
import { presetVariables } from './presets.mjs';
import { answers } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

const HELP = `Makes the addons that the package carries, in prebuilds/<platform>-<arch>/. Also \`npm run prebuild\`.

Usage: npm run prebuild [-- options] [target...]

Targets, of which all that can be made here are made when none is named:
${Object.entries(TARGETS)
  .map(([name, { madeOn }]) => `  ${name.padEnd(16)}on ${madeOn}`)
  .join('\n')}

  --check     make nothing: say what is missing or would not load, for publishing
  -h, --help  this

ANDROID_NDK_HOME is where Google's NDK is. Without it, the one for Android is an experiment; see docs/prebuilds.md.

Examples:
  $ npm run prebuild
  $ npm run prebuild -- linux-arm64 android-arm64
  $ npm run prebuild -- --check
`;

/** @param {string} name of a target */
async function prebuild(name) {
  const target = TARGETS[name];
  if (target.madeOn !== process.platform)
    throw new Error(`${name} is made on ${target.madeOn}, not ${process.platform}`);
  const { command, apt } = target.compiler;
  if (!answers(command)) {
    throw new Error(
      `${name} needs ${command}${apt ? `. Install with:  apt-get install ${apt}` : ', which is not there'}`,
    );
  }
  if (target.preset === WITHOUT_NDK) {
    console.error(
      'droid-llama: ANDROID_NDK_HOME is not set, so this one is made without an NDK, and not to be published',
    );
    await prepareSysroot({ log: (line) => console.error(`droid-llama: ${line}`) });
  }
  await compile(`prebuild-${target.preset}`, presetVariables(target.preset), async (addon, note) => {
    const helpers = target.elf ? outlineAtomics(addon) : [];
    if (helpers.length > 0) throw new Error(`${name} holds outline atomics: ${helpers.join(', ')}`);
    const file = join(root, 'prebuilds', target.file);
    await mkdir(dirname(file), { recursive: true });
    // Rename, not overwrite: a process that has the old one mapped must keep its pages.
    await copyFile(addon, `${file}.new`);
    try {
      if (target.strip) execFileSync(target.strip, ['--strip-all', `${file}.new`]);
      const wrong = check(target, `${file}.new`);
      if (wrong.length > 0) throw new Error(`${file} would not do for ${name}:\n  ${wrong.join('\n  ')}`);
      await rename(`${file}.new`, file);
    } finally {
      await rm(`${file}.new`, { force: true });
    }
    note(`built prebuilds/${target.file}, ${await sizes(file)}`);
  });
}

async function sizes(file) {
  const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
  return `${mib((await stat(file)).size)} MiB, ${mib(gzipSync(readFileSync(file)).length)} MiB packed`;
}

/** What is wrong with an addon. @param {import('./prebuild-targets.mjs').Target} target @param {string} file */
function check({ elf, macho }, file) {
  try {
    return elf ? checkElf(file, elf, [root]) : checkMacho(file, macho, [root]);
  } catch (error) {
    return [
      `it cannot be read: ${error.code === 'ENOENT' ? 'readelf is missing (apt-get install binutils)' : error.message}`,
    ];
  }
}

/** Prints what is there, and throws what publishing would miss. */
async function checkAll() {
  const wrong = [];
  for (const [name, target] of Object.entries(TARGETS)) {
    const { file, madeOn } = target;
    const path = join(root, 'prebuilds', file);
    if (!existsSync(path)) {
      wrong.push(
        `prebuilds/${file} is missing, and ${name} would compile for minutes: npm run prebuild -- ${name}, on ${madeOn}`,
      );
      continue;
    }
    console.log(`prebuilds/${file}: ${await sizes(path)}`);
    const refused = check(target, path);
    wrong.push(...refused.map((line) => `prebuilds/${file}: ${line}`));
    if (refused.length === 0 && name.startsWith('android') && !madeWithNdk(path)) {
      wrong.push(
        `prebuilds/${file} was made without an NDK, which is for trying: set ANDROID_NDK_HOME, npm run prebuild`,
      );
    }
  }
  if (wrong.length > 0) throw new Error(`this package is not to be published:\n  ${wrong.join('\n  ')}`);
}

async function main() {
  const { values, positionals } = parseArgs({
    options: { check: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } },
    allowPositionals: true,
  });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const unknown = positionals.find((name) => !Object.hasOwn(TARGETS, name));
  if (unknown) throw new Error(`there is no target ${unknown}; there are ${Object.keys(TARGETS).join(', ')}`);
  if (values.check) return checkAll();
  const here = Object.keys(TARGETS).filter((name) => TARGETS[name].madeOn === process.platform);
  for (const name of positionals.length > 0 ? positionals : here) await prebuild(name);
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  if (error.code?.startsWith('ERR_PARSE_ARGS')) console.error('see npm run prebuild -- --help');
  process.exitCode = 1;
});
