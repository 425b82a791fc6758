import { afterEach, describe, expect, it } from 'vitest';
import { layOutExamples } from '../../lib/cli/help.js';
import { createProgram } from '../../lib/cli/program.js';

const { isTTY, columns } = process.stdout;
afterEach(() => {
  Object.assign(process.stdout, { isTTY, columns });
});

const commands = createProgram()
  .commands.filter((command) => command.name() !== 'help')
  .map((command) => command.name());

/** What `droid-llama [name] --help` prints on a terminal of so many columns. */
function helpOf(name: string | undefined, width: number): string[] {
  Object.assign(process.stdout, { isTTY: true, columns: width });
  const program = createProgram();
  const command = name === undefined ? program : program.commands.find((candidate) => candidate.name() === name);
  let text = '';
  command?.configureOutput({ writeOut: (chunk) => (text += chunk) }).outputHelp();
  return text.split('\n');
}

/** Commands, synopses and JSON stay as they are: a break would spoil them. */
const broken = (lines: string[], width: number) =>
  lines.filter((line) => line.length > width && !/^(Usage: | {2}\$ | {2,5}["{])/.test(line));

describe('--help', () => {
  it.each([undefined, ...commands])('of %s fits into 20 to 80 columns', (name) => {
    for (const width of [45, 60, 80]) expect(broken(helpOf(name, width), width)).toEqual([]);
    // A name with its value stands alone, and so does a word that is too long.
    const whole = /^( {2}\S+( \S+)*|\s*\S+)$/;
    for (const width of [20, 30, 35]) {
      expect(broken(helpOf(name, width), width).filter((line) => !whole.test(line))).toEqual([]);
    }
  });

  it('has every option beside its text where there is room, and above it where there is none', () => {
    expect(helpOf('doctor', 80).find((line) => line.includes('--json'))).toMatch(/--json {2,}\S/);
    const narrow = helpOf('up', 45);
    const at = narrow.findIndex((line) => line.includes('--objective <what>'));
    expect(narrow[at]).toBe('  --objective <what>');
    expect(narrow[at + 1]).toMatch(/^ {6}share: use every device/);
  });

  it('names commands with what they must be given', () => {
    const lines = helpOf(undefined, 80).map((line) => line.trim());
    for (const start of ['up  ', 'probe <host:port>  ', 'pull <owner/name[:quantization]>  ']) {
      expect(
        lines.some((line) => line.startsWith(start)),
        start,
      ).toBe(true);
    }
  });
});

describe('examples', () => {
  const text = 'Examples:\n  $ a\n  $ bbb # what for\n  $ cc # another\n\nMore.\n';

  it('have what they are for in one column', () => {
    expect(layOutExamples(text, 20)).toBe('Examples:\n  $ a\n  $ bbb  # what for\n  $ cc   # another\n\nMore.\n');
  });

  it('have it above them where one line would be too long, with the commands as they are', () => {
    const above = 'Examples:\n  $ a\n  # what for\n  $ bbb\n  # another\n  $ cc\n\nMore.\n';
    expect(layOutExamples(text, 18)).toBe(above);
  });
});
