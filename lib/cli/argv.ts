import { type Command, InvalidArgumentError } from 'commander';

/** What the splitter has to know about one flag of a command. */
export interface KnownFlag {
  /** The spelling that commander understands. */
  readonly long: string;
  readonly takesValue: boolean;
}

export interface SplitArgs {
  /** Flags of this command, one token each (`--flag=value`), ready for commander. */
  readonly known: readonly string[];
  /** Everything else, untouched and in order, for llama.cpp's own parser. */
  readonly llamaArgs: readonly string[];
}

/** No flag of llama-server takes more values than this. */
const MAX_VALUES = 2;

/**
 * The flags of a command, by every spelling. `aliases` adds spellings that commander cannot express, such as
 * llama.cpp's `-ub`, each with the long flag it stands for.
 */
export function knownFlags(command: Command, aliases: Readonly<Record<string, string>>): Map<string, KnownFlag> {
  const flags = new Map<string, KnownFlag>();
  for (const option of command.options) {
    const long = option.long ?? option.short;
    if (long === undefined || long === null) continue;
    const flag = { long, takesValue: option.required };
    flags.set(long, flag);
    if (option.short) flags.set(option.short, flag);
  }
  for (const help of ['-h', '--help']) flags.set(help, { long: '--help', takesValue: false });
  for (const [alias, long] of Object.entries(aliases)) {
    const flag = flags.get(long);
    if (!flag) throw new TypeError(`alias ${alias} stands for ${long}, which the command does not have`);
    flags.set(alias, flag);
  }
  return flags;
}

/**
 * Separates a command's own flags from those of llama-server. Which of the latter take a value is known to
 * llama.cpp's parser alone, so a flag keeps the values that follow it; after `--` everything is llama-server's.
 * @throws InvalidArgumentError for a flag without its value and for a word that belongs to no flag
 */
export function splitArgs(args: readonly string[], flags: ReadonlyMap<string, KnownFlag>): SplitArgs {
  const known: string[] = [];
  const llamaArgs: string[] = [];
  let valuesLeft = 0;
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] ?? '';
    if (arg === '--') {
      llamaArgs.push(...args.slice(i + 1));
      break;
    }
    if (!isFlag(arg)) {
      if (valuesLeft === 0) throw new InvalidArgumentError(`unexpected argument '${arg}'; the model goes after -m`);
      valuesLeft--;
      llamaArgs.push(arg);
      continue;
    }
    const { name, value } = splitFlag(arg);
    const flag = flags.get(name);
    if (!flag) {
      valuesLeft = MAX_VALUES;
      llamaArgs.push(arg);
      continue;
    }
    valuesLeft = 0;
    if (!flag.takesValue) {
      if (value !== undefined) throw new InvalidArgumentError(`option '${name}' takes no value`);
      known.push(flag.long);
    } else if (value !== undefined) {
      known.push(`${flag.long}=${value}`);
    } else {
      const next = args[i + 1];
      // `-m --rpc a:1` is a forgotten file name, not a model called --rpc.
      if (next === undefined || next === '--' || flags.has(splitFlag(next).name)) {
        throw new InvalidArgumentError(`option '${name}' needs a value`);
      }
      known.push(`${flag.long}=${next}`);
      i++;
    }
  }
  return { known, llamaArgs };
}

/** `-1` and `-0.5` are values, as in `-ngl -1`. */
function isFlag(arg: string): boolean {
  return arg.length > 1 && arg.startsWith('-') && !/^-\.?\d/.test(arg);
}

/** `--flag=value` in two; llama.cpp also takes `_` for `-` in long flags. */
function splitFlag(arg: string): { name: string; value: string | undefined } {
  if (!arg.startsWith('--')) return { name: arg, value: undefined };
  const equals = arg.indexOf('=');
  const name = (equals < 0 ? arg : arg.slice(0, equals)).replaceAll('_', '-');
  return { name, value: equals < 0 ? undefined : arg.slice(equals + 1) };
}
