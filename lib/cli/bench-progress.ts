import type { BenchProgress } from '../bench/index.js';
import type { LoadProgress } from '../types.js';
import type { Output } from './terminal.js';

/** What a benchmark is doing: one line that is redrawn on a terminal, elsewhere a line for each case. */
export class BenchDisplay {
  readonly #stream: Output;
  readonly #inPlace: boolean;
  #line = '';
  #drawn = false;
  #where = '';

  constructor(stream: Output, inPlace = stream.isTTY === true) {
    this.#stream = stream;
    this.#inPlace = inPlace;
  }

  update(progress: BenchProgress): void {
    const { case: index, cases, name, test, run, runs } = progress;
    const alone = { link: `measuring the link to ${name}`, answer: `waiting for ${name} to answer` }[test];
    const where = alone ?? `${index} of ${cases}: ${name}`;
    if (this.#inPlace) {
      this.#line = alone ?? `${where}, ${test}${runs > 1 ? ` ${run}/${runs}` : ''}`;
      this.#draw(this.#line);
    } else if (where !== this.#where) {
      this.#stream.write(`${where}\n`);
    }
    this.#where = where;
  }

  load({ fraction }: LoadProgress): void {
    if (this.#inPlace) this.#draw(`${this.#line} ${Math.floor(100 * Math.min(1, Math.max(0, fraction)))}%`);
  }

  /** Takes the line off the screen. */
  clear(): void {
    if (this.#drawn) this.#stream.write('\r\x1b[2K');
    this.#drawn = false;
  }

  #draw(text: string): void {
    // A line that wraps cannot be redrawn.
    const columns = (this.#stream.columns ?? 80) - 1;
    this.#stream.write(`\r\x1b[2K${[...text.replace(/\p{Cc}+/gu, ' ')].slice(0, columns).join('')}`);
    this.#drawn = true;
  }
}
