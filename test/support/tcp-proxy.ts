import { connect, createServer, type Server, type Socket } from 'node:net';
import type { EndpointAddress } from '../../lib/probe.js';

/** A way between two members that can be blocked, as when a phone walks out of range: nothing says so at either end. */
export class TcpProxy implements AsyncDisposable {
  readonly port: number;
  target: EndpointAddress | undefined;
  /** Bytes that went through. */
  readonly seen: Buffer[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #blocked = false;

  private constructor(server: Server) {
    this.#server = server;
    this.port = (server.address() as { port: number }).port;
    server.on('connection', (near: Socket) => this.#connected(near));
  }

  static async start(): Promise<TcpProxy> {
    const server = createServer({ allowHalfOpen: true });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new TcpProxy(server);
  }

  /** Keeps everything back, new connections too. */
  block(): void {
    this.#blocked = true;
    for (const socket of this.#sockets) socket.pause();
  }

  /** What was blocked never arrives; what is dialled from here on does. */
  unblock(): void {
    this.#blocked = false;
    this.cut();
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #connected(near: Socket): void {
    this.#keep(near);
    if (this.#blocked || !this.target) return;
    const far = connect({ ...this.target, allowHalfOpen: true });
    this.#keep(far);
    this.#carry(near, far);
    this.#carry(far, near);
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
  }

  #carry(from: Socket, to: Socket): void {
    from.on('data', (chunk: Buffer) => {
      this.seen.push(chunk);
      to.write(chunk);
    });
    from.on('end', () => to.end());
    from.on('close', () => to.destroy());
  }
}
