import { randomFillSync } from 'node:crypto';
import { Socket } from 'node:net';
import { addon } from '../../addon.js';
import { DroidLlamaError } from '../../errors.js';
import type { SecureStream, Transport } from '../../transport/transport.js';

const CHUNK_BYTES = 16 * 1024;
/** Time for the last bytes to get through after this end hung up; the other one need not hang up itself. */
const LINGER_MS = 2000;

let filler: Buffer | undefined;

/** Bytes that nothing on the way can make smaller. */
function filling(): Buffer {
  filler ??= randomFillSync(Buffer.alloc(CHUNK_BYTES));
  return filler;
}

/** How fast bytes arrived; the first quarter is left out, in which TCP still feels its way. */
export interface Arrival {
  readonly bytes: number;
  readonly microseconds: number;
}

/** A stream to read and write in turns. It holds no more than a socket's buffer, and nothing waits longer than `idleMs`. */
export class ByteChannel {
  readonly #socket: Socket;
  readonly #idleMs: number;
  readonly #cut: () => void;
  #lifetime: NodeJS.Timeout;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;

  /** The stream is the channel's from here on, also when this throws. */
  constructor(
    transport: Pick<Transport, 'cut'>,
    { id, fd }: SecureStream,
    { idleMs, lifetimeMs }: { idleMs: number; lifetimeMs: number },
  ) {
    this.#idleMs = idleMs;
    this.#cut = () => transport.cut(id);
    try {
      this.#socket = new Socket({ fd, readable: true, writable: true });
    } catch (error) {
      addon().closeDescriptor(fd);
      this.#cut();
      throw error;
    }
    this.#socket.on('error', (error) => this.#fail(error));
    this.#socket.on('end', () => this.#fail(closedByPeer()));
    this.#socket.on('close', () => this.#fail(closedByPeer()));
    this.#socket.on('readable', () => this.#wake?.());
    this.#socket.on('drain', () => this.#wake?.());
    this.#lifetime = setTimeout(() => this.#fail(silent(lifetimeMs)), lifetimeMs);
  }

  /** Exactly so many bytes; few, since they are held together. */
  async read(bytes: number): Promise<Buffer> {
    for (;;) {
      const chunk: Buffer | null = this.#socket.read(bytes);
      // At the end of the stream what is left comes, however little.
      if (chunk?.length === bytes) return chunk;
      await this.#change();
    }
  }

  /** Reads so many bytes and drops them. */
  async drop(bytes: number): Promise<Arrival> {
    let left = bytes;
    let from: { readonly left: number; readonly at: number } | undefined;
    while (left > 0) {
      const ready = Math.min(left, this.#socket.readableLength);
      const chunk: Buffer | null = ready > 0 ? this.#socket.read(ready) : this.#socket.read(0);
      if (chunk) {
        left -= chunk.length;
        if (!from && left <= bytes * 0.75) from = { left, at: performance.now() };
      } else {
        await this.#change();
      }
    }
    const microseconds = from ? Math.round((performance.now() - from.at) * 1000) : 0;
    return { bytes: from?.left ?? 0, microseconds };
  }

  async write(data: Buffer): Promise<void> {
    if (this.#failure) throw this.#failure;
    if (this.#socket.write(data)) return;
    while (this.#socket.writableNeedDrain) await this.#change();
  }

  async fill(bytes: number): Promise<void> {
    const chunk = filling();
    for (let left = bytes; left > 0; left -= chunk.length) {
      await this.write(left < chunk.length ? chunk.subarray(0, left) : chunk);
    }
  }

  /** Hangs up when what was written is on its way. */
  close(): void {
    this.#failure ??= new DroidLlamaError('DROID_CLOSED', 'the probe is over');
    this.#socket.end();
    clearTimeout(this.#lifetime);
    this.#lifetime = setTimeout(() => this.destroy(), LINGER_MS);
    this.#lifetime.unref();
    this.#wake?.();
  }

  /** Hangs up at once. Idempotent. */
  destroy(): void {
    clearTimeout(this.#lifetime);
    this.#failure ??= new DroidLlamaError('DROID_CLOSED', 'the probe was ended');
    this.#socket.destroy();
    this.#cut();
    this.#wake?.();
  }

  /** Ends it with this error for whoever waits; the first one stays. */
  #fail(error: Error): void {
    if (!this.#failure) {
      this.#failure = error;
      this.destroy();
    }
    this.#wake?.();
  }

  async #change(): Promise<void> {
    if (this.#failure) throw this.#failure;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => this.#fail(silent(this.#idleMs)), this.#idleMs);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
  }
}

function silent(ms: number): DroidLlamaError {
  return new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', `it accepted the probe but did not answer within ${ms} ms`);
}

function closedByPeer(): DroidLlamaError {
  return new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', 'it hung up in the middle of the probe');
}
