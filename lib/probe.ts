import { connect, isIP, isIPv6, type Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { DroidLlamaError, type ErrorCode } from './errors.js';
import type { RpcDevice } from './types.js';

/** Version of ggml's RPC protocol this package speaks; a worker's major must be equal and its minor not newer. */
export const RPC_PROTOCOL = { major: 7, minor: 0, patch: 0 } as const;

/** Port that llama.cpp's own RPC server listens on unless told otherwise. */
export const DEFAULT_RPC_PORT = 50052;

/** ggml aborts above this number of backends, so no honest worker has more devices. */
const MAX_DEVICES = 16;
const MAX_ROUND_TRIPS = 1000;

// Numbers of ggml's RPC commands; a request is `command u8 | size u64 | payload`, an answer `size u64 | payload`.
const COMMAND = { getDeviceMemory: 11, hello: 14, deviceCount: 15 } as const;
const SIZE_BYTES = 8;
const CAPABILITIES_BYTES = 24;
const HELLO_ANSWER_BYTES = 4 + CAPABILITIES_BYTES;
const DEVICE_COUNT_ANSWER_BYTES = 4;
const DEVICE_MEMORY_ANSWER_BYTES = 16;

// How two ends of this package find each other (native/rpc/protocol.h): after the queue pair number of RDMA, which
// stays 0 and so means TCP to upstream's ends, the capabilities hold a name, a version and, in an answer, a status.
const EXTENSION = { magic: Buffer.from('drdl'), magicAt: 4, version: 1, versionAt: 8, statusAt: 9 } as const;
const HELLO_STATUS = { ok: 0, busy: 1, shuttingDown: 2 } as const;
// In place of an answer's size: a reason and a text follow, then the worker hangs up.
const NOTICE_SIZE = 2n ** 64n - 1n;
const NOTICE_BYTES = 8;
const NOTICE_TEXT_LIMIT = 1024;
const NOTICE_REASON = { outOfMemory: 2, shuttingDown: 3 } as const;
const LARGEST_MESSAGE_BYTES = SIZE_BYTES + NOTICE_BYTES + NOTICE_TEXT_LIMIT;

export interface EndpointAddress {
  readonly host: string;
  readonly port: number;
}

/** What a worker said about itself. */
export interface EndpointInfo {
  /** As it was given. */
  readonly endpoint: string;
  /** Version of the RPC protocol the worker speaks, e.g. `'7.0.0'`. */
  readonly protocol: string;
  /** Whether it runs droid-llama, and so has a cache of weights and tells its compute times. */
  readonly extended: boolean;
  /** The protocol carries no names: they are `RPC0`, `RPC1`, …, described by the endpoint. */
  readonly devices: readonly RpcDevice[];
  /** Median time from a request to its answer, in milliseconds. */
  readonly roundTripMs: number;
  /** Time until the TCP connection stood, name lookup included, in milliseconds. */
  readonly connectMs: number;
}

export interface ProbeOptions {
  /** Milliseconds for the whole probe, default 5000. */
  timeoutMs?: number;
  /** Requests to time, default 1. */
  roundTrips?: number;
  /** Aborting rejects with `signal.reason`. */
  signal?: AbortSignal;
}

/**
 * Splits `host:port` or `[IPv6]:port`.
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT`
 */
export function parseEndpoint(endpoint: string): EndpointAddress {
  const invalid = (why: string): DroidLlamaError =>
    new DroidLlamaError(
      'DROID_INVALID_ARGUMENT',
      `endpoint ${JSON.stringify(endpoint)}: ${why}; write host:port or [IPv6 address]:port, ` +
        `e.g. 192.168.37.219:${DEFAULT_RPC_PORT}`,
    );
  if (typeof endpoint !== 'string') throw invalid('not a string');
  if (endpoint.includes('://')) throw invalid('an endpoint is not a URL');
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(endpoint);
  if (!match) {
    if (isIPv6(endpoint)) throw invalid('an IPv6 address needs brackets and a port');
    throw invalid(endpoint.includes(':') ? 'not understood' : 'the port is missing');
  }
  const [, v6, name, digits = ''] = match;
  if (v6 !== undefined && !isIPv6(v6)) throw invalid('what stands in the brackets is not an IPv6 address');
  const host = v6 ?? name ?? '';
  if (host === '') throw invalid('the host is missing');
  if (host.length > 253 || /[\s/?#@\\,]/.test(host)) throw invalid('the host is not a name or an address');
  const port = /^\d{1,5}$/.test(digits) ? Number(digits) : 0;
  if (port < 1 || port > 65535) throw invalid('the port must be a number from 1 to 65535');
  return { host, port };
}

/**
 * Connects to a worker, shakes hands as a master would, asks for its devices and hangs up.
 * @throws DroidLlamaError `DROID_ENDPOINT_TIMEOUT`, `DROID_ENDPOINT_REFUSED`, `DROID_ENDPOINT_UNREACHABLE`,
 * `DROID_VERSION_MISMATCH`, `DROID_WORKER_BUSY`, `DROID_WORKER_REFUSED` or `DROID_INVALID_ARGUMENT`
 */
export async function probeEndpoint(endpoint: string, options: ProbeOptions = {}): Promise<EndpointInfo> {
  const { timeoutMs = 5000, roundTrips = 1, signal } = options;
  if (!(timeoutMs > 0 && timeoutMs < 2 ** 31)) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `timeoutMs is ${timeoutMs}; it must be above 0 and below 2^31`);
  }
  if (!Number.isInteger(roundTrips) || roundTrips < 1 || roundTrips > MAX_ROUND_TRIPS) {
    throw new DroidLlamaError(
      'DROID_INVALID_ARGUMENT',
      `roundTrips is ${roundTrips}; it must be an integer from 1 to ${MAX_ROUND_TRIPS}`,
    );
  }
  const address = parseEndpoint(endpoint);
  signal?.throwIfAborted();

  const started = performance.now();
  const peer = new Peer(endpoint, address);
  const deadline = setTimeout(() => peer.expire(timeoutMs), timeoutMs);
  const onAbort = (): void => peer.fail(signal?.reason);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    await peer.connected();
    const connectMs = performance.now() - started;
    const { protocol, extended } = await hello(peer);
    const trips: number[] = [];
    let count = 0;
    for (let i = 0; i < roundTrips; i++) {
      const asked = performance.now();
      count = (await peer.ask(COMMAND.deviceCount, Buffer.alloc(0), DEVICE_COUNT_ANSWER_BYTES)).readUInt32LE();
      trips.push(performance.now() - asked);
    }
    if (count < 1 || count > MAX_DEVICES) throw peer.mismatch(`it claims ${count} devices`);
    const devices: RpcDevice[] = [];
    for (let i = 0; i < count; i++) devices.push(await device(peer, endpoint, i));
    return { endpoint, protocol, extended, devices, roundTripMs: median(trips), connectMs };
  } finally {
    clearTimeout(deadline);
    signal?.removeEventListener('abort', onAbort);
    peer.hangUp();
  }
}

