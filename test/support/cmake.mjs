// Runs CMake for the programs that only tests use, each project in a build directory of its own.
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildEnvironment } from '../../scripts/environment.mjs';
import { checkToolchain } from '../../scripts/toolchain.mjs';

/** The project's directory, absolute. */
export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** A function that prints a line about a build; tests wait for it without an output of their own. */
export function buildLog(label) {
  return (line) => process.stderr.write(`${label}: ${line}\n`);
}

/**
 * Configures a CMake project and builds what is not up to date: a release build, with ninja and ccache where they are.
 * Throws when a tool is missing (and says how to install it), or with the compiler's messages.
 * @param {object} options
 * @param {string} options.source the directory of its CMakeLists.txt
 * @param {string} options.out the build directory, made if need be
 * @param {string} options.llama the llama.cpp sources that it compiles
 * @param {(line: string) => void} options.log told how far it is
 * @param {Record<string, string>} [options.defines] cache variables
 * @param {string[]} [options.targets] all by default
 */
export async function cmakeBuild({ source, out, llama, log, defines = {}, targets = [] }) {
  const tools = checkToolchain();
  if (tools.missing.length > 0) throw new Error(`${tools.missing.join(', ')} not found; try: ${tools.install}`);
  await mkdir(out, { recursive: true });
  const launcher = tools.ccache ? 'ccache' : '';
  const all = {
    CMAKE_BUILD_TYPE: 'Release',
    CMAKE_C_COMPILER_LAUNCHER: launcher,
    CMAKE_CXX_COMPILER_LAUNCHER: launcher,
    ...defines,
  };
  const configure = ['-S', source, '-B', out, ...Object.entries(all).map(([name, value]) => `-D${name}=${value}`)];
  if (tools.ninja) configure.push('-G', 'Ninja');
  const env = buildEnvironment({ root, sources: llama });
  await runCmake(configure, env, log);
  const build = ['--build', out, '--parallel', String(availableParallelism())];
  if (targets.length > 0) build.push('--target', ...targets);
  await runCmake(build, env, log);
}

/** Says how far a build is in tenths, and what CMake printed only when it fails. */
function runCmake(args, env, log) {
  return new Promise((resolve, reject) => {
    const child = spawn('cmake', args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    let said = 0;
    const read = (chunk) => {
      output = (output + chunk).slice(-200_000);
      // Ninja prints [12/209], make [ 42%].
      const [, done, total = '100'] = [...String(chunk).matchAll(/^\[ *(\d+)(?:\/(\d+)|%)\]/gm)].at(-1) ?? [];
      const tenth = Math.floor((Number(done) * 10) / Number(total));
      // A build of a few steps is over before anyone reads about it.
      if (!(tenth > said) || Number(total) < 10) return;
      said = tenth;
      log(`compiling, ${tenth}0 %`);
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) return resolve();
      const failure = output.slice(Math.max(0, output.search(/^FAILED:|\berror:|^CMake Error/m))).slice(0, 20_000);
      reject(new Error(`cmake ${args[0]} failed (${signal ?? `exit code ${code}`}):\n${failure}`));
    });
  });
}
