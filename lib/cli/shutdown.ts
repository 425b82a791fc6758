/** Reason of the signal from {@link shutdownSignal}: the user or the system asked the process to end. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
}

const controller = new AbortController();
let listening = false;

/**
 * Aborts at the first SIGINT or SIGTERM; a second one ends the process at once with status 130.
 * SIGHUP is left alone: a handler for it would undo `nohup`.
 */
export function shutdownSignal(): AbortSignal {
  if (!listening) {
    listening = true;
    for (const name of ['SIGINT', 'SIGTERM'] as const) {
      process.on(name, () => {
        if (controller.signal.aborted) process.exit(130);
        requestShutdown(name);
      });
    }
  }
  return controller.signal;
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
