/** The C++ cores without Node. */
import { basename } from 'node:path';
import { buildCores } from '../cores/build.mjs';
import { describeCoreProgram } from '../support/core-programs.js';

for (const program of await buildCores()) {
  // Needs upstream's server, whose build takes minutes: test/e2e/cores-upstream.test.ts.
  if (basename(program) !== 'client_upstream_test') describeCoreProgram(program);
}
