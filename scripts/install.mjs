// What `npm install` runs: take a prebuilt addon where one fits, otherwise compile.
// `npm install --build-from-source` compiles in any case.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Instructions that a prebuilt addon may use, as ggml and as Linux call them. */
const CPU_FLAGS = { SSE3: 'pni', SSSE3: 'ssse3', AVX: 'avx', AVX2: 'avx2', F16C: 'f16c', FMA: 'fma', BMI2: 'bmi2' };

function prebuildFits() {
  const fromSource = process.env.npm_config_build_from_source;
  if (fromSource === 'true' || fromSource === 'droid-llama') return false;
  const resolver = createRequire(import.meta.url).resolve('node-gyp-build');
  const script = `process.stdout.write(require(${JSON.stringify(resolver)})(${JSON.stringify(root)}).buildInfo().systemInfo)`;
  try {
    // In a child: an addon made for another C library or CPU must not end the install. Whatever an earlier build left
    // in build/ may be older than the sources.
    const systemInfo = execFileSync(process.execPath, ['-e', script], {
      env: { ...process.env, PREBUILDS_ONLY: '1' },
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 60_000,
    });
    return cpuHas([...systemInfo.matchAll(/(\w+) = 1/g)].map((match) => match[1]));
  } catch {
    return false;
  }
}

/** Loading runs none of the vector code, so that it works says nothing about the CPU. */
function cpuHas(features) {
  if (process.platform !== 'linux' || process.arch !== 'x64') return true;
  const flags = new Set(/^flags\s*:(.*)/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1]?.split(' '));
  return features.every((feature) => !(feature in CPU_FLAGS) || flags.has(CPU_FLAGS[feature]));
}

if (!prebuildFits()) {
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
