/** Models of the Hugging Face hub on the command line: `-hf` of the commands that load one, and how a download is shown. */
import type { Command } from 'commander';
import { DroidLlamaError } from '../errors.js';
import type { PulledModel, PullProgress } from '../hub/pull.js';
import { sizeText } from '../size-text.js';
import { bar } from './progress.js';
import { type Output, styled, warn } from './terminal.js';
import { nonEmpty } from './values.js';

/** llama.cpp's spellings, which commander cannot express. */
export const HUB_ALIASES: Readonly<Record<string, string>> = { '-hf': '--hf-repo', '-hfr': '--hf-repo' };

export interface ModelOptions {
  model?: string;
  hfRepo?: string;
}

export function addHubOption(command: Command): Command {
  return command.option(
    '--hf-repo <name>',
    'a model of the Hugging Face hub instead, owner/name:quantization, downloaded if need be (also -hf)',
    nonEmpty,
  );
}

/** The file that -m names, or that -hf has downloaded; undefined where neither is given. */
export async function modelFile({ model, hfRepo }: ModelOptions, signal: AbortSignal): Promise<string | undefined> {
  if (hfRepo === undefined) return model;
  if (model !== undefined) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', '-m and -hf are both given; each names a model, so give one.');
  }
  return (await pullShown(hfRepo, signal)).path;
}

/** Downloads with a bar on stderr. */
export async function pullShown(reference: string, signal: AbortSignal): Promise<PulledModel> {
  const { pullModel } = await import('../hub/pull.js');
  const display = new DownloadBar(process.stderr);
  try {
    return await pullModel(reference, {
      signal,
      onProgress: (progress) => display.update(progress),
      onWarning: (text) => {
        display.clear();
        warn(text);
      },
    });
  } finally {
    display.clear();
  }
}

const WIDTH = 20;
/** Between two drawings, and over which the speed is taken. */
const REDRAW_MS = 200;
const SPEED_MS = 5000;
/** Percent between two lines where the output is no terminal. */
const STEP = 10;

/** `downloading [####----] 43% 212 MB of 491 MB, 3.1 MB/s, 1:30 left`. Nothing of what is there already. */
export class DownloadBar {
  readonly #stream: Output;
  readonly #now: () => number;
  #samples: { at: number; bytes: number }[] = [];
  #drawnAt = Number.NEGATIVE_INFINITY;
  #drawn = false;
  #shown = 0;

  constructor(stream: Output, now: () => number = () => performance.now()) {
    this.#stream = stream;
    this.#now = now;
  }

  update({ bytes, total }: PullProgress): void {
    const at = this.#now();
    if (this.#samples.length === 0 && bytes >= total) return;
    this.#samples.push({ at, bytes });
    // One that is old enough stays, to take the speed from.
    while ((this.#samples[1]?.at ?? Number.POSITIVE_INFINITY) <= at - SPEED_MS) this.#samples.shift();
    const percent = Math.floor((100 * bytes) / total);
    if (this.#stream.isTTY) {
      if (at - this.#drawnAt < REDRAW_MS) return;
      this.#drawnAt = at;
      const text = `${percent}% ${sizeText(bytes)} of ${sizeText(total)}${this.#speed(total)}`;
      // A line that wraps cannot be redrawn, and a phone held upright has some 45 columns.
      const columns = (this.#stream.columns ?? 80) - 1;
      const width = Math.min(WIDTH, columns - text.length - '[] '.length);
      const drawing = width > 3 ? `${styled(this.#stream, 'dim', bar(bytes / total, width))} ` : '';
      this.#stream.write(`\r\x1b[2K${drawing}${text.slice(0, columns)}`);
      this.#drawn = true;
    } else if (percent - (percent % STEP) > this.#shown) {
      this.#shown = percent - (percent % STEP);
      this.#stream.write(`downloading: ${this.#shown}% of ${sizeText(total)}\n`);
    }
  }

  clear(): void {
    if (this.#drawn) this.#stream.write('\r\x1b[2K');
    this.#drawn = false;
    this.#drawnAt = Number.NEGATIVE_INFINITY;
  }

  #speed(total: number): string {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    const seconds = first && last ? (last.at - first.at) / 1000 : 0;
    if (!first || !last || seconds < 0.5) return '';
    const speed = (last.bytes - first.bytes) / seconds;
    if (speed <= 0) return ', waiting';
    const left = Math.ceil((total - last.bytes) / speed);
    return `, ${sizeText(speed)}/s, ${Math.floor(left / 60)}:${String(left % 60).padStart(2, '0')} left`;
  }
}
