#!/usr/bin/env node
import type { Command } from 'commander';
import { wantsJson } from './bench.js';
import { createProgram, prepareArgs } from './program.js';
import { EXIT, report } from './report.js';
import { note } from './terminal.js';

process.exit(await main(process.argv.slice(2)));

async function main(args: readonly string[]): Promise<number> {
  for (const stream of [process.stdout, process.stderr]) {
    // `droid-llama worker | head -1` must not end the worker; whoever listened is gone, which is no failure.
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') throw error;
    });
  }
  const program = createProgram();
  let status: number = EXIT.ok;
  try {
    await program.parseAsync(prepareArgs(program, args), { from: 'user' });
    // Of a command that has said itself what is wrong, as `doctor` does.
    status = Number(process.exitCode ?? EXIT.ok);
  } catch (error) {
    // A child reports to its parent, which reads JSON.
    const json = args.includes('--json') || args.includes('--child') || wantsJson(args);
    status = report(error, json);
    if (status === EXIT.usage && !json && args.length > 0) note(helpHint(program, args));
  }
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  // Everything is closed by now; what may be left is a name lookup that no one can cancel.
  return status;
}

function helpHint(program: Command, args: readonly string[]): string {
  const command = program.commands.find((candidate) => candidate.name() === args[0]);
  return `see droid-llama ${command ? `${command.name()} ` : ''}--help`;
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write('', () => resolve());
  });
}
