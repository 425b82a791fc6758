// Builds the C++ cores' test programs into build/cores.
//
//   node test/cores/build.mjs    builds what changed and prints the directory of the programs
import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { preparePatchedSources } from '../../scripts/sources.mjs';
import { buildLog, cmakeBuild, root } from '../support/cmake.mjs';

const here = dirname(fileURLToPath(import.meta.url));

/**
 * @param {{ sanitize?: string }} [options] sanitize: what -fsanitize= gets; such a build has a directory of its own
 * @returns {Promise<string[]>} paths of the test programs
 */
export async function buildCores({ sanitize = '' } = {}) {
  const out = join(root, 'build', sanitize ? `cores-${sanitize.replaceAll(',', '-')}` : 'cores');
  await buildWithCores({ source: here, out, label: 'test/cores', defines: { DROID_SANITIZE: sanitize } });
  const sources = (await readdir(here)).filter((name) => name.endsWith('_test.cc')).sort();
  return sources.map((name) => join(out, name.slice(0, -'.cc'.length)));
}

/**
 * Builds a CMake project that includes cores.cmake.
 * @param {{ source: string, out: string, label: string, defines?: Record<string, string> }} options
 */
export async function buildWithCores({ source, out, label, defines = {} }) {
  const log = buildLog(label);
  const llama = await preparePatchedSources({ log });
  await cmakeBuild({ source, out, llama, log, defines: { DROID_LLAMA_CPP: llama, ...defines } });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  buildCores().then(
    ([first]) => console.log(dirname(first)),
    (error) => {
      console.error(`error: ${error.message}`);
      process.exitCode = 1;
    },
  );
}
