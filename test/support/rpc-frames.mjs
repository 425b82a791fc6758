// @ts-check
// The framing of ggml's RPC protocol 7, and the numbers of its commands and of this package's extension.

export const COMMANDS = /** @type {const} */ ({
  alloc_buffer: 0,
  get_alignment: 1,
  get_max_size: 2,
  buffer_get_base: 3,
  free_buffer: 4,
  buffer_clear: 5,
  set_tensor: 6,
  set_tensor_hash: 7,
  get_tensor: 8,
  copy_tensor: 9,
  graph_compute: 10,
  get_device_memory: 11,
  init_tensor: 12,
  get_alloc_size: 13,
  hello: 14,
  device_count: 15,
  graph_recompute: 16,
  memset_tensor: 17,
  write: 128,
  read: 129,
  offer: 130,
  put_weight: 131,
  use_weight: 132,
  update: 133,
  read_half: 134,
  packed_graph: 135,
});

/** @typedef {import('./rpc-frames.d.mts').CommandName} CommandName */

/** @type {ReadonlyMap<number, CommandName>} */
const names = new Map(Object.entries(COMMANDS).map(([name, number]) => [number, /** @type {CommandName} */ (name)]));

/** @type {ReadonlySet<string>} */
const answered = new Set([
  'alloc_buffer',
  'get_alignment',
  'get_max_size',
  'buffer_get_base',
  'set_tensor_hash',
  'get_tensor',
  'copy_tensor',
  'get_device_memory',
  'get_alloc_size',
  'hello',
  'device_count',
  'read',
  'read_half',
  'offer',
]);

/** @param {string} command */
export function hasAnswer(command) {
  return answered.has(command);
}

/** @param {string} command */
export function isGraph(command) {
  return command === 'graph_compute' || command === 'graph_recompute' || command === 'packed_graph';
}

/** Commands that bring the result of a graph back. @param {string} command */
export function isRead(command) {
  return command === 'get_tensor' || command === 'read' || command === 'read_half';
}

/** Commands that bring a tensor's weights to the worker while a model loads. @param {string} command */
export function isWeight(command) {
  return command === 'set_tensor' || command === 'put_weight' || command === 'use_weight';
}

const NOTICE_SIZE = 0xffff_ffff_ffff_ffffn;
const NOTICE_HEADER_BYTES = 8;

/** Cuts a byte stream into frames as its bytes come in, and hands on each piece of a frame with the frame. */
class FrameParser {
  /** @param {number} headerBytes */
  constructor(headerBytes) {
    this.header = Buffer.alloc(headerBytes);
    this.headerFilled = 0;
    /** @type {{ command: CommandName | 'answer' | 'notice', size: number } | undefined} */
    this.frame = undefined;
    this.left = 0;
  }

  /**
   * @param {Buffer} chunk
   * @param {(piece: Buffer, frame: { command: any, size: number }, place: { first: boolean, last: boolean }) => void} onPiece
   */
  push(chunk, onPiece) {
    let position = 0;
    while (position < chunk.length) {
      if (!this.frame) {
        const taken = Math.min(this.header.length - this.headerFilled, chunk.length - position);
        chunk.copy(this.header, this.headerFilled, position, position + taken);
        this.headerFilled += taken;
        position += taken;
        if (this.headerFilled < this.header.length) return;
        this.headerFilled = 0;
        const frame = this.parseHeader();
        this.frame = frame;
        this.left = frame.size;
        const last = frame.size === 0;
        if (last) this.frame = undefined;
        onPiece(Buffer.from(this.header), frame, { first: true, last });
      } else {
        const frame = this.frame;
        const taken = Math.min(this.left, chunk.length - position);
        const piece = chunk.subarray(position, position + taken);
        position += taken;
        this.left -= taken;
        this.extend(piece);
        const last = this.left === 0;
        if (last) this.frame = undefined;
        onPiece(piece, frame, { first: false, last });
      }
    }
  }

  /** @returns {{ command: any, size: number }} */
  parseHeader() {
    throw new Error('not a frame');
  }

  /** Looks at a piece of a frame, which may turn out to be longer than its header said. @param {Buffer} _piece */
  extend(_piece) {}
}

/** Requests: command u8 | size u64 | payload. */
export class RequestParser extends FrameParser {
  constructor() {
    super(9);
  }

  /** @override */
  parseHeader() {
    const number = this.header[0] ?? 0;
    return { command: names.get(number) ?? `unknown ${number}`, size: Number(this.header.readBigUInt64LE(1)) };
  }
}

/** Answers: size u64 | payload; or a notice: its mark, reason u32, size u32, text. */
export class AnswerParser extends FrameParser {
  constructor() {
    super(8);
    this.noticeHeader = Buffer.alloc(0);
  }

  /** @override */
  parseHeader() {
    const size = this.header.readBigUInt64LE();
    if (size !== NOTICE_SIZE) return { command: 'answer', size: Number(size) };
    this.noticeHeader = Buffer.alloc(0);
    return { command: 'notice', size: NOTICE_HEADER_BYTES };
  }

  /** @override @param {Buffer} piece */
  extend(piece) {
    if (this.frame?.command !== 'notice' || this.noticeHeader.length === NOTICE_HEADER_BYTES) return;
    this.noticeHeader = Buffer.concat([this.noticeHeader, piece]);
    if (this.noticeHeader.length === NOTICE_HEADER_BYTES) this.left = this.noticeHeader.readUInt32LE(4);
  }
}
