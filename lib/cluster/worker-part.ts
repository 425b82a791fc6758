import { closeDescriptor } from '../addon.js';
import { type RpcServer, type RpcServerOptions, startAdoptingRpcServer } from '../rpc-server.js';
import type { SecureStream } from '../transport/transport.js';

/** The options of the worker that a member is, besides where it listens. */
export type WorkerPartOptions = Pick<
  RpcServerOptions,
  'threads' | 'memoryLimit' | 'cacheDir' | 'cacheLimit' | 'onEvent'
>;

/** What a member lends: an RPC server that is started with the first master that asks, and takes streams only. */
export class WorkerPart {
  readonly #options: WorkerPartOptions;
  #server: Promise<RpcServer> | undefined;
  #running: RpcServer | undefined;
  #closed = false;

  constructor(options: WorkerPartOptions) {
    this.#options = options;
  }

  /** Serves a master; the stream's descriptor is ours from here on. Rejects when the server cannot start. */
  async accept(stream: SecureStream, master: string): Promise<void> {
    if (this.#closed) {
      closeDescriptor(stream.fd);
      return;
    }
    this.#server ??= startAdoptingRpcServer(this.#options);
    try {
      this.#running = await this.#server;
    } catch (error) {
      // The next master may find it otherwise, e.g. with a cache directory that can be written by then.
      this.#server = undefined;
      closeDescriptor(stream.fd);
      throw error;
    }
    // Closing while the server started: it is closed by close(), which waits for it.
    if (this.#closed) closeDescriptor(stream.fd);
    else this.#running.adopt(stream.fd, master);
  }

  graphsComputed(): number {
    return this.#running?.stats().graphsComputed ?? 0;
  }

  /** Bytes that masters have allocated here. */
  bytesHeld(): number {
    return this.#running?.stats().bytesAllocated ?? 0;
  }

  async close(): Promise<void> {
    this.#closed = true;
    const server = await this.#server?.catch(() => undefined);
    await server?.close();
  }
}
