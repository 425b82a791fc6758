/** Frames of a control connection: length (u32, big-endian), then that many bytes of JSON. The same in every version. */

export const MAX_FRAME_BYTES = 1024 * 1024;
const HEADER_BYTES = 4;

export function encodeFrame(json: string): Buffer {
  const length = Buffer.byteLength(json);
  if (length > MAX_FRAME_BYTES) throw new RangeError(`a frame of ${length} bytes is too long`);
  const frame = Buffer.allocUnsafe(HEADER_BYTES + length);
  frame.writeUInt32BE(length, 0);
  frame.write(json, HEADER_BYTES);
  return frame;
}

/** Cuts a stream of bytes into frames, however they arrive. */
export class FrameDecoder {
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerLength = 0;
  #body: Buffer | undefined;
  #bodyLength = 0;

  /** Calls `onFrame` for each frame that is complete, until it returns false. False: a length no frame has. */
  push(chunk: Buffer, onFrame: (frame: Buffer) => boolean): boolean {
    let at = 0;
    while (at < chunk.length) {
      if (!this.#body) {
        const taken = chunk.copy(this.#header, this.#headerLength, at, at + HEADER_BYTES - this.#headerLength);
        this.#headerLength += taken;
        at += taken;
        if (this.#headerLength < HEADER_BYTES) return true;
        const length = this.#header.readUInt32BE(0);
        if (length === 0 || length > MAX_FRAME_BYTES) return false;
        this.#body = Buffer.allocUnsafe(length);
        this.#bodyLength = 0;
      }
      const taken = chunk.copy(this.#body, this.#bodyLength, at);
      this.#bodyLength += taken;
      at += taken;
      if (this.#bodyLength < this.#body.length) return true;
      const frame = this.#body;
      this.#body = undefined;
      this.#headerLength = 0;
      if (!onFrame(frame)) return true;
    }
    return true;
  }
}
