import { readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { type Answer, ask, BatteryWatch, parseBattery } from '../../lib/cluster/device/battery.js';
import {
  availableMemory,
  computeSpeed,
  forgetComputeSpeed,
  lendableMemory,
  ownMemory,
} from '../../lib/cluster/device/device.js';
import { bigCores, type Core, type CpuFiles, defaultThreads, readCores } from '../../lib/cpu.js';
import { expectGone } from '../support/cli.js';

const GIB = 2 ** 30;
const cores = (...speeds: readonly (readonly [capacity: number | null, megahertz: number | null])[]): Core[] =>
  speeds.map(([capacity, megahertz], index) => ({
    index,
    capacity,
    maxKilohertz: megahertz === null ? null : megahertz * 1000,
  }));
const times = <T>(count: number, value: T): T[] => Array.from({ length: count }, () => value);

describe('cores to compute with', () => {
  it('are those near the fastest one by the capacity that the kernel tells', () => {
    // Two large cores, two of the middle and four small ones, whose clocks are close to each other.
    const phone = cores(
      ...times(4, [250, 1800] as const),
      ...times(2, [670, 2250] as const),
      ...times(2, [1024, 2800] as const),
    );
    expect(bigCores(phone).map(({ index }) => index)).toEqual([4, 5, 6, 7]);
    expect(defaultThreads(phone, 8)).toBe(4);
  });

  it('are those near the fastest one by their clocks where that is all there is', () => {
    const phone = cores([null, 2840], ...times(3, [null, 2420] as const), ...times(4, [null, 1800] as const));
    expect(defaultThreads(phone, 8)).toBe(4);
    // Two speeds, none of them slow.
    expect(defaultThreads(cores(...times(2, [null, 4320] as const), ...times(6, [null, 3530] as const)), 8)).toBe(8);
  });

  it('are more than a single fast one', () => {
    const phone = cores([1024, null], ...times(3, [480, null] as const), ...times(4, [150, null] as const));
    expect(defaultThreads(phone, 8)).toBe(4);
    expect(defaultThreads(cores([1024, null]), 8)).toBe(1);
  });

  it('are all where they are alike, where nothing is known of one, and where nothing can be read', () => {
    expect(defaultThreads(cores(...times(8, [1024, 2000] as const)), 8)).toBe(8);
    expect(defaultThreads(cores([null, 2840], [null, null], [null, 1000]), 8)).toBe(3);
    expect(defaultThreads([], 6)).toBe(6);
  });

  it('are at most four on Android', () => {
    const phone = cores(...times(2, [null, 4320] as const), ...times(6, [null, 3530] as const));
    expect(defaultThreads(phone, 8, 'android')).toBe(4);
    expect(defaultThreads(phone, 3, 'android')).toBe(3);
    expect(defaultThreads([], 8, 'android')).toBe(4);
  });

  it('are no more than this process may use, and at least one', () => {
    expect(defaultThreads(cores(...times(8, [1024, null] as const)), 2)).toBe(2);
    expect(defaultThreads([], 0)).toBe(1);
  });

  it('are never slower than one that is left out', () => {
    const speed = fc.integer({ min: 1, max: 1024 });
    fc.assert(
      fc.property(fc.array(speed, { minLength: 1, maxLength: 16 }), (speeds) => {
        const all = cores(...speeds.map((capacity) => [capacity, null] as const));
        const big = bigCores(all).map(({ capacity }) => capacity ?? 0);
        const rest = all.filter((core) => !bigCores(all).includes(core)).map(({ capacity }) => capacity ?? 0);
        expect(big.length).toBeGreaterThanOrEqual(Math.min(2, all.length));
        expect(Math.min(...big)).toBeGreaterThan(Math.max(...rest, 0));
      }),
    );
  });

  it('are read from where Linux and Android have them', () => {
    const tree: Record<string, string> = {
      '/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq': '1804800\n',
      '/sys/devices/system/cpu/cpu0/cpu_capacity': '250\n',
      '/sys/devices/system/cpu/cpu10/cpufreq/cpuinfo_max_freq': 'nonsense',
    };
    const files: CpuFiles = {
      readdir: () => ['cpu10', 'cpu0', 'cpufreq', 'cpuidle', 'online'],
      readFile: (path) => {
        const text = tree[path];
        if (text === undefined) throw new Error(`no ${path}`);
        return text;
      },
    };
    expect(readCores(files)).toEqual([
      { index: 0, capacity: 250, maxKilohertz: 1804800 },
      { index: 10, capacity: null, maxKilohertz: null },
    ]);
    const denied = {
      ...files,
      readdir: () => {
        throw new Error('EACCES');
      },
    };
    expect(readCores(denied)).toEqual([]);
  });
});

describe('memory that a device lends', () => {
  it('is 80 % of what is available, and does not change when a model is loaded', () => {
    expect(lendableMemory({ available: 5 * GIB })).toBe(4 * GIB);
    expect(lendableMemory({ available: 3 * GIB, held: 2 * GIB })).toBe(4 * GIB);
  });

  it('is what the user says, but no more than there is', () => {
    expect(lendableMemory({ available: 5 * GIB, limit: GIB })).toBe(GIB);
    expect(lendableMemory({ available: GIB, held: GIB, limit: 8 * GIB })).toBe(2 * GIB);
    expect(lendableMemory({ available: -1, held: -1 })).toBe(0);
  });

  it('is read from /proc/meminfo, or what the system says is free', () => {
    expect(availableMemory(() => 'MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable:    4000000 kB\n')).toBe(
      4_096_000_000,
    );
    expect(availableMemory(() => 'MemFree: 100 kB\n')).toBeGreaterThan(0);
    expect(
      availableMemory(() => {
        throw new Error('hidden');
      }),
    ).toBeGreaterThan(0);
  });
});

describe("this process's own memory", () => {
  it('is what is not a file, and unknown where the system does not tell', () => {
    expect(ownMemory(() => 'VmRSS:\t 900 kB\nRssAnon:\t     512 kB\nRssFile:\t 388 kB\n')).toBe(512 * 1024);
    expect(ownMemory(() => 'VmRSS:\t 900 kB\n')).toBeUndefined();
    expect(
      ownMemory(() => {
        throw new Error('hidden');
      }),
    ).toBeUndefined();
  });
});

describe('computing speed', () => {
  beforeEach(forgetComputeSpeed);
  const speed = { weightBytesPerSecond: 1e10, flopsPerSecond: 1e11 };

  it('is measured once for a number of threads', async () => {
    const measure = vi.fn(async () => speed);
    const [first, again] = await Promise.all([computeSpeed(2, measure), computeSpeed(2, measure)]);
    expect(first).toEqual({ threads: 2, ...speed });
    expect(again).toBe(first);
    await computeSpeed(4, measure);
    expect(measure.mock.calls).toEqual([
      [2, 250],
      [4, 250],
    ]);
  });

  it('is measured again after a failure', async () => {
    const measure = vi.fn(async () => speed).mockRejectedValueOnce(new Error('busy'));
    await expect(computeSpeed(2, measure)).rejects.toThrow('busy');
    await expect(computeSpeed(2, measure)).resolves.toEqual({ threads: 2, ...speed });
  });
});

const printed = {
  health: 'GOOD',
  percentage: 52,
  plugged: 'UNPLUGGED',
  status: 'DISCHARGING',
  temperature: 31.5,
  current: -232,
};

describe('the battery', () => {
  it('is read from what Termux:API prints', () => {
    const read = (change: object) => parseBattery(JSON.stringify({ ...printed, ...change }));
    expect(read({})).toEqual({ percent: 52, charging: false, temperatureCelsius: 31.5 });
    expect(read({ plugged: 'PLUGGED_USB', status: 'NOT_CHARGING' })).toMatchObject({ charging: true });
    expect(read({ plugged: undefined, status: 'FULL' })).toMatchObject({ charging: true });
    expect(read({ temperature: undefined })).toMatchObject({ temperatureCelsius: null });
    for (const nonsense of [
      '',
      'null',
      '[]',
      '{"percentage": "52"}',
      '{"percentage": 900}',
      '{"error": "no permission"}',
    ]) {
      expect(parseBattery(nonsense)).toBeNull();
    }
  });

  it('is asked of a program that is killed with its children when it hangs', async () => {
    const file = join(tmpdir(), `droid-ask-${process.pid}`);
    // A script that waits for a child, as Termux's are.
    expect(await ask('sh', ['-c', `sleep 1000 & echo $! > ${file}; wait`], 300)).toEqual({ kind: 'silent' });
    const child = Number(readFileSync(file, 'utf8'));
    rmSync(file);
    await expectGone(child);
    expect(await ask('sh', ['-c', 'echo said'])).toEqual({ kind: 'answer', text: 'said\n' });
    expect(await ask('sh', ['-c', 'echo said; exit 3'])).toEqual({ kind: 'absent' });
    expect(await ask('droid-llama-no-such-program')).toEqual({ kind: 'absent' });
    expect(await ask('sh', ['-c', 'yes'])).toEqual({ kind: 'absent' });
  });
});

describe('watching the battery', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  function watch(...answers: (object | Answer['kind'])[]) {
    const question = vi.fn(async (): Promise<Answer> => {
      const next = answers.shift() ?? 'silent';
      if (typeof next === 'object') return { kind: 'answer', text: JSON.stringify(next) };
      return next === 'answer' ? { kind: 'answer', text: 'nonsense' } : { kind: next };
    });
    const started = BatteryWatch.start({ ask: question });
    const changes: unknown[] = [];
    started.on('change', (battery) => changes.push(battery?.percent ?? null));
    return { watch: started, changes, question };
  }

  it('tells what changed, every minute', async () => {
    const { watch: started, changes, question } = watch(printed, printed, { ...printed, percentage: 51 }, 'answer');
    expect(started.current).toBeNull();
    await vi.advanceTimersByTimeAsync(0);
    expect(started.current).toMatchObject({ percent: 52 });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(changes).toEqual([52]);
    await vi.advanceTimersByTimeAsync(120_000);
    expect(changes).toEqual([52, 51, null]);
    expect(question).toHaveBeenCalledTimes(4);
    started.close();
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(question).toHaveBeenCalledTimes(4);
  });

  it('asks more seldom what does not answer, and no more what is not there', async () => {
    const silent = watch('silent', 'silent');
    await vi.advanceTimersByTimeAsync(599_000);
    expect(silent.question).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(2000);
    expect(silent.question).toHaveBeenCalledTimes(2);
    silent.watch.close();
    const absent = watch('absent');
    await vi.advanceTimersByTimeAsync(3_600_000);
    expect(absent.question).toHaveBeenCalledTimes(1);
    expect(absent.watch.current).toBeNull();
  });

  it('says nothing after it was closed while a question was open', async () => {
    const { watch: started, changes } = watch(printed);
    started.close();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(changes).toEqual([]);
    expect(started.current).toBeNull();
  });
});
