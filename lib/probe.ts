/** Whether a worker can be reached, and what it says about itself. */
import { performance } from 'node:perf_hooks';
import { parseEndpoint } from './endpoint.js';
import { DroidLlamaError } from './errors.js';
import { Peer, RPC_PROTOCOL } from './rpc-peer.js';
import { median } from './statistics.js';
import { checkToken } from './transport/token.js';
import type { RpcDevice } from './types.js';
import type { WorkerLink } from './worker-link.js';

export { DEFAULT_RPC_PORT, type EndpointAddress, parseEndpoint } from './endpoint.js';
export { RPC_PROTOCOL } from './rpc-peer.js';

/** ggml aborts above this number of backends, so no honest worker has more devices. */
const MAX_DEVICES = 16;
const MAX_ROUND_TRIPS = 1000;
const DEFAULT_TIMEOUT_MS = 5000;

// Numbers of ggml's RPC commands, and the sizes of what they carry.
const COMMAND = { getDeviceMemory: 11, hello: 14, deviceCount: 15 } as const;
const CAPABILITIES_BYTES = 24;
const HELLO_ANSWER_BYTES = 4 + CAPABILITIES_BYTES;
const DEVICE_COUNT_ANSWER_BYTES = 4;
const DEVICE_MEMORY_ANSWER_BYTES = 16;

// How two ends of this package find each other (native/rpc/protocol.h): after the queue pair number of RDMA, which
// stays 0 and so means TCP to upstream's ends, the capabilities hold a name, a version and, in an answer, a status.
const EXTENSION = { magic: Buffer.from('drdl'), magicAt: 4, version: 1, versionAt: 8, statusAt: 9 } as const;
const HELLO_STATUS = { ok: 0, busy: 1, shuttingDown: 2 } as const;

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
  /** Time until the connection stood, in milliseconds: with name lookup and, where there is a token, TLS. */
  readonly connectMs: number;
}

export interface ProbeOptions {
  /** The worker's join token. Default: none, the worker is expected to be plain. */
  token?: string;
  /** Milliseconds for the whole probe, default 5000. */
  timeoutMs?: number;
  /** Requests to time, default 1. */
  roundTrips?: number;
  /** Aborting rejects with `signal.reason`. */
  signal?: AbortSignal;
}

/**
 * Connects to a worker, shakes hands as a master would, asks for its devices and hangs up.
 * @throws DroidLlamaError `DROID_ENDPOINT_TIMEOUT`, `DROID_ENDPOINT_REFUSED`, `DROID_ENDPOINT_UNREACHABLE`,
 * `DROID_TOKEN_REJECTED`, `DROID_VERSION_MISMATCH`, `DROID_WORKER_BUSY`, `DROID_WORKER_REFUSED` or
 * `DROID_INVALID_ARGUMENT`
 */
export async function probeEndpoint(endpoint: string, options: ProbeOptions = {}): Promise<EndpointInfo> {
  return talkTo(endpoint, options, (peer, greeting) => describe(peer, greeting, endpoint, options));
}

/** Does what {@link probeEndpoint} does over a stream of the link; also throws what opening one does. */
export async function probeLink(link: WorkerLink, options: ProbeOptions = {}): Promise<EndpointInfo> {
  checkLimits(options);
  options.signal?.throwIfAborted();
  const use: Use<EndpointInfo> = (peer, greeting) => describe(peer, greeting, link.endpoint, options);
  return talk(link.endpoint, options, (peer) => peer.open(link), use);
}

/** What is known of a worker once it has greeted. */
export interface Greeting {
  readonly protocol: string;
  readonly extended: boolean;
  readonly connectMs: number;
}

/** What is done with a worker that has greeted; when it ends, the connection does. */
export type Use<T> = (peer: Peer, greeting: Greeting) => Promise<T>;

/** Connects to a worker as {@link probeEndpoint} does, with its errors, and has `use` talk to it. */
export async function talkTo<T>(endpoint: string, options: Omit<ProbeOptions, 'roundTrips'>, use: Use<T>): Promise<T> {
  checkLimits(options);
  const address = parseEndpoint(endpoint);
  options.signal?.throwIfAborted();
  if (options.token === undefined) return talk(endpoint, options, (peer) => peer.dial(address), use);

  const token = checkToken(options.token);
  const [{ startTransport }, { workerLink }] = await Promise.all([
    import('./transport/tls-transport.js'),
    import('./rpc-stream.js'),
  ]);
  const transport = await startTransport({ token });
  try {
    const link = workerLink(transport, endpoint, options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    return await talk(endpoint, options, (peer) => peer.open(link), use);
  } finally {
    await transport.close();
  }
}

function checkLimits({ timeoutMs = DEFAULT_TIMEOUT_MS, roundTrips = 1 }: ProbeOptions): void {
  if (!(timeoutMs > 0 && timeoutMs < 2 ** 31)) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `timeoutMs is ${timeoutMs}; it must be above 0 and below 2^31`);
  }
  if (!Number.isInteger(roundTrips) || roundTrips < 1 || roundTrips > MAX_ROUND_TRIPS) {
    throw new DroidLlamaError(
      'DROID_INVALID_ARGUMENT',
      `roundTrips is ${roundTrips}; it must be an integer from 1 to ${MAX_ROUND_TRIPS}`,
    );
  }
}

async function talk<T>(
  endpoint: string,
  { timeoutMs = DEFAULT_TIMEOUT_MS, signal }: ProbeOptions,
  connect: (peer: Peer) => Promise<void>,
  use: Use<T>,
): Promise<T> {
  const started = performance.now();
  const peer = new Peer(endpoint);
  const deadline = setTimeout(() => peer.expire(timeoutMs), timeoutMs);
  const onAbort = (): void => peer.fail(signal?.reason);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    await connect(peer);
    const connectMs = performance.now() - started;
    return await use(peer, { ...(await hello(peer)), connectMs });
  } finally {
    clearTimeout(deadline);
    signal?.removeEventListener('abort', onAbort);
    peer.hangUp();
  }
}

async function describe(
  peer: Peer,
  { protocol, extended, connectMs }: Greeting,
  endpoint: string,
  { roundTrips = 1 }: ProbeOptions,
): Promise<EndpointInfo> {
  const { trips, count } = await timeRoundTrips(peer, roundTrips);
  if (count < 1 || count > MAX_DEVICES) throw peer.mismatch(`it claims ${count} devices`);
  const devices: RpcDevice[] = [];
  for (let i = 0; i < count; i++) devices.push(await device(peer, endpoint, i));
  return { endpoint, protocol, extended, devices, roundTripMs: median(trips), connectMs };
}

/** The shortest question there is, so often: milliseconds of each, and what it is answered with. */
async function timeRoundTrips(peer: Peer, times: number): Promise<{ trips: number[]; count: number }> {
  const trips: number[] = [];
  let count = 0;
  for (let i = 0; i < times; i++) {
    const asked = performance.now();
    count = (await peer.ask(COMMAND.deviceCount, Buffer.alloc(0), DEVICE_COUNT_ANSWER_BYTES)).readUInt32LE();
    trips.push(performance.now() - asked);
  }
  return { trips, count };
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
