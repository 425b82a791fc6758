import type { WriteStream } from 'node:tty';

const CODES = { bold: [1, 22], dim: [2, 22], red: [31, 39], yellow: [33, 39] } as const;

export type Style = keyof typeof CODES;

/** A stream as `process.stdout` is typed, whether or not it is a terminal. */
export type Output = Pick<WriteStream, 'write'> & Partial<Pick<WriteStream, 'isTTY' | 'columns' | 'hasColors'>>;

/**
 * `text` in a style, or as it is where `stream` is no terminal or colour is unwanted (`NO_COLOR`, `TERM=dumb`).
 * Written out because `util.styleText` takes nothing but a whole stream.
 */
export function styled(stream: Output, style: Style, text: string): string {
  if (!stream.isTTY || !stream.hasColors?.()) return text;
  const [on, off] = CODES[style];
  return `\x1b[${on}m${text}\x1b[${off}m`;
}

/** Columns of what is printed on stdout; what is no terminal counts as one of 80, as in the help of commander. */
export function stdoutColumns(): number {
  return process.stdout.columns ?? 80;
}

/** A result, on stdout. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** One JSON value on a line of its own, on stdout. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** Progress or a log line, on stderr. */
export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

export function warn(text: string): void {
  note(`${styled(process.stderr, 'yellow', 'warning:')} ${text}`);
}
