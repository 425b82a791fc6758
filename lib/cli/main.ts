#!/usr/bin/env node
import { createProgram, prepareArgs } from './program.js';
import { EXIT, report } from './report.js';

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
  } catch (error) {
    status = report(error, args.includes('--json'));
  }
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  // Everything is closed by now; what may be left is a name lookup that no one can cancel.
  return status;
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    stream.write('', () => resolve());
  });
}