async function hello(peer: Peer): Promise<{ protocol: string; extended: boolean }> {
  const offered = Buffer.alloc(CAPABILITIES_BYTES);
  EXTENSION.magic.copy(offered, EXTENSION.magicAt);
  offered.writeUInt8(EXTENSION.version, EXTENSION.versionAt);
  const answer = await peer.ask(COMMAND.hello, offered, HELLO_ANSWER_BYTES);
  const [major = 0, minor = 0, patch = 0] = answer;
  const version = `${major}.${minor}.${patch}`;
  if (major !== RPC_PROTOCOL.major || minor > RPC_PROTOCOL.minor) {
    throw peer.mismatch(`it speaks version ${version} of the RPC protocol`);
  }
  const capabilities = answer.subarray(HELLO_ANSWER_BYTES - CAPABILITIES_BYTES);
  const extended =
    capabilities.subarray(EXTENSION.magicAt, EXTENSION.versionAt).equals(EXTENSION.magic) &&
    capabilities.readUInt8(EXTENSION.versionAt) === EXTENSION.version;
  if (extended) {
    const status = capabilities.readUInt8(EXTENSION.statusAt);
    if (status === HELLO_STATUS.busy) throw peer.busy();
    if (status === HELLO_STATUS.shuttingDown) throw peer.ending();
    if (status !== HELLO_STATUS.ok) throw peer.refused(`it turned the connection away (status ${status})`);
    peer.expectNotices();
  }
  return { protocol: version, extended };
}

async function device(peer: Peer, endpoint: string, index: number): Promise<RpcDevice> {
  const request = Buffer.alloc(4);
  request.writeUInt32LE(index);
  const answer = await peer.ask(COMMAND.getDeviceMemory, request, DEVICE_MEMORY_ANSWER_BYTES);
  const memoryFree = Number(answer.readBigUInt64LE(0));
  const memoryTotal = Number(answer.readBigUInt64LE(8));
  if (!Number.isSafeInteger(memoryFree) || !Number.isSafeInteger(memoryTotal)) {
    throw peer.mismatch(`it claims ${memoryTotal} bytes of memory`);
  }
  return { name: `RPC${index}`, description: endpoint, memoryTotal, memoryFree };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? upper)) / 2;
}

/** The other end of one probe: one request at a time, answers of a size known beforehand, the first failure stays. */
class Peer {
  readonly #endpoint: string;
  readonly #socket: Socket;
  #phase: 'resolving' | 'connecting' | 'greeting' | 'talking';
  #received = Buffer.alloc(0);
  #failure: { readonly error: unknown } | undefined;
  #wake: (() => void) | undefined;
  #mayNotify = false;

