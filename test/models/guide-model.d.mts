import type { TensorInfo } from './gguf-writer.d.mts';

export interface GuideModelOptions {
  /** Seed of the random blocks, 0 to 2³² - 1. Default 1. */
  seed?: number;
  /** GGUF whose tokenizer is copied. Default: the Qwen2 vocabulary of the vendored llama.cpp. */
  vocabFile?: string;
  /** Layers to write, 1 to 24. Default 24, the guide's model. */
  layers?: number;
}

/** The tensors of the guide's model, in file order. */
export declare function guideTensors(options?: { layers?: number; vocabSize?: number }): TensorInfo[];

/**
 * Writes a GGUF of the shape of the guide's model (Qwen2.5-0.5B-Instruct Q4_K_M, 462.96 MiB of tensors) with random
 * weights. It loads and runs like the real one, says nonsense and does not stop by itself. The same options give the
 * same bytes; a file that has them already is left alone.
 */
export declare function writeGuideModel(path: string, options?: GuideModelOptions): Promise<void>;
