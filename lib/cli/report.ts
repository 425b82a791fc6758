import { CommanderError } from 'commander';
import { DroidLlamaError, type ErrorCode } from '../errors.js';
import { Interrupted } from './shutdown.js';
import { note, printJson, styled } from './terminal.js';

export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** Tells the user about whatever ended a command, and returns the exit status it stands for. */
export function report(error: unknown, json: boolean): number {
  if (error instanceof Interrupted) return EXIT.interrupted;
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return EXIT.ok;
    // commander has printed the help itself, e.g. for a call without any command.
    if (error.code !== 'commander.help') show('DROID_INVALID_ARGUMENT', usageText(error), json);
    return EXIT.usage;
  }
  if (error instanceof DroidLlamaError) {
    show(error.code, error.message, json);
    // Found by the library or by llama.cpp's parser, but the command line is where it came from.
    if (error.code === 'DROID_INVALID_ARGUMENT' || error.code === 'DROID_INSECURE') return EXIT.usage;
  } else {
    // Not one of ours, so a bug: its stack is what a report needs.
    show('', error instanceof Error ? error.message : String(error), json);
    if (error instanceof Error && error.stack) note(styled(process.stderr, 'dim', error.stack));
  }
  return EXIT.failed;
}

function usageText(error: CommanderError): string {
  return error.message.replace(/^error: /, '');
}

function show(code: ErrorCode | '', message: string, json: boolean): void {
  if (json) {
    printJson({ error: { code: code === '' ? null : code, message } });
    return;
  }
  const suffix = code === '' ? '' : ` ${styled(process.stderr, 'dim', `(${code})`)}`;
  note(`${styled(process.stderr, 'red', 'error:')} ${message}${suffix}`);
}
