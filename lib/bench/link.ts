/**
 * How fast the connection to a worker is, measured over RPC itself: it passes every firewall, NAT and encryption that
 * the model's data will pass. Works with any worker that speaks ggml's protocol 7 (native/rpc/protocol.h).
 */
import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import { probeEndpoint, talkTo } from '../probe.js';
import type { Peer } from '../rpc-peer.js';
import type { BenchLink } from './types.js';

const COMMAND = { allocBuffer: 0, bufferBase: 3, freeBuffer: 4, setTensor: 6, getTensor: 8, deviceCount: 15 } as const;

// The packed struct Tensor of the wire, as far as it is filled: a row of 32-bit floats without name or operation.
const TENSOR_BYTES = 296;
const TENSOR = { id: 0, type: 8, buffer: 12, sizes: 20, strides: 36, data: 220 } as const;
const F32 = { type: 0, bytes: 4 } as const;

const KIB = 1024;
const MIB = 1024 * KIB;
const ROUND_TRIPS = 20;
const PROBE_TIMEOUT_MS = 10_000;
/** For both directions; a link that carries less than 64 KiB in that time is of no use for a model. */
const TIMEOUT_MS = 60_000;
/** A transfer that takes this long is long enough to tell. */
const LONG_ENOUGH_MS = 400;
const WANTED_MS = 700;
const FIRST_BYTES = 64 * KIB;
/** What one message carries, so that neither end needs much memory beside the buffer. */
const MESSAGE_BYTES = MIB;
const MOST_BYTES = 32 * MIB;
/** The part of a worker's free memory that is asked for. */
const PART = 1 / 4;
/** From one transfer to the next; the window of TCP grows with them. */
const MOST_GROWTH = 8;

export interface LinkOptions {
  /** The worker's join token. Default: none, the worker is expected to be plain. */
  token?: string;
  signal?: AbortSignal;
}

export interface MeasuredLink extends BenchLink {
  readonly roundTripMs: number;
  /** Whether it is a droid-llama worker, and so tells its compute times and serves several masters. */
  readonly extended: boolean;
  /** Bytes that it has free. */
  readonly memoryFree: number;
}

/**
 * Median of 20 round trips and the throughput of both directions, in about a second each: less on fast links. It asks the
 * worker for up to 32 MiB of memory for that long; a worker without room for it gives round trips only.
 * Rejects as `probeEndpoint` does, also with `DROID_ENDPOINT_TIMEOUT` after a minute.
 */
export async function measureLink(endpoint: string, { token, signal }: LinkOptions = {}): Promise<MeasuredLink> {
  const info = await probeEndpoint(endpoint, { token, signal, timeoutMs: PROBE_TIMEOUT_MS, roundTrips: ROUND_TRIPS });
  const memoryFree = info.devices[0]?.memoryFree ?? 0;
  const { roundTripMs, extended } = info;
  const rates = await talkTo(endpoint, { token, signal, timeoutMs: TIMEOUT_MS }, async (peer) => {
    const buffer = await allocate(peer, Math.min(MOST_BYTES, Math.floor(memoryFree * PART)));
    if (!buffer) return { up: null, down: null };
    const up = await throughput(buffer.bytes, roundTripMs, (bytes) => upload(peer, buffer, bytes));
    const down = await throughput(buffer.bytes, roundTripMs, (bytes) => download(peer, buffer, bytes));
    await peer.send(COMMAND.freeBuffer, handle(buffer.id));
    // Carried out in order: the memory is free again before anything else is asked of this worker.
    await settle(peer);
    return { up, down };
  });
  return { endpoint, roundTripMs, upBytesPerSecond: rates.up, downBytesPerSecond: rates.down, extended, memoryFree };
}

interface RemoteBuffer {
  readonly id: bigint;
  readonly base: bigint;
  readonly bytes: number;
  /** Some networks compress what they carry; weights and activations are not compressible, and neither is this. */
  readonly noise: Buffer;
}

