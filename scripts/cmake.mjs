// Configures and compiles the addon with CMake, with its progress on the terminal. CMake is the only real build; cmake-js
// hands it the Node-API headers. A second run compiles what changed.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, writeSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { availableParallelism, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readLock } from '../vendor/fetch.mjs';
import { buildEnvironment } from './environment.mjs';
import { preparePatchedSources } from './sources.mjs';
import { checkToolchain } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** npm hides what the scripts of a dependency print; a build of minutes must still show that it lives. */
function openTerminal() {
  if (process.stderr.isTTY) return { fd: 2, redraw: true };
  if (process.env.CI || !process.env.npm_lifecycle_event) return { fd: 2, redraw: false };
  try {
    return { fd: openSync('/dev/tty', 'w'), redraw: true };
  } catch {
    return { fd: 2, redraw: false };
  }
}

/** GCC needs up to a gigabyte for the largest files, and a phone has more cores than that. clang, which it is on phones, needs
 * 0.4, so that half of the memory is left to Android and its apps: who takes too much is killed. */
function jobCount() {
  return Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 30)));
}

/**
 * Compiles in build/<tree>, a tree for each set of flags.
 * @param {string} tree
 * @param {Record<string, string>} flags what CMake is told besides what every build is
 * @param {(addon: string, note: (line: string) => void) => Promise<void>} finish gets the path of the addon
 */
export async function compile(tree, flags, finish) {
  const tools = checkToolchain();
  if (tools.missing.length > 0) {
    throw new Error(
      `droid-llama has to be compiled here, but ${tools.missing.join(', ')} ` +
        `${tools.missing.length > 1 ? 'are' : 'is'} missing.\nInstall with:  ${tools.install}`,
    );
  }
  const terminal = openTerminal();
  const progress = createProgress(terminal);
  try {
    const sources = await preparePatchedSources({ log: progress.note });
    const out = join(root, 'build', tree);
    const jobs = jobCount();
    progress.note(`compiling with ${jobs} ${jobs > 1 ? 'jobs' : 'job'}${tools.ccache ? ' and ccache' : ''}`);
    const cmakeJs = findCmakeJs();
    const common = ['--directory', root, '--out', out];
    const generator = tools.ninja ? 'Ninja' : 'Unix Makefiles';
    await removeForeignTree(out, generator);
    const configure = [cmakeJs, 'configure', ...common, '--generator', generator];
    for (const [name, value] of Object.entries({ ...(await commonFlags(sources, tools)), ...flags })) {
      configure.push(`--CD${name}=${value}`);
    }
    const build = [cmakeJs, 'build', ...common, '--parallel', String(jobs), '--target', 'droid-llama'];
    const env = buildEnvironment({ root, sources });
    await runQuietly(process.execPath, configure, env, progress);
    await runAgainAfterLinkerCrash(() => runQuietly(process.execPath, build, env, progress), progress);
    await finish(join(out, 'droid-llama.node'), progress.note);
  } finally {
    progress.end();
    if (terminal.fd !== 2) closeSync(terminal.fd);
  }
}

/** A checkout has it among its dependencies, a package in one file (bundle.mjs). */
function findCmakeJs() {
  const own = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js');
  return existsSync(own) ? own : join(root, 'dist', 'cmake-js.cjs');
}

/** CMake refuses a tree that was made for another directory (a moved checkout) or by another generator. */
async function removeForeignTree(out, generator) {
  const cache = await readFile(join(out, 'CMakeCache.txt'), 'utf8').catch(() => undefined);
  const value = (name) => cache?.match(new RegExp(`^${name}:INTERNAL=(.*)$`, 'm'))?.[1];
  if (cache && (value('CMAKE_HOME_DIRECTORY') !== root || value('CMAKE_GENERATOR') !== generator)) {
    await rm(out, { recursive: true, force: true });
  }
}

async function commonFlags(sources, tools) {
  const launcher = tools.ccache ? 'ccache' : '';
  return {
    DROID_LLAMA_CPP: sources,
    CMAKE_C_COMPILER_LAUNCHER: launcher,
    CMAKE_CXX_COMPILER_LAUNCHER: launcher,
    LLAMA_BUILD_NUMBER: '0',
    LLAMA_BUILD_COMMIT: process.env.DROID_LLAMA_CPP_DIR ? 'local' : (await readLock()).commit.slice(0, 9),
  };
}

/** And nothing on it. */
const START_OF_LINE = '\r\x1b[K';

function createProgress({ fd, redraw }) {
  let drawn = false;
  let lastTenth = 0;
  const clear = () => {
    if (drawn) writeSync(fd, START_OF_LINE);
    drawn = false;
  };
  return {
    note(line) {
      // The line may hold npm's spinner as well.
      writeSync(fd, `${redraw ? START_OF_LINE : ''}droid-llama: ${line}\n`);
      drawn = false;
    },
    step(done, total) {
      const percent = Math.floor((done * 100) / total);
      if (redraw) {
        writeSync(fd, `${START_OF_LINE}droid-llama: compiling ${percent} % (${done}/${total})`);
        drawn = true;
      } else if (Math.floor(percent / 10) > lastTenth) {
        lastTenth = Math.floor(percent / 10);
        writeSync(fd, `droid-llama: compiling ${percent} %\n`);
      }
    },
    end: clear,
  };
}

/**
 * The linker of Termux crashes now and then, and not when the same is linked again
 * (https://github.com/termux/termux-packages/issues/15867). A build of half an hour must not end with that; what was compiled
 * is not compiled again.
 */
async function runAgainAfterLinkerCrash(run, progress) {
  for (let left = 2; ; left--) {
    try {
      return await run();
    } catch (error) {
      if (left === 0 || !/linker command failed due to signal/.test(error.message)) throw error;
      progress.note('the linker crashed; linking again');
    }
  }
}

/** Runs a build command; its output is shown only when it fails. */
function runQuietly(command, args, env, progress) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, env, stdio: ['ignore', 'pipe', 'pipe'] });
    let log = '';
    const read = (chunk) => {
      log = (log + chunk).slice(-200_000);
      // Ninja prints [12/209], make [ 42%].
      const steps = [...String(chunk).matchAll(/^\[(\d+)\/(\d+)\]/gm)].at(-1);
      const percent = [...String(chunk).matchAll(/^\[ *(\d+)%\]/gm)].at(-1);
      if (steps) progress.step(Number(steps[1]), Number(steps[2]));
      else if (percent) progress.step(Number(percent[1]), 100);
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) return resolve();
      // From the first failure on; what was compiled before it is of no interest.
      const failure = log.slice(Math.max(0, log.search(/^FAILED:|\berror:/m))).slice(0, 20_000);
      reject(new Error(`the build failed (${signal ?? `exit code ${code}`}):\n${failure}`));
    });
  });
}
