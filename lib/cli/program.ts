import { Command } from 'commander';
import { packageVersion } from '../version.js';
import { knownFlags, splitArgs } from './argv.js';
import { addBenchCommand, BENCH_ALIASES } from './bench.js';
import { addDemoCommand } from './demo.js';
import { addDoctorCommand } from './doctor.js';
import { helpText, layOutHelp } from './help.js';
import { addModelCommands } from './models.js';
import { addProbeCommand } from './probe.js';
import { addServeCommand, SERVE_ALIASES } from './serve.js';
import { addStatusCommand } from './status.js';
import { addUpCommand, UP_ALIASES } from './up.js';
import { addWorkerCommand } from './worker.js';

const ALIASES: Readonly<Record<string, Readonly<Record<string, string>>>> = { up: UP_ALIASES, bench: BENCH_ALIASES };

const HELP = `
Examples:
  $ droid-llama demo # try it on this device alone
  $ droid-llama up -m model.gguf # on the device with the model; shows what to type on the others
  $ droid-llama up --help
`;

/** The whole command line as commander sees it. Errors are thrown as `CommanderError` instead of ending the process. */
export function createProgram(): Command {
  const program = new Command('droid-llama')
    .description('Run one language model across several devices, Android phones first.')
    .version(packageVersion())
    .exitOverride()
    // Errors are printed in one place, as text or JSON.
    .configureOutput({ outputError: () => {} });
  layOutHelp(program);
  addUpCommand(program);
  addStatusCommand(program);
  addDoctorCommand(program);
  addWorkerCommand(program);
  addServeCommand(program);
  addProbeCommand(program);
  addModelCommands(program);
  addBenchCommand(program);
  addDemoCommand(program);
  program.addHelpText('after', helpText(HELP));
  return program;
}

/**
 * Prepares arguments for commander: flags of `serve` that are llama-server's own move behind a `--`, in order, and the
 * spellings that commander cannot express are replaced.
 * @throws CommanderError as commander does
 */
export function prepareArgs(program: Command, args: readonly string[]): string[] {
  const command = program.commands.find((candidate) => candidate.name() === args[0]);
  if (command?.name() === 'serve') {
    const { known, llamaArgs } = splitArgs(args.slice(1), knownFlags(command, SERVE_ALIASES));
    return ['serve', ...known, ...(llamaArgs.length > 0 ? ['--', ...llamaArgs] : [])];
  }
  const aliases = ALIASES[command?.name() ?? ''] ?? {};
  const end = args.indexOf('--');
  return args.map((arg, i) => (end >= 0 && i >= end ? arg : (aliases[arg] ?? arg)));
}
