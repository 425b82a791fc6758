// Builds upstream's llama-server and ggml-rpc-server, unpatched, into build/upstream; tests compare and mix with them.
//
//   node test/upstream/build.mjs    builds what changed and prints the directory of the two programs
//
// The sources are those that vendor/fetch.mjs provides, or DROID_LLAMA_CPP_DIR.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ensureSources } from '../../vendor/fetch.mjs';
import { buildLog, cmakeBuild, root } from '../support/cmake.mjs';

export { ensureSources as upstreamSources };

const here = dirname(fileURLToPath(import.meta.url));
const out = join(root, 'build', 'upstream');

/** @type {Promise<{ llamaServer: string, rpcServer: string }> | undefined} */
let built;

/** The paths of the two programs, after a build of whatever is not up to date. Takes minutes the first time. */
export function ensureUpstream() {
  built ??= build();
  return built;
}

async function build() {
  const log = buildLog('llama-server and ggml-rpc-server');
  const llama = await ensureSources({ log });
  const defines = { UPSTREAM_LLAMA_CPP: llama };
  await cmakeBuild({ source: here, out, llama, log, defines, targets: ['llama-server', 'ggml-rpc-server'] });
  return { llamaServer: join(out, 'bin', 'llama-server'), rpcServer: join(out, 'bin', 'ggml-rpc-server') };
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
