// What `npm install` runs: take a prebuilt addon where one fits, otherwise compile.
// `npm install --build-from-source` compiles in any case.
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** The prebuilt addon is loaded in a child: one made for another C library or CPU must not end the install. */
function prebuildLoads() {
  const fromSource = process.env.npm_config_build_from_source;
  if (fromSource === 'true' || fromSource === 'droid-llama') return false;
  const resolver = createRequire(import.meta.url).resolve('node-gyp-build');
  const script = `const f = require(${JSON.stringify(resolver)}).resolve(${JSON.stringify(root)});
    if (!f.includes('prebuilds')) process.exit(1); require(f)`;
  try {
    execFileSync(process.execPath, ['-e', script], { stdio: 'ignore', timeout: 60_000 });
    return true;
  } catch {
    return false;
  }
}

if (!prebuildLoads()) {
  try {
    const { build } = await import('./build.mjs');
    await build();
  } catch (error) {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  }
}
