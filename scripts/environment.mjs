// The environment a compiler runs in: it gives the same objects in every checkout, which is what lets ccache share them.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, sep } from 'node:path';

/**
 * @param {{ root: string, sources: string }} directories of the project and of the llama.cpp that is compiled
 * @returns {NodeJS.ProcessEnv}
 */
export function buildEnvironment({ root, sources }) {
  return {
    ...process.env,
    // llama.cpp would take the commit of the repository around it, ours or that of an app, for its own.
    GIT_CEILING_DIRECTORIES: dirname(sources),
    // ccache makes paths below this relative. An app's node_modules holds headers beside the package.
    // It would look for a variable of that name.
    ...(root.includes('$') ? {} : { CCACHE_BASEDIR: root.split(`${sep}node_modules${sep}`)[0] }),
    CCACHE_NOHASHDIR: '1',
    // -march=native means another thing on another machine, which a cache they share would not notice.
    CCACHE_NAMESPACE: `droid-llama-${cpuFingerprint()}`,
  };
}

function cpuFingerprint() {
  let features = cpus()[0]?.model ?? '';
  try {
    features = /^(?:flags|Features)\s*:.*/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[0] ?? features;
  } catch {
    // Not Linux, or an Android that hides it.
  }
  return createHash('sha256').update(features).digest('hex').slice(0, 16);
}
