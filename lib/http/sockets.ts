import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { HEADERS_TIMEOUT_MS } from './app.js';
import type { Gateway } from './gateway.js';
import type { SocketLimits } from './options.js';
import type { HttpHandler } from './server.js';

/** What is known of an open connection. */
interface Connection {
  /** Ends it when no request comes; a server that does not listen has no such timer. */
  readonly first: NodeJS.Timeout;
  readonly idle: NodeJS.Timeout;
  /** Requests that are not answered yet. */
  open: number;
  /** The newest one. */
  request: IncomingMessage | undefined;
}

/** Gives the gateway connected sockets, and keeps the books that a listening server keeps by itself. */
export function serveSockets(
  gateway: Promise<Gateway>,
  { maxConnections = 1024, idleMs = HEADERS_TIMEOUT_MS }: SocketLimits = {},
): HttpHandler {
  const sockets = new Map<Socket, Connection>();
  let closing: Promise<void> | undefined;
  const ready = gateway.then(async ({ app }) => {
    await app.ready();
    app.server.on('request', (request: IncomingMessage, response: ServerResponse) => {
      const connection = sockets.get(request.socket);
      if (!connection) return;
      clearTimeout(connection.first);
      connection.request = request;
      connection.open++;
      response.once('close', () => connection.open--);
    });
    return app.server;
  });
  ready.catch(() => {});

  return {
    handle(socket) {
      // The server's own listeners come with the first turn of the event loop, and an error may be faster.
      socket.on('error', () => {});
      if (closing || socket.destroyed || sockets.size >= maxConnections) {
        socket.destroy();
        return;
      }
      const connection = watch(socket);
      sockets.set(socket, connection);
      socket.once('close', () => {
        clearTimeout(connection.first);
        clearInterval(connection.idle);
        sockets.delete(socket);
      });
      ready.then(
        (server) => {
          if (!socket.destroyed) server.emit('connection', socket);
        },
        () => socket.destroy(),
      );
    },
    close() {
      closing ??= shutDown();
      return closing;
    },
  };

  function watch(socket: Socket): Connection {
    let seen = -1;
    const connection: Connection = {
      first: setTimeout(() => socket.destroy(), HEADERS_TIMEOUT_MS).unref(),
      idle: setInterval(() => {
        // Whoever has sent a whole request may be silent for as long as the engine takes.
        const waits = connection.open > 0 && connection.request?.complete;
        if (!waits && socket.bytesRead === seen) socket.destroy();
        seen = waits ? -1 : socket.bytesRead;
      }, idleMs).unref(),
      open: 0,
      request: undefined,
    };
    return connection;
  }

  async function shutDown(): Promise<void> {
    const { close } = await gateway;
    // First: a request whose connection is cut would be aborted for that, and not because the server closes.
    const closed = close();
    for (const socket of sockets.keys()) socket.destroy();
    await closed;
  }
}
