/** The client's side of ggml's RPC protocol as far as a probe speaks it, and what each of its failures means. */
import { connect, isIP, Socket } from 'node:net';
import { connectFault } from './connect-errors.js';
import type { EndpointAddress } from './endpoint.js';
import { DroidLlamaError, type ErrorCode } from './errors.js';
import type { WorkerLink } from './worker-link.js';

/** Version of ggml's RPC protocol this package speaks; a worker's major must be equal and its minor not newer. */
export const RPC_PROTOCOL = { major: 7, minor: 0, patch: 0 } as const;

// A request is `command u8 | size u64 | payload`, an answer `size u64 | payload`.
const SIZE_BYTES = 8;
// In place of an answer's size: a reason and a text follow, then the worker hangs up.
const NOTICE_SIZE = 2n ** 64n - 1n;
const NOTICE_BYTES = 8;
const NOTICE_TEXT_LIMIT = 1024;
const NOTICE_REASON = { outOfMemory: 2, shuttingDown: 3 } as const;
const LARGEST_MESSAGE_BYTES = SIZE_BYTES + NOTICE_BYTES + NOTICE_TEXT_LIMIT;

/** The other end of one probe: one request at a time, answers of a size known beforehand, the first failure stays. */
export class Peer {
  readonly #endpoint: string;
  #socket: Socket | undefined;
  #phase: 'resolving' | 'connecting' | 'greeting' | 'talking' = 'connecting';
  /** A stream of a link: the other end has proven by now that it has the token. */
  #proven = false;
  /** What has arrived and was not taken yet, in the pieces it came in: an answer may be megabytes. */
  #chunks: Buffer[] = [];
  #bytes = 0;
  #limit = LARGEST_MESSAGE_BYTES;
  #failure: { readonly error: unknown } | undefined;
  #wake: (() => void) | undefined;
  #mayNotify = false;
  readonly #opening = new AbortController();

  constructor(endpoint: string) {
    this.#endpoint = endpoint;
  }