  constructor(endpoint: string, { host, port }: EndpointAddress) {
    this.#endpoint = endpoint;
    this.#phase = isIP(host) ? 'connecting' : 'resolving';
    // Node gives each address of a name 250 ms; a phone whose Wi-Fi sleeps needs longer for its first packet.
    this.#socket = connect({ host, port, noDelay: true, autoSelectFamily: true, autoSelectFamilyAttemptTimeout: 1500 });
    this.#socket.on('lookup', () => {
      if (this.#phase === 'resolving') this.#phase = 'connecting';
    });
    this.#socket.on('connect', () => {
      this.#phase = 'greeting';
      this.#wake?.();
    });
    this.#socket.on('data', (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      if (this.#received.length > LARGEST_MESSAGE_BYTES) this.fail(this.mismatch('it sent more than was asked for'));
      this.#wake?.();
    });
    this.#socket.on('error', (error: NodeJS.ErrnoException) => this.fail(this.#classify(error)));
    this.#socket.on('end', () => this.fail(this.#closed()));
    this.#socket.on('close', () => this.fail(this.#closed()));
  }

  async connected(): Promise<void> {
    await this.#until(() => this.#phase === 'greeting');
  }

  async ask(command: number, payload: Buffer, answerBytes: number): Promise<Buffer> {
    const request = Buffer.alloc(1 + SIZE_BYTES + payload.length);
    request.writeUInt8(command, 0);
    request.writeBigUInt64LE(BigInt(payload.length), 1);
    payload.copy(request, 1 + SIZE_BYTES);
    this.#socket.write(request);

    await this.#until(() => this.#received.length >= SIZE_BYTES);
    if (this.#mayNotify && this.#received.readBigUInt64LE() === NOTICE_SIZE) throw await this.#notice();
    // Checked before the body is waited for: another protocol's banner would otherwise end in a timeout.
    if (this.#received.readBigUInt64LE() !== BigInt(answerBytes)) throw this.mismatch('its answer is not RPC');
    const total = SIZE_BYTES + answerBytes;
    await this.#until(() => this.#received.length >= total);
    // What follows an answer can only be a notice, which the next request then meets.
    if (this.#received.length > total && !this.#mayNotify) throw this.mismatch('it sent more than was asked for');
    const answer = this.#received.subarray(SIZE_BYTES, total);
    this.#received = this.#received.subarray(total);
    this.#phase = 'talking';
    return answer;
  }

  /** From here on a notice may stand in place of an answer. Before, its size would be that of no worker. */
  expectNotices(): void {
    this.#mayNotify = true;
  }

  fail(error: unknown): void {
    this.#failure ??= { error };
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
          `it accepted the connection but did not ${this.#phase === 'greeting' ? 'greet' : 'answer'} ${within}. ` +
            "It may be no worker at all, or busy: llama.cpp's own ggml-rpc-server serves one master at a time and lets " +
            'the next one wait',
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
    this.#socket.destroy();
  }

  async #notice(): Promise<DroidLlamaError> {
    const head = SIZE_BYTES + NOTICE_BYTES;
    await this.#until(() => this.#received.length >= head);
    const reason = this.#received.readUInt32LE(SIZE_BYTES);
    const textBytes = this.#received.readUInt32LE(SIZE_BYTES + 4);
    if (textBytes > NOTICE_TEXT_LIMIT) return this.mismatch('its answer is not RPC');
    await this.#until(() => this.#received.length >= head + textBytes);
    if (reason === NOTICE_REASON.shuttingDown) return this.ending();
    // The text comes from the network and may end up on a terminal.
    const text = this.#received.toString('utf8', head, head + textBytes).replace(/\p{Cc}+/gu, ' ');
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
    const when = this.#phase === 'talking' ? 'in the middle of the probe' : 'instead of greeting';
    return this.mismatch(
      `it closed the connection ${when} (so does a worker that has as many masters as it takes)`,
      cause,
    );
  }

  #classify(error: NodeJS.ErrnoException): DroidLlamaError {
    if (this.#phase === 'greeting' || this.#phase === 'talking') return this.#closed(error);
    // A name with several addresses fails with one error for each: the most telling one wins.
    const parts: NodeJS.ErrnoException[] = error instanceof AggregateError ? error.errors : [error];
    const codes = parts.map((part) => part.code ?? part.message);
    if (codes.includes('ECONNREFUSED')) {
      return this.#error(
        'DROID_ENDPOINT_REFUSED',
        'the device is up, but nothing listens on that port: start `droid-llama worker` there, with ' +
          '`--host 0.0.0.0` if it is another device, and check the port',
        error,
      );
    }
    if (codes.includes('ETIMEDOUT')) return this.#timedOut('in time', error);
    const fix = codes.some((code) => code === 'ENOTFOUND' || code === 'EAI_AGAIN')
      ? 'its name does not resolve; try its IP address'
      : codes.some((code) => code === 'EACCES' || code === 'EPERM')
        ? 'the system does not let this process connect; newer Android asks for a local network permission'
        : 'there is no route to it; check that both devices are on the same network';
    return this.#error('DROID_ENDPOINT_UNREACHABLE', `${fix} (${codes.join(', ')})`, error);
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
