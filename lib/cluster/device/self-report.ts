import type { Peer } from '../types.js';
import { BatteryWatch } from './battery.js';
import { availableMemory, lendableMemory, ownMemory } from './device.js';

/** How often what changes is looked at. */
const MEMORY_EVERY_MS = 5_000;
const COUNTERS_EVERY_MS = 1_000;
/** Memory is always in motion; what is less than this is not worth telling everybody. */
const MEMORY_STEP = 64 * 1024 * 1024;

export interface SelfReportOptions {
  /** Bytes this cluster's model takes on this device by the books, for systems that do not tell. */
  readonly bytesHeld: () => number;
  readonly memoryLimit: number | undefined;
  readonly graphsComputed: () => number;
  readonly tell: (change: Partial<Pick<Peer, 'memory' | 'battery' | 'graphsComputed'>>) => void;
}

/** Keeps the changing part of this device's record up to date. */
export class SelfReport {
  readonly #options: SelfReportOptions;
  readonly #timers: NodeJS.Timeout[] = [];
  #battery: BatteryWatch | undefined;
  readonly #before = ownMemory();
  #memory: number;
  #graphs = 0;

  constructor(options: SelfReportOptions) {
    this.#options = options;
    this.#memory = this.#memoryNow();
  }

  /** Bytes, as told last. */
  get memory(): number {
    return this.#memory;
  }

  start(): void {
    this.#timers.push(setInterval(() => this.#lookAtCounters(), COUNTERS_EVERY_MS).unref());
    this.#timers.push(setInterval(() => this.#lookAtMemory(), MEMORY_EVERY_MS).unref());
    this.#battery = BatteryWatch.start();
    this.#battery.on('change', (battery) => this.#options.tell({ battery }));
  }

  stop(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#battery?.close();
  }

  #memoryNow(): number {
    const { bytesHeld, memoryLimit } = this.#options;
    const own = ownMemory();
    // Weights of a mapped file are no loss: the system counts them as available.
    const held = own !== undefined && this.#before !== undefined ? Math.max(0, own - this.#before) : bytesHeld();
    return lendableMemory({ available: availableMemory(), held, limit: memoryLimit });
  }

  #lookAtMemory(): void {
    const memory = this.#memoryNow();
    if (Math.abs(memory - this.#memory) < Math.max(MEMORY_STEP, this.#memory / 20)) return;
    this.#memory = memory;
    this.#options.tell({ memory });
  }

  #lookAtCounters(): void {
    const graphsComputed = this.#options.graphsComputed();
    if (graphsComputed === this.#graphs) return;
    this.#graphs = graphsComputed;
    this.#options.tell({ graphsComputed });
  }
}
