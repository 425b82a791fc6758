/** What a process holds on to, to see whether a loop leaves something behind. */
import { readdirSync, readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

export interface Usage {
  readonly threads: number;
  readonly descriptors: number;
  readonly residentMiB: number;
}

let collect: (() => void) | undefined;

/** Of this process, after a garbage collection. Linux only. */
export function processUsage(): Usage {
  if (!collect) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as () => void;
  }
  collect();
  return {
    threads: readdirSync('/proc/self/task').length,
    descriptors: readdirSync('/proc/self/fd').length,
    residentMiB: process.memoryUsage.rss() / 1048576,
  };
}

/** Whether the process was started with one malloc arena; with several, memory grows by tens of MiB without a leak. */
export function hasOneArena(): boolean {
  return readFileSync('/proc/self/environ', 'utf8').split('\0').includes('MALLOC_ARENA_MAX=1');
}
