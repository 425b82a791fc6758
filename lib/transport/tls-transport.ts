/** The transport as the program sees it: a proxy of the thread that TLS runs in (tls-thread.ts). */
import { Worker } from 'node:worker_threads';
import { addon } from '../addon.js';
import type { EndpointAddress } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import { packageFile } from '../package-file.js';
import { invalid, optionalInteger, optionalOneOf, optionalString, show } from '../validate.js';
import { COUNTERS, type Counter, type Failure, type FromThread, type ThreadData, type ToThread } from './messages.js';
import { derivePsk } from './token.js';
import {
  type DialOptions,
  type ListenOptions,
  type SecureStream,
  STREAM_KINDS,
  type StreamKind,
  type Transport,
  type TransportOptions,
  type TransportStats,
} from './transport.js';

// From dist also when this file is lib's own, as in tests: a thread of Node's cannot start from TypeScript.
const THREAD = 'dist/transport/tls-thread.js';
const DIAL_TIMEOUT_MS = 10_000;
const MAX_PREAMBLE_BYTES = 1024;
/** A thread that is not gone by then is ended the hard way. */
const CLOSE_MS = 2000;

/**
 * Starts the thread that encrypts. It keeps the process alive only while it listens or dials.
 *
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT` for the token, `DROID_ADDON_NOT_FOUND`
 */
export async function startTransport({ token, onWarning }: TransportOptions): Promise<Transport> {
  const transport = new TlsTransport(derivePsk(token), onWarning);
  await transport.started;
  return transport;
}

interface Waiting<T> {
  resolve(value: T): void;
  reject(error: unknown): void;
}

class TlsTransport implements Transport {
  readonly started: Promise<void>;
  readonly #thread: Worker;
  readonly #counters = new Int32Array(new SharedArrayBuffer(4 * Object.keys(COUNTERS).length));
  readonly #onWarning: (line: string) => void;
  readonly #gone: Promise<void>;
  readonly #dials = new Map<number, Waiting<SecureStream>>();
  #starting: Waiting<void> | undefined;
  #listening: Waiting<EndpointAddress> | undefined;
  #onStream: ListenOptions['onStream'] | undefined;
  #lastDial = 0;
  /** Why nothing can be asked of the thread any more. */
  #ended: DroidLlamaError | undefined;
  #closing: Promise<void> | undefined;

