/** Reads what test/phones/linkemu.c recorded: the raw bytes, and each TCP connection's two directions put together. */
import { readFileSync } from 'node:fs';

export interface CapturedStream {
  /** `address:port`. */
  readonly from: string;
  readonly to: string;
  /** Whether `from` opened the connection. */
  readonly opened: boolean;
  /** What was sent, in order, without repetitions; from the first byte that was seen up to a gap. */
  readonly data: Buffer;
}

const PCAP_HEADER = 24;
const RECORD_HEADER = 16;
const TCP = 6;
const SYN = 0x02;
const ACK = 0x10;
/** Between packets, so that the end of one and the start of the next are not read as one. */
const GAP = Buffer.from('\0<packet>\0');

interface Segment {
  readonly sequence: number;
  readonly payload: Buffer;
}

/** The IP packets of a pcap file of raw IP. */
export function packets(file: string): Buffer[] {
  const bytes = readFileSync(file);
  const found: Buffer[] = [];
  for (let at = PCAP_HEADER; at + RECORD_HEADER <= bytes.length; ) {
    const length = bytes.readUInt32LE(at + 8);
    found.push(bytes.subarray(at + RECORD_HEADER, at + RECORD_HEADER + length));
    at += RECORD_HEADER + length;
  }
  return found;
}

/** The TCP streams of IPv4, one for each direction of a connection, in the order in which they began. */
export function streams(file: string): CapturedStream[] {
  const found = new Map<string, { from: string; to: string; opened: boolean; first: number; segments: Segment[] }>();
  for (const packet of packets(file)) {
    if (packet.length < 40 || packet.readUInt8(0) >> 4 !== 4 || packet.readUInt8(9) !== TCP) continue;
    const tcp = packet.subarray((packet.readUInt8(0) & 15) * 4, packet.readUInt16BE(2));
    const flags = tcp.readUInt8(13);
    const from = `${[...packet.subarray(12, 16)].join('.')}:${tcp.readUInt16BE(0)}`;
    const to = `${[...packet.subarray(16, 20)].join('.')}:${tcp.readUInt16BE(2)}`;
    const sequence = tcp.readUInt32BE(4);
    const key = `${from} ${to}`;
    const stream = found.get(key) ?? { from, to, opened: false, first: sequence, segments: [] };
    found.set(key, stream);
    if (flags & SYN) {
      stream.first = (sequence + 1) >>> 0;
      stream.opened = (flags & ACK) === 0;
    } else {
      stream.segments.push({ sequence, payload: tcp.subarray((tcp.readUInt8(12) >> 4) * 4) });
    }
  }
  return [...found.values()].map(({ from, to, opened, first, segments }) => ({
    from,
    to,
    opened,
    data: assemble(first, segments),
  }));
}

/** Segments may be repeated, overlap and come out of order; sequence numbers wrap around. */
function assemble(first: number, segments: readonly Segment[]): Buffer {
  const placed = segments
    .map(({ sequence, payload }) => ({ offset: (sequence - first) | 0, payload }))
    .filter(({ payload }) => payload.length > 0)
    .sort((a, b) => a.offset - b.offset);
  const parts: Buffer[] = [];
  let end = 0;
  for (const { offset, payload } of placed) {
    if (offset > end) break;
    if (offset + payload.length <= end) continue;
    parts.push(payload.subarray(end - offset));
    end = offset + payload.length;
  }
  return Buffer.concat(parts);
}

/** A recording, to look for bytes in. */
export class Capture {
  readonly streams: readonly CapturedStream[];
  /** Bytes of all packets. */
  readonly bytes: number;
  readonly #all: readonly Buffer[];

  constructor(file: string) {
    const recorded = packets(file);
    this.streams = streams(file);
    this.bytes = recorded.reduce((sum, { length }) => sum + length, 0);
    this.#all = [Buffer.concat(recorded.flatMap((packet) => [packet, GAP])), ...this.streams.map(({ data }) => data)];
  }

  /** Whether the bytes went over the link, within a packet or across the borders of several. */
  saw(needle: Buffer): boolean {
    return this.#all.some((bytes) => bytes.includes(needle));
  }
}
