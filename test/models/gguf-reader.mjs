// @ts-check
import { TENSOR_TYPES, VALUE_TYPE_IDS } from './gguf-writer.mjs';

/** @import { Gguf } from './gguf-reader.d.mts' */
/** @import { TensorInfo, TensorType } from './gguf-writer.d.mts' */

class Cursor {
  /** @param {Buffer} buffer */
  constructor(buffer) {
    this.buffer = buffer;
    this.position = 0;
  }

  /** @param {number} bytes */
  take(bytes) {
    const end = this.position + bytes;
    // subarray() would quietly return less.
    if (end > this.buffer.length) throw new RangeError(`GGUF header ends at ${this.buffer.length}, ${end} needed`);
    const taken = this.buffer.subarray(this.position, end);
    this.position = end;
    return taken;
  }

  u32() {
    return this.take(4).readUInt32LE();
  }

  u64() {
    return Number(this.take(8).readBigUInt64LE());
  }

  string() {
    return this.take(this.u64()).toString();
  }

  /**
   * @param {number} type
   * @returns {unknown}
   */
  value(type) {
    switch (type) {
      case VALUE_TYPE_IDS.u8:
        return this.take(1).readUInt8();
      case VALUE_TYPE_IDS.i8:
        return this.take(1).readInt8();
      case VALUE_TYPE_IDS.u16:
        return this.take(2).readUInt16LE();
      case VALUE_TYPE_IDS.i16:
        return this.take(2).readInt16LE();
      case VALUE_TYPE_IDS.u32:
        return this.u32();
      case VALUE_TYPE_IDS.i32:
        return this.take(4).readInt32LE();
      case VALUE_TYPE_IDS.f32:
        return this.take(4).readFloatLE();
      case VALUE_TYPE_IDS.bool:
        return this.take(1).readUInt8() !== 0;
      case VALUE_TYPE_IDS.string:
        return this.string();
      case VALUE_TYPE_IDS.u64:
        return this.u64();
      case VALUE_TYPE_IDS.i64:
        return Number(this.take(8).readBigInt64LE());
      case VALUE_TYPE_IDS.f64:
        return this.take(8).readDoubleLE();
      case VALUE_TYPE_IDS.array: {
        const element = this.u32();
        const count = this.u64();
        return Array.from({ length: count }, () => this.value(element));
      }
      default:
        throw new TypeError(`GGUF value type ${type} is not known`);
    }
  }
}

const TENSOR_TYPE_NAMES = new Map(
  Object.entries(TENSOR_TYPES).map(([name, { id }]) => [id, /** @type {TensorType} */ (name)]),
);

/**
 * @param {Buffer} buffer
 * @returns {Gguf}
 */
export function parseGguf(buffer) {
  const cursor = new Cursor(buffer);
  if (cursor.take(4).toString() !== 'GGUF') throw new TypeError('not a GGUF file');
  const version = cursor.u32();
  if (version !== 3) throw new TypeError(`GGUF version ${version} is not read here, only 3`);
  const tensorCount = cursor.u64();
  const keyValueCount = cursor.u64();

  /** @type {Map<string, { value: unknown, raw: Buffer }>} */
  const metadata = new Map();
  for (let i = 0; i < keyValueCount; i++) {
    const start = cursor.position;
    const key = cursor.string();
    const value = cursor.value(cursor.u32());
    metadata.set(key, { value, raw: buffer.subarray(start, cursor.position) });
  }

  /** @type {(TensorInfo & { offset: number })[]} */
  const tensors = [];
  for (let i = 0; i < tensorCount; i++) {
    const name = cursor.string();
    const dimensions = cursor.u32();
    const ne = Array.from({ length: dimensions }, () => cursor.u64());
    const typeId = cursor.u32();
    const type = TENSOR_TYPE_NAMES.get(typeId);
    if (type === undefined) throw new TypeError(`${name}: tensor type ${typeId} is not known here`);
    tensors.push({ name, ne, type, offset: cursor.u64() });
  }
  return { metadata, tensors, dataOffset: Math.ceil(cursor.position / 32) * 32 };
}
