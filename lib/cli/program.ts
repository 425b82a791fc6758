import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { knownFlags, splitArgs } from './argv.js';
import { addDemoCommand } from './demo.js';
import { addProbeCommand } from './probe.js';
import { addServeCommand, SERVE_ALIASES } from './serve.js';
import { addWorkerCommand } from './worker.js';

/** The whole command line as commander sees it. Errors are thrown as `CommanderError` instead of ending the process. */
export function createProgram(): Command {
  const program = new Command('droid-llama')
    .description('Run one language model across several devices, Android phones first.')
    .version(packageVersion())
    .exitOverride()
    // Errors are printed in one place, as text or JSON.
    .configureOutput({ outputError: () => {} });
  addWorkerCommand(program);
  addServeCommand(program);
  addProbeCommand(program);
  addDemoCommand(program);
  program.addHelpText('after', '\nExamples:\n  $ droid-llama demo\n  $ droid-llama serve --help\n');
  return program;
}

/**
 * Prepares arguments for commander: flags of `serve` that are llama-server's own move behind a `--`, in order.
 * @throws CommanderError as commander does
 */
export function prepareArgs(program: Command, args: readonly string[]): string[] {
  const serve = program.commands.find((command) => command.name() === 'serve');
  if (args[0] !== 'serve' || !serve) return [...args];
  const { known, llamaArgs } = splitArgs(args.slice(1), knownFlags(serve, SERVE_ALIASES));
  return ['serve', ...known, ...(llamaArgs.length > 0 ? ['--', ...llamaArgs] : [])];
}

function packageVersion(): string {
  // The same distance from lib/cli and from dist/cli.
  const manifest: unknown = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return typeof manifest === 'object' && manifest !== null && 'version' in manifest
    ? String(manifest.version)
    : '0.0.0';
}
