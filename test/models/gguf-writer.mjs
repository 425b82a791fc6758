// @ts-check
import { randomUUID } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';

/** @import { Layout, TensorInfo, TensorLayout, ValueType } from './gguf-writer.d.mts' */

const ALIGNMENT = 32;

/** Ids from `enum gguf_type` in ggml/include/gguf.h. */
export const VALUE_TYPE_IDS = /** @type {const} */ ({
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
});

/** Ids from `enum ggml_type` in ggml/include/ggml.h, block layouts from ggml/src/ggml-common.h. */
export const TENSOR_TYPES = /** @type {const} */ ({
  F32: { id: 0, blockElements: 1, blockBytes: 4 },
  Q5_0: { id: 6, blockElements: 32, blockBytes: 22 },
  Q8_0: { id: 8, blockElements: 32, blockBytes: 34 },
  Q4_K: { id: 12, blockElements: 256, blockBytes: 144 },
  Q6_K: { id: 14, blockElements: 256, blockBytes: 210 },
});

/** @param {TensorInfo} tensor */
export function tensorBytes({ name, ne, type }) {
  const { blockElements, blockBytes } = TENSOR_TYPES[type];
  const columns = ne[0] ?? 0;
  if (columns % blockElements !== 0) {
    throw new RangeError(`${name}: ${columns} columns do not divide into ${type} blocks of ${blockElements}`);
  }
  return (ne.reduce((product, size) => product * size, 1) / blockElements) * blockBytes;
}

/** @param {number} value */
const u32 = (value) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

/** @param {number} value */
const u64 = (value) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};

/** @param {string} value */
const string = (value) => {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
};

/** @type {Record<Exclude<keyof typeof VALUE_TYPE_IDS, 'string' | 'array'>, (value: number) => ArrayBufferView>} */
const ENCODE_NUMBER = {
  u8: (value) => Uint8Array.of(value),
  i8: (value) => Int8Array.of(value),
  u16: (value) => Uint16Array.of(value),
  i16: (value) => Int16Array.of(value),
  u32: (value) => Uint32Array.of(value),
  i32: (value) => Int32Array.of(value),
  f32: (value) => Float32Array.of(value),
  bool: (value) => Uint8Array.of(value ? 1 : 0),
  u64: (value) => BigUint64Array.of(BigInt(value)),
  i64: (value) => BigInt64Array.of(BigInt(value)),
  f64: (value) => Float64Array.of(value),
};

/**
 * @param {keyof typeof ENCODE_NUMBER | 'string'} type
 * @param {unknown} value
 */
function encodeScalar(type, value) {
  if (type === 'string') return string(String(value));
  const view = ENCODE_NUMBER[type](Number(value));
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}

/**
 * @param {string} key
 * @param {ValueType} type
 * @param {unknown} value
 * @returns {Buffer}
 */
export function encodeKeyValue(key, type, value) {
  if (!type.endsWith('[]')) {
    const scalar = /** @type {keyof typeof ENCODE_NUMBER | 'string'} */ (type);
    return Buffer.concat([string(key), u32(VALUE_TYPE_IDS[scalar]), encodeScalar(scalar, value)]);
  }
  const element = /** @type {keyof typeof ENCODE_NUMBER | 'string'} */ (type.slice(0, -2));
  const values = /** @type {unknown[]} */ (value);
  return Buffer.concat([
    string(key),
    u32(VALUE_TYPE_IDS.array),
    u32(VALUE_TYPE_IDS[element]),
    u64(values.length),
    ...values.map((item) => encodeScalar(element, item)),
  ]);
}

/** @param {number} bytes */
const padding = (bytes) => (ALIGNMENT - (bytes % ALIGNMENT)) % ALIGNMENT;

/**
 * @param {readonly Buffer[]} keyValues
 * @param {readonly TensorInfo[]} tensors
 * @returns {Layout}
 */
export function layoutGguf(keyValues, tensors) {
  /** @type {TensorLayout[]} */
  const placed = [];
  const parts = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(keyValues.length), ...keyValues];
  let dataBytes = 0;
  for (const tensor of tensors) {
    const bytes = tensorBytes(tensor);
    placed.push({ ...tensor, offset: dataBytes, bytes });
    parts.push(string(tensor.name), u32(tensor.ne.length), ...tensor.ne.map(u64));
    parts.push(u32(TENSOR_TYPES[tensor.type].id), u64(dataBytes));
    dataBytes += bytes + padding(bytes);
  }
  const unpadded = Buffer.concat(parts);
  const header = Buffer.concat([unpadded, Buffer.alloc(padding(unpadded.length))]);
  return { header, tensors: placed, fileBytes: header.length + dataBytes };
}

/**
 * @param {string} path
 * @param {Layout} layout
 * @param {(tensor: TensorLayout) => Iterable<Uint8Array>} chunksOf
 * @returns {Promise<void>}
 */
export async function writeGguf(path, layout, chunksOf) {
  // A name of its own, so that two test processes that make the same model at once don't write into one file.
  const temporary = `${path}.${randomUUID()}.tmp`;
  try {
    const file = await open(temporary, 'wx');
    try {
      await file.writeFile(layout.header);
      for (const tensor of layout.tensors) {
        let written = 0;
        for (const chunk of chunksOf(tensor)) {
          await file.writeFile(chunk);
          written += chunk.length;
        }
        if (written !== tensor.bytes) throw new Error(`${tensor.name}: ${written} bytes given, ${tensor.bytes} needed`);
        await file.writeFile(Buffer.alloc(padding(written)));
      }
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
