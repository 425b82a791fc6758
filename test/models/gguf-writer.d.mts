type NumberType = 'u8' | 'i8' | 'u16' | 'i16' | 'u32' | 'i32' | 'f32' | 'bool' | 'u64' | 'i64' | 'f64';
export type ValueType = NumberType | 'string' | `${NumberType}[]` | 'string[]';
export type TensorType = 'F32' | 'Q5_0' | 'Q8_0' | 'Q4_K' | 'Q6_K';

export interface TensorInfo {
  readonly name: string;
  /** Elements of each dimension, columns first, as ggml orders them. */
  readonly ne: readonly number[];
  readonly type: TensorType;
}

export interface TensorLayout extends TensorInfo {
  /** Bytes from the start of the tensor data, which is the end of the header. */
  readonly offset: number;
  readonly bytes: number;
}

export interface Layout {
  /** Everything before the tensor data, padded to the alignment. */
  readonly header: Buffer;
  readonly tensors: readonly TensorLayout[];
  readonly fileBytes: number;
}

export declare const VALUE_TYPE_IDS: Readonly<Record<NumberType | 'string' | 'array', number>>;
export declare const TENSOR_TYPES: Readonly<
  Record<TensorType, { readonly id: number; readonly blockElements: number; readonly blockBytes: number }>
>;

export declare function tensorBytes(tensor: TensorInfo): number;

/** One metadata entry, ready for {@link layoutGguf}. */
export declare function encodeKeyValue(key: string, type: ValueType, value: unknown): Buffer;

/** The header of a GGUF v3 file with 32-byte alignment, and where each tensor goes. */
export declare function layoutGguf(keyValues: readonly Buffer[], tensors: readonly TensorInfo[]): Layout;

/**
 * Writes the file piece by piece, beside `path` and then renamed to it, so that `path` never names half a file.
 *
 * @param chunksOf - the bytes of one tensor; a chunk may be reused once the next one is asked for.
 */
export declare function writeGguf(
  path: string,
  layout: Layout,
  chunksOf: (tensor: TensorLayout) => Iterable<Uint8Array>,
): Promise<void>;
