// @ts-check
import { TENSOR_TYPES } from './gguf-writer.mjs';

/** @typedef {'Q5_0' | 'Q8_0' | 'Q4_K' | 'Q6_K'} QuantizedType */

/**
 * Blocks in a page before it repeats. A prime larger than the blocks of the tensor's rows taken one by one, so that
 * no two rows of a tensor start at the same block: equal rows in output.weight would be tokens with equal logits, and
 * the winner of a tie depends on the device that computed it. 151936 tokens share the 32-element pages; the K-quants
 * hold only ffn_down, of 17024 blocks.
 */
const PAGE_BLOCKS = { Q5_0: 151937, Q8_0: 151937, Q4_K: 17027, Q6_K: 17027 };

/**
 * Standard deviation of the integers lo..hi, all equally likely.
 * @param {number} lo
 * @param {number} hi
 */
const deviation = (lo, hi) => Math.sqrt(((hi - lo + 1) ** 2 - 1) / 12);

/**
 * IEEE half of a number in half's normal range.
 * @param {number} value
 */
function half(value) {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] ?? 0;
  const exponent = ((bits >>> 23) & 0xff) - 112;
  if (exponent < 1 || exponent > 30) throw new RangeError(`${value} is not a normal half-precision number`);
  return ((bits >>> 16) & 0x8000) | (exponent << 10) | ((bits >>> 13) & 0x3ff);
}

/**
 * For each type, what writes the scales of a block whose quants are random already. The sign of the scale is random
 * too: quants like Q5_0's -16..15 average -0.5, and that common bias, the same in every layer, would grow into the one
 * direction that all activations share.
 *
 * @type {Record<QuantizedType, (weight: number) => (page: Buffer, at: number, sign: number) => void>}
 */
const SCALES = {
  // d, qh[4], qs[16]
  Q5_0(weight) {
    const d = half(weight / deviation(-16, 15));
    return (page, at, sign) => page.writeUInt16LE(sign | d, at);
  },
  // d, qs[32]
  Q8_0(weight) {
    const d = half(weight / deviation(-127, 127));
    return (page, at, sign) => {
      page.writeUInt16LE(sign | d, at);
      // The quantizer never writes -128, and SIMD kernels that take |q| as a signed byte rely on it.
      for (let i = at + 2; i < at + 34; i++) if (page[i] === 0x80) page[i] = 0;
    };
  },
  // d, dmin, scales[12], qs[128]; a weight is d * scale * q - dmin * min, with scale = min = 8 in all sub-blocks
  Q4_K(weight) {
    const d = weight / deviation(0, 15) / 8;
    const [dHalf, dminHalf] = [half(d), half(7.5 * d)];
    return (page, at, sign) => {
      page.writeUInt16LE(sign | dHalf, at);
      page.writeUInt16LE(sign | dminHalf, at + 2);
      page.fill(8, at + 4, at + 12);
      page.fill(0x88, at + 12, at + 16);
    };
  },
  // ql[128], qh[64], scales[16], d
  Q6_K(weight) {
    const d = half(weight / deviation(-32, 31) / 2);
    return (page, at, sign) => {
      page.fill(2, at + 192, at + 208);
      page.writeUInt16LE(sign | d, at + 208);
    };
  },
};

/**
 * A few MiB of random blocks that tensors take their bytes from, one after the other, round and round: drawing 463 MiB
 * of random numbers would take longer than writing them.
 */
export class BlockPage {
  /**
   * @param {QuantizedType} type
   * @param {number} weight - standard deviation of the weights
   * @param {number} seed
   * @param {number} stream - pages of one seed need streams of their own, or weights would repeat each other's quants
   */
  constructor(type, weight, seed, stream) {
    const { blockBytes } = TENSOR_TYPES[type];
    const bytes = PAGE_BLOCKS[type] * blockBytes;
    const words = new Uint32Array(Math.ceil(bytes / 4));
    // xorshift32, whose state must not be 0; the multiplications spread neighbouring seeds and streams.
    let state = Math.imul(seed, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b) || 1;
    for (let i = 0; i < words.length; i++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      words[i] = state;
    }
    this.page = Buffer.from(words.buffer, 0, bytes);
    this.position = 0;
    const setScales = SCALES[type](weight);
    for (let at = 0; at < bytes; at += blockBytes) setScales(this.page, at, ((this.page[at] ?? 0) & 1) << 15);
  }

  /**
   * @param {number} bytes - a whole number of blocks
   * @returns {Iterable<Buffer>}
   */
  *take(bytes) {
    while (bytes > 0) {
      const chunk = this.page.subarray(this.position, this.position + bytes);
      this.position = (this.position + chunk.length) % this.page.length;
      bytes -= chunk.length;
      yield chunk;
    }
  }
}
