/** The side of a probe that dials and asks. */
import type { EndpointAddress } from '../../endpoint.js';
import type { Transport } from '../../transport/transport.js';
import { ByteChannel } from './channel.js';
import {
  decodeFrame,
  decodeGreeting,
  encodeFrame,
  FRAME_BYTES,
  type Frame,
  GREETING_BYTES,
  idBytes,
  MAX_TRANSFER_BYTES,
  OP,
  type Op,
  STATUS,
} from './protocol.js';

/** Android drops a SYN without a word; its repetition, after a second, gets a chance too. */
const DIAL_MS = 3500;
const IDLE_MS = 3000;
const LIFETIME_MS = 15_000;
const EXCHANGES = 5;
/** A first transfer is this short: it tells how large the next one may be, and TCP gets under way in it. */
const FIRST_BYTES = 32 * 1024;
const STEPS = 2;
/** Time that the later ones should take at most, together. */
const TRANSFER_SECONDS = 0.4;
const SLOW_MS = 1000;
/** How much faster than the whole transfer its end may seem. */
const MOST_OF_WHOLE = 1.5;
/** Below this a duration is as much the timer's as the network's. */
const LEAST_SECONDS = 0.0002;

/** The device that answered has our token, but is another one than the one meant, or does not speak this protocol. */
export class OtherPeerError extends Error {}

/** Bytes per second; `up` goes from the dialler to the other one. */
export interface Throughput {
  readonly up: number;
  readonly down: number;
}

/** A probe of one address of a peer, which has proven that it is that peer. */
export class ProbeClient {
  readonly address: EndpointAddress;
  /** Of the shortest exchange; null when the other end takes no more probes at the moment. */
  readonly roundTripMs: number | null;
  readonly #channel: ByteChannel;

  private constructor(address: EndpointAddress, channel: ByteChannel, roundTripMs: number | null) {
    this.address = address;
    this.#channel = channel;
    this.roundTripMs = roundTripMs;
  }

  /** Rejects as `Transport.dial()` does, and with {@link OtherPeerError}. */
  static async open(
    transport: Pick<Transport, 'dial' | 'cut'>,
    { address, self, peer, signal }: { address: EndpointAddress; self: string; peer: string; signal: AbortSignal },
  ): Promise<ProbeClient> {
    const stream = await transport.dial(address, 'probe', { timeoutMs: DIAL_MS, preamble: idBytes(self), signal });
    const channel = new ByteChannel(transport, stream, { idleMs: IDLE_MS, lifetimeMs: LIFETIME_MS });
    const onAbort = (): void => channel.destroy();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      signal.throwIfAborted();
      const greeting = decodeGreeting(await channel.read(GREETING_BYTES));
      if (greeting?.id !== peer) throw new OtherPeerError('another device answered');
      const roundTripMs = greeting.status === STATUS.ok ? await shortestExchange(channel) : null;
      return new ProbeClient(address, channel, roundTripMs);
    } catch (error) {
      channel.destroy();
      throw error;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** Null when the other end has no time for it now. Rejects when the stream breaks. */
  async measureThroughput(bytes: number): Promise<Throughput | null> {
    const ready = await ask(this.#channel, OP.start);
    if (ready.a !== 1) return null;
    const up = await this.#inSteps((size) => this.#upload(size), bytes);
    const down = await this.#inSteps((size) => this.#download(size), bytes);
    return { up: Math.round(up), down: Math.round(down) };
  }

  /** Tells the other end what it cannot know, and hangs up. Idempotent. */
  async finish(throughput: Throughput | null): Promise<void> {
    const report = encodeFrame(OP.report, (this.roundTripMs ?? 0) * 1000, throughput?.down ?? 0);
    await this.#channel.write(report).catch(() => {});
    this.#channel.close();
  }

  destroy(): void {
    this.#channel.destroy();
  }

  /** A short transfer to learn how large the others may be, then the better of two: whatever stalls one makes it slower. */
  async #inSteps(transfer: (bytes: number) => Promise<number>, bytes: number): Promise<number> {
    const most = Math.floor(Math.min(bytes, MAX_TRANSFER_BYTES) / STEPS);
    const least = Math.min(FIRST_BYTES, most);
    const started = performance.now();
    const first = await transfer(least);
    let best = 0;
    for (let step = 0; step < STEPS; step++) {
      // A link this slow is known well enough.
      if (performance.now() - started > SLOW_MS) break;
      const size = Math.floor(Math.max(first, best) * (TRANSFER_SECONDS / STEPS));
      best = Math.max(best, await transfer(Math.min(Math.max(size, least), most)));
    }
    return best || first;
  }

  async #upload(bytes: number): Promise<number> {
    const started = performance.now();
    await this.#channel.write(encodeFrame(OP.upload, bytes));
    await this.#channel.fill(bytes);
    const arrived = await answer(this.#channel, OP.upload);
    if (arrived.b > bytes) throw new OtherPeerError('it received more than was sent');
    return this.#rate(bytes, started, { bytes: arrived.b, microseconds: arrived.a });
  }

  async #download(bytes: number): Promise<number> {
    const started = performance.now();
    await this.#channel.write(encodeFrame(OP.download, bytes));
    return this.#rate(bytes, started, await this.#channel.drop(bytes));
  }

  /**
   * The receiver's view leaves out TCP's start, but sees a burst as endless speed when it was not read at once; how long
   * the whole took bounds that.
   */
  #rate(bytes: number, started: number, arrived: { bytes: number; microseconds: number }): number {
    const seconds = (performance.now() - started - (this.roundTripMs ?? 0)) / 1000;
    const whole = bytes / Math.max(seconds, LEAST_SECONDS);
    const end = arrived.bytes / (arrived.microseconds / 1e6);
    return Number.isFinite(end) && end > 0 ? Math.min(end, MOST_OF_WHOLE * whole) : whole;
  }
}

async function shortestExchange(channel: ByteChannel): Promise<number> {
  let shortest = Number.POSITIVE_INFINITY;
  for (let i = 0; i < EXCHANGES; i++) {
    const started = performance.now();
    const echo = await ask(channel, OP.ping, i);
    if (echo.a !== i) throw new OtherPeerError('it does not answer what was asked');
    shortest = Math.min(shortest, performance.now() - started);
  }
  return shortest;
}

async function ask(channel: ByteChannel, op: Op, a = 0): Promise<Frame> {
  await channel.write(encodeFrame(op, a));
  return answer(channel, op);
}

async function answer(channel: ByteChannel, op: Op): Promise<Frame> {
  const frame = decodeFrame(await channel.read(FRAME_BYTES));
  if (frame.op !== op) throw new OtherPeerError('it does not answer what was asked');
  return frame;
}
