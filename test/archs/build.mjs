// Builds upstream's test of every architecture with a worker of ours as the device, into build/archs.
//
//   node test/archs/build.mjs    builds what changed and prints the path of the program
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildWithCores } from '../cores/build.mjs';
import { root } from '../support/cmake.mjs';

const here = dirname(fileURLToPath(import.meta.url));

/** The path of the program, after a build of whatever is not up to date. Takes minutes the first time. */
export async function buildArchs() {
  const out = join(root, 'build', 'archs');
  await buildWithCores({ source: here, out, label: 'test/archs' });
  return join(out, 'archs');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  buildArchs().then(console.log, (error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
