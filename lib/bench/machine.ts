import { availableParallelism, cpus, totalmem } from 'node:os';
import { packageVersion } from '../version.js';
import type { BenchReport, Machine } from './types.js';

function machine(): Machine {
  return {
    processor: cpus()[0]?.model.trim() || 'unknown',
    cores: availableParallelism(),
    memory: totalmem(),
    platform: process.platform,
    arch: process.arch,
  };
}

/** A report without any case yet. */
export function emptyReport(model: string | null, repetitions: number): BenchReport {
  return {
    droidLlama: packageVersion(),
    node: process.version,
    date: new Date().toISOString(),
    machine: machine(),
    model,
    repetitions,
    links: [],
    cases: [],
    notes: [],
    error: null,
  };
}
