// Builds upstream's llama-server and ggml-rpc-server, unpatched, into build/upstream; tests compare and mix with them.
//
//   node test/upstream/build.mjs    builds what changed and prints the directory of the two programs
//
// The sources are those that vendor/fetch.mjs provides, or DROID_LLAMA_CPP_DIR.
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildEnvironment } from '../../scripts/environment.mjs';
import { checkToolchain } from '../../scripts/toolchain.mjs';
import { ensureSources } from '../../vendor/fetch.mjs';

export { ensureSources as upstreamSources };

const here = dirname(fileURLToPath(import.meta.url));
const root = dirname(dirname(here));
const out = join(root, 'build', 'upstream');

/** @type {Promise<{ llamaServer: string, rpcServer: string }> | undefined} */
let built;

/** The paths of the two programs, after a build of whatever is not up to date. Takes minutes the first time. */
export function ensureUpstream() {
  built ??= build();
  return built;
}

async function build() {
  const tools = checkToolchain();
  if (tools.missing.length > 0) throw new Error(`${tools.missing.join(', ')} not found; try: ${tools.install}`);
  const sources = await ensureSources({ log: note });
  await mkdir(out, { recursive: true });
  const env = buildEnvironment({ root, sources });
  const launcher = tools.ccache ? 'ccache' : '';
  const configure = ['-S', here, '-B', out, `-DUPSTREAM_LLAMA_CPP=${sources}`, '-DCMAKE_BUILD_TYPE=Release'];
  configure.push(`-DCMAKE_C_COMPILER_LAUNCHER=${launcher}`, `-DCMAKE_CXX_COMPILER_LAUNCHER=${launcher}`);
  if (tools.ninja) configure.push('-G', 'Ninja');
  await run(configure, env);
  const targets = ['--target', 'llama-server', 'ggml-rpc-server'];
  await run(['--build', out, '--parallel', String(availableParallelism()), ...targets], env);
  return { llamaServer: join(out, 'bin', 'llama-server'), rpcServer: join(out, 'bin', 'ggml-rpc-server') };
}

function note(line) {
  process.stderr.write(`upstream: ${line}\n`);
}

/** Runs cmake; says how far it is in tenths, and prints its output only when it fails. */
function run(args, env) {
  return new Promise((resolve, reject) => {
    const child = spawn('cmake', args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let log = '';
    let said = 0;
    const read = (chunk) => {
      log = (log + chunk).slice(-200_000);
      // Ninja prints [12/209], make [ 42%].
      const [, done, total = '100'] = [...String(chunk).matchAll(/^\[ *(\d+)(?:\/(\d+)|%)\]/gm)].at(-1) ?? [];
      const tenth = Math.floor((Number(done) * 10) / Number(total));
      // A build of a few steps is over before anyone reads about it.
      if (!(tenth > said) || Number(total) < 10) return;
      said = tenth;
      note(`compiling llama-server and ggml-rpc-server, ${tenth}0 %`);
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) return resolve();
      const failure = log.slice(Math.max(0, log.search(/^FAILED:|\berror:|^CMake Error/m))).slice(0, 20_000);
      reject(new Error(`cmake ${args[0]} failed (${signal ?? `exit code ${code}`}):\n${failure}`));
    });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  ensureUpstream().then(
    ({ llamaServer }) => console.log(dirname(llamaServer)),
    (error) => {
      console.error(`error: ${error.message}`);
      process.exitCode = 1;
    },
  );
}
