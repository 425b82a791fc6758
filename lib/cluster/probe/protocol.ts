/**
 * What goes over a `probe` stream. The one that was dialled says who it is; then the dialler asks, one thing at a time:
 *
 *     greeting   'drp1' | id (16 bytes) | status u8
 *     frame      op u8 | a u32 | b u32        big endian; a question is answered by a frame of the same op
 *     ping       a: any number                → the same frame
 *     start                                   → a: 1 if transfers may begin, 0 to ask again later
 *     upload     a: bytes, which follow       → a: microseconds from the first quarter to the end, b: bytes within them
 *     download   a: bytes                     → the bytes, without a frame
 *     report     a: round trip in µs, b: bytes per second that the downloads made, 0 for unknown; no answer
 */

export const MAGIC = Buffer.from('drp1');
export const ID_BYTES = 16;
export const GREETING_BYTES = MAGIC.length + ID_BYTES + 1;
export const FRAME_BYTES = 9;

export const STATUS = { ok: 0, full: 1 } as const;
export const OP = { ping: 1, start: 2, upload: 3, download: 4, report: 5 } as const;
export type Op = (typeof OP)[keyof typeof OP];

/** Bytes of one transfer, and of all of one stream in both directions; asking for more ends it. */
export const MAX_TRANSFER_BYTES = 1024 * 1024;
export const MAX_STREAM_BYTES = 4 * 1024 * 1024;
export const MAX_FRAMES = 64;

const UINT32_MAX = 2 ** 32 - 1;

export interface Frame {
  readonly op: number;
  readonly a: number;
  readonly b: number;
}

export function encodeFrame(op: Op, a = 0, b = 0): Buffer {
  const frame = Buffer.alloc(FRAME_BYTES);
  frame.writeUInt8(op, 0);
  frame.writeUInt32BE(clamp(a), 1);
  frame.writeUInt32BE(clamp(b), 5);
  return frame;
}

function clamp(value: number): number {
  return Math.min(Math.max(Math.round(value), 0), UINT32_MAX);
}

export function decodeFrame(frame: Buffer): Frame {
  return { op: frame.readUInt8(0), a: frame.readUInt32BE(1), b: frame.readUInt32BE(5) };
}

export function encodeGreeting(id: string, status: number): Buffer {
  return Buffer.concat([MAGIC, idBytes(id), Buffer.from([status])]);
}

/** Null for what is no greeting. */
export function decodeGreeting(greeting: Buffer): { readonly id: string; readonly status: number } | null {
  if (!greeting.subarray(0, MAGIC.length).equals(MAGIC)) return null;
  return {
    id: idText(greeting.subarray(MAGIC.length, MAGIC.length + ID_BYTES)),
    status: greeting.readUInt8(GREETING_BYTES - 1),
  };
}

export function idBytes(id: string): Buffer {
  return Buffer.from(id, 'base64url');
}

export function idText(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64url');
}
