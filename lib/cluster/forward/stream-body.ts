import type { IncomingMessage } from 'node:http';
import { DroidLlamaError } from '../../errors.js';
import { serialIterator } from '../../serial-iterator.js';

/**
 * The body of an answer, read no faster than it is asked for. No generator: return() must hang up at once, also before
 * the first next() and while one is waiting, and a generator's does neither.
 *
 * @param onEnd called once when it has come to an end of any kind; lets go of the connection
 */
export function streamBody(
  response: IncomingMessage,
  { signal, onEnd }: { signal: AbortSignal | undefined; onEnd: () => void },
): AsyncIterableIterator<Uint8Array> {
  let ended = false;
  let wake: () => void = () => {};
  for (const event of ['readable', 'end', 'error', 'close']) response.on(event, () => wake());

  const end = (): void => {
    if (ended) return;
    ended = true;
    onEnd();
    wake();
  };
  const read = async (): Promise<IteratorResult<Uint8Array>> => {
    while (!ended) {
      if (signal?.aborted) {
        end();
        throw signal.reason;
      }
      const chunk = response.read() as Buffer | null;
      if (chunk !== null) return { done: false, value: chunk };
      if (response.readableEnded) {
        end();
        if (!response.complete) throw broken(response);
      } else if (response.destroyed) {
        end();
        signal?.throwIfAborted();
        throw broken(response);
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
    return { done: true, value: undefined };
  };

  return serialIterator(read, end);
}

function broken({ errored }: IncomingMessage): DroidLlamaError {
  return new DroidLlamaError('DROID_CLOSED', 'The connection to the master was lost before its answer was complete.', {
    cause: errored ?? undefined,
  });
}
