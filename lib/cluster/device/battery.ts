/** The battery of a phone, where Termux:API tells it. */
import { spawn } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { z } from 'zod';
import type { Battery } from '../types.js';

/** How a question to another program ended. */
export type Answer =
  | { readonly kind: 'answer'; readonly text: string }
  /** There is no such program, or it failed. */
  | { readonly kind: 'absent' }
  /** It said nothing in time: `termux-battery-status` waits for ever without the Termux:API app. */
  | { readonly kind: 'silent' };

const ANSWER_TIMEOUT_MS = 3000;
const ANSWER_LIMIT = 64 * 1024;
const INTERVAL_MS = 60_000;
/** A program that hung is asked again more seldom: each try costs a few processes, which Android counts. */
const SILENT_FACTOR = 10;

const status = z.object({
  percentage: z.number().min(0).max(100),
  plugged: z.string().optional(),
  status: z.string().optional(),
  temperature: z.number().min(-50).max(150).optional(),
});

/** What `termux-battery-status` printed; null when it is something else. */
export function parseBattery(text: string): Battery | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  const { data } = status.safeParse(value);
  if (!data) return null;
  const charging =
    data.plugged?.startsWith('PLUGGED_') === true || data.status === 'CHARGING' || data.status === 'FULL';
  return { percent: data.percentage, charging, temperatureCelsius: data.temperature ?? null };
}

/**
 * Runs a program and reads what it prints, 64 KiB at most. What hangs is killed with everything it started: Termux's
 * commands are scripts, whose children would wait on. Never rejects.
 */
export function ask(program: string, args: readonly string[] = [], timeoutMs = ANSWER_TIMEOUT_MS): Promise<Answer> {
  return new Promise((resolve) => {
    const child = spawn(program, args, { detached: true, stdio: ['ignore', 'pipe', 'ignore'] });
    let text = '';
    const finish = (answer: Answer): void => {
      clearTimeout(timer);
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      } catch {
        // The whole group has ended.
      }
      child.stdout.destroy();
      child.unref();
      resolve(answer);
    };
    const timer = setTimeout(() => finish({ kind: 'silent' }), timeoutMs);
    child.once('error', () => finish({ kind: 'absent' }));
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      if (text.length > ANSWER_LIMIT) finish({ kind: 'absent' });
    });
    child.stdout.on('error', () => {});
    child.once('close', (code) => finish(code === 0 ? { kind: 'answer', text } : { kind: 'absent' }));
  });
}

export interface BatteryWatchOptions {
  /** Milliseconds between two questions. Default a minute; ten times that while nothing answers. */
  intervalMs?: number;
  /** For tests. */
  ask?: () => Promise<Answer>;
}

/** Asks for the battery from time to time. Emits `change` when something of it changed. */
export class BatteryWatch extends EventEmitter<{ change: [Battery | null] }> {
  readonly #ask: () => Promise<Answer>;
  readonly #intervalMs: number;
  #current: Battery | null = null;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor({ intervalMs = INTERVAL_MS, ask: question }: BatteryWatchOptions) {
    super();
    this.#intervalMs = intervalMs;
    this.#ask = question ?? (() => ask('termux-battery-status'));
  }

  /** Asks at once. On a device without Termux:API it stays at null and gives up for good. */
  static start(options: BatteryWatchOptions = {}): BatteryWatch {
    const watch = new BatteryWatch(options);
    void watch.#poll();
    return watch;
  }

  /** Null until it is known, and where it cannot be. */
  get current(): Battery | null {
    return this.#current;
  }

  /** Idempotent. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.removeAllListeners();
  }

  async #poll(): Promise<void> {
    const answer = await this.#ask().catch((): Answer => ({ kind: 'absent' }));
    if (this.#closed) return;
    this.#set(answer.kind === 'answer' ? parseBattery(answer.text) : null);
    if (answer.kind === 'absent') return;
    const pause = answer.kind === 'silent' ? this.#intervalMs * SILENT_FACTOR : this.#intervalMs;
    this.#timer = setTimeout(() => void this.#poll(), pause);
    // Knowing the battery is no reason to keep a program alive.
    this.#timer.unref();
  }

  #set(next: Battery | null): void {
    if (JSON.stringify(next) === JSON.stringify(this.#current)) return;
    this.#current = next;
    this.emit('change', next);
  }
}
