/** Our client backend against upstream's ggml-rpc-server, without Node. */
import { basename } from 'node:path';
import { beforeAll, expect } from 'vitest';
import { buildCores } from '../cores/build.mjs';
import { describeCoreProgram } from '../support/core-programs.js';
import { ensureUpstream } from '../upstream/build.mjs';

let server = '';

// The first build of upstream's programs takes minutes.
beforeAll(async () => {
  server = (await ensureUpstream()).rpcServer;
}, 30 * 60_000);

for (const program of await buildCores()) {
  if (basename(program) !== 'client_upstream_test') continue;
  describeCoreProgram(
    program,
    () => ({ DROID_RPC_SERVER: server }),
    (output) => expect(output).not.toContain('skipped'),
  );
}
