// What `npm install` runs: take the prebuilt addon where it loads, otherwise compile.
// `npm install --build-from-source` compiles in any case.
import { spawnSync } from 'node:child_process';
import { rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Why the prebuilt addon is not taken, or nothing when it is. */
function reasonToCompile() {
  const fromSource = process.env.npm_config_build_from_source;
  if (fromSource === 'true' || fromSource === 'droid-llama') return 'as it was asked for';
  const nodeGypBuild = createRequire(import.meta.url).resolve('node-gyp-build');
  const script = `
    const nodeGypBuild = require(${JSON.stringify(nodeGypBuild)});
    let file;
    try { file = nodeGypBuild.resolve(${JSON.stringify(root)}); } catch { process.exit(3); }
    require(file).buildInfo();`;
  // In a child: an addon that this machine cannot run must not end the install. Whatever an earlier build left in build/
  // may be older than the sources.
  const { status, signal, stderr, error } = spawnSync(process.execPath, ['--input-type=commonjs', '-e', script], {
    env: { ...process.env, PREBUILDS_ONLY: '1' },
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
    timeout: 60_000,
  });
  if (status === 0) return undefined;
  const target = `${process.platform}-${process.arch}`;
  if (status === 3) return `there is no prebuilt addon for ${target}`;
  const said = /^\w*Error: (.*)/m.exec(stderr ?? '')?.[1];
  const why =
    signal === 'SIGILL'
      ? 'it has instructions that this processor does not know (SIGILL)'
      : (said ?? error?.message ?? (signal ? `it ended with ${signal}` : `it ended with exit code ${status}`));
  return `the prebuilt addon for ${target} does not load here: ${why}`;
}

const reason = reasonToCompile();
if (reason) {
  console.error(`droid-llama: compiling, ${reason}`);
  try {
    const { build } = await import('./build.mjs');
    await build();
    // What the objects are good for is the next build, which a dependency has none of; on a phone 100 MB count.
    if (root.includes(`${sep}node_modules${sep}`)) {
      for (const tree of ['cmake', 'llama.cpp']) await rm(join(root, 'build', tree), { recursive: true, force: true });
    }
  } catch (error) {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  }
}
