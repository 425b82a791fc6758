import { note } from './terminal.js';

/** Reason of the signal from {@link shutdownSignal}: the user or the system asked the process to end. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
}

/** Closing waits for the batch that is being computed, and for a worker that does not answer. */
const PATIENCE_MS = 3000;

const controller = new AbortController();
let listening = false;

/**
 * Aborts at the first SIGINT or SIGTERM; a second one ends the process at once, by that signal.
 * SIGHUP is left alone: a handler for it would undo `nohup`.
 */
export function shutdownSignal(): AbortSignal {
  if (!listening) {
    listening = true;
    for (const name of ['SIGINT', 'SIGTERM'] as const) {
      process.on(name, () => {
        // Not process.exit(), which waits for native threads; one of them may be what hangs.
        if (controller.signal.aborted) endBySignal(name);
        requestShutdown(name);
        setTimeout(() => note(`${startOfLine()}still closing; the same again ends it at once`), PATIENCE_MS).unref();
      });
    }
  }
  return controller.signal;
}

function endBySignal(name: NodeJS.Signals): void {
  process.removeAllListeners(name);
  process.kill(process.pid, name);
}

/** On a terminal the line may hold a loading bar or the `^C` of the key. */
function startOfLine(): string {
  return process.stderr.isTTY ? '\n' : '';
}

/** Starts the same shutdown without a signal from outside. */
export function requestShutdown(why: string): void {
  controller.abort(new Interrupted(`ended by ${why}`));
}

/** Resolves once `signal` is aborted. Something else has to keep the process alive meanwhile. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