/** Null where the worker has no room for it. */
async function allocate(peer: Peer, wanted: number): Promise<RemoteBuffer | null> {
  const bytes = wanted - (wanted % FIRST_BYTES);
  if (bytes < FIRST_BYTES) return null;
  const request = Buffer.alloc(12);
  request.writeBigUInt64LE(BigInt(bytes), 4);
  const id = (await peer.ask(COMMAND.allocBuffer, request, 16)).readBigUInt64LE();
  if (id === 0n) return null;
  const base = (await peer.ask(COMMAND.bufferBase, handle(id), 8)).readBigUInt64LE();
  return { id, base, bytes, noise: randomBytes(MESSAGE_BYTES) };
}

/** Larger and larger transfers, until one takes long enough; its bytes by its time without the round trip. */
async function throughput(
  most: number,
  roundTripMs: number,
  transfer: (bytes: number) => Promise<void>,
): Promise<number> {
  let bytes = FIRST_BYTES;
  for (;;) {
    const start = performance.now();
    await transfer(bytes);
    const took = performance.now() - start;
    if (took >= LONG_ENOUGH_MS || bytes === most) return rateOf(bytes, took, roundTripMs);
    bytes = nextBytes(bytes, took, most);
  }
}

/** The round trip may have been shorter than when it was measured; a transfer takes some time at least. */
export function rateOf(bytes: number, tookMs: number, roundTripMs: number): number {
  return (1000 * bytes) / Math.max(tookMs - roundTripMs, tookMs / 10);
}

/** As many bytes as should take long enough, at most eight times as many as before; whole units of what was first sent. */
export function nextBytes(bytes: number, tookMs: number, most: number): number {
  const factor = Math.min(MOST_GROWTH, WANTED_MS / Math.max(tookMs, 1e-3));
  const wanted = Math.ceil((bytes * Math.max(factor, 2)) / FIRST_BYTES) * FIRST_BYTES;
  return Math.min(most, wanted);
}

async function upload(peer: Peer, buffer: RemoteBuffer, bytes: number): Promise<void> {
  for (let offset = 0; offset < bytes; offset += MESSAGE_BYTES) {
    const size = Math.min(MESSAGE_BYTES, bytes - offset);
    const header = Buffer.alloc(TENSOR_BYTES + 9);
    tensor(buffer, bytes).copy(header);
    header.writeBigUInt64LE(BigInt(offset), TENSOR_BYTES + 1);
    await peer.send(COMMAND.setTensor, Buffer.concat([header, buffer.noise.subarray(0, size)]));
  }
  await settle(peer);
}

async function download(peer: Peer, buffer: RemoteBuffer, bytes: number): Promise<void> {
  const request = Buffer.alloc(TENSOR_BYTES + 16);
  tensor(buffer, bytes).copy(request);
  request.writeBigUInt64LE(BigInt(bytes), TENSOR_BYTES + 8);
  await peer.ask(COMMAND.getTensor, request, bytes);
}

/** What was sent before has been carried out when this is answered. */
async function settle(peer: Peer): Promise<void> {
  await peer.ask(COMMAND.deviceCount, Buffer.alloc(0), 4);
}

function tensor({ id, base }: RemoteBuffer, bytes: number): Buffer {
  const wire = Buffer.alloc(TENSOR_BYTES);
  wire.writeBigUInt64LE(1n, TENSOR.id);
  wire.writeUInt32LE(F32.type, TENSOR.type);
  wire.writeBigUInt64LE(id, TENSOR.buffer);
  for (const [i, size] of [bytes / F32.bytes, 1, 1, 1].entries()) wire.writeUInt32LE(size, TENSOR.sizes + 4 * i);
  for (const [i, stride] of [F32.bytes, bytes, bytes, bytes].entries()) {
    wire.writeUInt32LE(stride, TENSOR.strides + 4 * i);
  }
  wire.writeBigUInt64LE(base, TENSOR.data);
  return wire;
}

function handle(id: bigint): Buffer {
  const request = Buffer.alloc(8);
  request.writeBigUInt64LE(id);
  return request;
}
