import type { TensorInfo } from './gguf-writer.d.mts';

export interface Gguf {
  /** `raw` is the whole entry (key, type and value), to be copied into another file as it is. */
  readonly metadata: ReadonlyMap<string, { readonly value: unknown; readonly raw: Buffer }>;
  /** `offset` counts from `dataOffset`. */
  readonly tensors: readonly (TensorInfo & { readonly offset: number })[];
  readonly dataOffset: number;
}

/** Reads the header of a GGUF v3 file with the default alignment; `buffer` need not hold the tensor data. */
export declare function parseGguf(buffer: Buffer): Gguf;
