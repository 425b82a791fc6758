/** How `--help` is laid out: readable on a phone held upright, too, which shows some 45 columns. */
import { type Command, Help } from 'commander';
import { wrapText } from './format.js';
import { stdoutColumns } from './terminal.js';

/** Columns that a text needs at least beside its name; with less it stands below. */
export const NARROWEST = 30;
const BELOW = '      ';

/** For the program; its commands inherit it. */
export function layOutHelp(program: Command): void {
  program.configureHelp({
    // Also on a terminal that is narrower than what NARROWEST leaves room for.
    minWidthToWrap: 1,
    // Every command has options; what it must be given is what tells it apart.
    subcommandTerm(command) {
      const needed = command.registeredArguments.filter(({ required }) => required);
      return [command.name(), ...needed.map((argument) => `<${argument.name()}>`)].join(' ');
    },
    formatItem(term, termWidth, description, helper) {
      const width = helper.helpWidth ?? stdoutColumns();
      if (!description || width - termWidth - 4 >= NARROWEST) {
        return Help.prototype.formatItem.call(helper, term, termWidth, description, helper);
      }
      const lines = helper.boxWrap(description, width - BELOW.length).split('\n');
      return [`  ${term}`, ...lines.map((line) => BELOW + line)].join('\n');
    },
  });
}

/**
 * What the help of a command says after its options: paragraphs, and examples, each a line that begins with `  $ `. Behind
 * ` # ` an example says what it is for.
 */
export function helpText(text: string): () => string {
  return () => wrapText(layOutExamples(text, stdoutColumns()), stdoutColumns());
}

/** What examples are for, beside them in one column, or where a line would be too long, each above its own. */
export function layOutExamples(text: string, columns: number): string {
  return text.replace(/(?:^ {2}\$ .*\n)+/gm, (block) => {
    const rows = block.trimEnd().split('\n').map(splitExample);
    const widest = Math.max(...rows.map(({ command, purpose }) => (purpose ? command.length : 0)));
    const beside = rows.map(({ command, purpose }) => (purpose ? `${command.padEnd(widest)}  # ${purpose}` : command));
    const fit = rows.every(({ purpose }, i) => !purpose || (beside[i]?.length ?? 0) <= columns);
    const comment = (purpose = ''): string[] => wrapText(purpose, columns - 4).match(/.+/g) ?? [];
    const above = rows.flatMap(({ command, purpose }) => [...comment(purpose).map((line) => `  # ${line}`), command]);
    return `${(fit ? beside : above).join('\n')}\n`;
  });
}

function splitExample(line: string): { command: string; purpose: string | undefined } {
  const [command = '', purpose] = line.split(' # ', 2);
  return { command: command.trimEnd(), purpose };
}