  constructor(psk: Uint8Array, onWarning?: (line: string) => void) {
    this.#onWarning = (line) => {
      try {
        onWarning?.(line);
      } catch {
        // What a listener does wrong is not the transport's to handle, and must not stop it.
      }
    };
    const data: ThreadData = { psk, counters: this.#counters.buffer as SharedArrayBuffer };
    this.started = new Promise((resolve, reject) => {
      this.#starting = { resolve, reject };
    });
    // What the program was started with, such as a debugger, is not for this thread.
    this.#thread = new Worker(packageFile(THREAD), { workerData: data, execArgv: [], name: 'droid-llama tls' });
    this.#thread.on('message', (message: FromThread) => this.#received(message));
    let failure: unknown;
    this.#thread.on('error', (error) => {
      failure = error;
    });
    this.#gone = new Promise((resolve) => {
      this.#thread.once('exit', () => {
        this.#exited(failure);
        resolve();
      });
    });
  }

  async listen({ host, port, kinds, preambleBytes = {}, onStream }: ListenOptions): Promise<EndpointAddress> {
    if (optionalString('host', host) === undefined) invalid('host is missing; give the address to listen on.');
    checkPort(port, 0);
    for (const kind of [...kinds, ...Object.keys(preambleBytes)]) checkKind(kind);
    if (kinds.length === 0) invalid('kinds is empty; nothing could be let in.');
    for (const [kind, bytes] of Object.entries(preambleBytes)) {
      optionalInteger(`preambleBytes.${kind}`, bytes, { min: 0, max: MAX_PREAMBLE_BYTES });
    }
    if (this.#ended) throw this.#ended;
    if (this.#onStream) invalid('This transport listens already; it listens once.');
    this.#onStream = onStream;
    const listening = new Promise<EndpointAddress>((resolve, reject) => {
      this.#listening = { resolve, reject };
    });
    this.#hold();
    this.#send({ type: 'listen', host, port, kinds: [...kinds], preambleBytes: { ...preambleBytes } });
    try {
      return await listening;
    } catch (error) {
      // It may be tried again, with another port.
      this.#onStream = undefined;
      throw error;
    } finally {
      this.#listening = undefined;
      this.#hold();
    }
  }

  async dial(address: EndpointAddress, kind: StreamKind, options: DialOptions = {}): Promise<SecureStream> {
    const { timeoutMs = DIAL_TIMEOUT_MS, preamble = new Uint8Array(0), signal } = options;
    const { host, port } = address;
    if (optionalString('host', host) === undefined) invalid('host is missing; give the address to dial.');
    checkPort(port, 1);
    checkKind(kind);
    if (!(timeoutMs > 0 && timeoutMs < 2 ** 31)) {
      invalid(`timeoutMs is ${show(timeoutMs)}; it must be above 0 and below 2^31.`);
    }
    if (preamble.length > MAX_PREAMBLE_BYTES) {
      invalid(`preamble has ${preamble.length} bytes; it may have ${MAX_PREAMBLE_BYTES}.`);
    }
    signal?.throwIfAborted();
    if (this.#ended) throw this.#ended;

    const id = ++this.#lastDial;
    const onAbort = (): void => {
      this.#send({ type: 'cancel', id });
      this.#dials.get(id)?.reject(signal?.reason);
    };
    try {
      return await new Promise<SecureStream>((resolve, reject) => {
        this.#dials.set(id, { resolve, reject });
        signal?.addEventListener('abort', onAbort, { once: true });
        this.#hold();
        const bytes = Uint8Array.from(preamble);
        this.#send({ type: 'dial', id, address: { host, port }, kind, timeoutMs, preamble: bytes });
      });
    } finally {
      this.#dials.delete(id);
      signal?.removeEventListener('abort', onAbort);
      this.#hold();
    }
  }

  cut(id: number): void {
    if (!this.#ended) this.#send({ type: 'cut', id });
  }

  stats(): TransportStats {
    const read = (counter: Counter): number => Atomics.load(this.#counters, COUNTERS[counter]);
    return { open: read('open'), handshakes: read('handshakes'), rejected: read('rejected') };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#end(new DroidLlamaError('DROID_CLOSED', 'The transport is closed.'));
    // Whoever waits for this must see its end, even if nothing else is left to do.
    this.#thread.ref();
    this.#send({ type: 'close' });
    const deadline = setTimeout(() => void this.#thread.terminate(), CLOSE_MS);
    await this.#gone;
    clearTimeout(deadline);
  }

  #received(message: FromThread): void {
    switch (message.type) {
      case 'ready':
        this.#starting?.resolve();
        this.#starting = undefined;
        this.#hold();
        break;
      case 'failed':
        this.#end(toError(message.failure));
        break;
      case 'listening':
        this.#listening?.resolve(message.address);
        break;
      case 'listen-failed':
        this.#listening?.reject(toError(message.failure));
        break;
      case 'dialled':
        this.#dialled(message.id, message.stream);
        break;
      case 'dial-failed':
        this.#dials.get(message.id)?.reject(toError(message.failure));
        break;
      case 'stream':
        this.#handOn(message.stream);
        break;
      case 'warning':
        this.#onWarning(message.line);
    }
  }

  #dialled(id: number, stream: SecureStream): void {
    const waiting = this.#dials.get(id);
    if (waiting && !this.#ended) {
      // At once: a signal that aborts before the caller runs again must not reject what has a stream already.
      this.#dials.delete(id);
      waiting.resolve(stream);
    } else {
      addon().closeDescriptor(stream.fd);
    }
  }

  #handOn(stream: SecureStream): void {
    if (this.#ended || !this.#onStream) {
      addon().closeDescriptor(stream.fd);
      return;
    }
    try {
      this.#onStream(stream);
    } catch (error) {
      // It may have taken the descriptor before it failed: to close that could hit another one of the same number.
      this.cut(stream.id);
      this.#onWarning(`a ${stream.kind} stream from ${stream.remote.host} was not taken: ${(error as Error).message}`);
    }
  }

  /** The thread is gone, by close() or without it. */
  #exited(failure: unknown): void {
    Atomics.store(this.#counters, COUNTERS.open, 0);
    if (this.#ended) return;
    const why = failure instanceof Error ? failure.message : 'it ended';
    const error = new DroidLlamaError('DROID_CLOSED', `The thread that encrypts failed: ${why}.`, { cause: failure });
    const started = this.#starting === undefined;
    this.#end(error);
    if (started) this.#onWarning(`${error.message} All its streams are closed.`);
  }

  /** From here on everything is rejected with this. */
  #end(error: DroidLlamaError): void {
    this.#ended = error;
    this.#starting?.reject(error);
    this.#starting = undefined;
    this.#listening?.reject(error);
    for (const { reject } of this.#dials.values()) reject(error);
    this.#dials.clear();
  }

  #send(message: ToThread): void {
    this.#thread.postMessage(message);
  }

  /** Keeps the process alive for what the thread waits for, and for nothing else. */
  #hold(): void {
    if (this.#onStream || this.#dials.size > 0) this.#thread.ref();
    else if (!this.#closing) this.#thread.unref();
  }
}

function toError({ code, message }: Failure): DroidLlamaError {
  return new DroidLlamaError(code, message);
}

function checkPort(port: unknown, min: number): void {
  if (optionalInteger('port', port, { min, max: 65535 }) === undefined) invalid('port is missing.');
}

function checkKind(kind: unknown): void {
  if (optionalOneOf('kind', kind, STREAM_KINDS) === undefined) invalid('kind is missing.');
}
