/** The package itself, and what the device has for it. */
import type { Check } from './types.js';

const OLDEST_NODE = [20, 18] as const;
const MIB = 2 ** 20;
const GIB = 2 ** 30;
/** Less is no help for any model worth to be spread. */
const LITTLE_MEMORY = 512 * MIB;
const LITTLE_STORAGE = GIB;

const version: Check = {
  id: 'version',
  title: 'droid-llama and Node',
  run: ({ nodeVersion, packageVersion }) => {
    const found = `droid-llama ${packageVersion}, Node ${nodeVersion}`;
    const [major = 0, minor = 0] = nodeVersion.replace(/^v/, '').split('.').map(Number);
    const [oldest, oldestMinor] = OLDEST_NODE;
    if (major > oldest || (major === oldest && minor >= oldestMinor)) return { status: 'ok', found };
    return {
      status: 'fail',
      found,
      advice: `Node ${OLDEST_NODE.join('.')} or later is needed. In Termux:\n  pkg install nodejs-lts`,
    };
  },
};

const addon: Check = {
  id: 'addon',
  title: 'native addon',
  run: (probes) => {
    try {
      const { llamaCpp, rpcProtocol } = probes.addon();
      return { status: 'ok', found: `llama.cpp ${llamaCpp}, RPC protocol ${rpcProtocol}` };
    } catch (error) {
      const [first = '', ...rest] = (error instanceof Error ? error.message : String(error)).split('\n');
      return { status: 'fail', found: first, advice: rest.join('\n') || 'Reinstall droid-llama.' };
    }
  },
};

const cpu: Check = {
  id: 'cpu',
  title: 'processors',
  run: (probes) => {
    const { clusters, all, threads } = probes.cores();
    const kinds = clusters.map(({ count, megahertz }) =>
      megahertz === null ? `${count}` : `${count} × ${(megahertz / 1000).toFixed(2)} GHz`,
    );
    const list = kinds.length === 0 ? `${all}` : kinds.join(' + ');
    const which = threads < all ? 'the fast ones, a graph waits for the slowest' : 'all of them';
    return { status: 'ok', found: `${list}; computes with ${threads} thread${threads === 1 ? '' : 's'} (${which})` };
  },
};

const memory: Check = {
  id: 'memory',
  title: 'memory',
  run: (probes) => {
    const { total, available } = probes.memory();
    const found = `${gibibytes(available)} of ${gibibytes(total)} available`;
    if (available >= LITTLE_MEMORY) return { status: 'ok', found };
    return {
      status: 'warn',
      found,
      advice: 'Close other apps, or restart the phone: what is available is what it lends.',
    };
  },
};

const storage: Check = {
  id: 'storage',
  title: 'storage for weights',
  run: async ({ freeStorage }, { cacheDir }) => {
    const free = await freeStorage(cacheDir);
    if (free === null) return { status: 'skip', found: `cannot be found out for ${cacheDir}` };
    const found = `${gibibytes(free)} free at ${cacheDir}`;
    if (free >= LITTLE_STORAGE) return { status: 'ok', found };
    return {
      status: 'warn',
      found,
      advice: 'Weights that are kept need not be sent again after a restart. Make room, or do without: up --no-cache',
    };
  },
};

function gibibytes(bytes: number): string {
  return `${(bytes / GIB).toFixed(1)} GiB`;
}

export const machineChecks: readonly Check[] = [version, addon, cpu, memory, storage];
