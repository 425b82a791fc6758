/** Which processors of a device are worth computing with. Phones mix fast and slow ones, and a graph waits for the slowest. */
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';

export interface Core {
  readonly index: number;
  /** What the kernel says of its speed, the fastest of a device being 1024; null where it does not say. */
  readonly capacity: number | null;
  /** Highest clock in kHz; null where it cannot be read. */
  readonly maxKilohertz: number | null;
}

/** The part of `node:fs` that is used, for tests. */
export interface CpuFiles {
  readdir(path: string): readonly string[];
  readFile(path: string): string;
}

const SYSFS = '/sys/devices/system/cpu';
/** Below these parts of the fastest core's speed a core is a slow one: half of its capacity, or less than 70 % of its clock,
 * because slow cores also do less in a cycle. */
const BIG_BY_CAPACITY = 0.5;
const BIG_BY_CLOCK = 0.7;
const MOST_ON_A_PHONE = 4;
const realFiles: CpuFiles = { readdir: (path) => readdirSync(path), readFile: (path) => readFileSync(path, 'utf8') };

/** The cores as Linux and Android list them; empty elsewhere. */
export function readCores(files: CpuFiles = realFiles): Core[] {
  let entries: readonly string[] = [];
  try {
    entries = files.readdir(SYSFS);
  } catch {
    // No such directory, or none that an app may read.
  }
  return entries
    .flatMap((entry) => /^cpu(\d{1,4})$/.exec(entry)?.[1] ?? [])
    .map(Number)
    .sort((a, b) => a - b)
    .map((index) => ({
      index,
      capacity: readNumber(files, join(SYSFS, `cpu${index}`, 'cpu_capacity')),
      maxKilohertz: readNumber(files, join(SYSFS, `cpu${index}`, 'cpufreq', 'cpuinfo_max_freq')),
    }));
}

/**
 * The fast cores among `cores`: those near the fastest one, by capacity if every core tells it, else by clock. Where only
 * one is, the next fastest are taken along. All of them where nothing is known.
 */
export function bigCores(cores: readonly Core[]): readonly Core[] {
  const byCapacity = cores.every(({ capacity }) => capacity !== null);
  if (!byCapacity && !cores.every(({ maxKilohertz }) => maxKilohertz !== null)) return cores;
  const speed = (core: Core): number => (byCapacity ? core.capacity : core.maxKilohertz) ?? 0;
  const fastest = Math.max(...cores.map(speed));
  const big = cores.filter((core) => speed(core) >= fastest * (byCapacity ? BIG_BY_CAPACITY : BIG_BY_CLOCK));
  if (big.length !== 1 || cores.length === 1) return big;
  const second = Math.max(...cores.filter((core) => !big.includes(core)).map(speed));
  return cores.filter((core) => speed(core) >= second);
}

/**
 * Threads to compute with unless the user says otherwise: one for each fast core that this process may use, and on a phone
 * no more than four: it has to stay cool, and usable.
 */
export function defaultThreads(
  cores: readonly Core[] = readCores(),
  allowed: number = availableParallelism(),
  platform: NodeJS.Platform = process.platform,
): number {
  const fast = cores.length === 0 ? allowed : bigCores(cores).length;
  return Math.max(1, Math.min(fast, allowed, platform === 'android' ? MOST_ON_A_PHONE : Number.POSITIVE_INFINITY));
}

function readNumber(files: CpuFiles, path: string): number | null {
  try {
    const value = Number(files.readFile(path).trim());
    return Number.isFinite(value) && value > 0 ? value : null;
  } catch {
    return null;
  }
}
