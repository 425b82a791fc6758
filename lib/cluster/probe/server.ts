/** The side of a probe that was dialled and answers. */
import { addon } from '../../addon.js';
import type { SecureStream, Transport } from '../../transport/transport.js';
import { ByteChannel } from './channel.js';
import {
  decodeFrame,
  encodeFrame,
  encodeGreeting,
  FRAME_BYTES,
  type Frame,
  ID_BYTES,
  idText,
  MAX_FRAMES,
  MAX_STREAM_BYTES,
  MAX_TRANSFER_BYTES,
  OP,
  STATUS,
} from './protocol.js';

const MAX_PROBES = 8;
const IDLE_MS = 5000;
const LIFETIME_MS = 15_000;

export interface ProbeReport {
  readonly roundTripMs: number | null;
  /** Throughput from this device to the one that dialled. */
  readonly bytesPerSecond: number | null;
}

export interface ProbeServerOptions {
  transport: Pick<Transport, 'cut'>;
  self: string;
  /** Whether transfers may begin now; they disturb others, and others them. Each yes is followed by `release()`. */
  acquire: () => boolean;
  release: () => void;
  /** What a member that dialled says it measured. */
  onReport: (from: string, report: ProbeReport) => void;
}

/** Answers probes, a few at a time and each within bounds. */
export class ProbeServer {
  readonly #options: ProbeServerOptions;
  readonly #channels = new Set<ByteChannel>();
  #closed = false;

  constructor(options: ProbeServerOptions) {
    this.#options = options;
  }

  /** Takes the stream over. Does not throw. */
  serve(stream: SecureStream): void {
    if (this.#closed || this.#channels.size >= 2 * MAX_PROBES) {
      addon().closeDescriptor(stream.fd);
      this.#options.transport.cut(stream.id);
      return;
    }
    let channel: ByteChannel;
    try {
      channel = new ByteChannel(this.#options.transport, stream, { idleMs: IDLE_MS, lifetimeMs: LIFETIME_MS });
    } catch {
      return;
    }
    const full = this.#channels.size >= MAX_PROBES;
    this.#channels.add(channel);
    void this.#answer(channel, stream.preamble, full)
      // Whoever hung up, fell silent or asked for too much is simply left.
      .catch(() => channel.destroy())
      .finally(() => this.#channels.delete(channel));
  }

  close(): void {
    this.#closed = true;
    for (const channel of this.#channels) channel.destroy();
  }

  async #answer(channel: ByteChannel, preamble: Uint8Array, full: boolean): Promise<void> {
    if (preamble.length !== ID_BYTES) throw new Error('it did not say who it is');
    await channel.write(encodeGreeting(this.#options.self, full ? STATUS.full : STATUS.ok));
    if (full) {
      channel.close();
      return;
    }
    const session = { bytes: 0, transferring: false };
    try {
      for (let frames = 0; frames < MAX_FRAMES; frames++) {
        const frame = decodeFrame(await channel.read(FRAME_BYTES));
        if (frame.op === OP.report) {
          this.#options.onReport(idText(preamble), readReport(frame));
          break;
        }
        await this.#answerFrame(channel, frame, session);
      }
    } finally {
      if (session.transferring) this.#options.release();
    }
    channel.close();
  }

  async #answerFrame(
    channel: ByteChannel,
    { op, a, b }: Frame,
    session: { bytes: number; transferring: boolean },
  ): Promise<void> {
    switch (op) {
      case OP.ping:
        return channel.write(encodeFrame(op, a, b));
      case OP.start:
        session.transferring ||= this.#options.acquire();
        return channel.write(encodeFrame(op, session.transferring ? 1 : 0));
      case OP.upload:
      case OP.download: {
        session.bytes += a;
        if (!session.transferring || a === 0 || a > MAX_TRANSFER_BYTES || session.bytes > MAX_STREAM_BYTES) {
          throw new Error('it asked for more than it may');
        }
        if (op === OP.download) return channel.fill(a);
        const { bytes, microseconds } = await channel.drop(a);
        return channel.write(encodeFrame(op, microseconds, bytes));
      }
      default:
        throw new Error('it asked for what there is not');
    }
  }
}

function readReport({ a, b }: Frame): ProbeReport {
  return { roundTripMs: a > 0 ? a / 1000 : null, bytesPerSecond: b > 0 ? b : null };
}