  /** Resolves once the TCP connection stands. */
  async dial({ host, port }: EndpointAddress): Promise<void> {
    if (!isIP(host)) this.#phase = 'resolving';
    // Node gives each address of a name 250 ms; a phone whose Wi-Fi sleeps needs longer for its first packet.
    this.#use(connect({ host, port, noDelay: true, autoSelectFamily: true, autoSelectFamilyAttemptTimeout: 1500 }));
    this.#socket?.on('lookup', () => {
      if (this.#phase === 'resolving') this.#phase = 'connecting';
    });
    this.#socket?.on('connect', () => this.#connected());
    await this.#until(() => this.#phase === 'greeting');
  }

  /** Resolves once the link has opened a stream. */
  async open(link: WorkerLink): Promise<void> {
    const opened = (fd: number): void => {
      const socket = new Socket({ fd, readable: true, writable: true });
      if (this.#failure) {
        socket.on('error', () => {}).destroy();
        return;
      }
      this.#proven = true;
      this.#use(socket);
      this.#connected();
    };
    link.open(this.#opening.signal).then(opened, (error) => this.fail(error));
    await this.#until(() => this.#phase === 'greeting');
  }

  async ask(command: number, payload: Buffer, answerBytes: number): Promise<Buffer> {
    const total = SIZE_BYTES + answerBytes;
    this.#limit = total + LARGEST_MESSAGE_BYTES;
    this.#socket?.write(requestOf(command, payload));

    await this.#until(() => this.#bytes >= SIZE_BYTES);
    const size = this.#arrived().readBigUInt64LE();
    if (this.#mayNotify && size === NOTICE_SIZE) throw await this.#notice();
    // Checked before the body is waited for: another protocol's banner would otherwise end in a timeout.
    if (size !== BigInt(answerBytes)) throw this.mismatch('its answer is not RPC');
    await this.#until(() => this.#bytes >= total);
    // What follows an answer can only be a notice, which the next request then meets.
    if (this.#bytes > total && !this.#mayNotify) throw this.mismatch('it sent more than was asked for');
    const arrived = this.#arrived();
    this.#take(total);
    this.#limit = LARGEST_MESSAGE_BYTES;
    this.#phase = 'talking';
    return arrived.subarray(SIZE_BYTES, total);
  }

  /** A request without an answer; resolves once the socket takes more. */
  async send(command: number, payload: Buffer): Promise<void> {
    const socket = this.#socket;
    socket?.write(requestOf(command, payload));
    await this.#until(() => socket?.writableNeedDrain !== true);
  }

  /** From here on a notice may stand in place of an answer. Before, its size would be that of no worker. */
  expectNotices(): void {
    this.#mayNotify = true;
  }

  fail(error: unknown): void {
    this.#failure ??= { error };
    this.#opening.abort(error);
    this.#wake?.();
  }

  expire(timeoutMs: number): void {
    const within = `within ${timeoutMs} ms`;
    if (this.#phase === 'resolving') {
      this.fail(this.#error('DROID_ENDPOINT_UNREACHABLE', `its name did not resolve ${within}; try its IP address`));
    } else if (this.#phase === 'connecting') {
      this.fail(this.#timedOut(within));
    } else {
      this.fail(
        this.#error(
          'DROID_ENDPOINT_TIMEOUT',
          `it accepted the connection but did not ${this.#phase === 'greeting' ? 'greet' : 'answer'} ${within}. ${
            this.#proven
              ? 'It has the token, so it is the worker that was meant: it may be frozen, or overloaded'
              : "It may be no worker at all, or busy: llama.cpp's own ggml-rpc-server serves one master at a time and " +
                'lets the next one wait'
          }`,
        ),
      );
    }
  }

  mismatch(what: string, cause?: unknown): DroidLlamaError {
    const { major, minor } = RPC_PROTOCOL;
    return this.#error(
      'DROID_VERSION_MISMATCH',
      `${what}. This package speaks ggml's RPC protocol ${major}.${minor}: run the same droid-llama on both devices, ` +
        'or a ggml-rpc-server of a llama.cpp with that protocol, and check the port',
      cause,
    );
  }

  busy(): DroidLlamaError {
    return this.#error(
      'DROID_WORKER_BUSY',
      'it has as many masters as it takes. Close one of them, or start the worker with a larger `--max-clients`',
    );
  }

  ending(): DroidLlamaError {
    return this.#error('DROID_WORKER_BUSY', 'it is about to end. Start it again, and then try again');
  }

  refused(why: string): DroidLlamaError {
    return this.#error('DROID_WORKER_REFUSED', why);
  }

  hangUp(): void {
    this.#socket?.destroy();
  }

  #use(socket: Socket): void {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#bytes += chunk.length;
      if (this.#bytes > this.#limit) this.fail(this.mismatch('it sent more than was asked for'));
      this.#wake?.();
    });
    socket.on('drain', () => this.#wake?.());
    socket.on('error', (error: NodeJS.ErrnoException) => this.fail(this.#classify(error)));
    socket.on('end', () => this.fail(this.#closed()));
    socket.on('close', () => this.fail(this.#closed()));
  }

  /** All that has arrived, in one piece. */
  #arrived(): Buffer {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
    return this.#chunks[0] ?? Buffer.alloc(0);
  }

  #take(bytes: number): void {
    const rest = this.#arrived().subarray(bytes);
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#bytes = rest.length;
  }

  #connected(): void {
    this.#phase = 'greeting';
    this.#wake?.();
  }

  async #notice(): Promise<DroidLlamaError> {
    const head = SIZE_BYTES + NOTICE_BYTES;
    await this.#until(() => this.#bytes >= head);
    const reason = this.#arrived().readUInt32LE(SIZE_BYTES);
    const textBytes = this.#arrived().readUInt32LE(SIZE_BYTES + 4);
    if (textBytes > NOTICE_TEXT_LIMIT) return this.mismatch('its answer is not RPC');
    await this.#until(() => this.#bytes >= head + textBytes);
    if (reason === NOTICE_REASON.shuttingDown) return this.ending();
    // The text comes from the network and may end up on a terminal.
    const text = this.#arrived()
      .toString('utf8', head, head + textBytes)
      .replace(/\p{Cc}+/gu, ' ');
    if (reason === NOTICE_REASON.outOfMemory) return this.#error('DROID_WORKER_OUT_OF_MEMORY', `it says: ${text}`);
    return this.refused(`it hung up and says: ${text}`);
  }

  async #until(done: () => boolean): Promise<void> {
    // What has arrived counts even if the peer hung up right after it.
    while (!done()) {
      if (this.#failure) throw this.#failure.error;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  #closed(cause?: unknown): DroidLlamaError {
    const full = 'so does a worker that has as many masters as it takes';
    if (this.#phase === 'talking') {
      return this.mismatch(`it closed the connection in the middle of the probe (${full})`, cause);
    }
    if (this.#proven) return this.mismatch(`it closed the connection instead of greeting (${full})`, cause);
    return this.mismatch(
      'it closed the connection instead of greeting. Perhaps it wants the token that the worker shows when it starts ' +
        `(\`token\`, \`--token\`); ${full}`,
      cause,
    );
  }

  #classify(error: NodeJS.ErrnoException): DroidLlamaError {
    if (this.#phase === 'greeting' || this.#phase === 'talking') return this.#closed(error);
    const { code, why } = connectFault(error);
    if (code === 'DROID_ENDPOINT_TIMEOUT') return this.#timedOut('in time', error);
    const text =
      code === 'DROID_ENDPOINT_REFUSED'
        ? 'the device is up, but nothing listens on that port: start `droid-llama worker` there, with ' +
          '`--host 0.0.0.0` if it is another device, and check the port'
        : why;
    return this.#error(code, text, error);
  }

  #timedOut(within: string, cause?: unknown): DroidLlamaError {
    return this.#error(
      'DROID_ENDPOINT_TIMEOUT',
      `it did not answer ${within}. Android drops incoming connections, on the phone that hosts a hotspot always: ` +
        'swap the roles, so that the phone that hosts the hotspot is the master and the one that joined it the worker. ' +
        'A wrong address looks the same',
      cause,
    );
  }

  #error(code: ErrorCode, text: string, cause?: unknown): DroidLlamaError {
    return new DroidLlamaError(code, `${this.#endpoint}: ${text}`, { cause });
  }
}

function requestOf(command: number, payload: Buffer): Buffer {
  const request = Buffer.alloc(1 + SIZE_BYTES + payload.length);
  request.writeUInt8(command, 0);
  request.writeBigUInt64LE(BigInt(payload.length), 1);
  payload.copy(request, 1 + SIZE_BYTES);
  return request;
}
