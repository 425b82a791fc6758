import { setMaxListeners } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';

/**
 * Aborts `controller` when the client is gone before it has the whole answer, whatever the request waits for.
 *
 * The socket is watched besides the response: a pipelined request waits its turn with a response that has no socket
 * yet and never emits `close`, so its generation would run on for nobody.
 */
export function abortOnHangUp(request: IncomingMessage, response: ServerResponse, controller: AbortController): void {
  const { socket } = request;
  const onClose = (): void => {
    socket.off('close', onClose);
    response.off('close', onClose);
    if (!response.writableFinished) controller.abort();
  };
  if (socket.destroyed) {
    controller.abort();
    return;
  }
  // A client may pipeline any number of requests; each adds one listener, and that is no leak.
  setMaxListeners(0, socket);
  socket.on('close', onClose);
  response.on('close', onClose);
}
