import type { LoadProgress } from '../types.js';
import { type Output, styled } from './terminal.js';

const STAGES: Readonly<Record<LoadProgress['stage'], string>> = {
  weights: 'hashing weights',
  text_model: 'loading model',
  spec_model: 'loading draft model',
  mmproj_model: 'loading projector',
};
const BAR_WIDTH = 30;
/** Percent between two lines where the output is no terminal. */
const STEP = 10;

export interface LoadingBarOptions {
  /** Redraw one line instead of adding lines; default: when the stream is a terminal. */
  inPlace?: boolean;
}

/** `[######------]`, `width` cells wide. */
export function bar(fraction: number, width = BAR_WIDTH): string {
  const filled = Math.round(Math.min(1, Math.max(0, fraction)) * width);
  return `[${'#'.repeat(filled)}${'-'.repeat(width - filled)}]`;
}

/** Shows how far loading is: a bar redrawn in place on a terminal, a line every ten percent elsewhere. */
export class LoadingBar {
  readonly #stream: Output;
  readonly #inPlace: boolean;
  #stage: LoadProgress['stage'] | undefined;
  #shown = -1;
  #drawn = false;

  constructor(stream: Output, { inPlace = stream.isTTY === true }: LoadingBarOptions = {}) {
    this.#stream = stream;
    this.#inPlace = inPlace;
  }

  update({ stage, fraction }: LoadProgress): void {
    if (stage !== this.#stage) {
      this.#stage = stage;
      this.#shown = -1;
    }
    const percent = Math.floor(Math.min(1, Math.max(0, fraction)) * 100);
    // llama.cpp reports every tensor; only what changes the text is written.
    const step = this.#inPlace ? percent : percent - (percent % STEP);
    // Going back means that another load has begun.
    if (step < this.#shown) this.#shown = -1;
    if (step === this.#shown) return;
    this.#shown = step;
    const label = STAGES[stage] ?? stage;
    if (this.#inPlace) {
      // A line that wraps cannot be redrawn, and a phone held upright has some 45 columns.
      const width = Math.min(BAR_WIDTH, (this.#stream.columns ?? 80) - label.length - '[] 100% '.length - 1);
      const drawing = width > 0 ? ` ${styled(this.#stream, 'dim', bar(fraction, width))}` : '';
      this.#stream.write(`\r\x1b[2K${label}${drawing} ${percent}%`);
      this.#drawn = true;
    } else {
      this.#stream.write(`${label}: ${step}%\n`);
    }
  }

  /** Takes the bar off the screen, so that the next line starts clean; the bar may be updated again after it. */
  clear(): void {
    if (this.#drawn) this.#stream.write('\r\x1b[2K');
    this.#drawn = false;
    if (this.#inPlace) this.#shown = -1;
  }
}
