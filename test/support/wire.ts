/** Streams from a master to a worker in the same process, which a test can cut. */
import { Socket } from 'node:net';
import { onTestFinished } from 'vitest';
import { addon } from '../../lib/addon.js';
import { type RpcServer, startAdoptingRpcServer } from '../../lib/rpc-server.js';

/** A worker without a port, and the wires to it. */
export class WiredWorker {
  readonly server: RpcServer;
  readonly #sockets = new Set<Socket>();

  private constructor(server: RpcServer) {
    this.server = server;
  }

  static async start(options: { memoryLimit?: number } = {}): Promise<WiredWorker> {
    const worker = new WiredWorker(await startAdoptingRpcServer({ threads: 1, ...options }));
    onTestFinished(() => {
      worker.cut();
      return worker.server.close();
    });
    return worker;
  }

  /** Descriptor of one more stream to it, the caller's. */
  open(): number {
    const [mine, near] = addon().createSocketPair();
    const [far, theirs] = addon().createSocketPair();
    this.server.adopt(theirs, 'master');
    const [a, b] = [near, far].map((fd) => new Socket({ fd, readable: true, writable: true })) as [Socket, Socket];
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => {});
      from.once('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
    return mine;
  }

  /** Breaks every stream, as a phone does that leaves the network. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}
