/** Carries bytes, ends and aborts between a TLS stream and this thread's end of a socket pair. */
import { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';

/**
 * Waiting for a reader, in each direction. The result of write() would stop the other side for each chunk of a load,
 * even where the system took it at once.
 */
const BUFFERED_BYTES = 256 * 1024;
const NOTHING = Buffer.alloc(0);
/** How often to look whether an owner who ended the stream has closed it since. */
const CLOSED_CHECK_MS = 1000;
/** What an owner wrote before it closed gets this long to be sent. */
const FLUSH_MS = 10_000;

export class Bridge {
  readonly #secure: TLSSocket;
  readonly #local: Socket;
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param fd this end's descriptor, the bridge's from here on
   * @param first decrypted bytes that were read already
   * @param onClosed called once, when both are closed
   */
  constructor(secure: TLSSocket, fd: number, first: Uint8Array, onClosed: () => void) {
    const local = new Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
    this.#secure = secure;
    this.#local = local;
    let open = 2;
    const closed = (): void => {
      if (--open > 0) return;
      clearTimeout(this.#timer);
      onClosed();
    };

    // Plain events instead of pipe(): a generated token passes here twice, and this is the shortest way.
    secure.on('data', (chunk: Buffer) => {
      local.write(chunk);
      if (local.writableLength > BUFFERED_BYTES) secure.pause();
    });
    local.on('drain', () => secure.resume());
    local.on('data', (chunk: Buffer) => {
      secure.write(chunk);
      if (secure.writableLength > BUFFERED_BYTES) local.pause();
    });
    secure.on('drain', () => local.resume());

    secure.on('end', () => local.end());
    local.on('end', () => {
      secure.end();
      this.#watchOwner();
    });
    // 'close' has what is needed. It does not follow by itself where a record was tampered with.
    secure.on('error', () => secure.destroy());
    local.on('error', () => {});
    secure.on('close', () => {
      // What arrived before is still the owner's to read.
      local.destroySoon();
      closed();
    });
    local.on('close', () => {
      clearTimeout(this.#timer);
      if (!secure.destroyed) {
        secure.destroySoon();
        this.#timer = setTimeout(() => secure.destroy(), FLUSH_MS).unref();
      }
      closed();
    });

    if (first.length > 0) local.write(first);
    secure.resume();
  }

  /** Cuts both sides. */
  destroy(): void {
    this.#secure.destroy();
    this.#local.destroy();
  }

  /**
   * An owner who only ended its direction and one who closed look the same to a reader, but writing nothing fails for
   * the second. Without this a stream whose other side never says anything again would stay open for good.
   */
  #watchOwner(): void {
    if (this.#local.destroyed) return;
    if (this.#local.writable && this.#local.writableLength === 0) this.#local.write(NOTHING);
    this.#timer = setTimeout(() => this.#watchOwner(), CLOSED_CHECK_MS).unref();
  }
}
