// Compiles the addon to build/Release/droid-llama.node.
//
//   node scripts/build.mjs               for this machine's CPU
//   node scripts/build.mjs --portable    for any CPU of this architecture that ggml's defaults allow (prebuilds)
//
// CMake is the only real build; cmake-js hands it the Node-API headers. A second run compiles what changed.
import { spawn } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { copyFile, mkdir, rename } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { preparePatchedSources } from './sources.mjs';
import { checkToolchain } from './toolchain.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** npm hides what an install script prints; a build of minutes must still show that it lives. */
function openTerminal() {
  if (process.stderr.isTTY) return { fd: 2, redraw: true };
  if (process.env.CI) return { fd: 2, redraw: false };
  try {
    return { fd: openSync('/dev/tty', 'w'), redraw: true };
  } catch {
    return { fd: 2, redraw: false };
  }
}

/**
 * @param {{ portable?: boolean }} [options]
 * @returns {Promise<string>} path of the addon
 */
export async function build({ portable = false } = {}) {
  const tools = checkToolchain();
  if (tools.missing.length > 0) {
    throw new Error(
      `Cannot compile droid-llama: ${tools.missing.join(', ')} not found.\nInstall with:  ${tools.install}`,
    );
  }
  const terminal = openTerminal();
  const progress = createProgress(terminal);
  try {
    const sources = await preparePatchedSources({ log: progress.note });
    // Prebuilds have a tree of their own, so that they do not turn the developer's build over.
    const out = join(root, 'build', portable ? 'cmake-portable' : 'cmake');
    const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js');
    const defines = {
      DROID_LLAMA_CPP: sources,
      GGML_NATIVE: portable ? 'OFF' : 'ON',
      ...(tools.ccache && { CMAKE_C_COMPILER_LAUNCHER: 'ccache', CMAKE_CXX_COMPILER_LAUNCHER: 'ccache' }),
    };
    const common = ['--directory', root, '--out', out];
    const configure = [cmakeJs, 'configure', ...common];
    if (tools.ninja) configure.push('--generator', 'Ninja');
    for (const [name, value] of Object.entries(defines)) configure.push(`--CD${name}=${value}`);
    const compile = [
      cmakeJs,
      'build',
      ...common,
      '--parallel',
      String(availableParallelism()),
      '--target',
      'droid-llama',
    ];
    progress.note(`compiling with ${availableParallelism()} jobs${tools.ccache ? ' and ccache' : ''}`);
    // CCACHE_BASEDIR makes paths relative, so that checkouts in different places share results.
    const env = { ...process.env, CCACHE_BASEDIR: root, CCACHE_NOHASHDIR: '1' };
    await runQuietly(process.execPath, configure, env, progress);
    await runQuietly(process.execPath, compile, env, progress);
    const addon = join(root, 'build', 'Release', 'droid-llama.node');
    await mkdir(dirname(addon), { recursive: true });
    // Rename, not overwrite: a process that has the old addon mapped must keep its pages.
    await copyFile(join(out, 'droid-llama.node'), `${addon}.new`);
    await rename(`${addon}.new`, addon);
    progress.note('built build/Release/droid-llama.node');
    return addon;
  } finally {
    progress.end();
    if (terminal.fd !== 2) closeSync(terminal.fd);
  }
}

function createProgress({ fd, redraw }) {
  let drawn = false;
  let lastTenth = -1;
  const clear = () => {
    if (drawn) writeSync(fd, '\r\x1b[K');
    drawn = false;
  };
  return {
    note(line) {
      clear();
      writeSync(fd, `droid-llama: ${line}\n`);
    },
    step(done, total) {
      const percent = Math.floor((done * 100) / total);
      if (redraw) {
        writeSync(fd, `\r\x1b[Kdroid-llama: compiling llama.cpp ${percent} % (${done}/${total})`);
        drawn = true;
      } else if (Math.floor(percent / 10) > lastTenth) {
        lastTenth = Math.floor(percent / 10);
        writeSync(fd, `droid-llama: compiling ${percent} %\n`);
      }
    },
    end: clear,
  };
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

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  build({ portable: process.argv.includes('--portable') }).catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
