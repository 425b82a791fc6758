/** Transports over loopback, and what tests do with their streams. */
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect, createServer, Socket } from 'node:net';
import { startTransport } from '../../lib/transport/tls-transport.js';
import { createToken } from '../../lib/transport/token.js';
import {
  type DialOptions,
  type ListenOptions,
  type SecureStream,
  STREAM_KINDS,
  type StreamKind,
  type Transport,
} from '../../lib/transport/transport.js';

/** The owner's end of a stream. */
export function socketOf({ fd }: SecureStream): Socket {
  const socket = new Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
  socket.on('error', () => {});
  return socket;
}

export interface Listening {
  readonly transport: Transport;
  readonly host: string;
  readonly port: number;
  readonly warnings: string[];
  /** Streams that nobody has taken with {@link next}. */
  readonly streams: SecureStream[];
  next(): Promise<SecureStream>;
}

/** All transports a test started; closed after it. */
export class Transports {
  readonly token = createToken();
  readonly #open: Transport[] = [];

  async start(token = this.token, onWarning?: (line: string) => void): Promise<Transport> {
    const transport = await startTransport({ token, onWarning });
    this.#open.push(transport);
    return transport;
  }

  async listen(options: Partial<ListenOptions> = {}): Promise<Listening> {
    const warnings: string[] = [];
    const streams: SecureStream[] = [];
    const waiting: (() => void)[] = [];
    const transport = await this.start(this.token, (line) => warnings.push(line));
    const onStream = (stream: SecureStream): void => {
      streams.push(stream);
      waiting.shift()?.();
    };
    const address = await transport.listen({ host: '127.0.0.1', port: 0, kinds: STREAM_KINDS, onStream, ...options });
    const next = async (): Promise<SecureStream> => {
      while (streams.length === 0) {
        await new Promise<void>((resolve) => waiting.push(resolve));
      }
      return streams.shift() as SecureStream;
    };
    return { transport, ...address, warnings, streams, next };
  }

  async closeAll(): Promise<void> {
    await Promise.all(this.#open.splice(0).map((transport) => transport.close()));
  }
}

export interface Connection {
  readonly dialled: SecureStream;
  readonly accepted: SecureStream;
  /** The dialler's end. */
  readonly near: Socket;
  readonly far: Socket;
}

export async function connectPair(
  from: Transport,
  to: Listening,
  kind: StreamKind = 'control',
  options?: DialOptions & { port?: number },
): Promise<Connection> {
  const [dialled, accepted] = await Promise.all([
    from.dial({ host: to.host, port: options?.port ?? to.port }, kind, options),
    to.next(),
  ]);
  return { dialled, accepted, near: socketOf(dialled), far: socketOf(accepted) };
}

/** Until it is true; names what was waited for when it does not come true. */
export async function until(what: string, done: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!done()) {
    if (Date.now() > deadline) throw new Error(`${what} did not come true within ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Everything that arrives until the other side ends or the stream breaks. */
export async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  if (socket.closed || socket.readableEnded) return Buffer.alloc(0);
  await new Promise<void>((resolve) => {
    socket.once('end', resolve);
    socket.once('close', () => resolve());
  });
  return Buffer.concat(chunks);
}

/** Until it is closed, with an error or without. */
export async function closed(socket: Socket): Promise<void> {
  if (!socket.closed) await new Promise((resolve) => socket.once('close', resolve));
}

/** Descriptors of this process. */
export function descriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

/** Relays TCP to a port, and keeps what either side said. */
export class Wiretap {
  readonly fromClient: Buffer[] = [];
  readonly fromServer: Buffer[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer({ allowHalfOpen: true });

  static async start(port: number): Promise<Wiretap> {
    const tap = new Wiretap();
    tap.#server.on('connection', (client) => {
      const server = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
      for (const [from, to, kept] of [
        [client, server, tap.fromClient],
        [server, client, tap.fromServer],
      ] as const) {
        tap.#sockets.add(from);
        from.on('error', () => {});
        from.on('data', (chunk) => {
          kept.push(chunk);
          to.write(chunk);
        });
        from.on('end', () => to.end());
        from.on('close', () => {
          tap.#sockets.delete(from);
          to.destroySoon();
        });
      }
    });
    tap.#server.listen(0, '127.0.0.1');
    await once(tap.#server, 'listening');
    return tap;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Both sides get a reset. */
  reset(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async close(): Promise<void> {
    this.reset();
    this.#server.close();
    await once(this.#server, 'close');
  }
}
